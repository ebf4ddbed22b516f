package collection

// Machine derives a collection as a whole: what is derived of a row depends on many others, in
// a way that only it can follow. Its result must depend on the rows alone, and not on the
// order in which they came and went.
type Machine[K comparable, V, O any] interface {
	// Set puts a row in, or replaces it; Delete takes one out, which need not be there.
	Set(k K, v V)
	Delete(k K)
	// Changed calls f with each derived row that may have changed since the last call; has is
	// false for one that there is none of.
	Changed(f func(k K, o O, has bool))
}

// Follow derives a collection by a machine, which is given the rows that change and no others.
func Follow[K comparable, V, O any](in *Collection[K, V], name string, equal func(a, b O) bool, m Machine[K, V, O]) *Collection[K, O] {
	f := &following[K, V, O]{in: in, out: newCollection[K](in.g, name, equal), machine: m, marked: map[K]struct{}{}}
	f.out.id = in.g.add(f)
	in.children = append(in.children, f.mark)
	for k := range in.rows {
		f.mark(k)
	}
	return f.out
}

type following[K comparable, V, O any] struct {
	in      *Collection[K, V]
	out     *Collection[K, O]
	machine Machine[K, V, O]
	marked  map[K]struct{}
}

func (f *following[K, V, O]) mark(k K)    { f.marked[k] = struct{}{} }
func (f *following[K, V, O]) touch(int32) {}
func (f *following[K, V, O]) report()     { f.out.report() }

func (f *following[K, V, O]) run() {
	if len(f.marked) == 0 {
		return
	}
	for k := range f.marked {
		if v, ok := f.in.rows[k]; ok {
			f.machine.Set(k, v)
		} else {
			f.machine.Delete(k)
		}
	}
	if len(f.marked) > 1024 {
		f.marked = map[K]struct{}{} // clear keeps the memory of the largest turn
	} else {
		clear(f.marked)
	}
	f.machine.Changed(f.out.put)
}
