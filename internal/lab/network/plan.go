package network

import (
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

// Addrs returns both addresses, or the one of IPv4.
func (d Dual) Addrs(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{d.V4, d.V6}
	}
	return []netip.Addr{d.V4}
}

// Strings is Addrs as texts.
func (d Dual) Strings(v6 bool) []string {
	var out []string
	for _, a := range d.Addrs(v6) {
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
