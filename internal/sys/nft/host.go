package nft

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// HostTableName is the name of the two tables of the mesh in a host's namespace:
// one of the family inet, and one of the family bridge.
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
// sender has set. Bridges do not count hops: see BridgeRules. A bridge may be
// told to show its packets to the packet filter, and they may be translated
// there. The chain forward takes the hop on that path.
//
// The chain output comes before translation. A connection of the host to a
// Service is not one to a pod, and counts as everybody's.
func HostRules(pods []netip.Addr) Ruleset {
	set := Ruleset{Table: HostTableName, Sets: podSets(pods)}
	output := Chain{Name: "output", Type: "filter", Hook: "output", Priority: priorityMangle}
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: priorityMangle}
	for i := range set.Sets {
		s := &set.Sets[i]
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

// podSets are the sets of pods' addresses, in order and each once.
func podSets(pods []netip.Addr) []Set {
	sets := []Set{{Name: podsIPv4}, {Name: podsIPv6, IPv6: true}}
	for _, a := range pods {
		i := 0
		if a = a.Unmap(); a.Is6() {
			i = 1
		}
		sets[i].Addrs = append(sets[i].Addrs, a)
	}
	for i := range sets {
		slices.SortFunc(sets[i].Addrs, netip.Addr.Compare)
		sets[i].Addrs = slices.Compact(sets[i].Addrs)
	}
	return sets
}

// ApplyHost makes the host's tables what they are to be for these pods, each in
// one transaction, and says what was not so. The bridges' comes first: no pod
// recognizes the host before others are kept from its place.
func ApplyHost(host *netns.NS, pods []netip.Addr) (differs []string, err error) {
	bridges, err := applyBridges(host, pods)
	if err != nil {
		return nil, err
	}
	want := HostRules(pods)
	differs, err = checkTable(host, want)
	if err == nil && len(differs) > 0 {
		err = writeTable(host, want, nil)
	}
	if err != nil {
		return nil, err
	}
	return append(bridges, differs...), nil
}

// applyBridges reports no difference where the kernel has no such table and
// none is needed.
func applyBridges(host *netns.NS, pods []netip.Addr) (differs []string, err error) {
	want := BridgeRules(pods)
	if differs, err = checkTable(host, want); err != nil || len(differs) == 0 {
		return nil, err
	}
	if err := writeBridges(host, want); err != nil {
		return nil, err
	}
	if table, err := ourTable(host, want.id()); err != nil || table == nil {
		return nil, err
	}
	return differs, nil
}

// TryHost proves that the host's tables can be written, and leaves the pods in
// them as they are.
func TryHost(host *netns.NS) error {
	sets, err := listSets(host, inetHostTable)
	if err != nil {
		return err
	}
	var pods []netip.Addr
	for _, s := range sets {
		pods = append(pods, s.Addrs...)
	}
	if err := writeBridges(host, BridgeRules(pods)); err != nil {
		return err
	}
	return writeTable(host, HostRules(pods), nil)
}

// RemoveHost takes the host's tables away. Probes of captured pods are captured
// from then on.
func RemoveHost(host *netns.NS) error {
	return errors.Join(removeTable(host, inetHostTable), removeTable(host, bridgeHostTable))
}
