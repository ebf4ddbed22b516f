package workload

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// entry is a trie value that knows its key.
type entry struct{ key, rev int }

// TestTrieIsAPersistentMap runs edits against a map, with hashes chosen so
// that full collisions and long common prefixes are frequent, and checks that
// no published version changes afterwards.
func TestTrieIsAPersistentMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hashes := []uint64{0, 1, 1 << 60, 1 << 63, 33, 1<<5 | 1, 1<<10 | 1, 1<<62 | 1<<10, ^uint64(0)}
		hashOf := func(key int) uint64 { return hashes[key%len(hashes)] }
		var tr trie[entry]
		model := map[int]int{}
		type version struct {
			tr    trie[entry]
			model map[int]int
		}
		var versions []version
		epoch := uint64(1)
		for i := range rapid.IntRange(1, 60).Draw(t, "edits") {
			key := rapid.IntRange(0, 24).Draw(t, "key")
			same := func(e entry) bool { return e.key == key }
			if rapid.Bool().Draw(t, "put") {
				tr = tr.put(epoch, hashOf(key), entry{key, i}, same)
				model[key] = i
			} else {
				tr = tr.drop(epoch, hashOf(key), same)
				delete(model, key)
			}
			if rapid.IntRange(0, 3).Draw(t, "publish") == 0 {
				versions = append(versions, version{tr, maps.Clone(model)})
				epoch++
			}
		}
		for _, v := range append(versions, version{tr, model}) {
			got := map[int]int{}
			for e := range v.tr.all() {
				got[e.key] = e.rev
			}
			if !maps.Equal(got, v.model) || v.tr.n != len(v.model) {
				t.Fatalf("holds %v (n=%d), want %v", got, v.tr.n, v.model)
			}
			for key, rev := range v.model {
				if !slices.ContainsFunc(v.tr.get(hashOf(key)), func(l leaf[entry]) bool { return l.value == entry{key, rev} }) {
					t.Fatalf("get misses key %d", key)
				}
			}
		}
	})
}

func TestTrieShrinksToNothing(t *testing.T) {
	var tr trie[entry]
	for k := range 1000 {
		tr = tr.put(1, mix(uint64(k)), entry{k, 0}, func(e entry) bool { return e.key == k })
	}
	for k := range 1000 {
		tr = tr.drop(2, mix(uint64(k)), func(e entry) bool { return e.key == k })
	}
	if tr.root != nil || tr.n != 0 {
		t.Errorf("after all is removed: %d entries, root %v", tr.n, tr.root)
	}
}

func TestEndpointSetIsPersistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := NamespacedName{"ns", "host"}
		s := newEndpointSet(1, name)
		model := map[string]*Workload{}
		type version struct {
			s     *endpointSet
			model map[string]*Workload
		}
		var versions []version
		epoch := uint64(1)
		for range rapid.IntRange(1, 400).Draw(t, "edits") {
			uid := rapid.StringMatching("[a-e][a-f][a-f]").Draw(t, "uid")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				s = s.drop(epoch, uid)
				delete(model, uid)
			case 2:
				s = s.withPolicy(epoch, !s.allowUnhealthy)
			case 3:
				versions = append(versions, version{s, maps.Clone(model)})
				epoch++
			default:
				w := &Workload{UID: uid, Healthy: rapid.Bool().Draw(t, "healthy"), Traits: &Traits{Capacity: rapid.Uint32Range(0, 3).Draw(t, "capacity")}}
				s = s.put(epoch, endpoint{w: w})
				model[uid] = w
			}
		}
		for _, v := range append(versions, version{s, model}) {
			got := map[string]*Workload{}
			var weight uint64
			for e := range v.s.all() {
				got[e.w.UID] = e.w
				weight += e.weight(v.s.allowUnhealthy)
			}
			if !maps.Equal(got, v.model) || v.s.n != len(v.model) || v.s.weight != weight {
				t.Fatalf("n=%d weight=%d, want %d and %d", v.s.n, v.s.weight, len(v.model), weight)
			}
			// Every share belongs to the endpoint that brought it.
			shares := map[string]uint64{}
			for r := range v.s.weight {
				shares[v.s.at(r).w.UID]++
			}
			for uid, w := range v.model {
				if want := (endpoint{w: w}).weight(v.s.allowUnhealthy); shares[uid] != want {
					t.Fatalf("%s has %d shares, want %d", uid, shares[uid], want)
				}
			}
		}
	})
}
