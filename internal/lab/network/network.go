// Package network makes the network namespaces of a lab, their addresses and routes, and
// the rules that lead the addresses of services to pods.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Interface names. In the LAN: a bridge, and a port for each node.
const (
	BridgeName = "lan0"
	UplinkName = "eth0"
)

// PortName returns the name of the LAN's port to a node.
func PortName(n int) string { return fmt.Sprintf("port%d", n) }

// Space is one network namespace of the lab, bound to a file so that others
// (ambit-cni, a test) can open it by path.
type Space struct {
	*links.Links
	Ns   *netns.NS
	Path string
}

// newSpace makes a network namespace with its loopback up.
func newSpace(path string, f Families) (*Space, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := bindNewNetns(path); err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("making network namespace %s: %w", filepath.Base(path), err)
	}
	s := &Space{Path: path}
	var err error
	if s.Ns, err = netns.Open(path); err == nil {
		s.Links, err = links.Of(s.Ns)
	}
	if err == nil {
		err = s.Up("lo")
	}
	if err == nil {
		err = s.sysctls(f)
	}
	if err != nil {
		s.Close()
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

// Close lets the namespace go.
func (s *Space) Close() {
	if s.Links != nil {
		s.Links.Close()
	}
	if s.Ns != nil {
		_ = s.Ns.Close()
	}
	_ = unix.Unmount(s.Path, unix.MNT_DETACH)
	_ = os.Remove(s.Path)
}

// sysctls makes the namespace forward. Addresses are used at once: nobody else
// is on these links, so there are no duplicates to look for.
func (s *Space) sysctls(f Families) error {
	set := map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
	}
	if kernelHasIPv6() {
		set["net/ipv6/conf/all/forwarding"] = "1"
		set["net/ipv6/conf/all/accept_dad"] = "0"
		set["net/ipv6/conf/default/accept_dad"] = "0"
		disabled := "1"
		if f.V6 {
			disabled = "0"
		}
		set["net/ipv6/conf/all/disable_ipv6"] = disabled
		set["net/ipv6/conf/default/disable_ipv6"] = disabled
	}
	return s.Ns.Do(func() error {
		for k, v := range set {
			if err := os.WriteFile("/proc/sys/"+k, []byte(v), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// Single returns the prefix of one address.
func Single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// NewLAN makes the network between the nodes.
func NewLAN(path string, f Families) (*Space, error) {
	s, err := newSpace(path, f)
	if err != nil {
		return nil, err
	}
	err = s.Bridge(BridgeName)
	for _, a := range HostAddr(0, LanHost).Addrs(f) {
		err = errors.Join(err, s.Address(BridgeName, netip.PrefixFrom(a, lanBits(a))))
	}
	if err != nil {
		s.Close()
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

// NewNode makes the namespace of node n and plugs it into the LAN.
func NewNode(lan *Space, path string, n int, f Families) (*Space, error) {
	s, err := newSpace(path, f)
	if err != nil {
		return nil, err
	}
	err = lan.Cable(PortName(n), s.Links, UplinkName)
	if err == nil {
		err = lan.Plug(PortName(n), BridgeName)
	}
	for _, a := range NodeAddr(n).Addrs(f) {
		err = errors.Join(err, s.Address(UplinkName, netip.PrefixFrom(a, lanBits(a))))
	}
	for _, a := range HostAddr(0, LanHost).Addrs(f) {
		// What nobody knows goes to the LAN, which has nowhere to send it and
		// says so.
		err = errors.Join(err, s.Route(links.Everywhere(a), UplinkName, a))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// RoutePods adds the routes to the pods of node n to a namespace on the LAN.
func (s *Space) RoutePods(n int, dev string, f Families) error {
	p4, p6 := podNetworks(n)
	var errs []error
	if f.V4 {
		errs = append(errs, s.Route(p4, dev, NodeAddr(n).V4))
	}
	if f.V6 {
		errs = append(errs, s.Route(p6, dev, NodeAddr(n).V6))
	}
	return errors.Join(errs...)
}

// linkLocalGateway is a node as its pods see it in IPv6. Each pod has a link
// of its own, so that the same address serves all of them.
var linkLocalGateway = netip.MustParseAddr("fe80::1")

// NewPodSpace makes the namespace of a pod of node n, with host number h,
// reached through the interface link of the node.
func NewPodSpace(node *Space, path, link string, n, h int, f Families) (*Space, error) {
	s, err := newSpace(path, f)
	if err != nil {
		return nil, err
	}
	if err := plugPod(node, s, link, n, h, f); err != nil {
		node.Remove(link)
		s.Close()
		return nil, err
	}
	return s, nil
}

func plugPod(node, s *Space, link string, n, h int, f Families) error {
	if err := node.Cable(link, s.Links, UplinkName); err != nil {
		return err
	}
	pod, gw := HostAddr(n, h), HostAddr(n, podGateway4)
	var none netip.Addr
	var err error
	if f.V4 {
		err = errors.Join(
			node.Address(link, Single(gw.V4)),
			node.Route(Single(pod.V4), link, none),
			s.Address(UplinkName, Single(pod.V4)),
			s.Route(Single(gw.V4), UplinkName, none),
			s.Route(links.Everywhere(gw.V4), UplinkName, gw.V4),
		)
	}
	if !f.V6 || err != nil {
		return err
	}
	return errors.Join(
		node.Address(link, netip.PrefixFrom(linkLocalGateway, 64)),
		node.Route(Single(pod.V6), link, none),
		s.Address(UplinkName, Single(pod.V6)),
		s.Route(links.Everywhere(linkLocalGateway), UplinkName, linkLocalGateway),
	)
}

// kernelHasIPv6 reports whether this kernel does IPv6 at all (the command line of its boot can
// switch it off).
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
