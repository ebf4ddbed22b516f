package collection

import (
	"iter"
	"slices"
)

// Index finds the rows of a collection by something other than their key.
type Index[I, K comparable, V any] struct {
	c       *Collection[K, V]
	keys    func(K, V) []I
	rows    map[I]map[K]struct{}
	readers tracker[I]
	onTouch func(I) // called with the keys of rows that change; may be nil
}

// NewIndex adds an index to a collection. keys returns the index keys of a
// row; it must be pure.
func NewIndex[I, K comparable, V any](c *Collection[K, V], keys func(K, V) []I) *Index[I, K, V] {
	x := &Index[I, K, V]{c: c, keys: keys, rows: map[I]map[K]struct{}{}, readers: newTracker[I](c.g)}
	var none V
	for k, v := range c.rows {
		x.update(k, none, false, v, true)
	}
	c.indexes = append(c.indexes, x)
	return x
}

func (x *Index[I, K, V]) update(k K, old V, had bool, now V, has bool) {
	var before, after []I
	if had {
		before = x.keys(k, old)
	}
	if has {
		after = x.keys(k, now)
	}
	for _, i := range before {
		if !slices.Contains(after, i) {
			delete(x.rows[i], k)
			if len(x.rows[i]) == 0 {
				delete(x.rows, i)
			}
		}
		x.touch(i)
	}
	for _, i := range after {
		set := x.rows[i]
		if set == nil {
			set = map[K]struct{}{}
			x.rows[i] = set
		}
		set[k] = struct{}{}
		x.touch(i)
	}
}

func (x *Index[I, K, V]) touch(i I) {
	x.readers.touch(i)
	if x.onTouch != nil {
		x.onTouch(i)
	}
}

// Get iterates over the rows of an index key, in no order. Derivations use
// Lookup instead, which remembers.
func (x *Index[I, K, V]) Get(i I) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k := range x.rows[i] {
			if !yield(k, x.c.rows[k]) {
				return
			}
		}
	}
}

// Lookup iterates over the rows of an index key, in no order: what a
// derivation makes of them must not depend on it.
func Lookup[I, K comparable, V any](r *Reader, x *Index[I, K, V], i I) iter.Seq2[K, V] {
	if !r.untracked {
		r.mustPrecede(x.c.id, x.c.name)
		r.depend(x.readers.slot(i))
	}
	return x.Get(i)
}

// dependency is something a row was made from.
type dependency interface {
	// add reports whether r was not there yet.
	add(r ref) bool
	remove(r ref)
}

// tracker knows who read which key.
type tracker[K comparable] struct {
	g     *Graph
	slots map[K]*slot[K]
}

func newTracker[K comparable](g *Graph) tracker[K] {
	return tracker[K]{g: g, slots: map[K]*slot[K]{}}
}

// fewReaders is how many readers of a key are kept as a list; a map costs more
// memory, a long list more time.
const fewReaders = 16

// slot holds the readers of one key; it goes when the last one does.
type slot[K comparable] struct {
	in   map[K]*slot[K]
	key  K
	few  []ref
	many map[ref]struct{}
}

func (t *tracker[K]) slot(k K) *slot[K] {
	s := t.slots[k]
	if s == nil {
		s = &slot[K]{in: t.slots, key: k}
		t.slots[k] = s
	}
	return s
}

func (t *tracker[K]) touch(k K) {
	s := t.slots[k]
	if s == nil {
		return
	}
	for _, r := range s.few {
		t.g.nodes[r.node].touch(r.row)
	}
	for r := range s.many {
		t.g.nodes[r.node].touch(r.row)
	}
}

func (s *slot[K]) add(r ref) bool {
	if s.many != nil {
		if _, there := s.many[r]; there {
			return false
		}
		s.many[r] = struct{}{}
		return true
	}
	if slices.Contains(s.few, r) {
		return false
	}
	if len(s.few) < fewReaders {
		s.few = append(s.few, r)
		return true
	}
	s.many = make(map[ref]struct{}, 2*fewReaders)
	for _, f := range s.few {
		s.many[f] = struct{}{}
	}
	s.many[r] = struct{}{}
	s.few = nil
	return true
}

func (s *slot[K]) remove(r ref) {
	if s.many != nil {
		delete(s.many, r)
	} else if i := slices.Index(s.few, r); i >= 0 {
		s.few[i] = s.few[len(s.few)-1]
		s.few = s.few[:len(s.few)-1]
	}
	if len(s.few) == 0 && len(s.many) == 0 {
		delete(s.in, s.key)
	}
}
