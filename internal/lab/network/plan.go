package network

import (
	"fmt"
	"net/netip"
	"strconv"
)

// The address plan. Everything is derived from the number of a node and the
// number of an address on it, so that people can read a packet capture:
//
//	lan       10.88.0.1       fd88::1
//	node N    10.88.0.(10+N)  fd88::(10+N)
//	pods      10.88.N.H       fd88:0:0:N::H
//	services  10.96.0.0/16    fd96::/112
const (
	MaxNodes    = 200
	firstNode   = 10  // host number of node 0, which does not exist
	FirstHost   = 10  // the pods' numbers on a node; below are ztunnels
	LastHost    = 254 // 255 would be the broadcast address of an IPv4 /24
	FirstProxy  = 2   // the ztunnel generations of a node take turns
	LastProxy   = 9
	LanHost     = 1
	FirstVIP    = 16 // as on Kubernetes: the lowest are left to those who ask for them
	LastVIP     = 0xfffe
	podGateway4 = 1 // 10.88.N.1 is the node, seen from its pods
)

// Dual is an address in both families.
type Dual struct{ V4, V6 netip.Addr }

// Families are those that a lab has: one of them, or both.
type Families struct{ V4, V6 bool }

// Names of families, as users write them.
const (
	FamilyDual = "dual"
	FamilyIPv4 = "ipv4"
	FamilyIPv6 = "ipv6"
)

// FamiliesOf returns the families of a name. Without a name they are those that the
// kernel does. The error has the names.
func FamiliesOf(name string) (Families, error) {
	f, ok := map[string]Families{
		"": {true, kernelHasIPv6()}, FamilyDual: {true, true}, FamilyIPv4: {V4: true}, FamilyIPv6: {V6: true},
	}[name]
	switch {
	case !ok:
		return f, fmt.Errorf("IP family %q: there are %s, %s and %s", name, FamilyDual, FamilyIPv4, FamilyIPv6)
	case f.V6 && !kernelHasIPv6():
		return f, fmt.Errorf("IP family %s: this kernel does no IPv6", name)
	}
	return f, nil
}

// Addrs returns the addresses of the families, IPv4 first.
func (d Dual) Addrs(f Families) (all []netip.Addr) {
	if f.V4 {
		all = append(all, d.V4)
	}
	if f.V6 {
		all = append(all, d.V6)
	}
	return all
}

// First returns the first of Addrs.
func (d Dual) First(f Families) netip.Addr { return d.Addrs(f)[0] }

// Strings is Addrs as texts.
func (d Dual) Strings(f Families) []string {
	var out []string
	for _, a := range d.Addrs(f) {
		out = append(out, a.String())
	}
	return out
}

// HostAddr is host h on the network of node n; network 0 is the LAN.
func HostAddr(n, h int) Dual {
	a := [16]byte{0: 0xfd, 1: 0x88, 7: byte(n), 15: byte(h)}
	return Dual{netip.AddrFrom4([4]byte{10, 88, byte(n), byte(h)}), netip.AddrFrom16(a)}
}

// NodeAddr returns the addresses of a node on the LAN.
func NodeAddr(n int) Dual { return HostAddr(0, firstNode+n) }

// podNetworks are the prefixes of a node's pods.
func podNetworks(n int) (v4, v6 netip.Prefix) {
	a := HostAddr(n, 0)
	return netip.PrefixFrom(a.V4, 24), netip.PrefixFrom(a.V6, 64)
}

// Networks of the addresses of services.
var (
	ServiceNetwork4 = netip.MustParsePrefix("10.96.0.0/16")
	ServiceNetwork6 = netip.MustParsePrefix("fd96::/112")
)

// ServiceAddr is the i-th address of the service networks.
func ServiceAddr(i int) Dual {
	a := [16]byte{0: 0xfd, 1: 0x96, 14: byte(i >> 8), 15: byte(i)}
	return Dual{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), netip.AddrFrom16(a)}
}

// Pool hands out numbers, the one that was not in use for longest first: an
// address that was just given back is what stale caches still point to.
type Pool struct {
	next, last int   // next: the lowest that was never in use
	back       []int // given back, oldest first
}

// NewPool returns a pool of the numbers from first to last.
func NewPool(first, last int) *Pool { return &Pool{next: first, last: last} }

// Take returns a number that is not in use, false when there is none.
func (p *Pool) Take() (int, bool) {
	if p.next <= p.last {
		p.next++
		return p.next - 1, true
	}
	if len(p.back) == 0 {
		return 0, false
	}
	n := p.back[0]
	p.back = p.back[1:]
	return n, true
}

// Give takes back a number.
func (p *Pool) Give(n int) { p.back = append(p.back, n) }

// NodeName returns the name of a node.
func NodeName(n int) string { return "node" + strconv.Itoa(n) }

// Component names.
const (
	Ambitd     = "ambitd"
	Ztunnel    = "ztunnel"
	AmbitCNI   = "ambit-cni"
	Waypoint   = "waypoint"
	AmbitdPort = 15012
)
