package scenario

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// The mesh of the lab is one network. A pod that is not enrolled and has a
// ztunnel of its own is another one, east of it, which knows of the mesh only
// what a control plane tells about another network: services, identities, and
// the gateway.
const gatewayID = "spiffe://cluster.local/ns/shop/sa/gateway"

var hermit = lab.InPod("shop", "hermit")

// east is the directory of the other network. VIPs that only it has lead to
// services of the mesh.
func east(w *rig.World) string {
	p := func(name string) string {
		return fmt.Sprintf(`[%s, "%s"]`, w.Pod("shop", name, false), w.Pod("shop", name, true))
	}
	vips := func(n int) string { return fmt.Sprintf(`["east/10.99.0.%d", "east/fd99::%d"]`, n, n) }
	split := func(uid, services, gateway string, port int) string {
		return fmt.Sprintf("- {uid: %s, name: %[1]s, namespace: shop, protocol: HBONE, services: {%s}, networkGateway: {destination: %s, hboneMtlsPort: %d}}\n", uid, services, gateway, port)
	}
	service := func(name string, n int, ports string, sans ...string) string {
		return fmt.Sprintf("- {name: %s, namespace: shop, hostname: %[1]s.shop.svc.cluster.local, vips: %s, ports: {%s}, subjectAltNames: [%s]}\n", name, vips(n), ports, strings.Join(sans, ", "))
	}
	byName := `{namespace: shop, hostname: gateway.shop.svc.cluster.local}`
	return "workloads:\n" +
		fmt.Sprintf("- {uid: hermit, name: hermit, namespace: shop, serviceAccount: hermit, node: node2, network: east, workloadIps: %s, protocol: TCP, workloadName: hermit, canonicalName: hermit-app, canonicalRevision: v7, clusterId: eastern}\n", p("hermit")) +
		fmt.Sprintf("- {uid: gateway, name: gateway, namespace: shop, serviceAccount: gateway, workloadIps: %s, protocol: HBONE, workloadName: gateway, services: {shop/gateway.shop.svc.cluster.local: {15009: 15008}}}\n", p("gateway")) +
		split("web4", "shop/web.shop.svc.cluster.local: {80: 80, 9000: 9000, 9321: 9321}", fmt.Sprintf(`"/%s"`, w.Pod("shop", "gateway", false)), 15008) +
		split("named", "shop/named.shop.svc.cluster.local: {80: 80}", byName, 15009) +
		split("waypoint", "shop/waypoint.shop.svc.cluster.local: {15008: 15008}", byName, 15009) +
		split("impostor", "shop/other.shop.svc.cluster.local: {80: 80}", byName, 15009) +
		split("lost", "shop/lost.shop.svc.cluster.local: {80: 80}", `"/192.0.2.1"`, 15008) +
		"services:\n" +
		service("web", 1, "80: 80, 9000: 9000, 9321: 9321", webID) + service("named", 2, "80: 80", webID) +
		service("other", 3, "80: 80", farID) + service("lost", 4, "80: 80", webID) +
		service("waypoint", 5, "15008: 15008", waypointID) + service("gateway", 6, "15009: 15008") +
		fmt.Sprintf("- {name: guarded, namespace: shop, hostname: guarded.shop.svc.cluster.local, vips: %s, ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: waypoint.shop.svc.cluster.local}, hboneMtlsPort: 15008}}\n", vips(7))
}

// across is an address of a service, as the other network sees it.
func across(n int, v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd99::%d", n)), 80)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", n)), 80)
}

// TestNetworks: a service of another network is reached through the gateway of
// that network, in a tunnel inside the tunnel to it; the gateway sees nothing,
// and both ends prove who they are.
func TestNetworks(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.ServerObject("shop", "hermit", "node2", ownTunnelOf("hermit")) +
		rig.PodObject("shop", "gateway", "node1", ownTunnelOf("gateway")) +
		rig.PodObject("shop", "waypoint", "node1", ownTunnelOf("waypoint")) +
		rig.ServiceObject("shop", "named", "web", "{name: http, port: 80, targetPort: 8080}")})
	log := runDedicated(world, hermit, "shop", "hermit", "node2", "NETWORK=east", "LOCAL_XDS="+east(world))
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		target := netip.AddrPortFrom(w.Pod("shop", "web", v6), 15008)
		gw := w.Gateway(lab.InPod("shop", "gateway"), w.Bundle(gatewayID), func(authority string) netip.AddrPort {
			if strings.HasPrefix(authority, "guarded.") {
				return netip.AddrPortFrom(w.Pod("shop", "waypoint", v6), 15008)
			}
			return target
		})
		for _, c := range []struct {
			name, service string
			n             int
			gateway       bool // is of the family that is dialled
		}{
			{"gateway by address", "web", 1, false},
			{"gateway by host name", "named", 2, true},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := world.For(t)
				host := c.service + ".shop.svc.cluster.local:80"
				before := len(gw.Seen())
				for range 3 {
					want(t, "answer", w.MustGet(hermit, across(c.n, v6)).Name, "web")
				}
				seen := gw.Seen()[before:]
				if len(seen) != 3 {
					t.Fatalf("the gateway got %d connections, not 3", len(seen))
				}
				for _, s := range seen {
					want(t, "authority", s.Authority, host)
					want(t, "peer of the gateway", s.Peer, "spiffe://cluster.local/ns/shop/sa/hermit")
					if s.Remote != seen[0].Remote {
						t.Error("connections do not share the tunnel to the gateway")
					}
					if _, ok := s.Header["X-Forwarded-Network"]; ok {
						t.Error("the gateway is told the network; that is for behind it")
					}
				}
				want(t, "address of the gateway", seen[0].Local.Addr(), w.Pod("shop", "gateway", v6 && c.gateway))
				dst := netip.AddrPortFrom(seen[0].Local.Addr(), 15008)
				has(w, log, "\taccess\t", "connection complete", `direction="outbound"`, "dst.addr="+dst.String(), `dst.hbone_addr=`+host,
					`dst.workload="web"`, `dst.identity="`+webID, `dst.service="`+strings.TrimSuffix(host, ":80"))
				// The other end knows of the client what it says of itself, and who it
				// has proven to be.
				w.Logs("node1", "connection complete", `direction="inbound"`, `dst.hbone_addr=`+host, `src.workload="hermit"`, `src.namespace="shop"`, `src.cluster="eastern"`,
					`src.identity="spiffe://cluster.local/ns/shop/sa/hermit"`, `dst.workload="web"`, `dst.service="`+strings.TrimSuffix(host, ":80"))
			})
		}
		t.Run("policy", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(rig.PolicyObject("shop", "no-hermit", "DENY", `selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/hermit"]}}]}]`))
			w.BecomesRefused(hermit, across(1, v6))
			has(w, log, "\taccess\t", `direction="outbound"`, `reason="TUNNEL_REFUSED"`, "behind the gateway", "401")
			w.MustDelete("authorizationpolicy", "shop", "no-hermit")
			w.BecomesAnswered(hermit, across(1, v6))
		})
		t.Run("somebody else behind the gateway", func(t *testing.T) {
			w := world.For(t)
			w.Refused(hermit, across(3, v6))
			has(w, log, "\taccess\t", `direction="outbound"`, `dst.hbone_addr=other.shop.svc`, `reason="PEER_IDENTITY_MISMATCH"`, "behind the gateway", webID)
		})
		t.Run("no gateway", func(t *testing.T) {
			w := world.For(t)
			w.Refused(hermit, across(4, v6))
			has(w, log, "\taccess\t", `direction="outbound"`, across(4, v6).String(), `reason="UNKNOWN_GATEWAY"`, "192.0.2.1")
		})
		t.Run("waypoint behind the gateway", func(t *testing.T) {
			w := world.For(t)
			wp := w.Waypoint(lab.InPod("shop", "waypoint"), w.Bundle(waypointID), func(string) (netip.AddrPort, string, string) {
				return target, netip.AddrPortFrom(target.Addr(), 8080).String(), webID
			})
			want(t, "answer", w.MustGet(hermit, across(7, v6)).Name, "web")
			s, err := wp.Last()
			if err != nil {
				t.Fatal(err)
			}
			want(t, "authority", s.Authority, "guarded.shop.svc.cluster.local:80")
			want(t, "peer of the waypoint", s.Peer, "spiffe://cluster.local/ns/shop/sa/hermit")
			want(t, "network", s.Header["X-Forwarded-Network"], []string{"east"})
		})
		t.Run("streams", func(t *testing.T) {
			w := world.For(t)
			at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(across(1, v6).Addr(), port) }
			transfer(w, w.MustDial(hermit, at(9000)), 8<<20)
			c, s := pairTo(w, hermit, at(oddPort))
			endsFirst(w, c, s)
			c, s = pairTo(w, hermit, at(oddPort))
			endsFirst(w, s, c)
			c, s = pairTo(w, hermit, at(oddPort))
			resets(w, c, s)
			c, s = pairTo(w, hermit, at(oddPort))
			resets(w, s, c)
		})
		t.Run("the gateway goes away", func(t *testing.T) {
			w := world.For(t)
			c := w.MustHold(hermit, netip.AddrPortFrom(across(1, v6).Addr(), 9000))
			gw.Close()
			if err := c.AwaitEnd(); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the connection ends with %v, and not with a reset", err)
			}
			has(w, log, "\taccess\t", `direction="outbound"`, `reason="TUNNEL_CLOSED"`, "web.shop.svc.cluster.local:9000")
		})
	})
}
