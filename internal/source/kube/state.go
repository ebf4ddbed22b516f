package kube

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/internal/source"
)

// name is a namespaced name.
type name struct{ namespace, name string }

// item is an object as it was read.
type item struct {
	name name
	rv   string
	obj  metav1.Object
	// err tells that the object cannot be used. obj is then what stands in
	// for it as long as no good state is known; nil for nothing.
	err error
}

// op is what a feed has seen: all objects of its kind, or one.
type op struct {
	kind  *source.Kind
	what  opKind
	items []item
}

type opKind uint8

const (
	replaceAll opKind = iota
	put
	remove
)

// state is what the cluster says: pure, fed one op at a time. The objects in
// it are the ones that were delivered, so that whoever keeps those shares them.
type state struct {
	kinds     map[*source.Kind]map[name]metav1.Object
	deliver   map[*source.Kind]bool
	selectors []labels.Selector
	synced    map[*source.Kind]struct{}
	problems  map[source.Key]string
	standIns  map[source.Key]struct{} // objects that are not what was written
	pending   map[source.Key]source.Event

	newProblems bool // since it was last set to false
}

// maxProblems bounds the objects that are reported.
const maxProblems = 1000

func newState(deliver []*source.Kind, selectors []labels.Selector) *state {
	s := &state{
		kinds: map[*source.Kind]map[name]metav1.Object{}, deliver: map[*source.Kind]bool{}, selectors: selectors,
		synced: map[*source.Kind]struct{}{}, problems: map[source.Key]string{}, standIns: map[source.Key]struct{}{}, pending: map[source.Key]source.Event{},
	}
	for _, kind := range deliver {
		s.deliver[kind] = true
	}
	return s
}

func (s *state) apply(o op) {
	objects := s.kinds[o.kind]
	if objects == nil {
		objects = map[name]metav1.Object{}
		s.kinds[o.kind] = objects
	}
	switch o.what {
	case put:
		for _, it := range o.items {
			s.put(o.kind, it)
		}
	case remove:
		for _, it := range o.items {
			s.remove(o.kind, it.name)
		}
	case replaceAll:
		s.replace(o)
		s.synced[o.kind] = struct{}{}
	}
}

func (s *state) replace(o op) {
	there := make(map[name]struct{}, len(o.items))
	for _, it := range o.items {
		there[it.name] = struct{}{}
		s.put(o.kind, it)
	}
	for n := range s.kinds[o.kind] {
		if _, ok := there[n]; !ok {
			s.remove(o.kind, n)
		}
	}
	for key := range s.problems {
		if _, ok := there[name{key.Namespace, key.Name}]; key.Kind == o.kind && !ok {
			s.solve(key)
		}
	}
}

func (s *state) put(kind *source.Kind, it item) {
	key, old := keyOf(kind, it.name), s.kinds[kind][it.name]
	if it.err != nil {
		s.complain(key, message(it.err))
		if _, standIn := s.standIns[key]; it.obj == nil || old != nil && !standIn {
			return
		}
		s.standIns[key] = struct{}{}
	} else {
		s.solve(key)
	}
	if old != nil && same(kind, old, it.obj) {
		return
	}
	s.store(kind, it.name, it.obj)
}

func (s *state) remove(kind *source.Kind, n name) {
	s.solve(keyOf(kind, n))
	if s.kinds[kind][n] != nil {
		s.store(kind, n, nil)
	}
}

// store makes obj what n is; nil removes. A namespace whose labels change can
// take its objects along.
func (s *state) store(kind *source.Kind, n name, obj metav1.Object) {
	looked := kind == source.Namespace.Kind && s.looks(n.name)
	visible := s.visible(kind, n)
	if obj == nil {
		delete(s.kinds[kind], n)
	} else {
		s.kinds[kind][n] = obj
	}
	if visible {
		s.emit(kind, n, obj)
	}
	if kind == source.Namespace.Kind && s.looks(n.name) != looked {
		s.flip(n.name, !looked)
	}
}

// looks reports whether the mesh looks at a namespace.
func (s *state) looks(namespace string) bool { return s.selects(s.selectors, namespace) }

func (s *state) selects(selectors []labels.Selector, namespace string) bool {
	if len(selectors) == 0 {
		return true
	}
	ns := s.kinds[source.Namespace.Kind][name{name: namespace}]
	return ns != nil && slices.ContainsFunc(selectors, func(sel labels.Selector) bool {
		return sel.Matches(labels.Set(ns.GetLabels()))
	})
}

func (s *state) visible(kind *source.Kind, n name) bool {
	return s.deliver[kind] && (n.namespace == "" || s.looks(n.namespace))
}

// flip shows or hides the objects of a namespace.
func (s *state) flip(namespace string, show bool) {
	for kind, objects := range s.kinds {
		for n, obj := range objects {
			if n.namespace == namespace && s.deliver[kind] {
				s.show(kind, n, obj, show)
			}
		}
	}
}

func (s *state) show(kind *source.Kind, n name, obj metav1.Object, show bool) {
	if !show {
		obj = nil
	}
	s.emit(kind, n, obj)
}

func (s *state) setSelectors(selectors []labels.Selector) {
	before := s.selectors
	s.selectors = selectors
	flips := map[string]bool{} // whether a namespace flips
	for kind, objects := range s.kinds {
		for n, obj := range objects {
			if n.namespace == "" || !s.deliver[kind] {
				continue
			}
			is := s.looks(n.namespace)
			flipped, known := flips[n.namespace]
			if !known {
				flipped = is != s.selects(before, n.namespace)
				flips[n.namespace] = flipped
			}
			if flipped {
				s.show(kind, n, obj, is)
			}
		}
	}
}

func (s *state) emit(kind *source.Kind, n name, obj metav1.Object) {
	key := keyOf(kind, n)
	s.pending[key] = source.Event{Key: key, Object: obj, Origin: Origin}
}

// flush returns the events since the last one, in the order of their keys.
func (s *state) flush() []source.Event {
	if len(s.pending) == 0 {
		return nil
	}
	events := make([]source.Event, 0, len(s.pending))
	for _, key := range slices.SortedFunc(maps.Keys(s.pending), source.Key.Compare) {
		events = append(events, s.pending[key])
	}
	// A map does not shrink; the first flush holds the whole cluster.
	s.pending = map[source.Key]source.Event{}
	return events
}

func (s *state) complain(key source.Key, msg string) {
	old, known := s.problems[key]
	if old == msg || !known && len(s.problems) >= maxProblems {
		return
	}
	s.problems[key] = msg
	s.newProblems = true
}

func (s *state) solve(key source.Key) {
	delete(s.standIns, key)
	if _, ok := s.problems[key]; ok {
		delete(s.problems, key)
		s.newProblems = true
	}
}

func keyOf(kind *source.Kind, n name) source.Key {
	return source.Key{Kind: kind, Namespace: n.namespace, Name: n.name}
}

// same reports whether nothing that is kept has changed.
func same(kind *source.Kind, a, b metav1.Object) bool {
	return a.GetResourceVersion() == b.GetResourceVersion() && a.GetResourceVersion() != "" || kind.Same(a, b)
}
