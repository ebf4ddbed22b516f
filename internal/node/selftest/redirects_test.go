package selftest

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// The self-test finds a node on which the guard does nothing: its chains are there,
// and accept each packet.
func TestANodeWithoutGuardIsFound(t *testing.T) {
	for _, ends := range [][2]netip.Addr{{netnstest.PodIPv4, netnstest.PeerIPv4}, {netnstest.PodIPv6, netnstest.PeerIPv6}} {
		pod, peer := netnstest.Link(t)
		for _, d := range []struct {
			name, chain  string
			from, at     *netns.NS
			source, dest netip.Addr
		}{
			{"inbound", "input", peer, pod, ends[1], ends[0]},
			{"outbound", "output", pod, peer, ends[0], ends[1]},
		} {
			to := netip.AddrPortFrom(d.dest, 8080)
			if err := nft.Apply(pod, nft.Config{IPv6: true}); err != nil {
				t.Fatal(err)
			}
			if err := guarded(d.from, d.source, d.at, to); err != nil {
				t.Errorf("%s to %s: %v", d.name, to, err)
			}
			empty(t, pod, d.chain)
			if err := guarded(d.from, d.source, d.at, to); err == nil {
				t.Errorf("%s to %s: a kernel whose guard accepts each packet passes", d.name, to)
			}
		}
	}
}

// empty takes the rules out of a chain of the mesh's table.
func empty(t *testing.T, ns *netns.NS, chain string) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.File().Fd())))
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushChain(&nftables.Chain{Name: chain, Table: &nftables.Table{Name: nft.TableName, Family: nftables.TableFamilyINet}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}
