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

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft/numbers"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// selfTestPatience bounds each step; what works takes microseconds.
const selfTestPatience = 2 * time.Second

// SelfTest proves in a throw-away namespace that this kernel redirects: a
// connection arrives at the proxy's port and says where it wanted to go, is
// reset when nobody listens there, and nothing remains afterwards. An error
// says what this node is not able to do.
func SelfTest(ipv6 bool) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	hasIPv6, err := dressUp(ns)
	if err != nil {
		return fmt.Errorf("preparing a network namespace: %w", err)
	}
	cfg := Config{IPv6: ipv6}
	if err := Apply(ns, cfg); err != nil {
		return err
	}
	differs, err := Check(ns, cfg)
	if err != nil {
		return err
	}
	if len(differs) > 0 {
		return fmt.Errorf("the kernel took the rules and holds others: %q", differs)
	}
	// Addresses for documentation: nobody has them, and nothing leaves the
	// namespace.
	targets := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}
	if ipv6 && hasIPv6 {
		targets = append(targets, netip.MustParseAddrPort("[2001:db8::1]:80"))
	}
	for _, to := range targets {
		if err := captured(ns, to); err != nil {
			return fmt.Errorf("a connection to %s was not redirected: %w", to, err)
		}
	}
	if err := Remove(ns); err != nil {
		return err
	}
	left, err := Present(ns)
	if err == nil && left {
		err = errors.New("removing the rules left them in place")
	}
	return err
}

// dressUp gives a namespace a way out, by IPv6 too if this node has it: where
// it has not, pods have none that could be missed.
func dressUp(ns *netns.NS) (hasIPv6 bool, err error) {
	err = ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(lo); err != nil {
			return err
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "peer"}); err != nil {
			return err
		}
		out, err := h.LinkByName("out")
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(out); err != nil {
			return err
		}
		if err := address(h, out, "192.0.2.2/24"); err != nil {
			return err
		}
		hasIPv6 = address(h, out, "2001:db8::2/64") == nil
		return nil
	})
	return hasIPv6, err
}

func address(h *netlink.Handle, link netlink.Link, text string) error {
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD // usable at once
	return h.AddrAdd(link, addr)
}

func captured(ns *netns.NS, to netip.AddrPort) error {
	network, all := "tcp4", netip.IPv4Unspecified()
	if to.Addr().Is6() {
		network, all = "tcp6", netip.IPv6Unspecified()
	}
	dial := func() (net.Conn, error) {
		var c net.Conn
		err := ns.Do(func() (err error) {
			c, err = net.DialTimeout(network, to.String(), selfTestPatience)
			return err
		})
		return c, err
	}
	var l net.Listener
	err := ns.Do(func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(context.Background(), network, netip.AddrPortFrom(all, numbers.PortOutbound).String())
		return err
	})
	if err != nil {
		return err
	}
	err = accepts(l.(*net.TCPListener), dial, to)
	_ = l.Close()
	if err != nil {
		return err
	}
	c, err := dial()
	if err == nil {
		_ = c.Close()
		return errors.New("it came through although nobody listened")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("without a listener it was not reset: %w", err)
	}
	return nil
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
