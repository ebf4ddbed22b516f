package ztunnel

import (
	"fmt"
	"io"
	"net"
	"testing"
)

func TestPassthrough(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "TCP", ""))
		w.enrol(w.client)
		w.serve(8080, echo)
		c := w.dial(w.at(8080))
		w.talk(c, "plain")
		_ = c.Close()
		w.client.log.wait(t, "connection complete", `direction="outbound"`, `src.workload="client"`, `dst.workload="server"`, "bytes_sent=6")
	})
}

func TestInboundPlaintext(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("TCP", "HBONE", ""))
		w.enrol(w.server)
		w.serve(8080, echo)
		c := w.dial(w.at(8080))
		w.talk(c, "plain")
		_ = c.Close()
		w.server.log.wait(t, "connection complete", `direction="inbound"`, fmt.Sprintf("src.addr=%s", prefixed(w)), "bytes_recv=6")
	})
}

// prefixed is the client's address as it begins in a log.
func prefixed(w *world) string {
	if w.v6 {
		return "[" + w.clientIP().String() + "]:"
	}
	return w.clientIP().String() + ":"
}

const strict = `
policies:
- {name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{notPrincipals: [{Presence: []}]}]]]}
`

func TestStrictRefusesPlaintext(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("TCP", "HBONE", strict))
		w.enrol(w.server)
		w.serve(8080, echo)
		w.refused(w.at(8080))
		w.server.log.wait(t, "connection complete", `reason="POLICY_DENIED"`, `policy="shop/p"`, "explicitly denied by: shop/p")
	})
}

func TestHBONE(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", cartService+strict))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, echo)
		for _, to := range []uint16{8080, 80} {
			addr := w.at(to)
			if to == 80 {
				addr = w.vip(to)
			}
			c := w.dial(addr)
			w.talk(c, "one")
			w.talk(c, "two")
			_ = c.Close()
		}
		w.client.log.wait(t, "connection complete", `direction="outbound"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/cart"`, `dst.service="cart.shop.svc.cluster.local"`, ":15008")
		w.server.log.wait(t, "connection complete", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/web"`, `dst.service="cart.shop.svc.cluster.local"`)
	})
}

func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", ""))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			if err == nil {
				_, _ = fmt.Fprintf(c, "%d bytes", len(b))
			}
		})
		c := w.dial(w.at(8080))
		if _, err := c.Write(make([]byte, 300000)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "300000 bytes" {
			t.Fatalf("%q %v", b, err)
		}
	})
}

func TestServerFirst(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", ""))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hello from the server") })
		if b, err := io.ReadAll(w.dial(w.at(8080))); err != nil || string(b) != "hello from the server" {
			t.Fatalf("%q %v", b, err)
		}
	})
}

func TestPolicyDenies(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", `
policies:
- {name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}
`))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, echo)
		w.refused(w.at(8080))
		w.server.log.wait(t, "connection complete", `reason="POLICY_DENIED"`, `policy="shop/p"`, `src.identity="spiffe://cluster.local/ns/shop/sa/web"`)
		w.client.log.wait(t, "connection complete", "401", `reason="TUNNEL_REFUSED"`)
	})
}

func TestPolicyChangeEndsLiveConnection(t *testing.T) {
	for name, protos := range map[string][2]string{"HBONE": {"HBONE", "HBONE"}, "plaintext": {"TCP", "HBONE"}} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.apply(w.mesh(protos[0], protos[1], idle))
				if protos[0] == "HBONE" {
					w.enrol(w.client)
				}
				w.enrol(w.server)
				w.serve(8080, echo)
				c := w.dial(w.at(8080))
				w.talk(c, "before")
				w.apply(`policies: [{name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [8080]}]]]}]`)
				b := make([]byte, 1)
				if _, err := c.Read(b); err == nil {
					t.Fatal("the connection lives on")
				}
				w.server.log.wait(t, "connection complete", `reason="POLICY_CHANGED"`, `policy="shop/p"`, "connection closed due to policy change")
			})
		})
	}
}

// A policy that was there all along begins to apply when the workload names it.
func TestWorkloadChangeEndsLiveConnection(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", `policies: [{name: q, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [8080]}]]]}]`))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "before")
	w.apply(fmt.Sprintf(`workloads: [{uid: server, name: server, namespace: shop, serviceAccount: cart, node: b, workloadIps: [%s], protocol: HBONE, authorizationPolicies: [shop/q]}]`, w.serverIP()))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection lives on")
	}
	w.server.log.wait(t, "connection complete", `reason="POLICY_CHANGED"`, `policy="shop/q"`)
}
