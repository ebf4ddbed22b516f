// Package trie has maps whose versions stay as they are: an edit returns a new one that
// shares nearly all of its memory with the old one, so that readers need no lock and a change
// costs as much in a large map as in a small one.
package trie

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// trieBits is the fan-out (32) of a trie node: wide enough that 100,000
// entries are four levels deep, narrow enough that copying a path stays below
// a kilobyte.
const trieBits = 5

// Map is a persistent multimap from 64 bit hashes to values: an edit returns
// a new one that shares all but one path with the old one. Entries of equal
// hash are kept together; the caller tells them apart. The zero value is empty.
type Map[V any] struct {
	root *node[V]
	n    int
}

// Leaf is one entry. The hash is kept because a value may be filed under
// several (a workload under each of its addresses).
type Leaf[V any] struct {
	hash  uint64
	Value V
}

// node has a slot per five bits of hash: a leaf, a child, or nothing. A node
// without either bitmap is a bucket of leaves that all have the same hash.
type node[V any] struct {
	leafBits, nodeBits uint32
	// epoch of the edit that made the node: only that edit may change it.
	epoch  uint64
	leaves []Leaf[V]
	nodes  []*node[V]
}

func (n *node[V]) bucket() bool { return n.leafBits|n.nodeBits == 0 }

func slot(h uint64, shift uint) uint32 { return 1 << (h >> shift & (1<<trieBits - 1)) }

func index(bitmap, bit uint32) int { return bits.OnesCount32(bitmap & (bit - 1)) }

// Get returns the entries of a hash; not to be changed.
func (t Map[V]) Get(h uint64) []Leaf[V] {
	n := t.root
	for shift := uint(0); n != nil; shift += trieBits {
		if n.bucket() {
			if n.leaves[0].hash == h {
				return n.leaves
			}
			return nil
		}
		bit := slot(h, shift)
		if n.leafBits&bit != 0 {
			i := index(n.leafBits, bit)
			if n.leaves[i].hash == h {
				return n.leaves[i : i+1 : i+1]
			}
			return nil
		}
		if n.nodeBits&bit == 0 {
			return nil
		}
		n = n.nodes[index(n.nodeBits, bit)]
	}
	return nil
}

// Put files v under h. It replaces the entry of that hash for which same
// holds, else adds one. Edits of one epoch change the nodes that they have made in place: a
// version that others read must be of an earlier epoch.
func (t Map[V]) Put(epoch, h uint64, v V, same func(V) bool) Map[V] {
	if t.root == nil {
		return Map[V]{&node[V]{leafBits: slot(h, 0), epoch: epoch, leaves: []Leaf[V]{{h, v}}}, 1}
	}
	root, added := t.root.put(epoch, 0, Leaf[V]{h, v}, same)
	return Map[V]{root, t.n + added}
}

func (n *node[V]) put(epoch uint64, shift uint, l Leaf[V], same func(V) bool) (*node[V], int) {
	if n.bucket() {
		if n.leaves[0].hash != l.hash {
			return n.split(epoch, shift, l), 1
		}
		m := n.edit(epoch)
		for i := range m.leaves {
			if same(m.leaves[i].Value) {
				m.leaves = slices.Clone(m.leaves)
				m.leaves[i] = l
				return m, 0
			}
		}
		m.leaves = insert(m.leaves, len(m.leaves), l)
		return m, 1
	}
	m, bit := n.edit(epoch), slot(l.hash, shift)
	switch {
	case m.nodeBits&bit != 0:
		i := index(m.nodeBits, bit)
		child, added := m.nodes[i].put(epoch, shift+trieBits, l, same)
		m.nodes[i] = child
		return m, added
	case m.leafBits&bit == 0:
		m.leaves = insert(m.leaves, index(m.leafBits, bit), l)
		m.leafBits |= bit
		return m, 1
	}
	i := index(m.leafBits, bit)
	old := m.leaves[i]
	if old.hash == l.hash && same(old.Value) {
		m.leaves = slices.Clone(m.leaves)
		m.leaves[i] = l
		return m, 0
	}
	child := &node[V]{epoch: epoch, leaves: []Leaf[V]{old, l}}
	if old.hash != l.hash {
		child = (&node[V]{epoch: epoch, leaves: []Leaf[V]{old}}).split(epoch, shift+trieBits, l)
	}
	m.leaves = remove(m.leaves, i)
	m.leafBits &^= bit
	m.nodes = insert(m.nodes, index(m.nodeBits, bit), child)
	m.nodeBits |= bit
	return m, 1
}

// split puts a bucket and a leaf of another hash below a new node.
func (n *node[V]) split(epoch uint64, shift uint, l Leaf[V]) *node[V] {
	mine, other := slot(n.leaves[0].hash, shift), slot(l.hash, shift)
	if mine == other {
		return &node[V]{epoch: epoch, nodeBits: mine, nodes: []*node[V]{n.split(epoch, shift+trieBits, l)}}
	}
	m := &node[V]{epoch: epoch, leafBits: other, leaves: []Leaf[V]{l}}
	if len(n.leaves) > 1 {
		m.nodeBits, m.nodes = mine, []*node[V]{n}
		return m
	}
	m.leaves = insert(m.leaves, index(m.leafBits, mine), n.leaves[0])
	m.leafBits |= mine
	return m
}

// Drop removes the entry of hash h for which same holds.
func (t Map[V]) Drop(epoch, h uint64, same func(V) bool) Map[V] {
	found := false
	for _, l := range t.Get(h) {
		found = found || same(l.Value)
	}
	if !found {
		return t
	}
	return Map[V]{t.root.drop(epoch, 0, h, same), t.n - 1}
}

// drop returns nil when the node became empty. The entry exists.
func (n *node[V]) drop(epoch uint64, shift uint, h uint64, same func(V) bool) *node[V] {
	m := n.edit(epoch)
	if n.bucket() {
		i := slices.IndexFunc(m.leaves, func(l Leaf[V]) bool { return same(l.Value) })
		m.leaves = remove(m.leaves, i)
		if len(m.leaves) == 0 {
			return nil
		}
		return m
	}
	bit := slot(h, shift)
	if m.leafBits&bit != 0 {
		m.leaves = remove(m.leaves, index(m.leafBits, bit))
		m.leafBits &^= bit
	} else {
		i := index(m.nodeBits, bit)
		child := m.nodes[i].drop(epoch, shift+trieBits, h, same)
		switch {
		case child == nil:
			m.nodes = remove(m.nodes, i)
			m.nodeBits &^= bit
		case len(child.nodes) == 0 && len(child.leaves) == 1:
			// A lone leaf moves up, so that shrinking undoes growing.
			m.nodes = remove(m.nodes, i)
			m.nodeBits &^= bit
			m.leaves = insert(m.leaves, index(m.leafBits, bit), child.leaves[0])
			m.leafBits |= bit
		default:
			m.nodes[i] = child
		}
	}
	if m.bucket() {
		return nil
	}
	return m
}

// edit returns a node that this epoch may change: n itself or a copy. The
// list of leaves may still be shared, so it is never changed in place.
func (n *node[V]) edit(epoch uint64) *node[V] {
	if n.epoch == epoch {
		return n
	}
	m := *n
	m.epoch = epoch
	m.nodes = slices.Clone(n.nodes)
	return &m
}

// Len counts the entries.
func (t Map[V]) Len() int { return t.n }

// All iterates over every entry; a value filed twice is met twice.
func (t Map[V]) All() iter.Seq[V] {
	return func(yield func(V) bool) {
		if t.root != nil {
			t.root.walk(yield)
		}
	}
}

func (n *node[V]) walk(yield func(V) bool) bool {
	for i := range n.leaves {
		if !yield(n.leaves[i].Value) {
			return false
		}
	}
	for _, c := range n.nodes {
		if !c.walk(yield) {
			return false
		}
	}
	return true
}

// insert and remove copy into a slice of exactly the new length: the lists
// are many and small, slack would double them.
func insert[E any](s []E, i int, e E) []E {
	out := make([]E, len(s)+1)
	copy(out, s[:i])
	out[i] = e
	copy(out[i+1:], s[i:])
	return out
}

func remove[E any](s []E, i int) []E {
	if len(s) == 1 {
		return nil
	}
	out := make([]E, len(s)-1)
	copy(out, s[:i])
	copy(out[i:], s[i+1:])
	return out
}

// seed is random so that names chosen by users cannot collide on purpose.
var seed = maphash.MakeSeed()

// String returns the hash of a string.
func String(s string) uint64 { return maphash.String(seed, s) }

// Pair returns the hash of two strings.
func Pair(a, b string) uint64 { return Mix(maphash.String(seed, a)) ^ maphash.String(seed, b) }

// Addr returns the hash of an address in a network.
func Addr(network string, a netip.Addr) uint64 {
	b := a.As16()
	return Mix(maphash.String(seed, network)) ^ maphash.Bytes(seed, b[:])
}

// Mix spreads the bits of a hash (the finalizer of MurmurHash3): it tells the two halves of a
// pair apart.
func Mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}
