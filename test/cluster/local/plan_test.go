package local

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEveryAddressHasOnePlace(t *testing.T) {
	p := plan{count: maxNodes, ipv6: true}
	seen := map[netip.Addr]bool{}
	taken := func(a netip.Addr, in netip.Prefix) {
		t.Helper()
		if seen[a] || !in.Contains(a) {
			t.Errorf("%s: twice, or not in %s", a, in)
		}
		seen[a] = true
	}
	for i, a := range p.router() {
		taken(a, p.lan()[i])
	}
	var networks []netip.Prefix
	for _, n := range p.nodes() {
		for i, a := range p.node(n) {
			taken(a, p.lan()[i])
		}
		for i, pods := range p.podsOf(n) {
			if !p.pods()[i].Contains(pods.Addr()) || pods.Masked() != pods {
				t.Errorf("pods of node %d: %s is not a network in %s", n, pods, p.pods()[i])
			}
			networks = append(networks, pods)
		}
	}
	networks = slices.Concat(networks, p.lan(), p.services())
	for i, a := range networks {
		for _, b := range networks[:i] {
			if a.Overlaps(b) {
				t.Errorf("%s overlaps %s", a, b)
			}
		}
	}
}

func TestPlanNames(t *testing.T) {
	p := plan{count: 3}
	if diff := cmp.Diff([]string{"node1", "node2", "node3"}, p.names()); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]int{"node1": 1, "node3": 3, "node4": 0, "node0": 0, "": 0, "lan": 0} {
		if got := p.number(name); got != want {
			t.Errorf("number of %q: %d, want %d", name, got, want)
		}
	}
	if got := join(p.node(2)); got != "172.30.0.12" {
		t.Errorf("node 2 is %s", got)
	}
	p.ipv6 = true
	if got := join(p.node(2)); got != "172.30.0.12,fd00:172:30::c" {
		t.Errorf("node 2 is %s", got)
	}
	if got := join(p.podsOf(3)); got != "10.244.3.0/24,fd00:10:244:3::/64" {
		t.Errorf("pods of node 3 are %s", got)
	}
	if got := join(p.dns()); got != "10.96.0.10,fd00:10:96::a" {
		t.Errorf("DNS is %s", got)
	}
}
