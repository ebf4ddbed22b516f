package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Set is a set of addresses in a table, in order and each once, or one of
// connections.
type Set struct {
	Name  string
	IPv6  bool
	Addrs []netip.Addr
	// Connections is a set of connections. It is filled when it is made, and
	// nothing changes it afterwards.
	Connections bool
}

// String is the set in the language of the nft program.
func (s Set) String() string {
	family := "ipv4_addr"
	if s.IPv6 {
		family = "ipv6_addr"
	}
	if s.Connections {
		family += " . inet_service . " + family + " . inet_service"
	}
	var elements string
	if len(s.Addrs) > 0 {
		list := make([]string, len(s.Addrs))
		for i, a := range s.Addrs {
			list[i] = a.String()
		}
		elements = " elements = { " + strings.Join(list, ", ") + " }"
	}
	return fmt.Sprintf("set %s { type %s;%s }", s.Name, family, elements)
}

func listSets(ns *netns.NS, id tableID) (map[string]Set, error) {
	t, err := ourTable(ns, id)
	if err != nil || t == nil {
		return nil, err
	}
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	all, err := conn.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("listing nftables sets: %w", err)
	}
	sets := map[string]Set{}
	for _, k := range all {
		s := Set{Name: k.Name, IPv6: k.KeyType.Name == nftables.TypeIP6Addr.Name}
		if k.Concatenation {
			s.Connections, s.IPv6 = true, k.KeyType.Bytes == olderKey(true).Bytes
			sets[k.Name] = s
			continue
		}
		elements, err := conn.GetSetElements(k)
		if err != nil {
			return nil, fmt.Errorf("listing nftables set %s: %w", k.Name, err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				s.Addrs = append(s.Addrs, a)
			}
		}
		slices.SortFunc(s.Addrs, netip.Addr.Compare)
		sets[k.Name] = s
	}
	return sets, nil
}

func compareSets(want []Set, have map[string]Set) []string {
	var differs []string
	for _, w := range want {
		h, ok := have[w.Name]
		switch {
		case !ok:
			differs = append(differs, "set "+w.Name+" is missing")
		case h.Connections != w.Connections:
			differs = append(differs, "of another type is "+h.String())
		case h.IPv6 != w.IPv6 || !slices.Equal(h.Addrs, w.Addrs):
			differs = append(differs, "other elements are in "+h.String())
		}
	}
	return differs
}

// maxElements is how many elements go into one message, whose size is bounded.
const maxElements = 256

// writeSet adds to a transaction what makes a set of have. A set keeps its type:
// no former version had one of another.
func writeSet(conn *nftables.Conn, table *nftables.Table, want, have Set) error {
	set := &nftables.Set{Table: table, Name: want.Name, KeyType: nftables.TypeIPAddr}
	if want.IPv6 {
		set.KeyType = nftables.TypeIP6Addr
	}
	if have.Name == "" {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", want.Name, err)
		}
	}
	for _, change := range []struct {
		do   func(*nftables.Set, []nftables.SetElement) error
		list []nftables.SetElement
	}{
		{conn.SetDeleteElements, missingIn(want.Addrs, have.Addrs)},
		{conn.SetAddElements, missingIn(have.Addrs, want.Addrs)},
	} {
		for part := range slices.Chunk(change.list, maxElements) {
			if err := change.do(set, part); err != nil {
				return fmt.Errorf("nftables set %s: %w", want.Name, err)
			}
		}
	}
	return nil
}

// missingIn are the elements of addrs that are not in the ordered list in.
func missingIn(in, addrs []netip.Addr) []nftables.SetElement {
	var list []nftables.SetElement
	for _, a := range addrs {
		if _, found := slices.BinarySearchFunc(in, a, netip.Addr.Compare); !found {
			list = append(list, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return list
}
