package selftest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// families are addresses for documentation: no host has them, and nothing leaves the
// pair of namespaces. Each program may listen at these ports.
var families = []struct {
	v6              bool
	pod, peer       netip.Prefix // of the two ends, with their network
	host            netip.Prefix
	inside, outside netip.AddrPort
}{
	{false, netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParseAddrPort("192.0.2.2:8080"), netip.MustParseAddrPort("192.0.2.9:80")},
	{true, netip.MustParsePrefix("2001:db8::2/64"), netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("2001:db8::1/128"), netip.MustParseAddrPort("[2001:db8::2]:8080"), netip.MustParseAddrPort("[2001:db8::9]:80")},
}

// join joins a pod and its peer, by IPv6 too if this node has it: pods of a node
// without IPv6 have none that could be missed.
func join(pod, peer *netns.NS) (hasIPv6 bool, err error) {
	here, err := links.Of(pod)
	if err != nil {
		return false, err
	}
	defer here.Close()
	there, err := links.Of(peer)
	if err != nil {
		return false, err
	}
	defer there.Close()
	const name = "eth0"
	if err := here.Cable(name, there, name); err != nil {
		return false, err
	}
	hasIPv6 = true
	for _, end := range []*links.Links{here, there} {
		if err := end.Up("lo"); err != nil {
			return false, err
		}
		for _, f := range families {
			own := f.pod
			if end == there {
				own = f.peer
			}
			switch err := end.Address(name, own); {
			case err != nil && !f.v6:
				return false, err
			case err != nil:
				hasIPv6 = false
			}
		}
	}
	return hasIPv6, nil
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
		d := net.Dialer{Timeout: patience, LocalAddr: source}
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
	_ = l.SetDeadline(time.Now().Add(patience))
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
