// Package collection computes tables from tables, incrementally: a change to
// one row recomputes the rows that were made from it and no others, so that
// the cost of a change does not grow with the size of the mesh.
//
// A Graph is pure and belongs to one goroutine. Rows are put into inputs, then
// Settle brings every derived collection up to date, once each, in the order
// they were made; a derivation can only read what was made before it, so there
// are no cycles. Whatever it reads through its Reader is remembered, by key or
// by index key, and a change there makes it run again. The result is always
// the one that computing everything anew would give.
package collection

import (
	"iter"
	"maps"
)

// Graph holds collections that depend on each other.
type Graph struct {
	nodes []node // in the order made: readers after what they read
}

// NewGraph returns an empty graph.
func NewGraph() *Graph { return &Graph{} }

// node is a step of Settle.
type node interface {
	// touch marks a row, by its number, to be computed again.
	touch(row int32)
	// run computes what is marked.
	run()
	// report hands the turn's changes out and forgets them.
	report()
}

func (g *Graph) add(n node) int32 {
	g.nodes = append(g.nodes, n)
	return int32(len(g.nodes) - 1)
}

// Settle brings everything up to date and then calls the OnChange functions.
func (g *Graph) Settle() {
	for _, n := range g.nodes {
		n.run()
	}
	for _, n := range g.nodes {
		n.report()
	}
}

// Change is what happened to a row between two Settles.
type Change[K comparable, V any] struct {
	Key      K
	Old, New V
	// Had and Has tell whether the row was there before, and is there now.
	Had, Has bool
}

// Collection is a table of rows of V by K. Values are never changed in place:
// a new one replaces the old.
type Collection[K comparable, V any] struct {
	g        *Graph
	id       int32
	name     string
	equal    func(a, b V) bool
	rows     map[K]V
	readers  tracker[K]
	children []func(K) // derivations with a row of their own per row
	indexes  []indexer[K, V]
	turn     map[K]Change[K, V]
	onChange []func([]Change[K, V])
}

// indexer is an Index without its key type.
type indexer[K comparable, V any] interface {
	update(k K, old V, had bool, now V, has bool)
}

func newCollection[K comparable, V any](g *Graph, name string, equal func(a, b V) bool) *Collection[K, V] {
	return &Collection[K, V]{g: g, name: name, equal: equal, rows: map[K]V{}, readers: newTracker[K](g), turn: map[K]Change[K, V]{}}
}

// Get returns a row. Derivations use Fetch instead, which remembers.
func (c *Collection[K, V]) Get(k K) (V, bool) {
	v, ok := c.rows[k]
	return v, ok
}

// Len counts the rows.
func (c *Collection[K, V]) Len() int { return len(c.rows) }

// All iterates over the rows in no order.
func (c *Collection[K, V]) All() iter.Seq2[K, V] { return maps.All(c.rows) }

// OnChange adds a function that Settle calls at its end with the rows that
// changed, when any did. The slice is the function's to keep.
func (c *Collection[K, V]) OnChange(f func([]Change[K, V])) { c.onChange = append(c.onChange, f) }

// put sets or, without has, deletes a row, and marks what was made from it.
func (c *Collection[K, V]) put(k K, now V, has bool) {
	old, had := c.rows[k]
	if !had && !has || had && has && c.equal(old, now) {
		return
	}
	if has {
		c.rows[k] = now
	} else {
		delete(c.rows, k)
	}
	if t, again := c.turn[k]; again {
		t.New, t.Has = now, has
		c.turn[k] = t
	} else {
		c.turn[k] = Change[K, V]{Key: k, Old: old, New: now, Had: had, Has: has}
	}
	for _, child := range c.children {
		child(k)
	}
	c.readers.touch(k)
	for _, x := range c.indexes {
		x.update(k, old, had, now, has)
	}
}

func (c *Collection[K, V]) report() {
	if len(c.turn) == 0 {
		return
	}
	if len(c.onChange) > 0 {
		changes := make([]Change[K, V], 0, len(c.turn))
		for _, t := range c.turn {
			if t.Had || t.Has { // not: came and went within the turn
				changes = append(changes, t)
			}
		}
		for _, f := range c.onChange {
			f(changes)
		}
	}
	if len(c.turn) > 1024 {
		c.turn = map[K]Change[K, V]{} // clear keeps the memory of the largest turn
		return
	}
	clear(c.turn)
}

// Input is a collection whose rows come from outside.
type Input[K comparable, V any] struct{ *Collection[K, V] }

// NewInput makes an input. Rows that are equal to what is there change
// nothing.
func NewInput[K comparable, V any](g *Graph, name string, equal func(a, b V) bool) Input[K, V] {
	c := newCollection[K](g, name, equal)
	c.id = g.add(inputNode[K, V]{c})
	return Input[K, V]{c}
}

type inputNode[K comparable, V any] struct{ c *Collection[K, V] }

func (inputNode[K, V]) touch(int32) {}
func (inputNode[K, V]) run()        {}
func (n inputNode[K, V]) report()   { n.c.report() }

// Set puts a row.
func (i Input[K, V]) Set(k K, v V) { i.put(k, v, true) }

// Delete removes a row; it need not be there.
func (i Input[K, V]) Delete(k K) {
	var none V
	i.put(k, none, false)
}
