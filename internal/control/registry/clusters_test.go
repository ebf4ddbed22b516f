package registry

import (
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
)

// eventsOf are events as the source of another cluster delivers them.
func eventsOf(t testing.TB, c source.Cluster, yaml string) []source.Event {
	t.Helper()
	list := events(t, yaml)
	for i := range list {
		list[i].Key.Cluster = c
	}
	return list
}

const remote = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {topology.istio.io/network: ""}}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: far}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: other, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: shop}
spec: {clusterIP: 10.1.0.2, selector: {app: web}, ports: [{port: 81}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: open, namespace: shop}
spec: {rules: [{}]}
`

// TestTwoClusters: two clusters have a namespace, a node, a pod and a Service of
// the same names, and addresses that are the same in different networks.
func TestTwoClusters(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{Network: "near"}, rec)
	east := source.ClusterOf("east")
	r.Apply(eventsOf(t, east, remote)) // has not joined
	if len(rec.addresses) != 0 || len(r.Status()) != 0 {
		t.Fatalf("objects of a cluster that has not joined: %v", rec.addresses)
	}
	r.Apply(events(t, demo+"---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: sel, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}}\n"))
	before := len(rec.addresses)
	if err := r.Join(east, ClusterOptions{Network: "far"}); err != nil {
		t.Fatal(err)
	}
	r.Apply(eventsOf(t, east, remote))
	own, other := rec.workload(t, "Kubernetes//Pod/shop/web-1"), rec.workload(t, "east//Pod/shop/web-1")
	if own.Network != "near" || own.ClusterId != "Kubernetes" || own.Locality != nil {
		t.Errorf("own: %v", own)
	}
	if other.Network != "far" || other.ClusterId != "east" || other.Locality.GetZone() != "far" {
		t.Errorf("of the other cluster: %v", other)
	}
	// Each Service selects pods of its own cluster; both have an endpoint under
	// the one host name.
	const web, far = "shop/web.shop.svc.cluster.local", "shop/far.shop.svc.cluster.local"
	if own.Services[web] == nil || own.Services[far] != nil || other.Services[web] == nil || other.Services[far] == nil {
		t.Errorf("services %v and %v", own.Services, other.Services)
	}
	if s := rec.service(t, web); len(s.Addresses) != 1 || s.Addresses[0].Network != "near" {
		t.Errorf("the control plane's own Service counts: %v", s)
	}
	// Configuration is of the control plane's own cluster.
	if rec.policies["shop/open"] != nil {
		t.Error("a policy of another cluster is published")
	}
	if !slices.Contains(other.AuthorizationPolicies, "shop/sel") || !slices.Contains(own.AuthorizationPolicies, "shop/sel") {
		t.Errorf("policies %q and %q", own.AuthorizationPolicies, other.AuthorizationPolicies)
	}
	// The nodes of one name are two nodes.
	ids := r.Nodes.Identities()
	for _, c := range []string{"Kubernetes", "east"} {
		if len(ids[access.Node{Cluster: c, Name: "n1"}]) == 0 {
			t.Errorf("node n1 of %s has no identity: %v", c, ids)
		}
	}
	if err := r.Join(source.ClusterOf("Kubernetes"), ClusterOptions{}); err == nil {
		t.Error("a cluster with the ID of the own one joined")
	}
	if err := r.Join(source.Cluster{}, ClusterOptions{}); err == nil {
		t.Error("a cluster without ID joined")
	}
	updates := rec.updates
	r.Leave(east)
	r.Apply(eventsOf(t, east, remote)) // late
	if len(rec.addresses) != before || rec.updates != updates+1 {
		t.Errorf("%d addresses in %d updates after the cluster left, want %d in one", len(rec.addresses), rec.updates-updates, before)
	}
	if ids := r.Nodes.Identities(); len(ids[access.Node{Cluster: "east", Name: "n1"}]) != 0 {
		t.Errorf("identities of a cluster that left: %v", ids)
	}
	for _, o := range r.Status() {
		if o.Cluster != "" {
			t.Errorf("status of a cluster that left: %+v", o)
		}
	}
}

// What one cluster is like is a fact of the graph: a change of it changes what
// was derived, and nothing of other clusters.
func TestFactsOfAClusterChange(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	east := source.ClusterOf("east")
	for _, network := range []string{"far", "farther"} {
		if err := r.Join(east, ClusterOptions{Network: network, TrustDomain: "east.example"}); err != nil {
			t.Fatal(err)
		}
		if network == "far" {
			r.Apply(events(t, demo))
			r.Apply(eventsOf(t, east, remote))
		}
		if w := rec.workload(t, "east//Pod/shop/web-1"); w.Network != network || w.TrustDomain != "east.example" {
			t.Errorf("%v", w)
		}
		if w := rec.workload(t, "Kubernetes//Pod/shop/web-1"); w.Network != "" || w.TrustDomain != "" {
			t.Errorf("own: %v", w)
		}
	}
	for _, c := range rec.last {
		for _, res := range c.Set {
			if !strings.HasPrefix(res.Name, "east/") && res.Name != "shop/far.shop.svc.cluster.local" {
				t.Errorf("%s was published again", res.Name)
			}
		}
	}
}

// A pod of a cluster does not stand for one of the same name in another.
func TestSlicesOfAnotherCluster(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	east := source.ClusterOf("east")
	if err := r.Join(east, ClusterOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Apply(events(t, demo))
	slice := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e, namespace: shop, labels: {kubernetes.io/service-name: hand}}\naddressType: IPv4\nports: [{port: 7}]\nendpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: web-1}}]\n"
	service := "---\napiVersion: v1\nkind: Service\nmetadata: {name: hand, namespace: shop}\nspec: {clusterIP: 10.1.0.9, ports: [{port: 80}]}\n"
	r.Apply(events(t, service))
	r.Apply(eventsOf(t, east, slice+service))
	if w := rec.workload(t, "Kubernetes//Pod/shop/web-1"); w.Services["shop/hand.shop.svc.cluster.local"] != nil {
		t.Errorf("a slice of another cluster names a pod: %v", w.Services)
	}
}
