package local

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/links"
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
	*links.Links
	ns *netns.NS
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
	l, err := links.Of(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	s := &space{l, ns}
	if err := errors.Join(s.Up("lo"), s.forward()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *space) close() {
	s.Close()
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

// makeNetwork makes the LAN and the nodes' namespaces. The machine's own gets
// no interface, address, route or rule.
func makeNetwork(d dirs, p plan) error {
	lan, err := newSpace(d.netns(LAN))
	if err != nil {
		return err
	}
	defer lan.close()
	if err := lan.Bridge(bridge); err != nil {
		return err
	}
	for i, a := range p.router() {
		if err := lan.Address(bridge, netip.PrefixFrom(a, p.lan()[i].Bits())); err != nil {
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
		if err := lan.Route(p.services()[i], bridge, a); err != nil {
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
	if err := lan.Cable(nodeName(n), s.Links, uplink); err != nil {
		return err
	}
	if err := lan.Plug(nodeName(n), bridge); err != nil {
		return err
	}
	for i, a := range p.node(n) {
		err := errors.Join(
			s.Address(uplink, netip.PrefixFrom(a, p.lan()[i].Bits())),
			s.Route(links.Everywhere(a), uplink, p.router()[i]),
			lan.Route(p.podsOf(n)[i], bridge, a),
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
			if err := s.Route(p.podsOf(other)[i], uplink, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// resetNetwork leaves in a node's namespace what a boot would find: its uplink.
func resetNetwork(ns *netns.NS) error {
	l, err := links.Of(ns)
	if err != nil {
		return err
	}
	defer l.Close()
	names, err := l.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != "lo" && name != uplink {
			l.Remove(name) // or it went with its other end
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
