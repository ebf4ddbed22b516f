package registry

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// TestTrafficForNodes: rules and routes of connections go to the nodes that need them: those
// of a service's own namespace to all, those of clients to where such clients run. One
// changed rule is one message of few bytes.
func TestTrafficForNodes(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	pod := func(ns, node string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: p-%[2]s, namespace: %[1]s, uid: u%[1]s%[2]s}\nspec: {nodeName: %[2]s, containers: []}\nstatus: {phase: Running, podIP: 10.2.0.1, podIPs: [{ip: 10.2.0.1}]}\n", ns, node)
	}
	rule := func(ns, name, host string, limit int) string {
		return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s, namespace: %s}\nspec: {host: %q, trafficPolicy: {connectionPool: {tcp: {maxConnections: %d}}}}\n", name, ns, host, limit)
	}
	tcp := func(ns string) string {
		return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: r, namespace: %s}\nspec: {parentRefs: [{group: \"\", kind: Service, name: web, namespace: shop}], rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]}\n", ns)
	}
	r.Apply(events(t, demo+pod("market", "n1")+pod("market", "n2")+pod("street", "n3")+rule("shop", "web", "web", 1)+rule("market", "mine", "web.shop.svc.cluster.local", 2)+tcp("shop")+tcp("market")))
	groups := map[string][]xds.Group{}
	for _, of := range r.Resources() {
		if of.TypeURL == wellknown.TypeTraffic || of.TypeURL == wellknown.TypeRoute {
			for _, res := range of.Set {
				groups[res.Name] = res.Groups
			}
		}
	}
	want := map[string]xds.Group{
		"nodes/shop/web":                                  "nodes",
		"node/Kubernetes/n1/market/mine":                  "node/Kubernetes/n1",
		"node/Kubernetes/n2/market/mine":                  "node/Kubernetes/n2",
		"nodes/producer/TCPRoute/shop/r/0":                "nodes",
		"node/Kubernetes/n1/consumer/TCPRoute/market/r/0": "node/Kubernetes/n1",
		"node/Kubernetes/n2/consumer/TCPRoute/market/r/0": "node/Kubernetes/n2",
	}
	for name, group := range want {
		if !slices.Equal(groups[name], []xds.Group{group}) {
			t.Errorf("%s is for %v, want %s", name, groups[name], group)
		}
	}
	if len(groups) != len(want) {
		t.Errorf("%v", groups)
	}
	r.Apply(events(t, rule("shop", "web", "web", 9)))
	if len(rec.last) != 1 || len(rec.last[0].Set) != 1 || len(rec.last[0].Removed) != 0 || len(rec.last[0].Set[0].Body) > 128 {
		t.Errorf("a changed rule is sent as %+v", rec.last)
	}
	// A waypoint that is asked for and does not exist is not replaced.
	r.Apply(events(t, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}\n"))
	if len(rec.rules) != 0 {
		t.Errorf("without the waypoint that is asked for: %d routes", len(rec.rules))
	}
	// A service that gets a waypoint takes its routes there.
	r.Apply(events(t, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}\n---\n"+fmt.Sprintf(gateway, "", "", "")))
	for name := range rec.rules {
		if groups[name] != nil {
			t.Errorf("%s is still sent to node proxies", name)
		}
	}
	if len(rec.rules) == 0 {
		t.Error("the waypoint has no routes")
	}
}
