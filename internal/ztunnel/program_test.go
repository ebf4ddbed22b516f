package ztunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// setSysctl sets a setting of a network namespace.
func setSysctl(t *testing.T, ns *netns.NS, name, value string) {
	t.Helper()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

// fewPorts is the number of ports that connections of a pod may have in these
// tests.
const fewPorts = 20

func (w *world) fewPorts() {
	setSysctl(w.t, w.client.ns, "ipv4/ip_local_port_range", "20000 30000") // never one of the others
	setSysctl(w.t, w.server.ns, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+fewPorts-1))
}

// served has the server pod enrolled, with its connections by tunnel or in
// plaintext.
func (w *world) served(tunnel bool) {
	proto := "TCP"
	if tunnel {
		proto = "HBONE"
		w.enrol(w.client)
	}
	w.apply(w.mesh(proto, proto, ""))
	w.enrol(w.server)
}

func ways(t *testing.T, fn func(t *testing.T, w *world, tunnel bool)) {
	for _, tunnel := range []bool{true, false} {
		t.Run(map[bool]string{true: "tunnel", false: "plaintext"}[tunnel], func(t *testing.T) {
			each(t, func(t *testing.T, w *world) { fn(t, w, tunnel) })
		})
	}
}

// ask sends a word and returns the client's address that the program saw.
func (w *world) ask(c net.Conn) (netip.Addr, error) {
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return netip.Addr{}, err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return netip.Addr{}, err
	}
	host, _, _ := strings.Cut(string(b[:n]), " ")
	return netip.ParseAddr(host)
}

// More connections of one client than the namespace has ports are all
// accepted: those without a port of the client's address come from the pod's
// own.
func TestPortsOfClientRunOut(t *testing.T) {
	ways(t, func(t *testing.T, w *world, tunnel bool) {
		w.served(tunnel)
		w.serve(8080, echo)
		w.fewPorts()
		seen := map[netip.Addr]int{}
		for i := range fewPorts + fewPorts/2 {
			a, err := w.ask(w.dial(w.at(8080)))
			if err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			seen[a]++
		}
		if seen[w.clientIP()] != fewPorts || seen[w.serverIP()] != fewPorts/2 {
			t.Errorf("programs saw %v", seen)
		}
		if n := w.server.node.Metrics.SourceLost.Load(); n != fewPorts/2 {
			t.Errorf("%d connections are counted as without the client's address", n)
		}
	})
}

// Ports that connections of clients have are not taken from the pod: it can
// connect to others, and listen.
func TestPortsOfPodAreItsOwn(t *testing.T) {
	ways(t, func(t *testing.T, w *world, tunnel bool) {
		w.served(tunnel)
		w.serve(8080, echo)
		w.fewPorts()
		for range fewPorts {
			if _, err := w.ask(w.dial(w.at(8080))); err != nil {
				t.Fatal(err)
			}
		}
		for port := range uint16(fewPorts) {
			l := netnstest.Listen(t, w.server.ns, netip.AddrPortFrom(netip.IPv6Unspecified(), 40000+port), nil)
			_ = l.Close()
		}
		l := netnstest.Listen(t, w.client.ns, netip.AddrPortFrom(w.clientIP(), 7000), nil)
		defer func() { _ = l.Close() }()
		for range fewPorts / 2 { // the program and its proxy have a port each
			c, err := netnstest.Dial(w.server.ns, netip.Addr{}, netip.AddrPortFrom(w.clientIP(), 7000), nil)
			if err != nil {
				t.Fatalf("the pod calls out: %v", err)
			}
			defer func() { _ = c.Close() }()
		}
	})
}

// Connections that the client ended leave the proxy's half in TIME_WAIT, which
// must not stop new ones.
func TestPortsOfEndedConnections(t *testing.T) {
	ways(t, func(t *testing.T, w *world, tunnel bool) {
		w.served(tunnel)
		w.serve(8080, echo)
		w.fewPorts()
		for i := range fewPorts + fewPorts/2 {
			c := w.dial(w.at(8080))
			if _, err := w.ask(c); err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
	})
}

// A program that listens on one family gets connections to the pod's other
// address as well.
func TestOtherFamilyIsTried(t *testing.T) {
	ways(t, func(t *testing.T, w *world, tunnel bool) {
		w.served(tunnel)
		other := netip.AddrPortFrom(netnstest.PeerIPv6, 8080)
		if w.v6 {
			other = netip.AddrPortFrom(netnstest.PeerIPv4, 8080)
		}
		w.refused(w.at(8080))
		l := netnstest.Listen(t, w.server.ns, other, nil)
		defer func() { _ = l.Close() }()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { echo(c.(*net.TCPConn)); _ = c.Close() }()
			}
		}()
		a, err := w.ask(w.dial(w.at(8080)))
		if err != nil || a != other.Addr() {
			t.Errorf("seen as %s, %v", a, err)
		}
		// A policy about the other address is kept.
		w.apply(w.mesh(map[bool]string{true: "HBONE", false: "TCP"}[tunnel], map[bool]string{true: "HBONE", false: "TCP"}[tunnel], fmt.Sprintf(`
policies:
- {name: p, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, rules: [[[{destinationIps: ["%s"]}]]]}
`, netip.PrefixFrom(other.Addr(), other.Addr().BitLen()))))
		w.refused(w.at(8080))
	})
}

// So does one outside of the mesh that is called from inside.
func TestOtherFamilyIsTriedOutside(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "TCP", cartService))
		w.enrol(w.client)
		w.refused(w.vip(80))
		other := netip.AddrPortFrom(netnstest.PeerIPv6, 8080)
		if w.v6 {
			other = netip.AddrPortFrom(netnstest.PeerIPv4, 8080)
		}
		l := netnstest.Listen(t, w.server.ns, other, nil)
		defer func() { _ = l.Close() }()
		go func() {
			if c, err := l.Accept(); err == nil {
				echo(c.(*net.TCPConn))
				_ = c.Close()
			}
		}()
		if _, err := w.ask(w.dial(w.vip(80))); err != nil {
			t.Error(err)
		}
	})
}

// An urgent byte arrives in its place in the stream, in both directions, and
// what follows it does not wait for more.
func TestUrgentByte(t *testing.T) {
	ways(t, func(t *testing.T, w *world, tunnel bool) {
		w.served(tunnel)
		served := make(chan *net.TCPConn, 1)
		over := make(chan struct{})
		defer close(over)
		w.serve(8080, func(c *net.TCPConn) { served <- c; <-over })
		c := w.dial(w.at(8080))
		s := <-served
		_ = s.SetDeadline(time.Now().Add(netnstest.Timeout))
		for name, ends := range map[string][2]*net.TCPConn{"request": {c, s}, "answer": {s, c}} {
			for i := range 20 {
				urgent(t, ends[0])
				got := make([]byte, len("before!after"))
				if _, err := io.ReadFull(ends[1], got); err != nil || string(got) != "before!after" {
					t.Fatalf("%s %d: %q, %v", name, i, got, err)
				}
			}
			bulk := strings.Repeat("x", 3<<20)
			go func() {
				_, _ = io.WriteString(ends[0], bulk)
				urgent(t, ends[0])
			}()
			all := make([]byte, len(bulk)+len("before!after"))
			if _, err := io.ReadFull(ends[1], all); err != nil || string(all) != bulk+"before!after" {
				t.Fatalf("%s: after a large transfer: %v", name, err)
			}
		}
	})
}

func urgent(t *testing.T, c *net.TCPConn) {
	_, err := io.WriteString(c, "before")
	raw, rawErr := c.SyscallConn()
	var sent error
	ctl := raw.Write(func(fd uintptr) bool {
		sent = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	if err = errors.Join(err, rawErr, ctl, sent); err == nil {
		_, err = io.WriteString(c, "after")
	}
	if err != nil {
		t.Error(err)
	}
}

// A half-closed connection that is silent for longer than connection tracking
// keeps it stays redirected, because the proxy probes it.
func TestHalfClosedAndSilent(t *testing.T) {
	for _, tunnel := range []bool{true, false} {
		t.Run(map[bool]string{true: "tunnel", false: "plaintext"}[tunnel], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, false)
			for _, s := range []*side{w.client, w.server} {
				s.node.Config.KeepAlive.CapturedIdle = bootstrap.Duration(2 * time.Second)
			}
			w.served(tunnel)
			for _, s := range []*side{w.client, w.server} {
				for _, state := range []string{"close_wait", "fin_wait"} {
					setSysctl(t, s.ns, "netfilter/nf_conntrack_tcp_timeout_"+state, "5")
				}
			}
			answer := make(chan struct{})
			w.serve(8080, func(c *net.TCPConn) {
				if b, err := io.ReadAll(c); err != nil || string(b) != "request" {
					t.Errorf("%q, %v", b, err)
				}
				<-answer
				_, _ = io.WriteString(c, "late")
			})
			c := w.dial(w.at(8080))
			if _, err := io.WriteString(c, "request"); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Second) // longer than the kernel's 5 s, of which there is no other sign
			close(answer)
			if b, err := io.ReadAll(c); err != nil || string(b) != "late" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}
