package nft

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// sysctl writes a setting of connection tracking in a namespace.
func sysctl(t *testing.T, ns *netns.NS, name, value string) {
	t.Helper()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

// forget takes away all that connection tracking holds in a namespace.
func forget(t *testing.T, ns *netns.NS) {
	t.Helper()
	if err := ns.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		t.Fatal(err)
	}
}

const late = "a late answer"

// serveLate answers each connection when it is told to, after the client has
// ended its direction.
func serveLate(t *testing.T, ns *netns.NS, at netip.Addr, answer <-chan struct{}) netip.AddrPort {
	t.Helper()
	l := netnstest.Listen(t, ns, netip.AddrPortFrom(at, 0), nil)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(io.Discard, c)
				<-answer
				_, _ = io.WriteString(c, late)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// halfClosed connects, says something, and ends its direction.
func halfClosed(t *testing.T, ns *netns.NS, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := netnstest.Dial(ns, netip.Addr{}, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "question"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A client that waits for its answer with its own direction ended is as good as
// any other, however long connection tracking would keep it.
func TestHalfClosedConnectionsLast(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		for _, state := range []string{"close_wait", "fin_wait", "established", "last_ack", "max_retrans", "unacknowledged"} {
			sysctl(t, pod, "nf_conntrack_tcp_timeout_"+state, "1")
		}
		answer := make(chan struct{})
		in := halfClosed(t, peer, serveLate(t, pod, f.pod, answer))
		out := halfClosed(t, pod, serveLate(t, peer, f.peer, answer))
		// The times of connection tracking are the kernel's.
		time.Sleep(4 * time.Second)
		close(answer)
		for name, c := range map[string]net.Conn{"inbound": in, "outbound": out} {
			_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
			if b, err := io.ReadAll(c); err != nil || string(b) != late {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
	})
}

// wire records the TCP payload that arrives in a namespace, by the ports that
// sent it.
type wire struct {
	mu   sync.Mutex
	seen map[uint16][]byte
}

func watch(t *testing.T, ns *netns.NS, v6 bool) *wire {
	t.Helper()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := ns.Socket(family, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "wire")
	t.Cleanup(func() { _ = f.Close() })
	w := &wire{seen: map[uint16][]byte{}}
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			segment := b[:n]
			if !v6 {
				segment = segment[int(segment[0]&15)*4:]
			}
			port := uint16(segment[0])<<8 | uint16(segment[1])
			w.mu.Lock()
			w.seen[port] = append(w.seen[port], segment[int(segment[12]>>4)*4:]...)
			w.mu.Unlock()
		}
	}()
	return w
}

// has reports whether the port has sent the text in the clear.
func (w *wire) has(port uint16, text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Contains(w.seen[port], []byte(text))
}

// When connection tracking forgets a connection, its redirection is lost. What
// the program sends then goes nowhere.
func TestLostRedirectionLeavesNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		netnstest.StartProxy(t, pod)
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		apply(t, pod, Config{IPv6: true})
		answer := make(chan struct{})
		inside := serveLate(t, pod, f.pod, answer)
		halfClosed(t, peer, inside)
		out, err := netnstest.Dial(pod, netip.Addr{}, outside, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		if _, err := converse(out); err != nil {
			t.Fatal(err)
		}
		w := watch(t, peer, f.pod.Is6())
		forget(t, pod)
		close(answer)
		const secret = "in the clear"
		_, _ = io.WriteString(out, secret)
		_ = out.SetDeadline(time.Now().Add(netnstest.Timeout))
		if _, err := io.ReadAll(out); err == nil {
			t.Error("the program is not told that its connection is lost")
		}
		// What is sent later arrives later: the watcher has seen all before it.
		after := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		mustTalk(t, peer, after, nil)
		if w.has(inside.Port(), late) {
			t.Error("the answer left the pod in the clear")
		}
		if w.has(out.LocalAddr().(*net.TCPAddr).AddrPort().Port(), secret) {
			t.Error("what a program sent left the pod in the clear")
		}
	})
}

// open returns connections out of the pod and into it.
func openBoth(t *testing.T, pod, peer *netns.NS, f family) map[string]net.Conn {
	t.Helper()
	inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
	outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
	conns := map[string]net.Conn{}
	for name, d := range map[string]struct {
		from *netns.NS
		to   netip.AddrPort
	}{"out": {pod, outside}, "in": {peer, inside}} {
		c, err := netnstest.Dial(d.from, netip.Addr{}, d.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := converse(c); err != nil {
			t.Fatal(err)
		}
		conns[name] = c
	}
	return conns
}

func mustEcho(t *testing.T, what string, conns map[string]net.Conn) {
	t.Helper()
	for name, c := range conns {
		if err := echo(c, bufio.NewReader(c)); err != nil {
			t.Errorf("%s, %s: %v", what, name, err)
		}
	}
}

// Connections that are older than the table go on whatever connection tracking
// holds of them, and through every change of the table.
func TestOlderConnectionsAreListed(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		older := openBoth(t, pod, peer, f)
		netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		mustEcho(t, "after enrolment", older)
		captured := openBoth(t, pod, peer, f)
		for i, cfg := range []Config{{IPv6: true, CaptureDNS: true}, {IPv6: true, BypassInbound: true}, {IPv6: true, Quiesce: true}, {IPv6: true}} {
			apply(t, pod, cfg)
			mustEcho(t, fmt.Sprint("captured, change ", i), captured)
			forget(t, peer)
			mustEcho(t, fmt.Sprint("older, change ", i), older)
		}
		forget(t, pod)
		mustEcho(t, "forgotten", older)
	})
}

// A table that somebody has deleted is written as if the pod was enrolled anew:
// what began without it goes on. Captured connections may have ended: without
// the table, each packet of theirs goes elsewhere.
func TestTableThatWasDeletedIsWrittenAnew(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		openBoth(t, pod, peer, f)
		if err := removeTable(pod, podTable); err != nil {
			t.Fatal(err)
		}
		between := openBoth(t, pod, peer, f)
		apply(t, pod, Config{IPv6: true})
		mustEcho(t, "opened between", between)
		if in, out := len(proxy.Inbound()), len(proxy.Outbound()); in != 1 || out != 1 {
			t.Errorf("the proxy got %d inbound and %d outbound connections, want one each", in, out)
		}
		forget(t, pod)
		mustEcho(t, "opened between, and forgotten", between)
	})
}

func TestUncaptured(t *testing.T) {
	at := netip.MustParseAddrPort
	pod, client, other := at("10.0.0.2:9000"), at("10.0.0.9:1234"), at("10.0.0.9:1235")
	program, service := at("10.0.0.2:5555"), at("10.96.0.1:80")
	got := uncaptured([]connection{
		{pod, client}, {client, pod}, // the program, and the proxy under the client's address
		{program, service}, {at("127.0.0.1:15001"), program}, // redirected to the proxy
		{at("127.0.0.1:6000"), at("127.0.0.1:6001")}, {at("127.0.0.1:6001"), at("127.0.0.1:6000")},
		{pod, other}, // nobody else's end
		{at("10.0.0.2:5556"), service},
	})
	want := []connection{{pod, other}, {at("10.0.0.2:5556"), service}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
}
