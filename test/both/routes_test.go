package both

import (
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// sameRoute is a route of front that leads to a version, in a namespace.
func sameRoute(namespace, version string) string {
	return `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: same, namespace: $` + namespace + `}
spec:
  parentRefs: [{group: "", kind: Service, name: front, namespace: $shop}]
  rules: [{backendRefs: [{name: ` + version + `, namespace: $shop, port: 80}]}]
`
}

// TestConsumerRoute: a route of another namespace than the service's is for the clients of
// that namespace, before the route of the service's own, and for no others.
func TestConsumerRoute(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(versions() + rig.PodObject("$market", "buyer", "node2", "") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: buyers, namespace: $shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: $market}]
  to: [{group: "", kind: Service, name: v2}]
` + sameRoute("shop", "v1"))
	buyer := world.Place{Namespace: "market", Pod: "buyer"}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		for _, from := range []world.Place{far, buyer} {
			w.Eventually("the route of the service is in effect for "+from.String(), func() error { return w.AnsweredBy("v1", 10, from, to, "/") })
		}
		w.Apply(sameRoute("market", "v2"))
		w.Eventually("the route of the clients is in effect", func() error { return w.AnsweredBy("v2", 5, buyer, to, "/") })
		for from, want := range map[world.Place]string{buyer: "v2", far: "v1"} {
			if err := w.AnsweredBy(want, 20, from, to, "/"); err != nil {
				w.Errorf("%s: %v", from, err)
			}
		}
		w.Delete(sameRoute("market", "v2"))
		w.Eventually("it is gone", func() error { return w.AnsweredBy("v1", 5, buyer, to, "/") })
	})
}

// split is a route of front: nine of ten requests go to v1, and those with a header to v2.
const split = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{headers: [{name: x-version, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]
`

// TestWaypointRoutes: requests to a service with a waypoint go where its routes say, in the
// proportion of the weights, and through the waypoint alone. The command line explains it.
func TestWaypointRoutes(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(versions() + split)
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Eventually("the route is in effect", func() error { return w.AnsweredBy("v2", 20, far, to, "/", "x-version: 2") })
		const n = 200
		all, err := w.Requests(n, far, to, "/")
		if err != nil {
			w.Fatal(err)
		}
		count := map[string]int{}
		for _, r := range all {
			a, err := r.Answer()
			if err != nil {
				w.Fatal(err)
			}
			if err := w.Through("shop", a.Caller); err != nil {
				w.Fatal(err)
			}
			count[a.Name]++
		}
		// Of 200 requests at 10 %, fewer than 4 or more than 50 come once in a hundred
		// thousand runs.
		if count["v1"]+count["v2"] != n || count["v2"] < 4 || count["v2"] > 50 {
			w.Errorf("%v", count)
		}
	})
	w.Says([]string{"HTTPRoute $shop/split, rule 1", "gets 90 of 100", "allowed: pod $shop/v1 gets it"}, "why", "far.$shop", "http://front/")
	w.Says([]string{"HTTPRoute $shop/split, rule 0", "allowed: pod $shop/v2 gets it"}, "why", "far.$shop", "http://front/", "--header", "x-version=2")
	w.Says([]string{"split", "90 v1.$shop:80"}, "waypoint-config", "routes", "waypoint.$shop")
	w.Says([]string{"v1.$shop.svc.cluster.local"}, "waypoint-config", "backends", "-n", "$shop")
}
