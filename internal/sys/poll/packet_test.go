package poll

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// udp returns a bound, non-blocking UDP socket and its port.
func udp(t *testing.T, family int) (int, uint16) {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	if family == unix.AF_INET {
		must(t, unix.Bind(fd, &unix.SockaddrInet4{}))
	} else {
		must(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0))
		must(t, unix.Bind(fd, &unix.SockaddrInet6{}))
	}
	sa, err := unix.Getsockname(fd)
	must(t, err)
	return fd, addrPort(sa).Port()
}

// A server on the wildcard answers from the address that it was asked at. A client
// that is connected gets no other answers.
func TestPacketAnswersFromTheAddressAsked(t *testing.T) {
	for _, test := range []struct {
		name   string
		family int
		at     []string
	}{
		{"IPv4", unix.AF_INET, []string{"127.0.0.1", "127.0.0.2", "127.9.8.7"}},
		{"both families", unix.AF_INET6, []string{"127.0.0.1", "127.0.0.2", "::1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newGroup(t, 1).Loop(0)
			fd, port := udp(t, test.family)
			var p *Packet
			on(t, l, func() {
				var err error
				p, err = NewPacket(l, fd, func(b []byte, from netip.AddrPort, to netip.Addr) {
					if !p.Send(append([]byte("re: "), b...), from, to) {
						t.Error("not sent")
					}
				})
				must(t, err)
			})
			for _, at := range test.at {
				c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(at), port).String())
				must(t, err)
				_ = c.SetDeadline(time.Now().Add(patience))
				// Many at once: more than a batch.
				want := map[string]bool{}
				for i := range 100 {
					q := fmt.Sprintf("%s %d", at, i)
					want["re: "+q] = true
					_, err := c.Write([]byte(q))
					must(t, err)
				}
				buf := make([]byte, 100)
				for len(want) > 0 {
					n, err := c.Read(buf)
					if err != nil {
						t.Fatalf("%d answers from %s are missing: %v", len(want), at, err)
					}
					if !want[string(buf[:n])] {
						t.Errorf("answer %q", buf[:n])
					}
					delete(want, string(buf[:n]))
				}
				_ = c.Close()
			}
			on(t, l, func() { p.Close() })
		})
	}
}

// What is too long to receive, or cannot be sent, harms no other datagram.
func TestPacketDrops(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	fd, port := udp(t, unix.AF_INET)
	got := make(chan int, 10)
	var p *Packet
	on(t, l, func() {
		var err error
		p, err = NewPacket(l, fd, func(b []byte, _ netip.AddrPort, _ netip.Addr) { got <- len(b) })
		must(t, err)
	})
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	must(t, err)
	defer c.Close() //nolint:errcheck // the test is over
	for _, n := range []int{MaxPacket + 1, MaxPacket, 0, 5} {
		_, err := c.Write(make([]byte, n))
		must(t, err)
	}
	for _, want := range []int{MaxPacket, 0, 5} {
		if n := wait(t, got, "a datagram"); n != want {
			t.Errorf("%d bytes, want %d", n, want)
		}
	}
	to := c.LocalAddr().(*net.UDPAddr).AddrPort()
	on(t, l, func() {
		p.Send([]byte("no such address here"), to, netip.MustParseAddr("192.0.2.1"))
		p.Send(make([]byte, 70_000), to, netip.Addr{}) // longer than a datagram can be
		p.Send([]byte("good"), to, netip.Addr{})
		for p.Send(make([]byte, 1000), to, netip.Addr{}) {
			if len(p.bytes) > maxPacketBytes {
				t.Fatal("nothing bounds what waits")
			}
		}
	})
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 2000)
	if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], []byte("good")) {
		t.Errorf("%q, %v", buf[:n], err)
	}
	on(t, l, func() {
		p.Close()
		if p.Send([]byte("x"), to, netip.Addr{}) {
			t.Error("a closed socket sends")
		}
	})
}

func TestPacketAllocatesNothing(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	a, _ := udp(t, unix.AF_INET)
	b, port := udp(t, unix.AF_INET)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	done := make(chan struct{})
	var client, server *Packet
	on(t, l, func() {
		var err error
		server, err = NewPacket(l, b, func(p []byte, from netip.AddrPort, at netip.Addr) { server.Send(p, from, at) })
		must(t, err)
		client, err = NewPacket(l, a, func([]byte, netip.AddrPort, netip.Addr) { done <- struct{}{} })
		must(t, err)
	})
	q := []byte("a question")
	ask := func() { client.Send(q, to, netip.Addr{}) }
	round := func() { l.Post(ask); <-done }
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(100, round); n > raceAllocs {
		t.Errorf("%.1f allocations", n)
	}
	on(t, l, func() { client.Close(); server.Close() })
}
