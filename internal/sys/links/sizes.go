package links

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Sizes are how many bytes of one connection may pass an interface as one packet
// before hardware, or the last interface of the machine, cuts them into segments.
// A size is zero where the kernel does not have it.
type Sizes struct {
	GSO, GRO         uint32 // of what is sent and of what is received: IPv6, and IPv4 where it has none of its own
	GSOIPv4, GROIPv4 uint32
}

// Interface is one of a namespace.
type Interface struct {
	Name  string
	Index int
	Kind  string // "veth", "bridge", …; "device" for lo and hardware
	// Loopback reports whether it is lo.
	Loopback bool
	// Peer is the index of the other end of a cable, in the namespace that has the
	// number Space here; negative when that is this one.
	Peer, Space int
	Sizes       Sizes
	// Limit is the largest size that the device can be given; zero where the kernel
	// does not have it.
	Limit uint32
}

// dumps is how often a list is asked for that changed while it was read.
const dumps = 4

// Interfaces lists the interfaces, with their sizes.
func (l *Links) Interfaces() ([]Interface, error) {
	var all []netlink.Link
	var err error
	for range dumps {
		if all, err = l.h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	out := make([]Interface, 0, len(all))
	for _, link := range all {
		a := link.Attrs()
		out = append(out, Interface{
			Name: a.Name, Index: a.Index, Kind: link.Type(), Loopback: a.Flags&net.FlagLoopback != 0,
			Peer: a.ParentIndex, Space: a.NetNsID, Limit: a.TSOMaxSize,
			Sizes: Sizes{GSO: a.GSOMaxSize, GRO: a.GROMaxSize, GSOIPv4: a.GSOIPv4MaxSize, GROIPv4: a.GROIPv4MaxSize},
		})
	}
	return out, nil
}

// SetSizes gives an interface other sizes; those that are zero are not touched.
// The kernel takes a size of up to 64 KiB for IPv4 as well: those of IPv4 come last.
func (l *Links) SetSizes(index int, s Sizes) error {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	for _, one := range []struct {
		name string
		size uint32
		set  func(netlink.Link, int) error
	}{
		{"gso_max_size", s.GSO, l.h.LinkSetGSOMaxSize}, {"gro_max_size", s.GRO, l.h.LinkSetGROMaxSize},
		{"gso_ipv4_max_size", s.GSOIPv4, l.h.LinkSetGSOIPv4MaxSize}, {"gro_ipv4_max_size", s.GROIPv4, l.h.LinkSetGROIPv4MaxSize},
	} {
		if one.size == 0 {
			continue
		}
		if err := one.set(link, int(one.size)); err != nil {
			return fmt.Errorf("setting %s of interface %d to %d: %w", one.name, index, one.size, err)
		}
	}
	return nil
}

// SpaceOf returns the number that another namespace has here, and false when it
// has none.
func (l *Links) SpaceOf(other *netns.NS) (int, bool) {
	id, err := l.h.GetNetNsIdByFd(int(other.File().Fd()))
	return id, err == nil && id >= 0
}

// Carrying returns the indexes of the interfaces with one of the addresses.
func (l *Links) Carrying(addrs []netip.Addr) ([]int, error) {
	all, err := l.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var out []int
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && slices.Contains(addrs, ip.Unmap()) && !slices.Contains(out, a.LinkIndex) {
			out = append(out, a.LinkIndex)
		}
	}
	return out, nil
}

// Uplinks returns the indexes of the interfaces with a default route.
func (l *Links) Uplinks() ([]int, error) {
	var out []int
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := l.h.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones > 0 {
					continue
				}
			}
			for _, index := range append([]int{r.LinkIndex}, nextHops(r)...) {
				if index > 0 && !slices.Contains(out, index) {
					out = append(out, index)
				}
			}
		}
	}
	return out, nil
}

func nextHops(r netlink.Route) []int {
	var out []int
	for _, h := range r.MultiPath {
		out = append(out, h.LinkIndex)
	}
	return out
}
