package nft

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// HostTableName is the table of the mesh in a host's namespace.
const HostTableName = "ambit-host"

// hostHops proves that a packet comes from the host of the pod itself: it is the
// largest number of hops there is, and every host that passes a packet on takes
// one away.
const hostHops = 255

// Sets of the host's table.
const (
	podsIPv4 = "pods-ipv4"
	podsIPv6 = "pods-ipv6"
)

// HostRules computes the host's table: connections that the host's own programs
// open to pods begin with a packet that has all hops left to it, and those of
// nobody else do.
//
// What the host passes on to a pod arrives with one hop less, whatever its
// sender has set. One path does not count hops: a bridge that is told to show
// its packets to the packet filter, and whose packets are translated there. The
// chain forward takes the hop on that path.
//
// The chain output comes before translation. A connection of the host to a
// Service is not one to a pod, and counts as everybody's.
func HostRules(pods []netip.Addr) Ruleset {
	set := Ruleset{Table: HostTableName, Sets: []Set{{Name: podsIPv4}, {Name: podsIPv6, IPv6: true}}}
	for _, a := range pods {
		i := 0
		if a = a.Unmap(); a.Is6() {
			i = 1
		}
		set.Sets[i].Addrs = append(set.Sets[i].Addrs, a)
	}
	output := Chain{Name: "output", Type: "filter", Hook: "output", Priority: priorityMangle}
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: priorityMangle}
	for i := range set.Sets {
		s := &set.Sets[i]
		slices.SortFunc(s.Addrs, netip.Addr.Compare)
		s.Addrs = slices.Compact(s.Addrs)
		to := append([]Match{DestIn{IPv6: s.IPv6, Set: s.Name}}, newTCP()...)
		output.Rules = append(output.Rules, Rule{
			Match: to, Count: true, Do: SetHops{IPv6: s.IPv6, Value: hostHops}, Note: "the host's own connections, such as probes",
		})
		forward.Rules = append(forward.Rules, Rule{
			Match: append(slices.Clone(to), Hops{IPv6: s.IPv6, Value: hostHops}), Count: true,
			Do: SetHops{IPv6: s.IPv6, Value: hostHops - 1}, Note: "connections of others",
		})
	}
	set.Chains = []Chain{forward, output}
	return set
}

// ApplyHost makes the host's table what it is to be for these pods, in one
// transaction, and says what was not so.
func ApplyHost(host *netns.NS, pods []netip.Addr) (differs []string, err error) {
	want := HostRules(pods)
	if differs, err = checkTable(host, want); err != nil || len(differs) == 0 {
		return nil, err
	}
	return differs, writeTable(host, want, nil)
}

// TryHost proves that the host's table can be written, and leaves the pods in
// it as they are.
func TryHost(host *netns.NS) error {
	sets, err := listSets(host, HostTableName)
	if err != nil {
		return err
	}
	var pods []netip.Addr
	for _, s := range sets {
		pods = append(pods, s.Addrs...)
	}
	return writeTable(host, HostRules(pods), nil)
}

// RemoveHost takes the host's table away. Probes of captured pods are captured
// from then on.
func RemoveHost(host *netns.NS) error { return removeTable(host, HostTableName) }
