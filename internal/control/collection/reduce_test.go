package collection

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// route is of hosts, and the oldest of a host comes first.
type route struct {
	age   int
	hosts []string
}

func sameRoute(a, b route) bool { return a.age == b.age && slices.Equal(a.hosts, b.hosts) }

// hostKey is a route's claim to a host.
type hostKey struct {
	age         int
	route, host string
}

func compareHostKeys(a, b hostKey) int {
	return cmp.Or(cmp.Compare(a.age, b.age), strings.Compare(a.route, b.route), strings.Compare(a.host, b.host))
}

type routing struct {
	g        *Graph
	routes   Input[string, route]
	owners   Input[string, string] // by host
	perHost  *Collection[string, string]
	joined   *Collection[string, string]
	combined int
}

func newRouting() *routing {
	w := &routing{g: NewGraph()}
	w.routes = NewInput[string](w.g, "routes", sameRoute)
	w.owners = NewInput[string](w.g, "owners", same[string])
	claims := FlatMap(w.routes.Collection, "claims", same[string], cmp.Compare[string],
		func(_ *Reader, k string, r route, emit func(hostKey, string)) {
			for _, h := range r.hosts {
				emit(hostKey{r.age, k, h}, k)
			}
		})
	w.perHost = Reduce(claims, "routes of a host", same[string], compareHostKeys,
		func(k hostKey, _ string) (string, bool) { return k.host, k.host != "" },
		func(r *Reader, host string, rows []Row[hostKey, string]) (string, bool) {
			w.combined++
			var names []string
			for _, row := range rows {
				names = append(names, row.Value)
			}
			owner, _ := Fetch(r, w.owners.Collection, host)
			return owner + ":" + strings.Join(names, ","), owner != "none"
		})
	w.joined = Join(w.perHost, w.owners.Collection, "hosts", same[string], func(k string, a Side[string], b Side[string]) (string, bool) {
		return fmt.Sprint(k, a, b), k != "hidden"
	})
	return w
}

func TestReduceAndJoinEqualFromScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newRouting()
		key := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		host := rapid.SampledFrom([]string{"", "x", "y", "z", "hidden"})
		for range rapid.IntRange(1, 12).Draw(t, "turns") {
			for range rapid.IntRange(0, 6).Draw(t, "edits") {
				switch rapid.IntRange(0, 3).Draw(t, "edit") {
				case 0, 1:
					w.routes.Set(key.Draw(t, "route"), route{rapid.IntRange(0, 3).Draw(t, "age"), rapid.SliceOfN(host, 0, 4).Draw(t, "hosts")})
				case 2:
					w.routes.Delete(key.Draw(t, "route"))
				case 3:
					if owner := rapid.SampledFrom([]string{"", "none", "p", "q"}).Draw(t, "owner"); owner != "" {
						w.owners.Set(host.Draw(t, "host"), owner)
					} else {
						w.owners.Delete(host.Draw(t, "host"))
					}
				}
			}
			w.g.Settle()
		}
		fresh := newRouting()
		for k, v := range w.owners.All() {
			fresh.owners.Set(k, v)
		}
		for k, v := range w.routes.All() {
			fresh.routes.Set(k, v)
		}
		fresh.g.Settle()
		for name, pair := range map[string][2]*Collection[string, string]{"reduced": {w.perHost, fresh.perHost}, "joined": {w.joined, fresh.joined}} {
			if diff := gocmp.Diff(maps.Collect(pair[1].All()), maps.Collect(pair[0].All())); diff != "" {
				t.Fatalf("%s (-fresh +incremental):\n%s", name, diff)
			}
		}
		// And both equal what a loop over everything gives.
		want := map[string][]hostKey{}
		for k, r := range w.routes.All() {
			for _, h := range r.hosts {
				if c := (hostKey{r.age, k, h}); h != "" && !slices.Contains(want[h], c) {
					want[h] = append(want[h], c)
				}
			}
		}
		for h, list := range want {
			slices.SortFunc(list, compareHostKeys)
			var names []string
			for _, c := range list {
				names = append(names, c.route)
			}
			owner, _ := w.owners.Get(h)
			got, has := w.perHost.Get(h)
			if has != (owner != "none") || has && got != owner+":"+strings.Join(names, ",") {
				t.Fatalf("%s is %q, not %q of %q", h, got, names, owner)
			}
		}
		for h := range w.perHost.All() {
			if want[h] == nil {
				t.Fatalf("%s has no route", h)
			}
		}
	})
}

func TestReduceCostsTheGroupsThatChange(t *testing.T) {
	for _, size := range []int{10, 10_000} {
		w := newRouting()
		for i := range size {
			w.routes.Set(fmt.Sprint(i), route{i, []string{fmt.Sprint("h", i/2)}})
		}
		w.g.Settle()
		for _, edit := range []struct {
			name string
			do   func()
			want int
		}{
			{"a route becomes older", func() { w.routes.Set("3", route{1, []string{"h1"}}) }, 1},
			{"a route goes to another host", func() { w.routes.Set("3", route{1, []string{"h2"}}) }, 2},
			{"a host is no longer routed", func() { w.routes.Delete("2") }, 0},
			{"an owner", func() { w.owners.Set("h0", "p") }, 1},
			{"an owner of no route", func() { w.owners.Set("other", "p") }, 0},
		} {
			w.combined = 0
			edit.do()
			w.g.Settle()
			if w.combined != edit.want {
				t.Errorf("%d routes, %s: %d groups combined, want %d", size, edit.name, w.combined, edit.want)
			}
		}
	}
}

func TestReduceForgetsGroups(t *testing.T) {
	w := newRouting()
	for i := range 100 {
		w.routes.Set(fmt.Sprint(i), route{i, []string{fmt.Sprint("h", i/2)}})
	}
	w.g.Settle()
	for i := range 100 {
		w.routes.Delete(fmt.Sprint(i))
	}
	w.g.Settle()
	if n := w.perHost.Len() + w.joined.Len() + len(w.owners.readers.slots); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

// A row that emits many keys costs what these are, not their square; the first
// row of a key still counts.
func TestManyRowsOfOne(t *testing.T) {
	g := NewGraph()
	in := NewInput[string](g, "in", same[int])
	out := FlatMap(in.Collection, "out", same[string], cmp.Compare[string], func(_ *Reader, k string, n int, emit func(int, string)) {
		for i := range n {
			emit(i/2, fmt.Sprint(k, i))
		}
	})
	for _, n := range []int{10, 1000, 40, 0, 33} {
		in.Set("a", n)
		in.Set("b", n/2)
		g.Settle()
		if out.Len() != (n+1)/2 {
			t.Errorf("%d rows of %d", out.Len(), n)
		}
		for i := range (n + 1) / 2 {
			if v, _ := out.Get(i); v != fmt.Sprint("a", 2*i) {
				t.Errorf("row %d of %d is %q", i, n, v)
			}
		}
	}
}
