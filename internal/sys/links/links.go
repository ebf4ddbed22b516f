// Package links makes what connects network namespaces: interfaces, their
// addresses, and routes.
package links

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Links are the interfaces and routes of one network namespace. They are used
// from without: no thread enters it.
type Links struct {
	ns *netns.NS
	h  *netlink.Handle
}

// Of returns those of a namespace, which stays the caller's and has to be open
// for as long as they are used.
func Of(ns *netns.NS) (*Links, error) {
	if int(ns.File().Fd()) < 0 { // netlink would take the thread's own
		return nil, fmt.Errorf("links of a network namespace: %w", os.ErrClosed)
	}
	h, err := netlink.NewHandleAt(vnetns.NsHandle(int(ns.File().Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("links of a network namespace: %w", err)
	}
	return &Links{ns, h}, nil
}

// Close ends the conversation with the kernel; what was made stays.
func (l *Links) Close() { l.h.Close() }

func (l *Links) byName(name string) (netlink.Link, error) {
	link, err := l.h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return link, nil
}

// Index is the kernel's number of an interface.
func (l *Links) Index(name string) (int, error) {
	link, err := l.byName(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// Names lists the interfaces.
func (l *Links) Names() ([]string, error) {
	all, err := l.h.LinkList()
	var out []string
	for _, link := range all {
		out = append(out, link.Attrs().Name)
	}
	return out, err
}

// Up switches an interface on.
func (l *Links) Up(name string) error {
	link, err := l.byName(name)
	if err != nil {
		return err
	}
	return l.h.LinkSetUp(link)
}

// Remove takes an interface away, and with it the other end of a cable. It is
// no error when there is none.
func (l *Links) Remove(name string) {
	if link, err := l.byName(name); err == nil {
		_ = l.h.LinkDel(link)
	}
}

// Address gives an interface an address of a network. It is in use at once,
// without asking whether somebody else has it.
func (l *Links) Address(name string, p netip.Prefix) error {
	link, err := l.byName(name)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := l.h.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, name, err)
	}
	return nil
}

// Route sends what is for p out of an interface, by way of via unless that is
// the zero address.
func (l *Links) Route(p netip.Prefix, name string, via netip.Addr) error {
	index, err := l.Index(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: index, Dst: IPNet(p)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := l.h.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %s by %s: %w", p, name, err)
	}
	return nil
}

// Bridge makes a bridge, switched on.
func (l *Links) Bridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := l.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return l.Up(name)
}

// Plug puts an interface into a bridge.
func (l *Links) Plug(name, bridge string) error {
	link, err := l.byName(name)
	if err != nil {
		return err
	}
	b, err := l.byName(bridge)
	if err != nil {
		return err
	}
	return l.h.LinkSetMaster(link, b)
}

// Cable makes a pair of interfaces, one here and one in another namespace,
// switched on.
func (l *Links) Cable(name string, to *Links, nameThere string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: nameThere, PeerNamespace: netlink.NsFd(int(to.ns.File().Fd()))}
	if err := l.h.LinkAdd(v); err != nil {
		return fmt.Errorf("cable %s: %w", name, err)
	}
	return errors.Join(l.Up(name), to.Up(nameThere))
}

// IPNet is a prefix in the terms of package net.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Everywhere is the prefix of all addresses of a's family.
func Everywhere(a netip.Addr) netip.Prefix {
	if a.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
