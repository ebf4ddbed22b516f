package selftest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/sys/packet"
)

// patience bounds each step; what works takes microseconds.
const patience = 2 * time.Second

// Redirects proves in a throw-away pair of namespaces that this kernel redirects, in
// both families, and in IPv4 alone without ipv6. It tries these, and an error names what
// the node is not able to do:
//
//   - A connection out of the pod, and one into it, arrive at the proxy's ports, and
//     the kernel names their destination there.
//   - They are reset when no program listens at these ports, also after a packet that
//     opens no connection.
//   - A probe from the pod's host arrives at the program. What has only the host's
//     address does not.
//   - Nothing remains afterwards.
func Redirects(ipv6 bool) error {
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
	hasIPv6, err := join(pod, peer)
	if err != nil {
		return fmt.Errorf("preparing a pair of network namespaces: %w", err)
	}
	cfg := nft.Config{IPv6: ipv6}
	if err := nft.Apply(pod, cfg); err != nil {
		return err
	}
	differs, err := nft.Check(pod, cfg)
	if err != nil {
		return err
	}
	if len(differs) > 0 {
		return fmt.Errorf("the kernel took the rules and holds others: %q", differs)
	}
	for _, f := range families {
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
	for _, f := range families {
		if f.v6 && (!ipv6 || !hasIPv6) {
			continue
		}
		if err := probed(pod, peer, f.host, f.inside, ipv6); err != nil {
			return fmt.Errorf("a probe of the pod at %s: %w", f.inside, err)
		}
	}
	if err := nft.Remove(pod); err != nil {
		return err
	}
	left, err := nft.Present(pod)
	if err == nil && left {
		err = errors.New("removing the rules left them in place")
	}
	return err
}

// captured reports whether a connection from a namespace arrives at a port of the
// pod that is not the one it was made to.
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
		return errors.New("it came through, and no program listened at the port of the proxy")
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
		if err := sender.Send(packet.Of(s)); !errors.Is(err, syscall.EPERM) {
			return err
		}
		return nil
	})
}

// probed reports whether a probe by the host is told from what only has the
// host's address.
func probed(pod, host *netns.NS, source netip.Prefix, at netip.AddrPort, ipv6 bool) error {
	cfg := nft.Config{IPv6: ipv6, Probes: []nft.Probe{{Source: source, Ports: []uint16{at.Port()}, Host: true}}}
	if err := nft.Apply(pod, cfg); err != nil {
		return err
	}
	if err := captured(pod, host, at, wellknown.PortInbound); err != nil {
		return fmt.Errorf("without the host's rules it was not redirected: %w", err)
	}
	if _, err := nft.ApplyHost(host, []netip.Addr{at.Addr()}); err != nil {
		return fmt.Errorf("the host's rules: %w", err)
	}
	defer func() { _ = nft.RemoveHost(host) }()
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
