package both

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// plainVersions are two versions of a server without a waypoint, a service of each, and the
// service data of both; and the client far.
func plainVersions() string {
	y := rig.PodObject("$shop", "far", "node2", "") + rig.ServiceObject("$shop", "data", "data", "{name: tcp, port: 9000, targetPort: 8080}, {name: other, port: 9001, targetPort: 8080}")
	for _, v := range []string{"v1", "v2"} {
		y += server(v, "app: data, version: "+v) + `
---
apiVersion: v1
kind: Service
metadata: {name: ` + v + `, namespace: $shop}
spec: {selector: {version: ` + v + `}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 80, targetPort: 8080}]}
`
	}
	return y
}

// tcpRoute is a TCPRoute of a namespace for port 9000 of the service data.
func tcpRoute(namespace, name, backends string) string {
	return `
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: ` + name + `, namespace: $` + namespace + `}
spec:
  parentRefs: [{group: "", kind: Service, name: data, namespace: $shop, port: 9000}]
  rules: [{backendRefs: [` + backends + `]}]
`
}

// answers counts the servers that answer n connections; "" is for those that are refused.
func answers(w *world.World, n int, from world.Place, to netip.AddrPort) (map[string]int, error) {
	all, err := w.Requests(n, from, to, "/")
	count := map[string]int{}
	for _, r := range all {
		a, err := r.Answer()
		if err != nil {
			a.Name = ""
		}
		count[a.Name]++
	}
	return count, err
}

// TestTCPRoute: connections to a service without a waypoint are split by the client's node
// proxy: by weight, on the port that the route names alone. The share of a backend that is
// not there is refused. A route of the clients' namespace comes before that of the service.
func TestTCPRoute(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(plainVersions() + rig.PodObject("$market", "buyer", "node2", ""))
	buyer := world.Place{Namespace: "market", Pod: "buyer"}
	w.Families(func(w *world.World, v6 bool) {
		to, other := w.Service("shop", "data", 9000, v6), w.Service("shop", "data", 9001, v6)
		w.Becomes(200, far, to, "/")
		w.Apply(tcpRoute("shop", "split", "{name: v1, port: 80, weight: 9}, {name: v2, port: 80, weight: 1}"))
		w.Eventually("the route is in effect", func() error {
			count, err := answers(w, 100, far, to)
			// Without the route both get half: at most 30 of 100 come once in 25,000 runs.
			if err != nil || count["v2"] > 30 || count[""] > 0 {
				return fmt.Errorf("%v, error %v", count, err)
			}
			return nil
		})
		const n = 200
		count, err := answers(w, n, far, to)
		if err != nil || count["v1"]+count["v2"] != n || count["v2"] < 4 || count["v2"] > 50 {
			w.Errorf("%v, error %v", count, err)
		}
		if count, err = answers(w, n, far, other); err != nil || count["v2"] < 50 || count["v1"] < 50 {
			w.Errorf("the port without a route: %v, error %v", count, err)
		}
		w.Condition("TCPRoute", "shop", "split", "ZtunnelAccepted", "True", "node proxies of clients execute the route")
		w.Says([]string{"TCPRoute $shop/split, rule 0", "v1.$shop.svc.cluster.local"}, "why", "far.$shop", "data:9000")

		w.Apply(tcpRoute("shop", "split", "{name: v2, port: 80}, {name: absent, port: 80}"))
		w.Eventually("a share is refused", func() error {
			if count, err = answers(w, 40, far, to); err != nil || count[""] == 0 || count["v2"] == 0 || count["v1"] > 0 {
				return fmt.Errorf("%v, error %v", count, err)
			}
			return nil
		})
		w.ProxyLogs(far, reason.NoBackend.Info().What, "TCPRoute $shop/split")
		w.Condition("TCPRoute", "shop", "split", "ResolvedRefs", "False BackendNotFound", "there is no Service $shop/absent")

		w.Apply(tcpRoute("shop", "split", "{name: v1, port: 80}") + tcpRoute("market", "mine", "{name: v2, namespace: $shop, port: 80}"))
		w.Eventually("a route without a grant has no backend", func() error {
			if count, err = answers(w, 10, buyer, to); err != nil || count[""] != 10 {
				return fmt.Errorf("%v, error %v", count, err)
			}
			return w.AnsweredBy("v1", 10, far, to, "/")
		})
		grant := `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: buyers, namespace: $shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: $market}]
  to: [{group: "", kind: Service, name: v2}]
`
		w.Apply(grant)
		w.Eventually("with a grant it has", func() error { return w.AnsweredBy("v2", 10, buyer, to, "/") })
		if err := w.AnsweredBy("v1", 20, far, to, "/"); err != nil {
			w.Errorf("a route of another namespace changes connections of this one: %v", err)
		}
		w.Delete(grant + tcpRoute("market", "mine", "{name: v2, namespace: $shop, port: 80}"))
		w.Eventually("the consumer's route is gone", func() error { return w.AnsweredBy("v1", 10, buyer, to, "/") })
		w.Delete(tcpRoute("shop", "split", "{name: v1, port: 80}"))
		w.Eventually("the route is gone", func() error {
			if count, err = answers(w, 40, far, to); err != nil || count["v2"] < 4 || count["v1"] < 4 {
				return fmt.Errorf("%v, error %v", count, err)
			}
			return nil
		})
	})
}

// TestTCPRouteHolds: a route leads around nothing: policies of the pods that it leads to
// hold for who really calls, and the waypoint of a backend is passed.
func TestTCPRouteHolds(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(plainVersions() + world.Waypoint("shop", 1, "") + rig.PodObject("$shop", "near", "node2", "") +
		server("v3", "app: v3") + frontOf("behind", "app: v3", "{name: http, port: 80, targetPort: 8080}") +
		rig.PolicyObject("$shop", "v2", "ALLOW", "selector: {matchLabels: {version: v2}}, rules: [{from: [{source: {principals: [cluster.local/ns/$shop/sa/near]}}]}]"))
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "data", 9000, v6)
		w.Apply(tcpRoute("shop", "split", "{name: v2, port: 80}"))
		w.Eventually("the policy of the backend allows its client", func() error { return w.AnsweredBy("v2", 10, near, to, "/") })
		w.Eventually("the policy of the backend refuses another", func() error { return refused(w, 10, far, to) })
		w.Apply(tcpRoute("shop", "split", "{name: behind, port: 80}"))
		w.Eventually("the backend's waypoint is passed", func() error {
			r := w.Request(far, to, "/")
			a, err := r.Answer()
			if err != nil || a.Name != "v3" {
				return fmt.Errorf("%+v, error %v", r, err)
			}
			return w.Through("shop", a.Caller)
		})
		w.Delete(tcpRoute("shop", "split", "{name: behind, port: 80}"))
	})
}

// rule is a DestinationRule of a namespace.
func rule(namespace, name, host, rest string) string {
	return `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ` + name + `, namespace: $` + namespace + `}
spec:
  host: ` + host + `
  ` + strings.ReplaceAll(strings.TrimSpace(rest), "\n", "\n  ") + "\n"
}

// TestOutliers: an endpoint on which no program listens is ejected, as its DestinationRule
// says. Clients are answered by the other one all the time.
func TestOutliers(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + server("web", "app: web") + rig.PodObject("$shop", "dead", "node1", "app: web") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}"))
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		w.Becomes(200, far, to, "/")
		w.Apply(rule("shop", "web", "web", `
trafficPolicy:
  loadBalancer: {simple: ROUND_ROBIN}
  outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 300s, maxEjectionPercent: 50}
  connectionPool: {http: {http1MaxPendingRequests: 1}}
`))
		w.Condition("DestinationRule", "shop", "web", "ZtunnelAccepted", "False UnsupportedValue",
			"node proxies honour", "trafficPolicy.outlierDetection.consecutive5xxErrors", "not honoured: trafficPolicy.connectionPool.http: it is of requests")
		w.Eventually("the endpoint is ejected", func() error {
			if err := w.AnsweredBy("web", 10, far, to, "/"); err != nil {
				return err
			}
			out, err := w.Ambit("why", "far.$shop", to.String())
			if !strings.Contains(out, "endpoints ejected now: 1 of 2") {
				return fmt.Errorf("%s, error %v", out, err)
			}
			return nil
		})
		w.ProxyLogs(far, "endpoint ejected", "/dead", "DestinationRule $shop/web")
		w.Delete(rule("shop", "web", "web", ""))
	})
}
