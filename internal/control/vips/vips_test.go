package vips

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

type row = collection.Row[source.Ref, *Request]

func entryRow(name string, created int64, hosts []string, kept ...Address) row {
	return row{Key: source.Ref{Namespace: "shop", Name: name}, Value: &Request{Created: created, Hosts: hosts, Kept: kept}}
}

// settled returns the allocation of entries that come together.
func settled(pools Pools, rows []row) map[source.Ref][]Address {
	a := NewAllocation(pools)
	for _, r := range rows {
		a.Set(r.Key, r.Value)
	}
	return follow(a, map[source.Ref][]Address{})
}

// follow brings what was allocated up to date.
func follow(a *Allocation, all map[source.Ref][]Address) map[source.Ref][]Address {
	a.Changed(func(k source.Ref, own []Address, has bool) {
		if delete(all, k); has {
			all[k] = own
		}
	})
	return all
}

func at(a string) netip.Addr { return netip.MustParseAddr(a) }

// TestAllocate: each host gets an address of each family, of the ranges; what is written
// stays, and of two that have one address the older keeps it.
func TestAllocate(t *testing.T) {
	rows := []row{
		entryRow("young", 20, []string{"y.test"}, Address{"y.test", at("240.240.1.1")}),
		entryRow("old", 10, []string{"o.test", "p.test"}, Address{"o.test", at("240.240.1.1")}, Address{"o.test", at("2001:2::7")}),
		{Key: source.Ref{Namespace: "yard", Name: "lists"}, Value: &Request{Taken: []netip.Addr{at("240.240.1.2")}}},
	}
	got := settled(Default, rows)
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
		rows = append(rows, entryRow(fmt.Sprint("e", i), int64(i), []string{fmt.Sprintf("h%d.test", i)}))
	}
	seen, four := map[netip.Addr]bool{}, 0
	for _, all := range settled(pools, rows) {
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
				rows = append(rows, entryRow(n, int64(rapid.IntRange(0, 3).Draw(t, "created")), []string{n + ".test", "x" + n + ".test"}))
			}
			return rows
		}
		rows := draw("entries")
		first := settled(pools, rows)
		shuffled := rapid.Permutation(rows).Draw(t, "order")
		if again := settled(pools, shuffled); !maps.EqualFunc(first, again, slices.Equal[[]Address]) {
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
		for k, all := range settled(pools, kept) {
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

// TestIncrementalIsWhole: after any changes, in any order, with statuses that were written in
// part, that contradict each other or that other entries list, the allocation is that of the
// entries as a whole. So is that of another replica, which starts with them.
func TestIncrementalIsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pools := rapid.SampledFrom([]Pools{
			{netip.MustParsePrefix("240.240.0.0/26"), netip.MustParsePrefix("2001:2::/122")},
			{netip.MustParsePrefix("240.240.0.0/28"), netip.MustParsePrefix("2001:2::/48")},
			{netip.MustParsePrefix("240.240.0.0/23"), netip.MustParsePrefix("2001:2::/125")},
			Default,
		}).Draw(t, "pools")
		name := rapid.StringMatching("[a-d][a-c]?")
		addr := func() netip.Addr {
			text := rapid.SampledFrom([]string{"240.240.0.%d", "2001:2::%x", "240.240.0.%d", "192.0.2.%d"}).Draw(t, "range")
			return netip.MustParseAddr(fmt.Sprintf(text, rapid.IntRange(0, 20).Draw(t, "number")))
		}
		now := map[source.Ref]*Request{}
		a, got := NewAllocation(pools), map[source.Ref][]Address{}
		for range rapid.IntRange(1, 12).Draw(t, "turns") {
			for range rapid.IntRange(0, 8).Draw(t, "edits") {
				k := source.Ref{Namespace: rapid.SampledFrom([]string{"shop", "yard"}).Draw(t, "namespace"), Name: name.Draw(t, "entry")}
				was := now[k]
				switch edit := rapid.IntRange(0, 5).Draw(t, "edit"); {
				case edit == 0:
					delete(now, k)
					a.Delete(k)
					continue
				case edit == 1 && was != nil: // its status is written
					now[k] = &Request{Created: was.Created, Hosts: was.Hosts, Kept: got[k], Taken: was.Taken}
				case edit == 2 && was != nil: // and is lost
					now[k] = &Request{Created: was.Created, Hosts: was.Hosts, Taken: was.Taken}
				default:
					r := &Request{Created: int64(rapid.IntRange(0, 3).Draw(t, "created"))}
					r.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.test", "b.test", "c.test", "d.test"}), 0, 4, rapid.ID[string]).Draw(t, "hosts")
					for range rapid.IntRange(0, 3).Draw(t, "kept") {
						r.Kept = append(r.Kept, Address{rapid.SampledFrom([]string{"a.test", "b.test", "c.test", "gone.test"}).Draw(t, "of"), addr()})
					}
					for range rapid.IntRange(0, 2).Draw(t, "taken") {
						r.Taken = append(r.Taken, addr())
					}
					now[k] = r
				}
				a.Set(k, now[k])
			}
			got = follow(a, got)
			var rows []row
			for k, r := range now {
				rows = append(rows, row{Key: k, Value: r})
			}
			want := allocate(pools, rows)
			if !maps.EqualFunc(got, want, slices.Equal[[]Address]) {
				t.Fatalf("%v\nwhole: %v", got, want)
			}
			if other := settled(pools, rows); !maps.EqualFunc(other, want, slices.Equal[[]Address]) {
				t.Fatalf("another replica: %v\nwhole: %v", other, want)
			}
		}
		// What goes leaves nothing.
		for k := range now {
			a.Delete(k)
		}
		got = follow(a, got)
		if n := len(got) + len(a.entries) + len(a.held) + len(a.tried) + len(a.walking[0]) + len(a.walking[1]) + a.pools[0].held + a.pools[1].held; n != 0 {
			t.Fatalf("%d things are left: %+v", n, a)
		}
	})
}

// TestRestart: two replicas that have met the entries in different orders, and one that starts
// when half of the statuses are written, agree.
func TestRestart(t *testing.T) {
	rows := large(3000)
	one, other := NewAllocation(Default), NewAllocation(Default)
	for i := range rows {
		one.Set(rows[i].Key, rows[i].Value)
		follow(one, scratch())
	}
	for i := len(rows) - 1; i >= 0; i-- {
		other.Set(rows[i].Key, rows[i].Value)
		follow(other, scratch())
	}
	want := allocate(Default, rows)
	for i, r := range rows {
		if i%2 == 0 {
			r.Value = &Request{Created: r.Value.Created, Hosts: r.Value.Hosts, Kept: want[r.Key]}
			rows[i] = r
			one.Set(r.Key, r.Value)
		}
	}
	follow(one, scratch())
	started := settled(Default, rows)
	for k, all := range want {
		if a, b, c := one.addresses(k), other.addresses(k), started[k]; !slices.Equal(a, all) || !slices.Equal(b, all) || !slices.Equal(c, all) {
			t.Fatalf("%s: %v, %v, %v; whole: %v", k, a, b, c, all)
		}
	}
}

func scratch() map[source.Ref][]Address { return map[source.Ref][]Address{} }

// TestEntries: of many entries, a change of one is a change of its row alone; what is written
// into its status is none.
func TestEntries(t *testing.T) {
	g := collection.NewGraph()
	in := collection.NewInput[source.Ref](g, "entries", func(a, b *networkingv1.ServiceEntry) bool { return a == b })
	out := Entries(in.Collection)
	numbered := func(i int) (source.Ref, *networkingv1.ServiceEntry) {
		e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("e", i), CreationTimestamp: metav1.Unix(int64(i), 0)}}
		e.Spec.Hosts = []string{fmt.Sprintf("h%d.test", i)}
		e.Spec.Resolution = networkingapi.ServiceEntry_DNS
		return source.Ref{Namespace: "shop", Name: e.Name}, e
	}
	for i := range 1000 {
		in.Set(numbered(i))
	}
	g.Settle()
	var changed []collection.Change[source.Ref, *networkingv1.ServiceEntry]
	out.OnChange(func(c []collection.Change[source.Ref, *networkingv1.ServiceEntry]) { changed = c })
	for i := range 1000 {
		k, _ := numbered(i)
		if e, ok := out.Get(k); !ok || len(written(e)) != 2 {
			t.Fatalf("%s has %v", k, written(e))
		}
	}
	k, next := numbered(500)
	next.Spec.Hosts = []string{"other.test"}
	in.Set(k, next)
	if g.Settle(); len(changed) != 1 || changed[0].Key != k {
		t.Errorf("%d rows changed", len(changed))
	}
	now, _ := out.Get(k)
	if all := written(now); len(all) != 2 || all[0].Host != "other.test" {
		t.Errorf("it has %v", all)
	}
	in.Set(k, now) // its status is written
	g.Settle()
	if again, _ := out.Get(k); again != now {
		t.Errorf("%v became %v", written(now), written(again))
	}
	in.Delete(k)
	if g.Settle(); len(changed) != 1 || changed[0].Has {
		t.Errorf("%+v", changed)
	}
}

// large returns n entries without a status, older ones first.
func large(n int) (rows []row) {
	for i := range n {
		rows = append(rows, entryRow(fmt.Sprint("e", i), int64(i), []string{fmt.Sprintf("h%d.test", i)}))
	}
	return rows
}

// TestAChangeCostsWhatTheEntryHas: the youngest, the oldest and any entry of 10,000 come and go
// with few addresses looked at. So does one whose status is written.
func TestAChangeCostsWhatTheEntryHas(t *testing.T) {
	for _, n := range []int{100, 10000} {
		rows := large(n)
		a := NewAllocation(Default)
		for _, r := range rows {
			a.Set(r.Key, r.Value)
		}
		all := follow(a, map[source.Ref][]Address{})
		a.steps = 0
		for i := range n {
			k := rows[i].Key
			a.Delete(k)
			follow(a, all)
			a.Set(k, rows[i].Value)
			follow(a, all)
			a.Set(k, &Request{Created: rows[i].Value.Created, Hosts: rows[i].Value.Hosts, Kept: all[k]})
			follow(a, all)
		}
		if each := float64(a.steps) / float64(n); each > 20 {
			t.Errorf("%d entries: %.1f addresses are looked at for each", n, each)
		}
	}
}

// TestFull: where a range is full, one more host costs few steps, and gets the address of one that
// goes.
func TestFull(t *testing.T) {
	pools := Pools{netip.MustParsePrefix("240.240.0.0/20"), IPv6}
	rows := large(5000)
	a, all := NewAllocation(pools), map[source.Ref][]Address{}
	for _, r := range rows {
		a.Set(r.Key, r.Value)
	}
	follow(a, all)
	if n := len(a.walking[0]); n < 5000-4064 || a.pools[0].held != 4064 {
		t.Fatalf("%d hosts walk, %d addresses are held", n, a.pools[0].held)
	}
	a.steps = 0
	more := entryRow("more", 9999, []string{"more.test"})
	a.Set(more.Key, more.Value)
	if follow(a, all); a.steps > 40 || len(all[more.Key]) != 1 {
		t.Errorf("%d addresses are looked at: %v", a.steps, all[more.Key])
	}
	a.Delete(rows[0].Key)
	follow(a, all)
	rows = append(rows[1:], more)
	if want := allocate(pools, rows); !maps.EqualFunc(all, want, slices.Equal[[]Address]) {
		t.Error("the allocation is not the whole one")
	}
}

// BenchmarkOneChange is one entry of 10,000 that goes and comes back, and what the allocation as
// a whole would take for that, in one run. ratio is the second divided by the first.
func BenchmarkOneChange(b *testing.B) {
	rows := large(10000)
	a, all := NewAllocation(Default), map[source.Ref][]Address{}
	for _, r := range rows {
		a.Set(r.Key, r.Value)
	}
	follow(a, all)
	var now runtime.MemStats
	measure := func(f func()) (took time.Duration, allocs uint64) {
		runtime.ReadMemStats(&now)
		allocs = now.Mallocs
		begin := time.Now()
		f()
		took = time.Since(begin)
		runtime.ReadMemStats(&now)
		return took, now.Mallocs - allocs
	}
	var one, whole time.Duration
	var oneAllocs, wholeAllocs uint64
	const each = 100
	for i := 0; b.Loop(); i++ {
		took, allocs := measure(func() {
			for j := range each {
				r := rows[(i*each+j)%len(rows)]
				a.Delete(r.Key)
				follow(a, all)
				a.Set(r.Key, r.Value)
				follow(a, all)
			}
		})
		one, oneAllocs = one+took/each, oneAllocs+allocs/each
		took, allocs = measure(func() {
			allocate(Default, rows[1:])
			allocate(Default, rows)
		})
		whole, wholeAllocs = whole+took, wholeAllocs+allocs
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(one.Nanoseconds())/n, "one-ns")
	b.ReportMetric(float64(whole.Nanoseconds())/n, "whole-ns")
	b.ReportMetric(float64(oneAllocs)/n, "one-allocs")
	b.ReportMetric(float64(wholeAllocs)/n, "whole-allocs")
	b.ReportMetric(float64(whole)/float64(one), "ratio")
}
