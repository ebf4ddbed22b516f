package registry

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/source"
)

// TestLimitsForNodes: a RateLimit goes to the nodes with pods of its namespace, and names the
// pods that it selects there and no others. Its status follows what exists.
func TestLimitsForNodes(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	pod := func(ns, name, node, labels string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %[2]s, namespace: %[1]s, uid: %[2]s, labels: {%[4]s}}\nspec: {nodeName: %[3]s, containers: []}\nstatus: {phase: Running, podIP: 10.2.0.1, podIPs: [{ip: 10.2.0.1}]}\n", ns, name, node, labels)
	}
	limit := func(name, spec string) string {
		return fmt.Sprintf("---\napiVersion: ambit.mesh/v1alpha1\nkind: RateLimit\nmetadata: {name: %s, namespace: shop}\nspec: {%s, connections: [{rate: 3}]}\n", name, spec)
	}
	r.Apply(events(t, pod("shop", "a", "n1", "app: web")+pod("shop", "b", "n1", "app: other")+pod("shop", "c", "n2", "app: web")+pod("street", "d", "n3", "app: web")+
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}\n"+
		limit("svc", "targetRefs: [{kind: Service, name: web}]")+limit("pods", "selector: {matchLabels: {app: web}}")))
	check := func(want map[string][]string) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(rec.limits)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("sent are %q", got)
		}
		for name, uids := range want {
			l, err := ratelimit.Decode(rec.limits[name])
			if err != nil || !slices.Equal(l.Workloads, uids) || (len(uids) == 0) != slices.Equal(l.Hosts, []string{"web.shop.svc.cluster.local"}) {
				t.Errorf("%s: %+v, error %v", name, l, err)
			}
		}
	}
	uid := func(name string) []string { return []string{"Kubernetes//Pod/shop/" + name} }
	check(map[string][]string{
		"node/Kubernetes/n1/shop/pods": uid("a"), "node/Kubernetes/n2/shop/pods": uid("c"),
		"node/Kubernetes/n1/shop/svc": nil, "node/Kubernetes/n2/shop/svc": nil,
	})
	condition := func(name, want string) {
		t.Helper()
		expect(t, r, source.RateLimit.Name, name, status.ZtunnelAccepted, want)
	}
	condition("svc", "True Accepted")
	condition("pods", "True Accepted")
	r.Apply([]source.Event{{Key: source.Pod.Key("shop", "c")}})
	check(map[string][]string{"node/Kubernetes/n1/shop/pods": uid("a"), "node/Kubernetes/n1/shop/svc": nil})
	r.Apply([]source.Event{{Key: source.Service.Key("shop", "web")}, {Key: source.Pod.Key("shop", "a")}})
	check(map[string][]string{})
	condition("svc", "False TargetNotFound")
	condition("pods", "False TargetNotFound")
	r.Apply(events(t, limit("pods", "selector: {}")))
	condition("pods", "False Invalid")
}
