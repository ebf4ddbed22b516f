package rbac

import (
	"net/netip"
	"slices"
)

// v4InV6 is the length of the prefix that wraps IPv4 in IPv6 addresses.
const v4InV6 = 96

// mapped is where IPv4 begins in its IPv6 form.
var mapped = netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff})

// everyV4 is all of IPv4.
var everyV4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// Straddles reports whether an IPv6 block is larger than IPv4 in its IPv6 form
// (::ffff:0:0/96) and has it inside, such as ::ffff:0:0/95. It can be read as
// with IPv4 and as without. ::/0 is every IPv6 address and nothing else.
func Straddles(p netip.Prefix) bool {
	if !p.Addr().Is6() || p.Bits() <= 0 || p.Bits() >= v4InV6 {
		return false
	}
	// Contains takes no IPv4 in IPv6 form: compare what the prefix leaves.
	return netip.PrefixFrom(mapped, p.Bits()).Masked().Addr() == p.Masked().Addr()
}

// strictBlocks adds IPv4 to blocks that straddle it, where more is refused
// with it: to what a DENY is for, and to what an ALLOW excepts.
func strictBlocks(list []netip.Prefix) []netip.Prefix {
	if slices.ContainsFunc(list, Straddles) {
		return append(list, everyV4)
	}
	return list
}
