package scenario

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestStreams: through the mesh, a TCP connection is what it is without: each
// direction ends on its own, a reset stays one, and every byte arrives.
func TestStreams(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "bulk", "node1", "", "LOAD", "server", "-listen", ":9000")})
	callers := map[string]lab.Where{"near": near, "far": far, "stranger": stranger}
	rig.Families(t, func(t *testing.T, v6 bool) {
		for name, from := range callers {
			t.Run("half-close from "+name, func(t *testing.T) {
				t.Run("client first", func(t *testing.T) { clientEndsFirst(world.For(t), from, v6) })
				t.Run("server first", func(t *testing.T) { serverEndsFirst(world.For(t), from, v6) })
			})
			t.Run("reset from "+name, func(t *testing.T) {
				t.Run("client", func(t *testing.T) {
					w := world.For(t)
					c, s := pair(w, from, v6)
					resets(w, c, s)
				})
				t.Run("server", func(t *testing.T) {
					w := world.For(t)
					c, s := pair(w, from, v6)
					resets(w, s, c)
				})
			})
		}
		t.Run("large", func(t *testing.T) {
			w := world.For(t)
			for from, size := range map[lab.Where]int64{near: 8 << 20, far: 64 << 20} {
				transfer(w, w.MustDial(from, netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)), size)
			}
		})
		t.Run("many", func(t *testing.T) {
			w := world.For(t)
			out := w.MustRun(far, rig.Bin("load"), "echo", "-conns", "500", "-size", "256", "-duration", "500ms", netip.AddrPortFrom(w.Pod("shop", "bulk", v6), 9000).String())
			var r struct {
				Requests, Errors int
				LastError        string `json:"last_error"`
			}
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatal(err)
			}
			if r.Errors > 0 || r.Requests < 500 {
				t.Errorf("on 500 connections at once: %+v", r)
			}
		})
	})
}

// one accepts one connection in web on a port of its own.
func one(w *rig.World, port int) (accepted <-chan *net.TCPConn) {
	l := w.Listen(web, fmt.Sprintf(":%d", port))
	ch := make(chan *net.TCPConn, 1)
	go func() {
		defer l.Close() //nolint:errcheck // one is enough
		if c, err := l.Accept(); err == nil {
			w.T().Cleanup(func() { _ = c.Close() })
			ch <- c.(*net.TCPConn)
		}
	}()
	return ch
}

const oddPort = 9321

// pair is a connection between a pod and web, both ends of it.
func pair(w *rig.World, from lab.Where, v6 bool) (client, server *net.TCPConn) {
	w.T().Helper()
	return pairTo(w, from, netip.AddrPortFrom(w.Pod("shop", "web", v6), oddPort))
}

func pairTo(w *rig.World, from lab.Where, to netip.AddrPort) (client, server *net.TCPConn) {
	w.T().Helper()
	accepted := one(w, oddPort)
	c := w.MustDial(from, to).(*net.TCPConn)
	select {
	case s := <-accepted:
		for _, x := range []*net.TCPConn{c, s} {
			if err := x.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				w.T().Fatal(err)
			}
		}
		return c, s
	case <-time.After(20 * time.Second):
		w.T().Fatal("the server got no connection")
	}
	return nil, nil
}

func clientEndsFirst(w *rig.World, from lab.Where, v6 bool) {
	c, s := pair(w, from, v6)
	endsFirst(w, c, s)
}

func serverEndsFirst(w *rig.World, from lab.Where, v6 bool) {
	c, s := pair(w, from, v6)
	endsFirst(w, s, c)
}

// endsFirst has a say something and end its direction; b answers after that.
func endsFirst(w *rig.World, a, b *net.TCPConn) {
	t := w.T()
	if _, err := io.WriteString(a, "the last words"); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "the last words" {
		t.Fatalf("%q, %v", got, err)
	}
	for range 3 { // the other direction is not in a hurry
		if _, err := io.WriteString(b, "answer "); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer answer answer " {
		t.Fatalf("%q, %v", got, err)
	}
}

// resets has a reset the connection; b must notice, and not take it for an end
// that was meant.
func resets(w *rig.World, a, b *net.TCPConn) {
	t := w.T()
	if _, err := io.WriteString(a, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.SetLinger(0), a.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the reset arrived as %v", err)
	}
}

// transfer sends n bytes to an echo server and wants the same ones back.
func transfer(w *rig.World, c net.Conn, n int64) {
	t := w.T()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	sent := sha256.New()
	done := make(chan error, 1)
	go func() {
		src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{7}), n), sent)
		_, err := io.Copy(struct{ io.Writer }{c}, src)
		done <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got := sha256.New()
	m, err := io.Copy(got, c)
	if err := errors.Join(err, <-done); err != nil || m != n {
		t.Fatalf("%d of %d bytes came back: %v", m, n, err)
	}
	if a, b := fmt.Sprintf("%x", sent.Sum(nil)), fmt.Sprintf("%x", got.Sum(nil)); a != b {
		t.Errorf("SHA-256 sent %s, got back %s", a, b)
	}
}

// TestAddressReuse: a pod that gets the address of one that is gone inherits
// nothing: no tunnel to it, and none from it.
func TestAddressReuse(t *testing.T) {
	// With three addresses a node and two of them taken, there is no other.
	world := rig.Start(t, lab.Config{PodAddresses: 3, YAML: shop + rig.PolicyObject("shop", "only-alice", "ALLOW",
		`selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/alice]}}]}]`)})
	rig.Families(t, func(t *testing.T, v6 bool) {
		t.Run("server", func(t *testing.T) {
			w := world.For(t)
			start(w, rig.ServerObject("shop", "first", "node1", ""))
			to := netip.AddrPortFrom(w.Pod("shop", "first", v6), 8080)
			want(t, "answer", w.MustGet(far, to).Name, "first")
			want(t, "answer", w.MustGet(near, to).Name, "first")
			w.MustDelete("Pod", "shop", "first")
			start(w, rig.ServerObject("shop", "second", "node1", ""))
			want(t, "address of the second pod", w.Pod("shop", "second", v6), to.Addr())
			for _, from := range []lab.Where{far, near} {
				want(t, "answer", w.MustGet(from, to).Name, "second")
			}
			for _, node := range []string{"node1", "node2"} {
				w.Logs(node, `direction="outbound"`, `dst.workload="second"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/second"`)
			}
			for _, line := range w.AccessLines("node1", `direction="inbound"`, `dst.workload="second"`) {
				if contains(line, `dst.identity="spiffe://cluster.local/ns/shop/sa/second"`) != nil {
					t.Errorf("somebody else's identity: %s", line)
				}
			}
			w.MustDelete("Pod", "shop", "second")
		})
		t.Run("client", func(t *testing.T) {
			w := world.For(t)
			to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
			start(w, rig.PodObject("shop", "alice", "node2", ""))
			where := w.Pod("shop", "alice", v6)
			w.MustGet(lab.InPod("shop", "alice"), to)
			w.MustDelete("Pod", "shop", "alice")
			start(w, rig.PodObject("shop", "mallory", "node2", ""))
			want(t, "address of the second pod", w.Pod("shop", "mallory", v6), where)
			for range 5 {
				w.Refused(lab.InPod("shop", "mallory"), to)
			}
			w.Logs("node1", `src.identity="spiffe://cluster.local/ns/shop/sa/mallory"`, `reason="NOT_ALLOWED"`)
			w.MustDelete("Pod", "shop", "mallory")
		})
	})
}

// start makes pods and waits until they are ready and known to be.
func start(w *rig.World, yaml string) {
	w.T().Helper()
	w.MustApply(yaml)
	if _, err := w.WaitReady(w.T().Context()); err != nil {
		w.T().Fatal(err)
	}
	w.Settled()
}
