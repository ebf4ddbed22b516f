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
