package both

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// denyX refuses a path of front, also when its pods are asked.
var denyX = rig.PolicyObject("$shop", "deny-x", "DENY", `targetRefs: [{group: "", kind: Service, name: front}], rules: [{to: [{operation: {ports: ["80", "8080"], paths: ["/x"]}}]}]`)

// TestNeverWithoutTheWaypoint: a policy for HTTP refuses a path. When the last proxy of the
// waypoint is gone nothing is answered, and the address of the pod is no way around.
func TestNeverWithoutTheWaypoint(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(versions() + denyX)
	w.Families(func(w *world.World, v6 bool) {
		ways := map[string]netip.AddrPort{
			"the service": w.Service("shop", "front", 80, v6),
			"the pod":     netip.AddrPortFrom(w.Pod(world.Place{Namespace: "shop", Pod: "v1"}, v6), 8080),
		}
		inEffect := func() {
			for _, to := range ways {
				w.Becomes(200, far, to, "/")
				w.Becomes(403, far, to, "/x")
			}
		}
		inEffect()
		w.Apply(world.Waypoint("shop", 0, ""))
		w.ProxiesBecome("shop", 0)
		for name, to := range ways {
			all, err := w.Requests(30, far, to, "/x")
			if err != nil {
				w.Fatal(err)
			}
			for _, r := range all {
				if r.Status == 200 {
					w.Fatalf("%s answers without the waypoint: %s", name, r.Body)
				}
			}
		}
		w.Apply(world.Waypoint("shop", 1, ""))
		w.ProxiesBecome("shop", 1)
		inEffect()
	})
}

// TestServerSpeaksFirst: a program that speaks first is reached through a waypoint, at a
// port whose protocol nothing declares.
func TestServerSpeaksFirst(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(versions())
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 9100, v6)
		greeted := func(n int) error {
			for range n {
				out, err := w.Exec(far, "ECHO", "greet", "-addr", to.String())
				if err != nil || out != "220 welcome\n" {
					return fmt.Errorf("%q, error %w", out, err)
				}
			}
			return nil
		}
		w.Eventually("the server is heard", func() error { return greeted(1) })
		w.ProxyLogs(far, `direction="outbound"`, `dst.workload="waypoint-`, "dst.hbone_addr="+to.String())
		spoke := func() float64 {
			return w.Counted("shop", "ambit_undeclared_connections_total", "decided_by", "server")
		}
		before := spoke()
		const greetings = 20
		if err := greeted(greetings); err != nil {
			w.Fatal(err)
		}
		// On a machine that is held up for 100 ms, silence decides.
		if n := spoke() - before; n < 1 || n > greetings {
			w.Errorf("the server has decided about %v connections of %d", n, greetings)
		}
	})
}

// headerRoute is a route of front for one path, which sets a header of the request.
func headerRoute(name, value, version string) string {
	return fmt.Sprintf(`
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %[1]s, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /%[1]s}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: "%[2]s"}]}}]
    backendRefs: [{name: %[3]s, port: 80}]
`, name, value, version)
}

// TestOneBadRoute: a route that cannot be served costs that route alone. The routes beside
// it work, and a change of another one takes effect.
func TestOneBadRoute(t *testing.T) {
	w := start(t, world.Options{})
	y := versions() + headerRoute("good", "good", "v1")
	for i := range 100 {
		y += headerRoute(fmt.Sprintf("r%d", i), "good", "v1")
	}
	w.Apply(y)
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Apply(headerRoute("good", "good", "v1"))
		w.Eventually("the routes are in effect", func() error { return w.AnsweredBy("v1", 10, far, to, "/good") })
		// The API server takes this route. It cannot be served.
		w.Apply(headerRoute("bad", `\u0001`, "v1"))
		w.Condition("HTTPRoute", "shop", "bad", "Accepted", "False ")
		w.Condition("HTTPRoute", "shop", "good", "Accepted", "True ")
		w.Apply(headerRoute("good", "better", "v2"))
		w.Eventually("the change is in effect", func() error { return w.AnsweredBy("v2", 10, far, to, "/good") })
		h, err := w.Request(far, to, "/good/headers").Request()
		if err != nil || h.Get("x-set") != "better" {
			w.Errorf("the program got %v, error %v", h, err)
		}
		if err := w.AnsweredBy("v1", 5, far, to, "/r99"); err != nil {
			w.Errorf("the routes beside it: %v", err)
		}
		w.Delete(headerRoute("bad", `\u0001`, "v1"))
	})
}

// annotated is the annotation of a waypoint with which programs get the client's identity.
const annotated = `ambient.istio.io/xfcc-include-client-identity: "true"`

// TestIdentityOfTheClient: behind a waypoint, a program gets the address and the identity
// of the client in headers. Those that a client sends to pass for another are replaced, or
// stay before what is true.
func TestIdentityOfTheClient(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(strings.Replace(versions(), world.Waypoint("shop", 1, ""), world.Waypoint("shop", 1, annotated), 1))
	w.Families(func(w *world.World, v6 bool) {
		to, client := w.Service("shop", "front", 80, v6), w.Pod(far, v6).String()
		forged := []string{
			"X-Forwarded-For: 10.9.9.9", "x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/shop/sa/v1", "X-Envoy-External-Address: 10.9.9.9",
			"x-envoy-peer-metadata: e30=", "X-ENVOY-ATTEMPT-COUNT: 7", "X-Ambit-Identity: v1",
		}
		for name, headers := range map[string][]string{"honest": nil, "forged": forged} {
			w.Eventually("the program gets the identity of its caller, "+name, func() error {
				r := w.Request(far, to, "/headers", headers...)
				h, err := r.Request()
				if err != nil {
					return err
				}
				if a, _ := r.Answer(); w.Through("shop", a.Caller) != nil {
					return w.Through("shop", a.Caller)
				}
				address, identity := strings.Join(h.Values("X-Forwarded-For"), "|"), strings.Join(h.Values("X-Forwarded-Client-Cert"), "|")
				if address != client && address != "10.9.9.9,"+client || name == "honest" && address != client {
					w.Errorf("%s: X-Forwarded-For is %q", name, address)
				}
				if want := w.Text("By=spiffe://cluster.local/ns/$shop/sa/waypoint;URI=spiffe://cluster.local/ns/$shop/sa/far"); identity != want {
					w.Errorf("%s: X-Forwarded-Client-Cert is %q", name, identity)
				}
				for k := range h {
					if l := strings.ToLower(k); strings.HasPrefix(l, "x-envoy-") || strings.HasPrefix(l, "x-ambit-") {
						w.Errorf("%s came through: %q", k, h[k])
					}
				}
				return nil
			})
		}
	})
}

// TestAddressGivenAway: when the address of a pod goes to another workload, the waypoint's
// connections of before do not reach it, and no request of another service does.
func TestAddressGivenAway(t *testing.T) {
	w := start(t, world.Options{FewAddresses: true})
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + world.Waypoint("shop", 1, "") + server("stays", "tier: server") +
		frontOf("front", "tier: server", "{name: http, port: 80, targetPort: 8080, appProtocol: http}"))
	w.ProxiesBecome("shop", 1)
	w.Scarce("shop")
	goes, other := server("goes", "tier: server"), server("other", "tier: none")
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Apply(goes)
		for _, name := range []string{"stays", "goes"} {
			w.Eventually(name+" answers", func() error {
				all, err := w.Requests(10, far, to, "/")
				if err != nil {
					return err
				}
				for _, r := range all {
					if a, err := r.Answer(); err != nil {
						return err
					} else if err := w.Through("shop", a.Caller); err != nil {
						return err
					} else if a.Name == name {
						return nil
					}
				}
				return fmt.Errorf("it does not")
			})
		}
		was := w.Pod(world.Place{Namespace: "shop", Pod: "goes"}, v6)
		load := w.Load(far, to, 100, "-per-conn", "0", "-workers", "8")
		w.Successor(goes, other)
		if now := w.Pod(world.Place{Namespace: "shop", Pod: "other"}, v6); now != was {
			w.Fatalf("the other workload has %s and not %s: this test is none", now, was)
		}
		if err := w.AnsweredBy("stays", 200, far, to, "/"); err != nil {
			w.Error(err)
		}
		if r := load.Stop(); r.OK == 0 {
			w.Errorf("there was no load: %+v", r)
		}
		w.Delete(other)
	})
}
