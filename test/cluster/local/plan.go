package local

import (
	"fmt"
	"net/netip"
	"slices"
)

// Addresses. Every cluster has the same ones: its networks exist in its own
// network namespaces only.
const (
	apiPort     = 6443
	maxNodes    = 50
	firstHost   = 10 // node N is host 10+N of the LAN
	serviceDNS  = 10 // host number of the cluster's DNS among the Services
	serviceAPI  = 1
	clusterName = "cluster.local"
)

var (
	lan4      = netip.MustParsePrefix("172.30.0.0/24")
	lan6      = netip.MustParsePrefix("fd00:172:30::/64")
	services4 = netip.MustParsePrefix("10.96.0.0/16")
	services6 = netip.MustParsePrefix("fd00:10:96::/112")
	pods4     = netip.MustParsePrefix("10.244.0.0/16")
	pods6     = netip.MustParsePrefix("fd00:10:244::/48")
)

// plan is who has which name and address in a cluster: pure arithmetic.
type plan struct {
	count int
	ipv6  bool
}

func nodeName(n int) string { return fmt.Sprintf("node%d", n) }

// nodes lists the numbers of all nodes, from 1.
func (p plan) nodes() []int {
	all := make([]int, p.count)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

func (p plan) names() []string {
	var all []string
	for _, n := range p.nodes() {
		all = append(all, nodeName(n))
	}
	return all
}

// number is the node with a name, 0 when there is none.
func (p plan) number(name string) int { return slices.Index(p.names(), name) + 1 }

// families keeps of a pair what the cluster has: IPv4 first, always.
func families[T any](p plan, v4, v6 T) []T {
	if p.ipv6 {
		return []T{v4, v6}
	}
	return []T{v4}
}

func (p plan) lan() []netip.Prefix      { return families(p, lan4, lan6) }
func (p plan) pods() []netip.Prefix     { return families(p, pods4, pods6) }
func (p plan) services() []netip.Prefix { return families(p, services4, services6) }

// node returns the addresses of node n on the LAN.
func (p plan) node(n int) []netip.Addr {
	return families(p, host(lan4, firstHost+n), host(lan6, firstHost+n))
}

// router returns the LAN's own addresses: the nodes' default route.
func (p plan) router() []netip.Addr { return families(p, host(lan4, 1), host(lan6, 1)) }

// podsOf returns the networks of the pods of node n.
func (p plan) podsOf(n int) []netip.Prefix {
	a4, a6 := pods4.Addr().As4(), pods6.Addr().As16()
	a4[2] = byte(n) //nolint:gosec // at most maxNodes
	a6[7] = byte(n) //nolint:gosec // at most maxNodes
	return families(p, netip.PrefixFrom(netip.AddrFrom4(a4), 24), netip.PrefixFrom(netip.AddrFrom16(a6), 64))
}

func (p plan) dns() []netip.Addr {
	return families(p, host(services4, serviceDNS), host(services6, serviceDNS))
}

// apiNames is what the API server's certificate is valid for: the ways in from
// the machine, from nodes and from pods.
func (p plan) apiNames() []string {
	names := []string{"localhost", "127.0.0.1", host(services4, serviceAPI).String(), nodeName(1)}
	for _, a := range p.node(1) {
		names = append(names, a.String())
	}
	svc := "kubernetes"
	for _, suffix := range []string{"", ".default", ".svc", "." + clusterName} {
		svc += suffix
		names = append(names, svc)
	}
	return names
}

// host is address number n of a network; n is at most 255.
func host(p netip.Prefix, n int) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		a[3] = byte(n) //nolint:gosec // see above
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	a[15] = byte(n) //nolint:gosec // see above
	return netip.AddrFrom16(a)
}

// join makes the comma-separated lists that Kubernetes' flags take.
func join[T fmt.Stringer](all []T) string {
	s := ""
	for i, v := range all {
		if i > 0 {
			s += ","
		}
		s += v.String()
	}
	return s
}
