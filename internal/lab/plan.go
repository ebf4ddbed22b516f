package lab

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// The address plan. Everything is derived from the number of a node and the
// number of an address on it, so that people can read a packet capture:
//
//	lan       10.88.0.1       fd88::1
//	node N    10.88.0.(10+N)  fd88::(10+N)
//	pods      10.88.N.H       fd88:0:0:N::H
//	services  10.96.0.0/16    fd96::/112
const (
	maxNodes    = 200
	firstNode   = 10  // host number of node 0, which does not exist
	firstHost   = 10  // the pods' numbers on a node; below are ztunnels
	lastHost    = 254 // 255 would be the broadcast address of an IPv4 /24
	firstProxy  = 2   // the ztunnel generations of a node take turns
	lastProxy   = 9
	lanHost     = 1
	firstVIP    = 16 // as on Kubernetes: the lowest are left to those who ask for them
	lastVIP     = 0xfffe
	podGateway4 = 1 // 10.88.N.1 is the node, seen from its pods
)

// dual is an address in both families.
type dual struct{ v4, v6 netip.Addr }

func (d dual) addrs(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{d.v4, d.v6}
	}
	return []netip.Addr{d.v4}
}

func (d dual) strings(v6 bool) []string {
	var out []string
	for _, a := range d.addrs(v6) {
		out = append(out, a.String())
	}
	return out
}

// hostAddr is host h on the network of node n; network 0 is the LAN.
func hostAddr(n, h int) dual {
	a := [16]byte{0: 0xfd, 1: 0x88, 7: byte(n), 15: byte(h)}
	return dual{netip.AddrFrom4([4]byte{10, 88, byte(n), byte(h)}), netip.AddrFrom16(a)}
}

func nodeAddr(n int) dual { return hostAddr(0, firstNode+n) }

// podNetworks are the prefixes of a node's pods.
func podNetworks(n int) (v4, v6 netip.Prefix) {
	a := hostAddr(n, 0)
	return netip.PrefixFrom(a.v4, 24), netip.PrefixFrom(a.v6, 64)
}

var (
	serviceNetwork4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceNetwork6 = netip.MustParsePrefix("fd96::/112")
)

// serviceAddr is the i-th address of the service networks.
func serviceAddr(i int) dual {
	a := [16]byte{0: 0xfd, 1: 0x96, 14: byte(i >> 8), 15: byte(i)}
	return dual{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), netip.AddrFrom16(a)}
}

// pool hands out numbers, the one that was not in use for longest first: an
// address that was just given back is what stale caches still point to.
type pool struct {
	next, last int   // next: the lowest that was never in use
	back       []int // given back, oldest first
}

func newPool(first, last int) *pool { return &pool{next: first, last: last} }

func (p *pool) take() (int, bool) {
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

func (p *pool) give(n int) { p.back = append(p.back, n) }

func nodeName(n int) string { return "node" + strconv.Itoa(n) }

// Component names.
const (
	ambitd     = "ambitd"
	ztunnel    = "ztunnel"
	ambitCNI   = "ambit-cni"
	waypoint   = "waypoint"
	ambitdPort = 15012
)

// adminOf tells where a component's admin port is.
func adminOf(component string) (Where, int, error) {
	kind, node, _ := strings.Cut(component, "/")
	switch {
	case component == ambitd:
		return LAN, 8080, nil
	case kind == ztunnel && node != "":
		return InZtunnel(node), 15000, nil
	case kind == ambitCNI && node != "":
		return InNode(node), 15014, nil
	}
	return "", 0, fmt.Errorf("no component %q: there are ambitd, ztunnel/NODE and ambit-cni/NODE", component)
}
