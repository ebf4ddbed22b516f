package nft

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// The self-test finds a node on which the guard does nothing: its chains are
// there, and each accepts everything.
func TestSelfTestFindsANodeWithoutGuard(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		for _, d := range []struct {
			name, chain  string
			from, at     *netns.NS
			source, dest netip.Addr
		}{
			{"inbound", "input", peer, pod, f.peer, f.pod},
			{"outbound", "output", pod, peer, f.pod, f.peer},
		} {
			to := netip.AddrPortFrom(d.dest, 8080)
			apply(t, pod, Config{IPv6: true})
			if err := guarded(d.from, d.source, d.at, to); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
			want := Rules(Config{IPv6: true}).possible()
			for i := range want.Chains {
				if want.Chains[i].Name == d.chain {
					want.Chains[i].Rules = []Rule{{Do: Accept{}}}
				}
			}
			if err := writeTable(pod, want, nil); err != nil {
				t.Fatal(err)
			}
			if err := guarded(d.from, d.source, d.at, to); err == nil {
				t.Errorf("%s: a kernel whose guard accepts everything passes", d.name)
			}
		}
	})
}
