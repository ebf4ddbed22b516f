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
apiVersion: gateway.networking.k8s.io/v1
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
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
		const n = 200
		count, err := answers(w, n, far, to)
		if err != nil || count["v1"]+count["v2"] != n || count["v2"] < 4 || count["v2"] > 50 {
			w.Errorf("%v, error %v", count, err)
		}
		// There the endpoint with fewer connections is chosen: v1 may have some that are closing.
		if count, err = answers(w, n, far, other); err != nil || count["v1"]+count["v2"] != n || count["v2"] < 50 || count["v1"] == 0 {
			w.Errorf("the port without a route: %v, error %v", count, err)
		}
		w.Condition("TCPRoute", "shop", "split", "ZtunnelAccepted", "True", "node proxies of clients execute the route")
		w.Says([]string{"TCPRoute $shop/split, rule 0", "v1.$shop.svc.cluster.local"}, "why", "far.$shop", "data:9000")

		w.Apply(tcpRoute("shop", "split", "{name: v2, port: 80}, {name: absent, port: 80}"))
		w.Eventually("a share is refused", func() error {
			if count, err = answers(w, 40, far, to); err != nil || count[""] == 0 || count["v2"] == 0 || count["v1"] > 0 {
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
		w.ProxyLogs(far, reason.NoBackend.Info().What, "TCPRoute $shop/split")
		w.Condition("TCPRoute", "shop", "split", "ResolvedRefs", "False BackendNotFound", "there is no Service $shop/absent")

		w.Apply(tcpRoute("shop", "split", "{name: v1, port: 80}") + tcpRoute("market", "mine", "{name: v2, namespace: $shop, port: 80}"))
		w.Eventually("a route without a grant has no backend", func() error {
			if count, err = answers(w, 10, buyer, to); err != nil || count[""] != 10 {
				return fmt.Errorf("%v, error %w", count, err)
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
				return fmt.Errorf("%v, error %w", count, err)
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
				return fmt.Errorf("%+v, error %w", r, err)
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
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
		w.ProxyLogs(far, "endpoint ejected", "/dead", "DestinationRule $shop/web")
		w.Delete(rule("shop", "web", "web", ""))
	})
}

// TestMaxConnections: a node proxy has as many connections to a service as its
// DestinationRule permits. The next one is refused, and the reason is in the log, until one
// ends. A rule of another tenant's namespace is for no connection of this one's.
func TestMaxConnections(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	holder := rig.PodObject("$shop", "holder", "node2", "")
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$market", "buyer", "node2", "") + server("web", "app: web") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}, {name: echo, port: 9000}"))
	buyer := world.Place{Namespace: "market", Pod: "buyer"}
	w.Families(func(w *world.World, v6 bool) {
		w.Apply(holder)
		echo, web := w.Service("shop", "web", 9000, v6), w.Service("shop", "web", 80, v6)
		host := "web.$shop.svc.cluster.local"
		limits := rule("shop", "web", "web", `
trafficPolicy:
  portLevelSettings:
  - port: {number: 9000}
    connectionPool: {tcp: {maxConnections: 2, connectTimeout: 5s}}
`)
		// The other tenant's rule would refuse every second connection of the shop's.
		foreign := rule("market", "web", host, "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}\nexportTo: [\"*\"]")
		w.Apply(limits + foreign)
		w.Condition("DestinationRule", "shop", "web", "ZtunnelAccepted", "True Accepted", "portLevelSettings[0].connectionPool.tcp.maxConnections")
		w.Says([]string{"DestinationRule $shop/web", "maxConnections 2"}, "why", "far.$shop", "web:9000")
		at := world.Place{Namespace: "shop", Pod: "holder"}
		a, b := w.Hold(at, echo), w.Hold(at, echo)
		if err := closed(w, far, echo); err != nil {
			w.Errorf("a third connection: %v", err)
		}
		w.ProxyLogs(far, reason.ResourceExhausted.Info().What, "DestinationRule $shop/web", "maxConnections, 2")
		w.Says([]string{"maxConnections of the namespace at this node proxy, 2, is reached"}, "why", "far.$shop", "web:9000")
		w.Says([]string{"DestinationRule $shop/web", "$shop 2", "maxConnections 2, connectTimeout 5s"}, "ztunnel-config", "traffic", "--node", w.Node(far))
		w.Says([]string{"DestinationRule $shop/web", "maxConnections 2, connectTimeout 5s"}, "describe", "service", "web.$shop") // of whichever proxy is asked
		w.Becomes(200, far, web, "/")                                                                                            // another port has no limit
		w.Becomes(200, buyer, web, "/")                                                                                          // by its own rule, which counts its own connections
		for _, h := range []*world.Held{a, b} {
			if err := h.Carries(); err != nil {
				w.Errorf("a connection within the limit: %v", err)
			}
		}
		w.Delete(holder)
		w.Eventually("there is room again", func() error {
			r := w.Request(far, echo, "/")
			if !strings.Contains(r.Error, "malformed") {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		w.Delete(limits + foreign)
	})
}

// TestEjectedAll: when every endpoint of a service has failed, none is left out: the first
// that comes back is found at once.
func TestEjectedAll(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$shop", "dead", "node1", "app: web") + rig.PodObject("$shop", "also", "node1", "app: web") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}") + rule("shop", "web", "web", `
trafficPolicy:
  outlierDetection: {consecutiveGatewayErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}
`))
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		w.Eventually("both are ejected", func() error {
			if err := refused(w, 5, far, to); err != nil {
				return err
			}
			out, err := w.Ambit("why", "far.$shop", to.String())
			if !strings.Contains(out, "endpoints ejected now: 2 of 2") {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
		live := server("web", "app: web")
		w.Apply(live)
		w.Eventually("the new endpoint answers", func() error { return w.AnsweredBy("web", 10, far, to, "/") })
		w.Delete(live)
	})
}

// TestVisibleRules: a DestinationRule that only its own namespace sees, and one of a
// namespace that is neither the client's nor the service's, change nothing for others.
func TestVisibleRules(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Namespace("street", true)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$market", "buyer", "node2", "") + server("web", "app: web") +
		rig.PodObject("$street", "gnome", "node2", "") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}, {name: echo, port: 9000}"))
	host := "web.$shop.svc.cluster.local"
	limit := "trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}\n"
	says := func(pod, want string) {
		w.Eventually("the rule for "+pod, func() error {
			out, err := w.Ambit("why", pod, host+":80")
			if err != nil {
				return err
			}
			if got := strings.Contains(out, "DestinationRule"); got != (want != "") || !strings.Contains(out, w.Text(want)) {
				return fmt.Errorf("want %q:\n%s", want, out)
			}
			return nil
		})
	}
	w.Apply(rule("shop", "web", "web", limit+"exportTo: [\".\"]") + rule("street", "web", host, limit+"exportTo: [\"*\"]"))
	says("far.$shop", "DestinationRule $shop/web")
	says("gnome.$street", "DestinationRule $street/web")
	says("buyer.$market", "")
	w.Apply(rule("shop", "web", "web", limit+"exportTo: [\".\", $market]"))
	says("buyer.$market", "DestinationRule $shop/web")
	says("gnome.$street", "DestinationRule $street/web")
	w.Apply(rule("market", "mine", "\"*.$shop.svc.cluster.local\"", limit))
	says("buyer.$market", "DestinationRule $market/mine")
	says("far.$shop", "DestinationRule $shop/web")
	// A selector would be for fewer clients than the namespace has: the rule is for none.
	w.Apply(rule("market", "mine", host, limit+"workloadSelector: {matchLabels: {app: none}}"))
	w.Condition("DestinationRule", "market", "mine", "ZtunnelAccepted", "False", "workloadSelector: the whole rule has no effect")
	says("buyer.$market", "DestinationRule $shop/web")
}
