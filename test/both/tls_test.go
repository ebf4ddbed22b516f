package both

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// secure returns what n requests in TLS get: for a name, or none, with the first message in
// a shape.
func secure(w *world.World, n int, from world.Place, to netip.AddrPort, name, shape string) (all []traffic.Response, err error) {
	out, err := w.Exec(from, "ECHO", "get", "-json", "-insecure", "-n", fmt.Sprint(n), "-sni", name, "-hello", shape, "-url", "https://"+to.String()+"/")
	if err != nil {
		return nil, err
	}
	if all, err = traffic.Responses(out); err == nil && len(all) != n {
		err = fmt.Errorf("%d responses to %d requests", len(all), n)
	}
	return all, err
}

// names counts the servers that answer n requests in TLS; "" is for those that are refused.
func names(w *world.World, n int, from world.Place, to netip.AddrPort, name, shape string) (map[string]int, error) {
	all, err := secure(w, n, from, to, name, shape)
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

// reaches returns an error unless all of n requests in TLS are answered by a server; ""
// refuses them.
func reaches(w *world.World, n int, from world.Place, to netip.AddrPort, name, shape, server string) error {
	count, err := names(w, n, from, to, name, shape)
	if err != nil || count[server] != n {
		return fmt.Errorf("%q in shape %q: %v, error %w", name, shape, count, err)
	}
	return nil
}

// secureVersions are two versions of a server in TLS without a waypoint, a service of each,
// and the service data of both; and the client far.
func secureVersions() string {
	y := rig.PodObject("$shop", "far", "node2", "") +
		rig.ServiceObject("$shop", "data", "data", "{name: tls, port: 443, targetPort: 8443}, {name: first, port: 9100}, {name: other, port: 444, targetPort: 8443}")
	for _, v := range []string{"v1", "v2"} {
		y += server(v, "app: data, version: "+v, "-tls", ":8443", "-first", ":9100") + `
---
apiVersion: v1
kind: Service
metadata: {name: ` + v + `, namespace: $shop}
spec: {selector: {version: ` + v + `}, ipFamilyPolicy: PreferDualStack, ports: [{name: tls, port: 443, targetPort: 8443}, {name: first, port: 9100}]}
`
	}
	return y
}

// tlsRoute is a TLSRoute of a namespace for ports of the service data.
func tlsRoute(namespace, name, hostnames, backends string, ports ...int) string {
	var parents []string
	for _, p := range ports {
		parents = append(parents, fmt.Sprintf("{group: %q, kind: Service, name: data, namespace: $shop, port: %d}", "", p))
	}
	return `
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: ` + name + `, namespace: $` + namespace + `}
spec:
  parentRefs: [` + strings.Join(parents, ", ") + `]
  hostnames: [` + hostnames + `]
  rules: [{backendRefs: [` + backends + `]}]
`
}

// TestTLSRoute: connections to a service without a waypoint go where their client's node
// proxy reads in the name of TLS: the most specific name decides, weights divide, and what
// no route fits is refused. However the first message is divided, it is read; what is none
// is refused. Programs behind the route see the connection unchanged.
func TestTLSRoute(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(secureVersions() + rig.PodObject("$market", "buyer", "node2", ""))
	buyer := world.Place{Namespace: "market", Pod: "buyer"}
	w.Families(func(w *world.World, v6 bool) {
		to, other := w.Service("shop", "data", 443, v6), w.Service("shop", "data", 444, v6)
		w.Eventually("the servers answer in TLS", func() error {
			count, err := names(w, 20, far, to, "a.example.org", "")
			if err != nil || count["v1"] == 0 || count["v2"] == 0 {
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
		exact := tlsRoute("shop", "exact", "a.example.org", "{name: v1, port: 443}", 443)
		wild := tlsRoute("shop", "wild", "\"*.example.org\"", "{name: v2, port: 443}", 443)
		w.Apply(exact + wild)
		w.Eventually("the name decides", func() error { return reaches(w, 5, far, to, "a.example.org", "", "v1") })
		w.Eventually("the wildcard decides", func() error { return reaches(w, 5, far, to, "b.c.example.org", "", "v2") })
		for _, shape := range []string{"bytes", "records"} {
			if err := reaches(w, 3, far, to, "a.example.org", shape, "v1"); err != nil {
				w.Error(err)
			}
		}
		for name, shape := range map[string]string{"example.com": "", "": "", "a.example.org": "cut", "b.example.org": "huge", "c.example.org": "broken"} {
			if err := reaches(w, 2, far, to, name, shape, ""); err != nil {
				w.Error(err)
			}
		}
		if err := refused(w, 2, far, to); err != nil {
			w.Errorf("without TLS: %v", err)
		}
		w.ProxyLogs(far, reason.NoRoute.Info().What, "a connection of TLS to example.com")
		w.ProxyLogs(far, reason.NoRoute.Info().What, "its TLS handshake cannot be read")
		w.ProxyLogs(far, reason.NoRoute.Info().What, "whose client names no server")
		w.ProxyLogs(far, reason.NoRoute.Info().What, "without TLS, on a port that has routes of TLS alone")
		if count, err := names(w, 20, far, other, "example.com", ""); err != nil || count[""] > 0 {
			w.Errorf("the port without a route: %v, error %v", count, err)
		}
		w.Condition("TLSRoute", "shop", "exact", "Accepted", "True")
		w.Condition("TLSRoute", "shop", "exact", "ZtunnelAccepted", "True", "they read the name in the first message of TLS")
		w.Says([]string{"TLSRoute $shop/exact, rule 0", "a connection of TLS to a.example.org", "v1.$shop.svc.cluster.local"}, "why", "far.$shop", "data:443", "--sni", "a.example.org")
		w.Says([]string{"NO_ROUTE"}, "why", "far.$shop", "data:443", "--sni", "example.com")
		w.Says([]string{"TLSRoute $shop/wild", "TLS to *.example.org"}, "ztunnel-config", "traffic", "--node", w.Node(far))
		w.Says([]string{"TLSRoute $shop/exact", "for TLS to a.example.org"}, "describe", "service", "data.$shop")

		w.Apply(tlsRoute("shop", "exact", "a.example.org", "{name: v1, port: 443, weight: 3}, {name: absent, port: 443}", 443))
		w.Eventually("a share is refused", func() error {
			count, err := names(w, 40, far, to, "a.example.org", "")
			if err != nil || count[""] == 0 || count["v1"] <= count[""] || count["v2"] > 0 {
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
		w.Condition("TLSRoute", "shop", "exact", "ResolvedRefs", "False BackendNotFound", "there is no Service $shop/absent")
		w.Apply(exact)

		// A consumer's route is for its own clients, and needs a grant.
		mine := tlsRoute("market", "mine", "a.example.org", "{name: v2, namespace: $shop, port: 443}", 443)
		w.Apply(mine)
		w.Eventually("a route without a grant has no backend", func() error { return reaches(w, 5, buyer, to, "a.example.org", "", "") })
		grant := `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: buyers, namespace: $shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TLSRoute, namespace: $market}]
  to: [{group: "", kind: Service, name: v2}]
`
		w.Apply(grant)
		w.Eventually("with a grant it has", func() error { return reaches(w, 5, buyer, to, "a.example.org", "", "v2") })
		w.Eventually("the route of the service is for others", func() error { return reaches(w, 5, far, to, "a.example.org", "", "v1") })
		w.Delete(grant + mine + exact + wild)
		w.Eventually("the routes are gone", func() error {
			count, err := names(w, 20, far, to, "example.com", "")
			if err != nil || count["v1"] == 0 || count["v2"] == 0 {
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
	})
}

// TestTLSRouteBeside: on one port, what is TLS takes the TLSRoute and all else the TCPRoute,
// also a server that speaks first. Handshakes that do not go on are bounded for each
// namespace: another one's are served meanwhile.
func TestTLSRouteBeside(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(secureVersions() + rig.PodObject("$market", "buyer", "node2", ""))
	buyer := world.Place{Namespace: "market", Pod: "buyer"}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "data", 443, v6)
		tcp := strings.Replace(tcpRoute("shop", "plain", "{name: v2, port: 9100}"), "port: 9000", "port: 443", 1)
		w.Apply(tlsRoute("shop", "named", "a.example.org", "{name: v1, port: 443}", 443) + tcp)
		w.Eventually("TLS takes the TLSRoute", func() error { return reaches(w, 3, far, to, "a.example.org", "bytes", "v1") })
		w.Eventually("a name without a route is refused", func() error { return reaches(w, 3, far, to, "example.com", "", "") })
		w.Eventually("a server that speaks first is heard", func() error {
			out, err := w.Exec(far, "ECHO", "greet", "-addr", to.String())
			if err != nil || !strings.Contains(out, "220 welcome") {
				return fmt.Errorf("%q, error %w", out, err)
			}
			return nil
		})
		const n, each = 300, 256
		over := make(chan error, 1)
		go func() {
			out, err := w.Exec(far, "ECHO", "slow", "-addr", to.String(), "-n", fmt.Sprint(n), "-duration", "20s")
			open := 0
			if err == nil {
				err = json.Unmarshal([]byte(out), &open)
			}
			if err == nil && (open == 0 || open > each) {
				err = fmt.Errorf("%d of %d connections that do not go on stay open", open, n)
			}
			over <- err
		}()
		w.ProxyLogs(far, reason.ResourceExhausted.Info().What, "have not begun their TLS handshake", w.Text("$shop"))
		if err := reaches(w, 3, buyer, to, "a.example.org", "bytes", "v1"); err != nil {
			w.Errorf("another namespace: %v", err)
		}
		if err := <-over; err != nil {
			w.Error(err)
		}
		w.Eventually("there is room again", func() error { return reaches(w, 3, far, to, "a.example.org", "bytes", "v1") })
		w.Delete(tlsRoute("shop", "named", "a.example.org", "{name: v1, port: 443}", 443) + tcp)
	})
}
