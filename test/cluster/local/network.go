package local

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Interface names: in the LAN a bridge, with a port for each node that has the
// node's name; in a node one.
const (
	bridge = "lan0"
	uplink = "eth0"
)

// space is one network namespace, bound to a file.
type space struct {
	ns *netns.NS
	h  *netlink.Handle
}

func newSpace(path string) (*space, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.File().Fd()), path, "", unix.MS_BIND, ""); err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("keeping network namespace %s: %w", filepath.Base(path), err)
	}
	h, err := netlink.NewHandleAt(vnetns.NsHandle(int(ns.File().Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	s := &space{ns: ns, h: h}
	if err := errors.Join(s.up("lo"), s.forward()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *space) close() {
	s.h.Close()
	_ = s.ns.Close()
}

// forward makes the namespace a router. Addresses are used at once: nobody
// else is on these links who could have them.
func (s *space) forward() error {
	return s.ns.Do(func() error {
		for key, value := range map[string]string{
			"net/ipv4/ip_forward":              "1",
			"net/ipv4/conf/all/rp_filter":      "0",
			"net/ipv4/conf/default/rp_filter":  "0",
			"net/ipv6/conf/all/forwarding":     "1",
			"net/ipv6/conf/all/accept_dad":     "0",
			"net/ipv6/conf/default/accept_dad": "0",
			// Frames between nodes are none of the LAN's IP hooks' business.
			"net/bridge/bridge-nf-call-iptables":  "0",
			"net/bridge/bridge-nf-call-ip6tables": "0",
		} {
			err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

func (s *space) up(name string) error {
	l, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return s.h.LinkSetUp(l)
}

func (s *space) addr(name string, a netip.Addr, bits int) error {
	l, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := s.h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits))}); err != nil {
		return fmt.Errorf("address %s on %s: %w", a, name, err)
	}
	return nil
}

func (s *space) route(p netip.Prefix, via netip.Addr) error {
	if err := s.h.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route to %s by %s: %w", p, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// makeNetwork makes the LAN and the nodes' namespaces. The machine's own gets
// no interface, address, route or rule.
func makeNetwork(d dirs, p plan) error {
	lan, err := newSpace(d.netns(LAN))
	if err != nil {
		return err
	}
	defer lan.close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	if err := lan.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge of the LAN: %w", err)
	}
	if err := lan.up(bridge); err != nil {
		return err
	}
	for i, a := range p.router() {
		if err := lan.addr(bridge, a, p.lan()[i].Bits()); err != nil {
			return err
		}
	}
	for _, n := range p.nodes() {
		if err := connectNode(d, p, lan, n); err != nil {
			return fmt.Errorf("network of %s: %w", nodeName(n), err)
		}
	}
	// Services are reached through the rules of any node; of the first, as it
	// is the one that stays.
	for i, a := range p.node(1) {
		if err := lan.route(p.services()[i], a); err != nil {
			return err
		}
	}
	return nil
}

func connectNode(d dirs, p plan, lan *space, n int) error {
	s, err := newSpace(d.netns(nodeName(n)))
	if err != nil {
		return err
	}
	defer s.close()
	if err := plug(lan, s, nodeName(n)); err != nil {
		return err
	}
	for i, a := range p.node(n) {
		err := errors.Join(
			s.addr(uplink, a, p.lan()[i].Bits()),
			s.route(netip.PrefixFrom(unspecified(a), 0), p.router()[i]),
			lan.route(p.podsOf(n)[i], a),
		)
		if err != nil {
			return err
		}
	}
	for _, other := range p.nodes() {
		if other == n {
			continue
		}
		for i, a := range p.node(other) {
			if err := s.route(p.podsOf(other)[i], a); err != nil {
				return err
			}
		}
	}
	return nil
}

// plug connects a node to the LAN's bridge.
func plug(lan, node *space, port string) error {
	b, err := lan.h.LinkByName(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, b.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(int(node.ns.File().Fd()))}
	if err := lan.h.LinkAdd(veth); err != nil {
		return fmt.Errorf("cable %s: %w", port, err)
	}
	return errors.Join(lan.up(port), node.up(uplink))
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// resetNetwork leaves in a node's namespace what a boot would find: its uplink.
func resetNetwork(ns *netns.NS) error {
	h, err := netlink.NewHandleAt(vnetns.NsHandle(int(ns.File().Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != uplink {
			_ = h.LinkDel(l) // or it went with its other end
		}
	}
	return ns.Do(func() error {
		// The locked thread is in the namespace, and so is what it starts.
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			return fmt.Errorf("nft flush ruleset: %w: %s", err, out)
		}
		return nil
	})
}

// removeNetwork lets go of every namespace; the kernel removes what was in it.
func removeNetwork(d dirs) error {
	entries, err := os.ReadDir(d.netnses())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := d.netns(e.Name())
		for unix.Unmount(path, unix.MNT_DETACH) == nil { //nolint:revive // as often as it was mounted
		}
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// inNamespaces runs fn on a thread of its own that has entered the namespaces
// of these files, in their order; what fn starts is in them. The thread ends
// with fn.
func inNamespaces(files []*os.File, fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		// Never unlocked: no other goroutine may get a thread that is abroad.
		runtime.LockOSThread()
		// A mount namespace cannot be entered by a thread that shares its
		// working directory with others.
		err := unix.Unshare(unix.CLONE_FS)
		for _, f := range files {
			if err == nil {
				err = unix.Setns(int(f.Fd()), 0)
			}
		}
		if err == nil {
			err = fn()
		}
		errc <- err
	}()
	return <-errc
}
