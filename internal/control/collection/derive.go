package collection

import "slices"

// Reader remembers what a derivation reads for one row. It is valid during the
// call.
type Reader struct {
	self      ref
	deps      []dependency
	untracked bool
}

// Untracked returns a Reader for looking without remembering, outside of any
// derivation.
func Untracked() *Reader { return &Reader{untracked: true} }

// ref is a row of a derivation: what has to run again.
type ref struct{ node, row int32 }

// Map derives one row, or none, from each row of in, under the same key. f
// must be a pure function of its arguments and of what it reads through r.
func Map[K comparable, V, O any](in *Collection[K, V], name string, equal func(a, b O) bool, f func(r *Reader, k K, v V) (O, bool)) *Collection[K, O] {
	d := newDerived(in, name, equal, func(r *Reader, k K, v V, emit func(K, O)) {
		if o, ok := f(r, k, v); ok {
			emit(k, o)
		}
	})
	return d.out
}

// FlatMap derives any number of rows from each row of in. Where two rows of in
// emit one key, the row that is first by compare counts.
func FlatMap[K comparable, V any, OK comparable, O any](in *Collection[K, V], name string, equal func(a, b O) bool, compare func(a, b K) int, f func(r *Reader, k K, v V, emit func(OK, O))) *Collection[OK, O] {
	d := newDerived(in, name, equal, f)
	d.compare = compare
	d.claims = map[OK][]int32{}
	return d.out
}

// Merge lays collections over each other: of a key that several have, the
// row of the first counts.
func Merge[K comparable, V any](name string, equal func(a, b V) bool, parts ...*Collection[K, V]) *Collection[K, V] {
	g := parts[0].g
	m := &merged[K, V]{parts: parts, out: newCollection[K](g, name, equal), marked: map[K]struct{}{}}
	m.out.id = g.add(m)
	for _, p := range parts {
		p.children = append(p.children, func(k K) { m.marked[k] = struct{}{} })
		for k := range p.rows {
			m.marked[k] = struct{}{}
		}
	}
	return m.out
}

type merged[K comparable, V any] struct {
	parts  []*Collection[K, V]
	out    *Collection[K, V]
	marked map[K]struct{}
}

func (m *merged[K, V]) touch(int32) {}
func (m *merged[K, V]) report()     { m.out.report() }

func (m *merged[K, V]) run() {
	for k := range m.marked {
		m.settle(k)
	}
	clear(m.marked)
}

func (m *merged[K, V]) settle(k K) {
	for _, p := range m.parts {
		if v, ok := p.rows[k]; ok {
			m.out.put(k, v, true)
			return
		}
	}
	var none V
	m.out.put(k, none, false)
}

// Fetch reads a row of another collection.
func Fetch[K comparable, V any](r *Reader, c *Collection[K, V], k K) (V, bool) {
	if !r.untracked {
		r.mustPrecede(c.id, c.name)
		r.depend(c.readers.slot(k))
	}
	v, ok := c.rows[k]
	return v, ok
}

func (r *Reader) mustPrecede(id int32, name string) {
	if id >= r.self.node {
		panic("collection: " + name + " is read by a collection made before it")
	}
}

func (r *Reader) depend(d dependency) {
	if d.add(r.self) {
		r.deps = append(r.deps, d)
	}
}

// emitted is a row a derivation wants to exist.
type emitted[K comparable, V any] struct {
	key   K
	value V
}

// fewRows is how many rows of one derivation are searched one by one; of more,
// a map is made.
const fewRows = 16

// emissions collects what a derivation emits. The first row of a key counts.
type emissions[K comparable, V any] struct {
	list []emitted[K, V]
	seen map[K]struct{} // of list, when it is long
}

func (e *emissions[K, V]) add(k K, v V) {
	if len(e.list) < fewRows {
		if slices.ContainsFunc(e.list, func(o emitted[K, V]) bool { return o.key == k }) {
			return
		}
		e.list = append(e.list, emitted[K, V]{k, v})
		return
	}
	if e.seen == nil {
		e.seen = keysOf(e.list)
	}
	if _, again := e.seen[k]; again {
		return
	}
	e.seen[k] = struct{}{}
	e.list = append(e.list, emitted[K, V]{k, v})
}

func keysOf[K comparable, V any](list []emitted[K, V]) map[K]struct{} {
	keys := make(map[K]struct{}, len(list))
	for i := range list {
		keys[list[i].key] = struct{}{}
	}
	return keys
}

// finder finds keys in a list.
type finder[K comparable, V any] struct {
	list []emitted[K, V]
	keys map[K]struct{} // of list, when it is long
}

func find[K comparable, V any](list []emitted[K, V]) finder[K, V] {
	f := finder[K, V]{list: list}
	if len(list) > fewRows {
		f.keys = keysOf(list)
	}
	return f
}

func (f *finder[K, V]) has(k K) bool {
	if f.keys != nil {
		_, has := f.keys[k]
		return has
	}
	for i := range f.list {
		if f.list[i].key == k {
			return true
		}
	}
	return false
}

// entry is what was derived from one row of the input.
type entry[IK, OK comparable, O any] struct {
	key   IK
	outs  []emitted[OK, O]
	deps  []dependency
	dirty bool
	used  bool
}

type derived[IK comparable, IV any, OK comparable, O any] struct {
	in      *Collection[IK, IV]
	out     *Collection[OK, O]
	f       func(*Reader, IK, IV, func(OK, O))
	compare func(a, b IK) int
	claims  map[OK][]int32 // rows that emit a key; nil when keys cannot meet
	rows    map[IK]int32
	entries []entry[IK, OK, O]
	free    []int32
	marked  []int32
}

func newDerived[IK comparable, IV any, OK comparable, O any](in *Collection[IK, IV], name string, equal func(a, b O) bool, f func(*Reader, IK, IV, func(OK, O))) *derived[IK, IV, OK, O] {
	d := &derived[IK, IV, OK, O]{in: in, out: newCollection[OK](in.g, name, equal), f: f, rows: map[IK]int32{}}
	d.out.id = in.g.add(d)
	in.children = append(in.children, d.inputChanged)
	for k := range in.rows {
		d.inputChanged(k)
	}
	return d
}

func (d *derived[IK, IV, OK, O]) inputChanged(k IK) {
	row, ok := d.rows[k]
	if !ok {
		if n := len(d.free); n > 0 {
			row, d.free = d.free[n-1], d.free[:n-1]
		} else {
			row = int32(len(d.entries))
			d.entries = append(d.entries, entry[IK, OK, O]{})
		}
		d.entries[row] = entry[IK, OK, O]{key: k, used: true}
		d.rows[k] = row
	}
	d.touch(row)
}

func (d *derived[IK, IV, OK, O]) touch(row int32) {
	e := &d.entries[row]
	if e.used && !e.dirty {
		e.dirty = true
		d.marked = append(d.marked, row)
	}
}

func (d *derived[IK, IV, OK, O]) run() {
	for _, row := range d.marked {
		d.compute(row)
	}
	d.marked = d.marked[:0]
}

func (d *derived[IK, IV, OK, O]) report() { d.out.report() }

func (d *derived[IK, IV, OK, O]) compute(row int32) {
	e := &d.entries[row]
	e.dirty = false
	self := ref{d.out.id, row}
	for _, dep := range e.deps {
		dep.remove(self)
	}
	before := e.outs
	v, ok := d.in.rows[e.key]
	if !ok {
		key := e.key
		*e = entry[IK, OK, O]{}
		delete(d.rows, key)
		d.free = append(d.free, row)
		d.publish(row, before, nil)
		return
	}
	r := Reader{self: self, deps: e.deps[:0]}
	var outs emissions[OK, O]
	d.f(&r, e.key, v, outs.add)
	e.deps = slices.Clip(r.deps)
	e.outs = outs.list
	d.publish(row, before, outs.list)
}

// publish makes the output follow one entry.
func (d *derived[IK, IV, OK, O]) publish(row int32, before, now []emitted[OK, O]) {
	old, next := find(before), find(now)
	for _, b := range before {
		if !next.has(b.key) {
			d.withdraw(row, b.key)
		}
	}
	for _, n := range now {
		d.claim(row, n.key, n.value, old.has(n.key))
	}
}

func (d *derived[IK, IV, OK, O]) claim(row int32, k OK, v O, held bool) {
	if d.claims == nil {
		d.out.put(k, v, true)
		return
	}
	c := d.claims[k]
	if !held {
		at, _ := slices.BinarySearchFunc(c, row, d.order)
		c = slices.Insert(c, at, row)
		d.claims[k] = c
	}
	if c[0] == row {
		d.out.put(k, v, true)
	}
}

func (d *derived[IK, IV, OK, O]) order(a, b int32) int {
	return d.compare(d.entries[a].key, d.entries[b].key)
}

func (d *derived[IK, IV, OK, O]) withdraw(row int32, k OK) {
	var none O
	if d.claims == nil {
		d.out.put(k, none, false)
		return
	}
	c := slices.DeleteFunc(d.claims[k], func(r int32) bool { return r == row })
	if len(c) == 0 {
		delete(d.claims, k)
		d.out.put(k, none, false)
		return
	}
	d.claims[k] = c
	for _, o := range d.entries[c[0]].outs {
		if o.key == k {
			d.out.put(k, o.value, true)
		}
	}
}
