package service

import (
	"net/netip"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// NetworkAddress returns an address, or a range of addresses, of a network.
func NetworkAddress(network string, p netip.Prefix) *workloadpb.NetworkAddress {
	a := p.Addr()
	bits := p.Bits()
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	out := &workloadpb.NetworkAddress{Network: network, Address: a.AsSlice()}
	if bits < a.BitLen() {
		n := uint32(bits)
		out.Length = &n
		out.Address = netip.PrefixFrom(a, bits).Masked().Addr().AsSlice()
	}
	return out
}

// AddressAlias returns the name by which a resource is found by an address.
func AddressAlias(network string, addr []byte) string {
	a, _ := netip.AddrFromSlice(addr)
	return network + "/" + a.String()
}

// SameAddress reports whether two addresses or ranges are the same.
func SameAddress(a, b *workloadpb.NetworkAddress) bool {
	return a.Network == b.Network && string(a.Address) == string(b.Address) &&
		(a.Length == nil) == (b.Length == nil) && a.GetLength() == b.GetLength()
}
