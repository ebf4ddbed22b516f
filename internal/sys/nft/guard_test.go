package nft

import (
	"errors"
	"flag"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/packet"
	"github.com/ambit-mesh/ambit/internal/sys/packet/packettest"
)

// sendFrom sends one packet from a namespace.
func sendFrom(t *testing.T, ns *netns.NS, b []byte) {
	t.Helper()
	err := ns.Do(func() error {
		s, err := packet.Open(b[0]>>4 == 6)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		if err := s.Send(b); !errors.Is(err, unix.EPERM) {
			return err
		}
		return nil // the guard of the sender's own namespace has refused it
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dialAfter sends the segment from a port of the namespace, and then connects
// from that port.
func dialAfter(t *testing.T, ns *netns.NS, from netip.Addr, s packet.Segment) error {
	t.Helper()
	c, err := netnstest.Dial(ns, netip.Addr{}, s.To, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		var bind unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(from.AsSlice()[:4])}
		if from.Is6() {
			bind = &unix.SockaddrInet6{Addr: [16]byte(from.AsSlice())}
		}
		if err := unix.Bind(fd, bind); err != nil {
			return err
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		port := 0
		switch at := at.(type) {
		case *unix.SockaddrInet4:
			port = at.Port
		case *unix.SockaddrInet6:
			port = at.Port
		}
		s.From = netip.AddrPortFrom(from, uint16(port))
		sendFrom(t, ns, packet.Of(s))
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = converse(c)
	return err
}

// Connection tracking takes up a connection at any packet, and translates none
// that it knows already.
func TestFirstPacketWithoutSYNOpensNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		apply(t, pod, Config{IPv6: true})
		for flags := range 256 {
			first := packet.Segment{Flags: byte(flags), Seq: 1, Ack: 1, Options: packet.Signature()}
			for _, d := range []struct {
				from *netns.NS
				addr netip.Addr
				to   netip.AddrPort
			}{{peer, f.peer, inside}, {pod, f.pod, outside}} {
				first.To = d.to
				if err := dialAfter(t, d.from, d.addr, first); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("after a packet with flags %#x from %s: %v, want a refused connection", flags, d.addr, err)
				}
			}
		}
	})
}

// Nothing is redirected to a port that was asked for directly: the proxy would
// take the connection for one to itself.
func TestProxyPortsAreNotForOthers(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		refused(t, "the inbound port", peer, netip.AddrPortFrom(f.pod, wellknown.PortInbound), nil)
		apply(t, pod, Config{IPv6: true, BypassInbound: true})
		for _, port := range []uint16{wellknown.PortOutbound, wellknown.PortInbound, wellknown.PortDNS} {
			refused(t, "a port of the proxy in a pod that serves plaintext itself", peer, netip.AddrPortFrom(f.pod, port), nil)
		}
		if in, out := proxy.Inbound(), proxy.Outbound(); len(in)+len(out) > 0 {
			t.Errorf("the proxy got %v and %v", in, out)
		}
	})
}

var sequences = flag.Int("sequences", 25000, "how many sequences of packets to send in each direction and family")

// Whatever is sent first, from outside and from inside, a connection from the
// same port does not reach a program. No proxy listens: who connects has got
// around the redirection.
func TestNoSequenceOpensAConnection(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		apply(t, pod, Config{IPv6: true})
		for name, a := range map[string]packettest.Attack{
			"inbound":  {In: peer.Do, From: f.peer, To: []netip.AddrPort{inside}},
			"outbound": {In: pod.Do, From: f.pod, To: []netip.AddrPort{outside}},
		} {
			a.Seed, a.Count, a.Connected = 1, *sequences, true
			r, err := a.Run()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d sequences, %d answered, %d neither answered nor refused", name, r.Tried, r.Answered, r.Silent)
			for _, e := range r.Examples {
				t.Errorf("%s: connected after %s", name, e)
			}
		}
	})
}
