package vips

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

type row = collection.Row[source.Ref, *Request]

func entry(name string, created int64, hosts []string, kept ...Address) row {
	return row{Key: source.Ref{Namespace: "shop", Name: name}, Value: &Request{Created: created, Hosts: hosts, Kept: kept}}
}

func at(a string) netip.Addr { return netip.MustParseAddr(a) }

// TestAllocate: each host gets an address of each family, of the ranges; what is written
// stays, and of two that have one address the older keeps it.
func TestAllocate(t *testing.T) {
	rows := []row{
		entry("young", 20, []string{"y.test"}, Address{"y.test", at("240.240.1.1")}),
		entry("old", 10, []string{"o.test", "p.test"}, Address{"o.test", at("240.240.1.1")}, Address{"o.test", at("2001:2::7")}),
		{Key: source.Ref{Namespace: "yard", Name: "lists"}, Value: &Request{Taken: []netip.Addr{at("240.240.1.2")}}},
	}
	got := Allocate(Default, rows)
	old, young := got[rows[1].Key], got[rows[0].Key]
	if len(old) != 4 || old[0] != (Address{"o.test", at("240.240.1.1")}) || old[1] != (Address{"o.test", at("2001:2::7")}) || old[2].Host != "p.test" {
		t.Errorf("the older one: %v", old)
	}
	if len(young) != 2 || young[0].Addr == at("240.240.1.1") || !IPv4.Contains(young[0].Addr) || !IPv6.Contains(young[1].Addr) {
		t.Errorf("the younger one: %v", young)
	}
	if got[rows[2].Key] != nil {
		t.Errorf("what lists its addresses gets %v", got[rows[2].Key])
	}
}

// TestExhausted: where a range has no address left, hosts go without, and none is given twice.
func TestExhausted(t *testing.T) {
	pools := Pools{netip.MustParsePrefix("240.240.0.0/28"), netip.MustParsePrefix("2001:2::/48")}
	var rows []row
	for i := range 20 {
		rows = append(rows, entry(fmt.Sprint("e", i), int64(i), []string{fmt.Sprintf("h%d.test", i)}))
	}
	seen, four := map[netip.Addr]bool{}, 0
	for _, all := range Allocate(pools, rows) {
		for _, a := range all {
			if seen[a.Addr] {
				t.Errorf("%s is given twice", a.Addr)
			}
			seen[a.Addr] = true
			if a.Addr.Is4() {
				four++
			}
		}
	}
	if four != 15 { // all but the first
		t.Errorf("%d IPv4 addresses are used", four)
	}
}

// TestStable: the order of entries does not matter, no address is given twice, and once
// written an allocation stays, whatever entries come and go.
func TestStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pools := Pools{netip.MustParsePrefix("240.240.0.0/26"), netip.MustParsePrefix("2001:2::/120")}
		draw := func(label string) []row {
			names := rapid.SliceOfNDistinct(rapid.StringMatching("[a-h]{1,2}"), 0, 12, rapid.ID[string]).Draw(t, label)
			var rows []row
			for _, n := range names {
				rows = append(rows, entry(n, int64(rapid.IntRange(0, 3).Draw(t, "created")), []string{n + ".test", "x" + n + ".test"}))
			}
			return rows
		}
		rows := draw("entries")
		first := Allocate(pools, rows)
		shuffled := rapid.Permutation(rows).Draw(t, "order")
		if again := Allocate(pools, shuffled); !maps.EqualFunc(first, again, slices.Equal[[]Address]) {
			t.Fatalf("the order matters: %v, %v", first, again)
		}
		var kept []row
		for _, r := range rows {
			kept = append(kept, row{Key: r.Key, Value: &Request{Created: r.Value.Created, Hosts: r.Value.Hosts, Kept: first[r.Key]}})
		}
		for _, r := range draw("later entries") {
			if !slices.ContainsFunc(kept, func(o row) bool { return o.Key == r.Key }) {
				kept = append(kept, r)
			}
		}
		seen := map[netip.Addr]bool{}
		for k, all := range Allocate(pools, kept) {
			if was, is := first[k]; is && !slices.Equal(was, all) {
				t.Fatalf("%v became %v", was, all)
			}
			for _, a := range all {
				if seen[a.Addr] {
					t.Fatalf("%s is given twice", a.Addr)
				}
				seen[a.Addr] = true
			}
		}
	})
}

func BenchmarkAllocate(b *testing.B) {
	var rows []row
	for i := range 10000 {
		rows = append(rows, entry(fmt.Sprint("e", i), int64(i), []string{fmt.Sprintf("h%d.test", i)}))
	}
	b.ReportAllocs()
	for b.Loop() {
		Allocate(Default, rows)
	}
}
