package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/packet"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// selfTestPatience bounds each step; what works takes microseconds.
const selfTestPatience = 2 * time.Second

// SelfTest proves in a throw-away pair of namespaces that this kernel redirects,
// in both families: a connection out of the one, and a connection into it from
// the other, arrive at the proxy's ports and say where they wanted to go, are
// reset when no program listens there, also after a packet that opens no connection; a probe from the pod's host arrives where it
// wanted to, and what has the host's address only does not; and nothing remains
// afterwards. An error says what this node is not able to do.
func SelfTest(ipv6 bool) error {
	pod, err := netns.New()
	if err != nil {
		return err
	}
	defer func() { _ = pod.Close() }()
	peer, err := netns.New()
	if err != nil {
		return err
	}
	defer func() { _ = peer.Close() }()
	hasIPv6, err := dressUp(pod, peer)
	if err != nil {
		return fmt.Errorf("preparing a pair of network namespaces: %w", err)
	}
	cfg := Config{IPv6: ipv6}
	if err := Apply(pod, cfg); err != nil {
		return err
	}
	differs, err := Check(pod, cfg)
	if err != nil {
		return err
	}
	if len(differs) > 0 {
		return fmt.Errorf("the kernel took the rules and holds others: %q", differs)
	}
	for _, f := range testFamilies {
		if f.v6 && (!ipv6 || !hasIPv6) {
			continue
		}
		if err := captured(pod, pod, f.outside, wellknown.PortOutbound); err != nil {
			return fmt.Errorf("a connection from the pod to %s was not redirected: %w", f.outside, err)
		}
		if err := captured(pod, peer, f.inside, wellknown.PortInbound); err != nil {
			return fmt.Errorf("a connection to the pod at %s was not redirected: %w", f.inside, err)
		}
		outside := netip.AddrPortFrom(f.host.Addr(), f.inside.Port())
		if err := guarded(pod, f.inside.Addr(), peer, outside); err != nil {
			return fmt.Errorf("a connection from the pod to %s, after a packet that opens none: %w", outside, err)
		}
		if err := guarded(peer, f.host.Addr(), pod, f.inside); err != nil {
			return fmt.Errorf("a connection to the pod at %s, after a packet that opens none: %w", f.inside, err)
		}
	}
	for _, f := range testFamilies {
		if f.v6 && (!ipv6 || !hasIPv6) {
			continue
		}
		if err := probed(pod, peer, f.host, f.inside, ipv6); err != nil {
			return fmt.Errorf("a probe of the pod at %s: %w", f.inside, err)
		}
	}
	if err := Remove(pod); err != nil {
		return err
	}
	left, err := Present(pod)
	if err == nil && left {
		err = errors.New("removing the rules left them in place")
	}
	return err
}

// testFamilies are addresses for documentation: nobody has them, and nothing
// leaves the pair of namespaces. Ports are those that take no right to listen at.
var testFamilies = []struct {
	v6              bool
	pod, peer       string // of the two ends
	host            netip.Prefix
	inside, outside netip.AddrPort
}{
	{false, "192.0.2.2/24", "192.0.2.1/24", netip.MustParsePrefix("192.0.2.1/32"), netip.MustParseAddrPort("192.0.2.2:8080"), netip.MustParseAddrPort("192.0.2.9:80")},
	{true, "2001:db8::2/64", "2001:db8::1/64", netip.MustParsePrefix("2001:db8::1/128"), netip.MustParseAddrPort("[2001:db8::2]:8080"), netip.MustParseAddrPort("[2001:db8::9]:80")},
}

// dressUp joins a pod and its peer, by IPv6 too if this node has it: where it
// has not, pods have none that could be missed.
func dressUp(pod, peer *netns.NS) (hasIPv6 bool, err error) {
	err = withLinks(pod, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.File().Fd())})
	})
	hasIPv6 = true
	for _, end := range []*netns.NS{pod, peer} {
		if err != nil {
			return false, err
		}
		err = withLinks(end, func(h *netlink.Handle) error {
			for _, name := range []string{"lo", "eth0"} {
				link, err := h.LinkByName(name)
				if err != nil {
					return err
				}
				if err := h.LinkSetUp(link); err != nil {
					return err
				}
			}
			link, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, f := range testFamilies {
				own := f.pod
				if end == peer {
					own = f.peer
				}
				switch err := address(h, link, own); {
				case err != nil && !f.v6:
					return err
				case err != nil:
					hasIPv6 = false
				}
			}
			return nil
		})
	}
	return hasIPv6, err
}

func withLinks(ns *netns.NS, fn func(h *netlink.Handle) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

func address(h *netlink.Handle, link netlink.Link, text string) error {
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD // usable at once
	return h.AddrAdd(link, addr)
}

// captured reports whether a connection from a namespace arrives at a port of the
// pod that it did not want to go to.
func captured(pod, from *netns.NS, to netip.AddrPort, port uint16) error {
	all := netip.IPv4Unspecified()
	if to.Addr().Is6() {
		all = netip.IPv6Unspecified()
	}
	l, err := listen(pod, netip.AddrPortFrom(all, port))
	if err != nil {
		return err
	}
	connect := func() (net.Conn, error) { return dial(from, to) }
	err = accepts(l, connect, to)
	_ = l.Close()
	if err != nil {
		return err
	}
	c, err := connect()
	if err == nil {
		_ = c.Close()
		return errors.New("it came through although nobody listened")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("without a listener it was not reset: %w", err)
	}
	return nil
}

// guardedPort is where the connections of guarded come from: nothing else is in
// the namespaces.
const guardedPort = 40000

// guarded reports as an error that a connection gets past the redirection after
// a bare ACK from the same port. Connection tracking has that port then, and does
// not ask the rules that redirect.
func guarded(from *netns.NS, source netip.Addr, at *netns.NS, to netip.AddrPort) error {
	l, err := listen(at, to)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	local := netip.AddrPortFrom(source, guardedPort)
	if err := send(from, packet.Segment{From: local, To: to, Flags: packet.ACK, Seq: 1, Ack: 1, Options: packet.Signature()}); err != nil {
		return err
	}
	c, err := connectFrom(from, net.TCPAddrFromAddrPort(local), to)
	if err == nil {
		_ = c.Close()
		return errors.New("it came through past the redirection (this kernel or another program of the node tracks connections in a way that the rules cannot guard)")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("it was not reset: %w", err)
	}
	return nil
}

// send sends one segment. The sender's own rules may refuse it, which is right
// too.
func send(from *netns.NS, s packet.Segment) error {
	return from.Do(func() error {
		sender, err := packet.Open(s.To.Addr().Is6())
		if err != nil {
			return err
		}
		defer func() { _ = sender.Close() }()
		if err := sender.Send(packet.Of(s)); !errors.Is(err, unix.EPERM) {
			return err
		}
		return nil
	})
}

// probed reports whether a probe by the host is told from what only has the
// host's address.
func probed(pod, host *netns.NS, source netip.Prefix, at netip.AddrPort, ipv6 bool) error {
	cfg := Config{IPv6: ipv6, Probes: []Probe{{Source: source, Ports: []uint16{at.Port()}, Host: true}}}
	if err := Apply(pod, cfg); err != nil {
		return err
	}
	if err := captured(pod, host, at, wellknown.PortInbound); err != nil {
		return fmt.Errorf("without the host's rules it was not redirected: %w", err)
	}
	if _, err := ApplyHost(host, []netip.Addr{at.Addr()}); err != nil {
		return fmt.Errorf("the host's rules: %w", err)
	}
	defer func() { _ = RemoveHost(host) }()
	l, err := listen(pod, at)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	c, err := dial(host, at)
	if err != nil {
		return fmt.Errorf("with the host's rules it was redirected: %w", err)
	}
	return c.Close()
}

func network(a netip.Addr) string {
	if a.Is6() {
		return "tcp6"
	}
	return "tcp4"
}

func listen(ns *netns.NS, at netip.AddrPort) (l *net.TCPListener, err error) {
	err = ns.Do(func() error {
		var lc net.ListenConfig
		made, err := lc.Listen(context.Background(), network(at.Addr()), at.String())
		if err == nil {
			l = made.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

func dial(from *netns.NS, to netip.AddrPort) (net.Conn, error) { return connectFrom(from, nil, to) }

// connectFrom connects from an address, or from any if it is nil.
func connectFrom(from *netns.NS, source net.Addr, to netip.AddrPort) (c net.Conn, err error) {
	err = from.Do(func() (err error) {
		d := net.Dialer{Timeout: selfTestPatience, LocalAddr: source}
		c, err = d.Dial(network(to.Addr()), to.String())
		return err
	})
	return c, err
}

func accepts(l *net.TCPListener, dial func() (net.Conn, error), to netip.AddrPort) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = l.SetDeadline(time.Now().Add(selfTestPatience))
	in, err := l.AcceptTCP()
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	raw, err := in.SyscallConn()
	if err != nil {
		return err
	}
	var got netip.AddrPort
	var opt error
	if err := raw.Control(func(fd uintptr) { got, opt = sockopt.OriginalDst(int(fd)) }); err != nil {
		return err
	}
	if opt != nil {
		return fmt.Errorf("asking for the original destination: %w", opt)
	}
	if got != to {
		return fmt.Errorf("its original destination is said to be %s", got)
	}
	return nil
}
