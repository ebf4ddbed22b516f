package ztunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/proxy/proxyproto"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// The server is a waypoint that wants to know who calls.
func TestSandwichWithProxyProtocol(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", "") + fmt.Sprintf(`
- {uid: server, name: server, namespace: shop, serviceAccount: cart, node: b, workloadIps: [%s, "%s"], protocol: HBONE, applicationTunnel: {protocol: PROXY, port: 15088}}
`, netnstest.PeerIPv4, netnstest.PeerIPv6))
		w.enrol(w.client)
		w.enrol(w.server)
		heads := make(chan proxyproto.Header, 1)
		loop := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 15088)
		if w.v6 {
			loop = netip.AddrPortFrom(netip.IPv6Loopback(), 15088)
		}
		l := netnstest.Listen(t, w.server.ns, loop, nil)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			var b []byte
			for {
				p := make([]byte, 512)
				n, err := c.Read(p)
				b = append(b, p[:n]...)
				if h, n, derr := proxyproto.Decode(b); derr == nil && len(b) > n {
					heads <- h
					_, _ = c.Write(b[n:])
					return
				}
				if err != nil {
					return
				}
			}
		}()
		c := w.dial(w.at(80))
		if _, err := io.WriteString(c, "payload"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 7)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "payload" {
			t.Fatalf("%q %v\n%s", b, err, w.server.log.buf.String())
		}
		h := <-heads
		if h.Src.Addr() != w.clientIP() || h.Dst != w.at(80) || h.Identity != account("web").String() {
			t.Errorf("%+v", h)
		}
	})
}

// A pod that is a waypoint gets what is addressed to those it stands for.
func TestSandwichPlain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", `
- {uid: behind, name: behind, namespace: shop, serviceAccount: behind, workloadIps: [10.9.0.77, "fd00:9::77"], protocol: HBONE, waypoint: {destination: {namespace: shop, hostname: cart.shop.svc.cluster.local}, hboneMtlsPort: 15008}}
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd96::1"], ports: {15008: 15008}}
`))
		w.apply(fmt.Sprintf(`workloads: [{uid: server, name: server, namespace: shop, serviceAccount: cart, node: b, workloadIps: [%s, "%s"], protocol: HBONE, services: {shop/cart.shop.svc.cluster.local: {15008: 15008}}}]`, netnstest.PeerIPv4, netnstest.PeerIPv6))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, echo)
		to := netip.MustParseAddrPort("10.9.0.77:8080")
		if w.v6 {
			to = netip.MustParseAddrPort("[fd00:9::77]:8080")
		}
		w.talk(w.dial(to), "for somebody behind me")
	})
}

func TestBulkBothWays(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", ""))
		w.enrol(w.client)
		w.enrol(w.server)
		w.serve(8080, func(c *net.TCPConn) {
			_, _ = io.Copy(c, c)
			_ = c.CloseWrite()
		})
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		var wg sync.WaitGroup
		for range 8 {
			c := w.dial(w.at(8080))
			wg.Go(func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			})
			wg.Go(func() {
				h := sha256.New()
				n, err := io.Copy(h, c)
				if want := sha256.Sum256(data); err != nil || n != int64(len(data)) || !bytes.Equal(h.Sum(nil), want[:]) {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		wg.Wait()
	})
}

// The application is not there: the client gets a reset, and both logs say why.
func TestNobodyListens(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", ""))
		w.enrol(w.client)
		w.enrol(w.server)
		w.refused(w.at(8081))
		w.server.log.wait(t, "connection complete", `reason="CONNECT_FAILURE"`)
		w.client.log.wait(t, "connection complete", `reason="TUNNEL_REFUSED"`, "503")
	})
}

// Not captured, but known to the mesh as enrolled: the tunnel finds nobody.
func TestNoProxyAtTheOtherEnd(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.serve(8080, echo)
	w.refused(w.at(8080))
	w.client.log.wait(t, "connection complete", `reason="CONNECT_FAILURE"`, ":15008")
}

// The captured pod's proxy is gone: resets, never plaintext.
func TestFailsClosed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", ""))
		w.serve(8080, echo)
		w.capture(w.client)
		if c, err := netnstest.Dial(w.client.ns, netip.Addr{}, w.at(8080), nil); err == nil {
			_ = c.Close()
			t.Error("out of a captured pod without a proxy")
		}
		w.capture(w.server)
		if c, err := netnstest.Dial(w.client.ns, netip.Addr{}, w.at(8080), nil); err == nil {
			_ = c.Close()
			t.Error("into a captured pod without a proxy")
		}
	})
}

// A connection may come before the control plane has named the pod.
func TestWaitsForItsOwnWorkload(t *testing.T) {
	w := newWorld(t, false)
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.talk(c, "in the end")
}

func TestPodGoes(t *testing.T) {
	for _, which := range []string{"client", "server"} {
		t.Run(which, func(t *testing.T) {
			w := newWorld(t, false)
			w.apply(w.mesh("HBONE", "HBONE", ""))
			w.enrol(w.client)
			w.enrol(w.server)
			w.serve(8080, echo)
			c := w.dial(w.at(8080))
			w.talk(c, "before")
			s := map[string]*side{"client": w.client, "server": w.server}[which]
			if err := s.node.Del(context.Background(), s.uid); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Fatal("the connection lives on")
			}
			s.log.wait(t, "connection complete", `reason="WORKLOAD_REMOVED"`)
			if up, pending := s.node.Counts(); up+pending != 0 {
				t.Errorf("%d pods are up, %d pending", up, pending)
			}
			until(t, "nothing is carried", func() bool { return s.node.active.Load() == 0 })
		})
	}
}

// A workload that leaves the mesh takes the tunnels to it along; what comes
// back at its address is somebody else, who is met anew.
func TestAddressIsReused(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "to the first")
	_ = c.Close()
	w.dir.Apply(nil, []string{"server"})
	until(t, "the tunnel is gone", func() bool {
		return w.client.node.tunnels.Len() == 0
	})
	if err := w.server.node.Del(context.Background(), "server"); err != nil {
		t.Fatal(err)
	}
	w.apply(fmt.Sprintf(`workloads: [{uid: other, name: other, namespace: shop, serviceAccount: other, node: b, workloadIps: [%s], protocol: HBONE}]`, w.serverIP()))
	w.server.uid, w.server.info.Name, w.server.info.ServiceAccount = "other", "other", "other"
	w.enrol(w.server)
	w.talk(w.dial(w.at(8080)), "to the second")
	w.server.log.wait(t, "connection opened", `dst.workload="other"`)
}

func TestAddSemantics(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "one")
	add := func(s *side, ns *netns.NS) error {
		d, err := ns.Dup()
		if err != nil {
			t.Fatal(err)
		}
		return s.node.Add(context.Background(), s.uid, s.info, d)
	}
	// The same again changes nothing.
	if err := add(w.client, w.client.ns); err != nil {
		t.Fatal(err)
	}
	w.talk(c, "two")
	// Another namespace under the same UID: the old one is left.
	other := netnstest.New(t)
	if err := add(w.client, other); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("the old namespace is still served")
	}
	// A list that does not name it ends it.
	w.client.node.Snapshot(context.Background(), map[string]bool{})
	if up, _ := w.client.node.Counts(); up != 0 {
		t.Errorf("%d pods after an empty list", up)
	}
}

// The ports are taken: the agent is told, and the pod is served once they are
// free, without another word.
func TestPendingPodIsRetried(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	taken := netnstest.Listen(t, w.client.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 15001), nil)
	ns, err := w.client.ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.node.Add(context.Background(), "client", w.client.info, ns); err == nil {
		t.Fatal("the agent is not told")
	}
	if up, pending := w.client.node.Counts(); up != 0 || pending != 1 {
		t.Fatalf("%d up, %d pending", up, pending)
	}
	_ = taken.Close()
	until(t, "the pod is served", func() bool { up, _ := w.client.node.Counts(); return up == 1 })
}

// A policy change between the registration of a connection and its first
// byte is seen.
func TestPolicyRace(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", idle))
	w.enrol(w.server)
	w.serve(8080, echo)
	cc, err := w.tunnel(w.bundle(w.certs, account("web")))
	if err != nil {
		t.Fatal(err)
	}
	deny := `policies: [{name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [8080]}]]]}]`
	for i := range 30 {
		res := make(chan *http.Response, 1)
		go func() {
			resp, _, err := w.request(cc, http.MethodConnect, w.at(8080).String(), nil)
			if err != nil {
				resp = nil
			}
			res <- resp
		}()
		time.Sleep(time.Duration(i%10) * 100 * time.Microsecond) // spreads the change over the connection's way in
		w.apply(deny)
		if resp := <-res; resp != nil && resp.StatusCode == 200 {
			if n, err := resp.Body.Read(make([]byte, 1)); err == nil {
				t.Fatalf("round %d: a connection lives on (%d bytes)", i, n)
			}
		}
		until(t, "nothing is carried", func() bool { return w.server.node.active.Load() == 0 })
		w.apply(idle)
	}
}
