package lab

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
	bridgeName = "lan0"
	uplinkName = "eth0"
)

func portName(n int) string { return fmt.Sprintf("port%d", n) }

// space is one network namespace of the lab, bound to a file so that others
// (ambit-cni, a test) can open it by path.
type space struct {
	*links.Links
	ns   *netns.NS
	path string
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
		s.Links, err = links.Of(s.ns)
	}
	if err == nil {
		err = s.Up("lo")
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
	if s.Links != nil {
		s.Close()
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

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// newLAN makes the network between the nodes.
func newLAN(path string, v6 bool) (*space, error) {
	s, err := newSpace(path, v6)
	if err != nil {
		return nil, err
	}
	err = s.Bridge(bridgeName)
	for _, a := range hostAddr(0, lanHost).addrs(v6) {
		err = errors.Join(err, s.Address(bridgeName, netip.PrefixFrom(a, lanBits(a))))
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
	err = lan.Cable(portName(n), s.Links, uplinkName)
	if err == nil {
		err = lan.Plug(portName(n), bridgeName)
	}
	for _, a := range nodeAddr(n).addrs(v6) {
		err = errors.Join(err, s.Address(uplinkName, netip.PrefixFrom(a, lanBits(a))))
	}
	for _, a := range hostAddr(0, lanHost).addrs(v6) {
		// What nobody knows goes to the LAN, which has nowhere to send it and
		// says so.
		err = errors.Join(err, s.Route(links.Everywhere(a), uplinkName, a))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// routePods tells a namespace on the LAN where the pods of node n are.
func (s *space) routePods(n int, dev string, v6 bool) error {
	p4, p6 := podNetworks(n)
	err := s.Route(p4, dev, nodeAddr(n).v4)
	if v6 {
		err = errors.Join(err, s.Route(p6, dev, nodeAddr(n).v6))
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
		node.Remove(link)
		s.close()
		return nil, err
	}
	return s, nil
}

func plugPod(node, s *space, link string, n, h int, v6 bool) error {
	if err := node.Cable(link, s.Links, uplinkName); err != nil {
		return err
	}
	pod, gw := hostAddr(n, h), hostAddr(n, podGateway4)
	var none netip.Addr
	err := errors.Join(
		node.Address(link, single(gw.v4)),
		node.Route(single(pod.v4), link, none),
		s.Address(uplinkName, single(pod.v4)),
		s.Route(single(gw.v4), uplinkName, none),
		s.Route(links.Everywhere(gw.v4), uplinkName, gw.v4),
	)
	if !v6 || err != nil {
		return err
	}
	return errors.Join(
		node.Address(link, netip.PrefixFrom(linkLocalGateway, 64)),
		node.Route(single(pod.v6), link, none),
		s.Address(uplinkName, single(pod.v6)),
		s.Route(links.Everywhere(linkLocalGateway), uplinkName, linkLocalGateway),
	)
}

// hasIPv6 reports whether this kernel does IPv6 at all (it may be told not to
// when it is booted).
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
