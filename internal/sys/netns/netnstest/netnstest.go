// Package netnstest builds small networks out of network namespaces for tests
// that need a kernel. Everything goes away with the test: no namespace has a
// name, so that none can outlive the descriptors of the process.
package netnstest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Addresses of the two ends of a Link.
var (
	PodIPv4  = netip.MustParseAddr("10.9.0.2")
	PodIPv6  = netip.MustParseAddr("fd00:9::2")
	PeerIPv4 = netip.MustParseAddr("10.9.0.1")
	PeerIPv6 = netip.MustParseAddr("fd00:9::1")
)

// Timeout bounds every wait of a test; it is long because the machine may be
// busy, and a passing test never waits for it.
const Timeout = 20 * time.Second

// New makes a namespace whose loopback interface is up.
func New(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	with(t, ns, func(h *netlink.Handle) { up(t, h, "lo") })
	return ns
}

// Link makes a pod and a peer outside of it, joined by a veth pair with an
// IPv4 and an IPv6 address at each end, and default routes to each other.
func Link(t testing.TB) (pod, peer *netns.NS) {
	t.Helper()
	pod, peer = New(t), New(t)
	with(t, pod, func(h *netlink.Handle) {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0", PeerNamespace: netlink.NsFd(peer.File().Fd())}
		must(t, h.LinkAdd(veth))
	})
	with(t, pod, func(h *netlink.Handle) { address(t, h, "eth0", PodIPv4, PodIPv6, PeerIPv4, PeerIPv6) })
	with(t, peer, func(h *netlink.Handle) { address(t, h, "peer0", PeerIPv4, PeerIPv6, PodIPv4, PodIPv6) })
	return pod, peer
}

// AddAddr gives an interface one more address.
func AddAddr(t testing.TB, ns *netns.NS, link string, addr netip.Addr) {
	t.Helper()
	with(t, ns, func(h *netlink.Handle) {
		l, err := h.LinkByName(link)
		must(t, err)
		must(t, h.AddrAdd(l, ifaddr(addr)))
	})
}

// Listen listens in a namespace, with the socket options that set makes.
func Listen(t testing.TB, ns *netns.NS, addr netip.AddrPort, set func(fd int) error) net.Listener {
	t.Helper()
	var l net.Listener
	must(t, ns.Do(func() error {
		lc := net.ListenConfig{Control: control(set)}
		var err error
		l, err = lc.Listen(context.Background(), network(addr.Addr()), addr.String())
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Dial connects from a namespace, with the socket options that set makes.
func Dial(ns *netns.NS, from netip.Addr, to netip.AddrPort, set func(fd int) error) (*net.TCPConn, error) {
	var c net.Conn
	err := ns.Do(func() error {
		d := net.Dialer{Timeout: Timeout, Control: control(set)}
		if from.IsValid() {
			d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
		}
		var err error
		c, err = d.Dial(network(to.Addr()), to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Proxied sets what the sockets of a node proxy have: its mark, and the right
// to use addresses that are not the pod's.
func Proxied(mark int) func(fd int) error {
	return func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		if domain == unix.AF_INET6 {
			return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		}
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	}
}

// network keeps the families apart: Go's "tcp" makes one socket for both.
func network(a netip.Addr) string {
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

func control(set func(fd int) error) func(_, _ string, c syscall.RawConn) error {
	if set == nil {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = set(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
}

func with(t testing.TB, ns *netns.NS, fn func(h *netlink.Handle)) {
	t.Helper()
	var h *netlink.Handle
	must(t, ns.Do(func() error {
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}))
	defer h.Close()
	fn(h)
}

func address(t testing.TB, h *netlink.Handle, name string, v4, v6, gw4, gw6 netip.Addr) {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	// Link-local addresses would appear and change when they like.
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	must(t, h.LinkSetIP6AddrGenMode(l, none))
	must(t, h.AddrAdd(l, ifaddr(v4)))
	must(t, h.AddrAdd(l, ifaddr(v6)))
	must(t, h.LinkSetUp(l))
	for _, gw := range []netip.Addr{gw4, gw6} {
		must(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice()}))
	}
}

// Settle waits for the routes that the kernel adds to a Link's namespace by
// itself, up to a second after the link is up. A test that compares what was
// before with what is after needs it.
func Settle(t testing.TB, ns *netns.NS) {
	t.Helper()
	with(t, ns, func(h *netlink.Handle) {
		Eventually(t, "the link is up", func() bool {
			routes, err := h.RouteListFiltered(unix.AF_INET6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
			must(t, err)
			return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_MULTICAST })
		})
	})
}

// Eventually waits for something that tells nobody when it happens.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	timeout := time.After(Timeout)
	for !is() {
		select {
		case <-look.C:
		case <-timeout:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// ifaddr is usable at once: duplicate address detection would take a second.
func ifaddr(a netip.Addr) *netlink.Addr {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())},
		Flags: unix.IFA_F_NODAD,
	}
}

func up(t testing.TB, h *netlink.Handle, name string) {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	must(t, h.LinkSetUp(l))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
