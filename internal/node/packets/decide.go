// Package packets lets the bytes of a pod's connections pass the interfaces of its
// node in larger packets than Linux has by default (GSO and GRO, "BIG TCP").
//
// It keeps no record of what it did. A size that is the kernel's default becomes
// Size, which is odd so that no other program sets it; every other size was chosen by
// its owner and stays. So what is to be restored is to be seen in the kernel, also by
// an agent that has just been started.
package packets

import (
	"fmt"

	"github.com/ambit-mesh/ambit/internal/sys/links"
)

const (
	// Size is how large a packet may be. Larger ones bring little more.
	Size = 256<<10 - 1
	// Default is the size that Linux gives every interface.
	Default = 64 << 10
)

// Mode is on which interfaces packets may be large.
type Mode string

// Modes.
const (
	Off Mode = "off" // none
	// Loopback is lo of enrolled pods, which only the pod and its proxy use.
	Loopback Mode = "lo"
	// Pod has the interface of enrolled pods and its other end on the host as well.
	Pod Mode = "pod"
)

// ParseMode reads a mode.
func ParseMode(text string) (Mode, error) {
	switch m := Mode(text); m {
	case Off, Loopback, Pod:
		return m, nil
	}
	return "", fmt.Errorf("large packets %q: want %s, %s or %s", text, Off, Loopback, Pod)
}

// enlarge returns the sizes that are to be set, zero for those that stay, and why an
// interface cannot have large packets at all.
func enlarge(i links.Interface) (set links.Sizes, why string) {
	switch {
	case i.Limit == 0 || i.Sizes.GSO == 0 || i.Sizes.GRO == 0:
		return set, "the kernel has no large packets (Linux 5.19 has them for IPv6, Linux 6.3 for IPv4)"
	case i.Limit < Size:
		return set, fmt.Sprintf("the device takes packets of at most %d bytes", i.Limit)
	}
	return replace(i.Sizes, Default, Size), ""
}

// restore returns the sizes that are to be set after the mesh, zero for those that
// are not the mesh's. A default size of IPv6 sets that of IPv4 too, so what IPv4 has is
// set again.
func restore(i links.Interface) links.Sizes {
	set := replace(i.Sizes, Size, Default)
	if set.GSO != 0 && set.GSOIPv4 == 0 {
		set.GSOIPv4 = i.Sizes.GSOIPv4
	}
	if set.GRO != 0 && set.GROIPv4 == 0 {
		set.GROIPv4 = i.Sizes.GROIPv4
	}
	return set
}

// replace returns to where a size is from, else zero.
func replace(s links.Sizes, from, to uint32) links.Sizes {
	one := func(have uint32) uint32 {
		if have == from {
			return to
		}
		return 0
	}
	return links.Sizes{GSO: one(s.GSO), GRO: one(s.GRO), GSOIPv4: one(s.GSOIPv4), GROIPv4: one(s.GROIPv4)}
}

// otherEnd returns the interface of the host that is the other end of a pod's cable.
// Numbers of interfaces mean something in one namespace only, so both ends must name
// each other, and the host's end the pod's namespace.
func otherEnd(pod links.Interface, host []links.Interface, podSpace int) (links.Interface, bool) {
	if pod.Kind != "veth" || pod.Peer == 0 {
		return links.Interface{}, false
	}
	for _, h := range host {
		if h.Kind == "veth" && h.Index == pod.Peer && h.Peer == pod.Index && h.Space == podSpace {
			return h, true
		}
	}
	return links.Interface{}, false
}

// describe returns what passes an interface as one packet.
func describe(i links.Interface) string {
	if i.Limit == 0 {
		return fmt.Sprintf("%s: the kernel has no large packets", i.Name)
	}
	v4 := i.Sizes.GSOIPv4
	if v4 == 0 { // the kernel has one size for both, which IPv4 uses up to the default
		v4 = min(i.Sizes.GSO, Default)
	}
	return fmt.Sprintf("%s: packets of at most %d bytes of IPv4 and %d of IPv6, %d possible", i.Name, v4, i.Sizes.GSO, i.Limit)
}
