package scenario

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// outlaw is a pod outside of the mesh from which the tests attack it.
const (
	outlawPod = `
---
apiVersion: v1
kind: Pod
metadata: {name: outlaw, namespace: shop, labels: {istio.io/dataplane-mode: none}}
spec: {nodeName: node2, serviceAccountName: far, containers: [{name: shell}]}
`
)

var outlaw = lab.InPod("shop", "outlaw")

// TestProxyPorts: whoever dials the proxy's own ports gets nothing out of it:
// no loop, no way around policies, and the proxy goes on.
func TestProxyPorts(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + outlawPod + `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`})
	ports := []uint16{wellknown.PortOutbound, wellknown.PortInbound, wellknown.PortHBONE, wellknown.PortSOCKS5}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		loopback := netip.MustParseAddr("127.0.0.1")
		if v6 {
			loopback = netip.IPv6Loopback()
		}
		// probe fails when an HTTP request is answered, whatever with.
		probe := func(t *testing.T, from lab.Where, to netip.AddrPort) {
			w := world.For(t)
			c := w.HTTP(from)
			resp, err := c.Get("http://" + to.String() + "/")
			if err == nil {
				_ = resp.Body.Close()
				t.Errorf("from %s, %s answered %s", from, to, resp.Status)
			}
		}
		for _, port := range ports {
			t.Run(fmt.Sprint(port), func(t *testing.T) {
				for from, to := range map[lab.Where][]netip.Addr{
					far:      {loopback, w.Pod("shop", "far", v6), w.Pod("shop", "web", v6), w.Pod("shop", "near", v6)},
					near:     {loopback, w.Pod("shop", "web", v6)},
					outlaw:   {w.Pod("shop", "web", v6)},
					stranger: {w.Pod("shop", "web", v6)},
				} {
					for _, a := range to {
						probe(t, from, netip.AddrPortFrom(a, port))
					}
				}
			})
		}
		t.Run("through the tunnel", func(t *testing.T) {
			w := world.For(t)
			web := w.Pod("shop", "web", v6)
			tun := w.MustTunnel(outlaw, netip.AddrPortFrom(web, 15008), w.Bundle(farID), webID)
			for _, port := range ports {
				if s, status, err := tun.Open(http.MethodConnect, netip.AddrPortFrom(web, port).String(), nil); err != nil || s != nil || status == http.StatusOK {
					t.Errorf("CONNECT to port %d: status %d, %v", port, status, err)
				}
			}
			w.Logs("node1", "dst.addr="+netip.AddrPortFrom(web, 15008).String(), `reason="RECURSIVE_CALL"`)
			// The same tunnel carries what is allowed.
			s, status, err := tun.Open(http.MethodConnect, netip.AddrPortFrom(web, 9000).String(), nil)
			if err != nil || s == nil {
				t.Fatalf("CONNECT to port 9000: status %d, %v", status, err)
			}
			if err := s.Exchange("hello"); err != nil {
				t.Error(err)
			}
		})
		w.MustGet(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		s, err := w.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Components {
			if c.Restarts > 0 {
				t.Errorf("%s has ended", c.Name)
			}
		}
	})
}

// TestTunnelRequests: a tunnel leads to the pod at whose address it ends, for
// requests that are well formed, of peers of the same trust domain.
func TestTunnelRequests(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + outlawPod + rig.ServerObject("shop", "other", "node1", "")})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web, other := w.Pod("shop", "web", v6), w.Pod("shop", "other", v6)
		at := netip.AddrPortFrom(web, 15008)
		echo := netip.AddrPortFrom(web, 9000).String()
		t.Run("requests", func(t *testing.T) {
			w := world.For(t)
			tun := w.MustTunnel(outlaw, at, w.Bundle(farID), webID)
			for _, c := range []struct {
				name, method, authority string
				status                  int
			}{
				{"as it should be", http.MethodConnect, echo, 200},
				{"service by name", http.MethodConnect, "web.shop.svc.cluster.local:9000", 200},
				{"service by name, other target", http.MethodConnect, "web.shop.svc.cluster.local:80", 200},
				{"address of another pod", http.MethodConnect, netip.AddrPortFrom(other, 9000).String(), 400},
				{"address of the service", http.MethodConnect, netip.AddrPortFrom(w.Service("shop", "web", v6), 80).String(), 400},
				{"loopback", http.MethodConnect, "127.0.0.1:9000", 400},
				{"IPv6 loopback", http.MethodConnect, "[::1]:9000", 400},
				{"node", http.MethodConnect, netip.AddrPortFrom(lanAddr(v6), 15012).String(), 400},
				{"method", http.MethodPost, echo, 400},
				{"no port", http.MethodConnect, web.String(), 400},
				{"port 0", http.MethodConnect, netip.AddrPortFrom(web, 0).String(), 400},
				{"unknown name", http.MethodConnect, "nobody.shop.svc.cluster.local:80", 503},
				{"nobody listens", http.MethodConnect, netip.AddrPortFrom(web, 4444).String(), 503},
			} {
				s, status, err := tun.Open(c.method, c.authority, nil)
				if err != nil || status != c.status {
					t.Errorf("%s: %s %s: status %d, %v; want %d", c.name, c.method, c.authority, status, err, c.status)
				}
				if s != nil {
					_ = s.CloseWrite()
				}
			}
			w.Logs("node1", "dst.addr="+at.String(), `reason="ADDRESS_MISMATCH"`)
		})
		t.Run("policy", func(t *testing.T) {
			w := world.For(t)
			tun := w.MustTunnel(outlaw, at, w.Bundle(farID), webID)
			enforce(w, rig.PolicyObject("shop", "no-far", "DENY", `rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`), "node1", "no-far")
			if _, status, err := tun.Open(http.MethodConnect, echo, nil); err != nil || status != http.StatusUnauthorized {
				t.Errorf("status %d, %v", status, err)
			}
			lift(w, "node1", "no-far")
			if _, status, err := tun.Open(http.MethodConnect, echo, nil); err != nil || status != http.StatusOK {
				t.Errorf("status %d, %v", status, err)
			}
		})
		t.Run("trust domain", func(t *testing.T) {
			w := world.For(t)
			tun, err := w.Tunnel(outlaw, at, w.Bundle("spiffe://other.domain/ns/shop/sa/far"), webID)
			if err == nil {
				// In TLS 1.3 the refusal reaches the client with its first read.
				var status int
				if _, status, err = tun.Open(http.MethodConnect, echo, nil); err == nil {
					t.Fatalf("a peer of another trust domain was answered with %d", status)
				}
			}
			w.Logs("node1", "dst.addr="+at.String(), `reason="TRUST_DOMAIN_MISMATCH"`)
		})
		t.Run("no certificate", func(t *testing.T) {
			w := world.For(t)
			b := *w.Bundle(farID)
			b.Cert.Certificate = nil
			tun, err := w.Tunnel(outlaw, at, &b, webID)
			if err == nil {
				if _, status, err := tun.Open(http.MethodConnect, echo, nil); err == nil {
					t.Fatalf("a peer without a certificate was answered with %d", status)
				}
			}
		})
	})
}

// TestImpostor: what listens at a pod's address and cannot prove to be the
// pod, gets no byte.
func TestImpostor(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "native", "node1", ownTunnelOf("native"))})
	native := lab.InPod("shop", "native")
	for _, c := range []struct{ name, id, why string }{
		{"honest", "spiffe://cluster.local/ns/shop/sa/native", ""},
		{"other account", webID, "PEER_IDENTITY_MISMATCH"},
		{"other namespace", "spiffe://cluster.local/ns/street/sa/native", "PEER_IDENTITY_MISMATCH"},
		{"other trust domain", "spiffe://other.domain/ns/shop/sa/native", "TRUST_DOMAIN_MISMATCH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := world.For(t)
				to := netip.AddrPortFrom(w.Pod("shop", "native", v6), 9000)
				wp := w.Waypoint(native, w.Bundle(c.id), nil)
				_, err := w.Hold(far, to)
				if c.why == "" {
					if s, _ := wp.Last(); err != nil || s.Authority != to.String() {
						t.Errorf("%+v, %v", s, err)
					}
					return
				}
				if err == nil {
					t.Error("the impostor was believed")
				}
				if s := wp.Seen(); len(s) > 0 {
					t.Errorf("the impostor got %v", s)
				}
				w.Logs("node2", `dst.hbone_addr=`+to.String(), `reason="`+c.why)
			})
		})
	}
}

// ownTunnelOf are labels of a pod that speaks HBONE itself.
func ownTunnelOf(app string) string {
	return "istio.io/dataplane-mode: none, networking.istio.io/tunnel: http, app: " + app
}
