package collection

import "slices"

// Row is a row of a collection.
type Row[K comparable, V any] struct {
	Key   K
	Value V
}

// Reduce combines the rows of in that have the same group key into one row, or
// none, under that key. A row for which group reports false is in no group.
// combine gets the rows in the order of compare; it must be a pure function of
// its arguments and of what it reads through r. A change of a row costs one
// combine of each group that it leaves, changes in, or enters, and nothing of
// other groups.
func Reduce[K comparable, V any, G comparable, O any](in *Collection[K, V], name string, equal func(a, b O) bool, compare func(a, b K) int,
	group func(k K, v V) (G, bool), combine func(r *Reader, g G, rows []Row[K, V]) (O, bool),
) *Collection[G, O] {
	members := NewIndex(in, func(k K, v V) []G {
		if g, ok := group(k, v); ok {
			return []G{g}
		}
		return nil
	})
	// A group exists as long as it has a member.
	groups := newCollection[G](in.g, name+", groups", func(_, _ struct{}) bool { return true })
	n := &grouped[G]{out: groups, has: func(g G) bool { return len(members.rows[g]) > 0 }, marked: map[G]struct{}{}}
	groups.id = in.g.add(n)
	members.onTouch = n.mark
	for g := range members.rows {
		n.mark(g)
	}
	return Map(groups, name, equal, func(r *Reader, g G, _ struct{}) (O, bool) {
		rows := make([]Row[K, V], 0, len(members.rows[g]))
		for k, v := range Lookup(r, members, g) {
			rows = append(rows, Row[K, V]{k, v})
		}
		slices.SortFunc(rows, func(a, b Row[K, V]) int { return compare(a.Key, b.Key) })
		return combine(r, g, rows)
	})
}

// grouped has a row for each key of an index.
type grouped[G comparable] struct {
	out    *Collection[G, struct{}]
	has    func(G) bool
	marked map[G]struct{}
}

func (n *grouped[G]) mark(g G)    { n.marked[g] = struct{}{} }
func (n *grouped[G]) touch(int32) {}
func (n *grouped[G]) report()     { n.out.report() }
func (n *grouped[G]) run() {
	for g := range n.marked {
		n.out.put(g, struct{}{}, n.has(g))
	}
	clear(n.marked)
}

// Side is one side of a Join: a row, if there is one.
type Side[V any] struct {
	Value V
	Has   bool
}

// Join makes a row, or none, of the rows that two collections have under one
// key; one of the two may be missing. f must be a pure function of its
// arguments.
func Join[K comparable, A, B, O any](a *Collection[K, A], b *Collection[K, B], name string, equal func(a, b O) bool,
	f func(k K, a Side[A], b Side[B]) (O, bool),
) *Collection[K, O] {
	j := &joined[K, A, B, O]{a: a, b: b, out: newCollection[K](a.g, name, equal), f: f, marked: map[K]struct{}{}}
	j.out.id = a.g.add(j)
	mark := func(k K) { j.marked[k] = struct{}{} }
	a.children, b.children = append(a.children, mark), append(b.children, mark)
	for k := range a.rows {
		mark(k)
	}
	for k := range b.rows {
		mark(k)
	}
	return j.out
}

type joined[K comparable, A, B, O any] struct {
	a      *Collection[K, A]
	b      *Collection[K, B]
	out    *Collection[K, O]
	f      func(K, Side[A], Side[B]) (O, bool)
	marked map[K]struct{}
}

func (j *joined[K, A, B, O]) touch(int32) {}
func (j *joined[K, A, B, O]) report()     { j.out.report() }
func (j *joined[K, A, B, O]) run() {
	for k := range j.marked {
		var a Side[A]
		var b Side[B]
		a.Value, a.Has = j.a.rows[k]
		b.Value, b.Has = j.b.rows[k]
		var o O
		has := false
		if a.Has || b.Has {
			o, has = j.f(k, a, b)
		}
		j.out.put(k, o, has)
	}
	clear(j.marked)
}
