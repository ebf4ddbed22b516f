package trie

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// entry is a value that knows its key.
type entry struct{ key, rev int }

// TestMapIsAPersistentMap runs edits against a map, with hashes chosen so
// that full collisions and long common prefixes are frequent, and checks that
// no published version changes afterwards.
func TestMapIsAPersistentMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hashes := []uint64{0, 1, 1 << 60, 1 << 63, 33, 1<<5 | 1, 1<<10 | 1, 1<<62 | 1<<10, ^uint64(0)}
		hashOf := func(key int) uint64 { return hashes[key%len(hashes)] }
		var tr Map[entry]
		model := map[int]int{}
		type version struct {
			tr    Map[entry]
			model map[int]int
		}
		var versions []version
		epoch := uint64(1)
		for i := range rapid.IntRange(1, 60).Draw(t, "edits") {
			key := rapid.IntRange(0, 24).Draw(t, "key")
			same := func(e entry) bool { return e.key == key }
			if rapid.Bool().Draw(t, "put") {
				tr = tr.Put(epoch, hashOf(key), entry{key, i}, same)
				model[key] = i
			} else {
				tr = tr.Drop(epoch, hashOf(key), same)
				delete(model, key)
			}
			if rapid.IntRange(0, 3).Draw(t, "publish") == 0 {
				versions = append(versions, version{tr, maps.Clone(model)})
				epoch++
			}
		}
		for _, v := range append(versions, version{tr, model}) {
			got := map[int]int{}
			for e := range v.tr.All() {
				got[e.key] = e.rev
			}
			if !maps.Equal(got, v.model) || v.tr.Len() != len(v.model) {
				t.Fatalf("holds %v (n=%d), want %v", got, v.tr.Len(), v.model)
			}
			for key, rev := range v.model {
				if !slices.ContainsFunc(v.tr.Get(hashOf(key)), func(l Leaf[entry]) bool { return l.Value == entry{key, rev} }) {
					t.Fatalf("get misses key %d", key)
				}
			}
		}
	})
}

func TestMapShrinksToNothing(t *testing.T) {
	var tr Map[entry]
	for k := range 1000 {
		tr = tr.Put(1, Mix(uint64(k)), entry{k, 0}, func(e entry) bool { return e.key == k })
	}
	for k := range 1000 {
		tr = tr.Drop(2, Mix(uint64(k)), func(e entry) bool { return e.key == k })
	}
	if tr.root != nil || tr.Len() != 0 {
		t.Errorf("after all is removed: %d entries, root %v", tr.Len(), tr.root)
	}
}
