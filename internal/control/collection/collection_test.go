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

// pod and service are a small mesh: services select pods by group, names can
// collide, and a summary is made of both.
type pod struct {
	node  string
	group string
}

type service struct {
	group string
	names []string
}

func same[V comparable](a, b V) bool { return a == b }

func sameService(a, b service) bool { return a.group == b.group && slices.Equal(a.names, b.names) }

type world struct {
	g        *Graph
	pods     Input[string, pod]
	services Input[string, service]
	nodes    Input[string, int]
	names    *Collection[string, string]
	view     *Collection[string, string]
	totals   *Collection[string, string]
	both     *Collection[string, string]
	computed int
}

func newWorld() *world {
	w := &world{g: NewGraph()}
	w.pods = NewInput[string](w.g, "pods", same[pod])
	w.services = NewInput[string](w.g, "services", sameService)
	w.nodes = NewInput[string](w.g, "nodes", same[int])
	byGroup := NewIndex(w.services.Collection, func(_ string, s service) []string { return []string{s.group} })
	parity := Map(w.nodes.Collection, "parity", same[int], func(_ *Reader, _ string, n int) (int, bool) { return n % 2, n != 0 })
	w.names = FlatMap(w.services.Collection, "names", same[string], cmp.Compare[string],
		func(_ *Reader, k string, s service, emit func(string, string)) {
			for _, n := range s.names {
				emit(n, k+"="+s.group)
			}
		})
	w.view = Map(w.pods.Collection, "view", same[string], func(r *Reader, k string, p pod) (string, bool) {
		w.computed++
		var svcs []string
		for s := range Lookup(r, byGroup, p.group) {
			svcs = append(svcs, s)
		}
		slices.Sort(svcs)
		n, _ := Fetch(r, parity, p.node)
		return fmt.Sprintf("%s@%d:%s", p.group, n, strings.Join(svcs, ",")), p.group != ""
	})
	byName := NewIndex(w.names, func(_ string, v string) []string { return []string{v} })
	w.totals = Map(w.services.Collection, "totals", same[string], func(r *Reader, k string, s service) (string, bool) {
		var names []string
		for n := range Lookup(r, byName, k+"="+s.group) {
			names = append(names, n)
		}
		slices.Sort(names)
		v, _ := Fetch(r, w.view, k)
		return strings.Join(names, ",") + "|" + v, true
	})
	w.both = Merge("both", same[string], w.names, w.view)
	return w
}

func TestIncrementalEqualsFromScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		mirror := map[string]string{}
		w.view.OnChange(func(changes []Change[string, string]) {
			for _, c := range changes {
				if old, had := mirror[c.Key]; had != c.Had || old != c.Old {
					t.Fatalf("change of %s from %q, but it was %q", c.Key, c.Old, old)
				}
				if c.Has {
					mirror[c.Key] = c.New
				} else {
					delete(mirror, c.Key)
				}
			}
		})
		letter := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e"})
		for range rapid.IntRange(1, 12).Draw(t, "turns") {
			for range rapid.IntRange(0, 6).Draw(t, "edits") {
				k := letter.Draw(t, "key")
				switch rapid.IntRange(0, 5).Draw(t, "edit") {
				case 0:
					w.pods.Set(k, pod{letter.Draw(t, "node"), letter.Draw(t, "group")})
				case 1:
					w.services.Set(k, service{letter.Draw(t, "group"), rapid.SliceOfN(letter, 0, 3).Draw(t, "names")})
				case 2:
					w.nodes.Set(k, rapid.IntRange(0, 3).Draw(t, "n"))
				case 3:
					w.pods.Delete(k)
				case 4:
					w.services.Delete(k)
				case 5:
					w.nodes.Delete(k)
				}
			}
			w.g.Settle()
		}
		fresh := newWorld()
		for k, v := range w.pods.All() {
			fresh.pods.Set(k, v)
		}
		for k, v := range w.services.All() {
			fresh.services.Set(k, v)
		}
		for k, v := range w.nodes.All() {
			fresh.nodes.Set(k, v)
		}
		fresh.g.Settle()
		for name, pair := range map[string][2]*Collection[string, string]{
			"names": {w.names, fresh.names}, "view": {w.view, fresh.view}, "totals": {w.totals, fresh.totals}, "both": {w.both, fresh.both},
		} {
			if diff := gocmp.Diff(maps.Collect(pair[1].All()), maps.Collect(pair[0].All())); diff != "" {
				t.Fatalf("%s (-fresh +incremental):\n%s", name, diff)
			}
		}
		if diff := gocmp.Diff(maps.Collect(w.view.All()), mirror); diff != "" {
			t.Fatalf("changes do not add up: %s", diff)
		}
	})
}

func TestNothingIsRememberedOfWhatIsGone(t *testing.T) {
	w := newWorld()
	for i := range 100 {
		k := fmt.Sprint(i)
		w.pods.Set(k, pod{"n" + k, "g" + k})
		w.services.Set(k, service{"g" + k, []string{"x" + k}})
		w.nodes.Set("n"+k, i)
	}
	w.g.Settle()
	for i := range 100 {
		k := fmt.Sprint(i)
		w.pods.Delete(k)
		w.services.Delete(k)
		w.nodes.Delete("n" + k)
	}
	w.g.Settle()
	if n := len(w.view.readers.slots) + len(w.names.readers.slots) + len(w.view.rows) + len(w.totals.rows); n != 0 {
		t.Errorf("%d entries left", n)
	}
	for _, x := range w.services.indexes {
		if x := x.(*Index[string, string, service]); len(x.rows)+len(x.readers.slots) != 0 {
			t.Errorf("index: %d rows, %d readers left", len(x.rows), len(x.readers.slots))
		}
	}
}

func TestTheCostOfAChangeIsThatOfWhatChanged(t *testing.T) {
	for _, size := range []int{10, 10_000} {
		w := newWorld()
		for i := range size {
			k := fmt.Sprint(i)
			w.pods.Set(k, pod{"n" + fmt.Sprint(i%7), "g" + fmt.Sprint(i/5)})
			w.services.Set(k, service{group: "g" + k})
		}
		w.g.Settle()
		for _, edit := range []struct {
			name string
			do   func()
			want int
		}{
			{"a pod", func() { w.pods.Set("3", pod{"n0", "g1"}) }, 1},
			{"a service of six pods", func() { w.services.Set("1", service{group: "g1", names: []string{"x"}}) }, 6},
			{"a service of no pod", func() { w.services.Set("x", service{group: "gx"}) }, 0},
			{"a node that nothing is made of", func() { w.nodes.Set("n3", 0) }, 0},
			{"nothing", func() { w.pods.Set("4", pod{"n4", "g0"}) }, 0},
		} {
			w.computed = 0
			edit.do()
			w.g.Settle()
			if w.computed != edit.want {
				t.Errorf("%d pods, %s: %d rows computed, want %d", size, edit.name, w.computed, edit.want)
			}
		}
	}
}

func TestReadingAheadIsAnError(t *testing.T) {
	g := NewGraph()
	in := NewInput[string](g, "in", same[int])
	var later *Collection[string, int]
	Map(in.Collection, "early", same[int], func(r *Reader, k string, v int) (int, bool) { return Fetch(r, later, k) })
	later = Map(in.Collection, "later", same[int], func(_ *Reader, _ string, v int) (int, bool) { return v, true })
	in.Set("a", 1)
	defer func() {
		if recover() == nil {
			t.Error("a cycle was not noticed")
		}
	}()
	g.Settle()
}
