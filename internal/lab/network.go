package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Interface names. In the LAN: a bridge, and a port for each node.
const (
	bridgeName = "lan0"
	uplinkName = "eth0"
)

func portName(n int) string { return fmt.Sprintf("port%d", n) }

// space is one network namespace of the lab, bound to a file so that others
// (ambit-cni, a test) can open it by path.
type space struct {
	ns   *netns.NS
	path string
	h    *netlink.Handle
}

// newSpace makes a network namespace with its loopback up.
func newSpace(path string, v6 bool) (*space, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := bindNewNetns(path); err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("making network namespace %s: %w", filepath.Base(path), err)
	}
	s := &space{path: path}
	var err error
	if s.ns, err = netns.Open(path); err == nil {
		s.h, err = netlink.NewHandleAt(vnetns.NsHandle(int(s.ns.File().Fd())), unix.NETLINK_ROUTE)
	}
	if err == nil {
		err = s.up("lo")
	}
	if err == nil {
		err = s.sysctls(v6)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func bindNewNetns(path string) error {
	errc := make(chan error, 1)
	go func() {
		// The thread is in another namespace afterwards: it is not unlocked,
		// and so ends with this goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		errc <- err
	}()
	return <-errc
}

func (s *space) close() {
	if s.h != nil {
		s.h.Close()
	}
	if s.ns != nil {
		_ = s.ns.Close()
	}
	_ = unix.Unmount(s.path, unix.MNT_DETACH)
	_ = os.Remove(s.path)
}

// sysctls makes the namespace forward. Addresses are used at once: nobody else
// is on these links, so there are no duplicates to look for.
func (s *space) sysctls(v6 bool) error {
	set := map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
	}
	if v6 {
		set["net/ipv6/conf/all/forwarding"] = "1"
		set["net/ipv6/conf/all/accept_dad"] = "0"
		set["net/ipv6/conf/default/accept_dad"] = "0"
		set["net/ipv6/conf/all/disable_ipv6"] = "0"
		set["net/ipv6/conf/default/disable_ipv6"] = "0"
	}
	return s.ns.Do(func() error {
		for k, v := range set {
			if err := os.WriteFile("/proc/sys/"+k, []byte(v), 0); err != nil {
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

func (s *space) addr(name string, p netip.Prefix) error {
	l, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := s.h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, name, err)
	}
	return nil
}

// route sends what is for p out of an interface, by way of via unless that is
// the zero address.
func (s *space) route(p netip.Prefix, name string, via netip.Addr) error {
	l, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := s.h.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %s by %s: %w", p, name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// pair connects two namespaces with a veth.
func pair(a *space, aName string, b *space, bName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(int(b.ns.File().Fd()))}
	if err := a.h.LinkAdd(v); err != nil {
		return fmt.Errorf("veth %s: %w", aName, err)
	}
	return errors.Join(a.up(aName), b.up(bName))
}

// newLAN makes the network between the nodes.
func newLAN(path string, v6 bool) (*space, error) {
	s, err := newSpace(path, v6)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	if err := s.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		s.close()
		return nil, fmt.Errorf("bridge: %w", err)
	}
	err = s.up(bridgeName)
	for _, a := range hostAddr(0, lanHost).addrs(v6) {
		err = errors.Join(err, s.addr(bridgeName, netip.PrefixFrom(a, lanBits(a))))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func lanBits(a netip.Addr) int {
	if a.Is6() {
		return 64
	}
	return 24
}

// newNode makes the namespace of node n and plugs it into the LAN.
func newNode(lan *space, path string, n int, v6 bool) (*space, error) {
	s, err := newSpace(path, v6)
	if err != nil {
		return nil, err
	}
	err = pair(lan, portName(n), s, uplinkName)
	if err == nil {
		err = lan.enslave(portName(n))
	}
	for _, a := range nodeAddr(n).addrs(v6) {
		err = errors.Join(err, s.addr(uplinkName, netip.PrefixFrom(a, lanBits(a))))
	}
	for _, a := range hostAddr(0, lanHost).addrs(v6) {
		// What nobody knows goes to the LAN, which has nowhere to send it and
		// says so.
		err = errors.Join(err, s.route(netip.PrefixFrom(unspecified(a), 0), uplinkName, a))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (s *space) enslave(name string) error {
	l, err := s.h.LinkByName(name)
	if err != nil {
		return err
	}
	b, err := s.h.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	return s.h.LinkSetMaster(l, b)
}

// routePods tells a namespace on the LAN where the pods of node n are.
func (s *space) routePods(n int, dev string, v6 bool) error {
	p4, p6 := podNetworks(n)
	err := s.route(p4, dev, nodeAddr(n).v4)
	if v6 {
		err = errors.Join(err, s.route(p6, dev, nodeAddr(n).v6))
	}
	return err
}

// linkLocalGateway is a node as its pods see it in IPv6. Each pod has a link
// of its own, so that the same address serves all of them.
var linkLocalGateway = netip.MustParseAddr("fe80::1")

// newPodSpace makes the namespace of a pod of node n, with host number h,
// reached through the interface link of the node.
func newPodSpace(node *space, path, link string, n, h int, v6 bool) (*space, error) {
	s, err := newSpace(path, v6)
	if err != nil {
		return nil, err
	}
	if err := plugPod(node, s, link, n, h, v6); err != nil {
		node.unplug(link)
		s.close()
		return nil, err
	}
	return s, nil
}

func plugPod(node, s *space, link string, n, h int, v6 bool) error {
	if err := pair(node, link, s, uplinkName); err != nil {
		return err
	}
	pod, gw := hostAddr(n, h), hostAddr(n, podGateway4)
	var none netip.Addr
	err := errors.Join(
		node.addr(link, single(gw.v4)),
		node.route(single(pod.v4), link, none),
		s.addr(uplinkName, single(pod.v4)),
		s.route(single(gw.v4), uplinkName, none),
		s.route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), uplinkName, gw.v4),
	)
	if !v6 || err != nil {
		return err
	}
	return errors.Join(
		node.addr(link, netip.PrefixFrom(linkLocalGateway, 64)),
		node.route(single(pod.v6), link, none),
		s.addr(uplinkName, single(pod.v6)),
		s.route(netip.PrefixFrom(netip.IPv6Unspecified(), 0), uplinkName, linkLocalGateway),
	)
}

func (s *space) unplug(link string) {
	if l, err := s.h.LinkByName(link); err == nil {
		_ = s.h.LinkDel(l)
	}
}

// hasIPv6 tells whether this kernel does IPv6 at all (it may be told not to
// when it is booted).
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
