package file

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/source"
)

// state is what the files say, together: pure, fed one file at a time.
type state struct {
	files    map[string]*fileState
	overlays map[string]*fileState // by path, like files
	claims   map[source.Key][]claim
	layers   map[source.Key][]claim // overlays of a key, by path
	live     map[source.Key]delivered
	unread   map[string]Problem // paths that could not be read
	broken   map[source.Key]Problem
	dirty    map[source.Key]struct{}
	seed     maphash.Seed
	also     []*source.Kind // see Options
}

// fileState is the last good state of a file and what is wrong with it now.
type fileState struct {
	docs     map[source.Key]document
	problems []Problem
	ignored  []Problem
}

// claim is a file's statement about a key.
type claim struct {
	path string
	line int
}

// delivered is what the sink was last told.
type delivered struct {
	sum    uint64
	object metav1.Object
	origin string
}

func newState() *state {
	return &state{
		files:    map[string]*fileState{},
		overlays: map[string]*fileState{},
		claims:   map[source.Key][]claim{},
		layers:   map[source.Key][]claim{},
		live:     map[source.Key]delivered{},
		unread:   map[string]Problem{},
		broken:   map[source.Key]Problem{},
		dirty:    map[source.Key]struct{}{},
		seed:     maphash.MakeSeed(),
	}
}

// side returns the maps of manifests or of overlays.
func (s *state) side(overlay bool) (map[string]*fileState, map[source.Key][]claim) {
	if overlay {
		return s.overlays, s.layers
	}
	return s.files, s.claims
}

// put takes in the present content of a file. What it says badly keeps its
// last good state.
func (s *state) put(path string, overlay bool, data []byte) {
	delete(s.unread, path)
	files, _ := s.side(overlay)
	old := files[path]
	next := &fileState{docs: map[source.Key]document{}}
	p := parse(path, data, s.also...)
	next.ignored = p.ignored
	for i := range p.docs {
		d := p.docs[i]
		if first, dup := next.docs[d.key]; dup {
			next.problems = append(next.problems, duplicate(d.key, path, d.line, path, first.line))
			continue
		}
		if f := check(path, &d, overlay); len(f) > 0 {
			p.failures = append(p.failures, f...)
			continue
		}
		d.node = nil
		next.docs[d.key] = d
	}
	for _, f := range p.failures {
		next.problems = append(next.problems, f.problem)
	}
	if old != nil {
		retain(next, old, p.failures)
	}
	s.swap(path, overlay, old, next)
}

// retain keeps the last good state of the documents that are bad now; of all
// that are missing, when a bad one cannot be named.
func retain(next, old *fileState, failures []failure) {
	for _, f := range failures {
		if f.known {
			if d, had := old.docs[f.key]; had && !has(next.docs, f.key) {
				next.docs[f.key] = d
			}
			continue
		}
		for k, d := range old.docs {
			if !has(next.docs, k) {
				next.docs[k] = d
			}
		}
		return
	}
}

func has(m map[source.Key]document, k source.Key) bool { _, ok := m[k]; return ok }

// check decodes a document to find its mistakes. Overlays are fragments:
// they are checked when they are merged.
func check(path string, d *document, overlay bool) []failure {
	if overlay {
		return nil
	}
	_, errs := decode(d.kind, d.key, d.json)
	failures := make([]failure, 0, len(errs))
	for _, e := range errs {
		line, field := place(e, d)
		failures = append(failures, failure{key: d.key, known: true,
			problem: Problem{File: path, Line: line, Field: field, Message: d.key.String() + ": " + e.msg}})
	}
	return failures
}

// drop forgets a file that is gone.
func (s *state) drop(path string, overlay bool) {
	delete(s.unread, path)
	files, _ := s.side(overlay)
	if old := files[path]; old != nil {
		s.swap(path, overlay, old, nil)
	}
}

// holds reports whether objects come from a file.
func (s *state) holds(path string, overlay bool) bool {
	files, _ := s.side(overlay)
	return files[path] != nil && len(files[path].docs) > 0
}

// good reports whether nothing is wrong with a file.
func (s *state) good(path string) bool {
	f := s.files[path]
	return f != nil && len(f.problems) == 0
}

// restricts reports whether a file holds objects without which more would be
// allowed.
func (s *state) restricts(path string) bool {
	for k := range s.files[path].docs {
		if k.Kind.Protects {
			return true
		}
	}
	return false
}

// cannotRead notes that a path exists and cannot be read; its state stays.
func (s *state) cannotRead(path, msg string) {
	s.unread[path] = Problem{File: path, Message: msg}
}

func (s *state) swap(path string, overlay bool, old, next *fileState) {
	files, claims := s.side(overlay)
	if old != nil {
		for k := range old.docs {
			s.dirty[k] = struct{}{}
			claims[k] = slices.DeleteFunc(claims[k], func(c claim) bool { return c.path == path })
			if len(claims[k]) == 0 {
				delete(claims, k)
			}
		}
	}
	if next == nil {
		delete(files, path)
		return
	}
	files[path] = next
	for k, d := range next.docs {
		s.dirty[k] = struct{}{}
		claims[k] = append(claims[k], claim{path, d.line})
		slices.SortFunc(claims[k], func(a, b claim) int { return strings.Compare(a.path, b.path) })
	}
}

// flush returns the events of everything that changed since the last one, in
// the order of their keys.
func (s *state) flush() []source.Event {
	var events []source.Event
	for _, k := range slices.SortedFunc(maps.Keys(s.dirty), source.Key.Compare) {
		if e, changed := s.settle(k); changed {
			events = append(events, e)
		}
	}
	clear(s.dirty)
	return events
}

// settle works out what a key is now and whether the sink must hear of it.
func (s *state) settle(k source.Key) (source.Event, bool) {
	delete(s.broken, k)
	claims := s.claims[k]
	old, was := s.live[k]
	if len(claims) == 0 {
		delete(s.live, k)
		return source.Event{Key: k, Origin: old.origin}, was
	}
	doc := s.files[claims[0].path].docs[k]
	now := delivered{origin: fmt.Sprintf("%s:%d", claims[0].path, doc.line)}
	data := s.layered(k, doc)
	now.sum = maphash.Bytes(s.seed, data)
	if was && old.sum == now.sum {
		now.object = old.object
	} else {
		now.object = s.decodeLayered(k, doc, data)
	}
	s.live[k] = now
	return source.Event{Key: k, Object: now.object, Origin: now.origin},
		!was || now.object != old.object || now.origin != old.origin
}

// layered returns the JSON of an object with its overlays.
func (s *state) layered(k source.Key, doc document) []byte {
	layers := s.layers[k]
	if len(layers) == 0 {
		return doc.json
	}
	over := make([][]byte, len(layers))
	for i, l := range layers {
		over[i] = s.overlays[l.path].docs[k].json
	}
	data, err := merge(doc.json, over)
	if err != nil {
		s.broken[k] = Problem{File: layers[0].path, Message: fmt.Sprintf("%s: status cannot be merged: %v", k, err)}
		return doc.json
	}
	return data
}

// decodeLayered decodes data; when the overlays have made it undecodable, the
// object as written.
func (s *state) decodeLayered(k source.Key, doc document, data []byte) metav1.Object {
	obj, errs := decode(doc.kind, k, data)
	if len(errs) == 0 {
		return obj
	}
	s.broken[k] = Problem{File: s.layers[k][0].path, Field: strings.TrimSuffix(errs[0].field, "."),
		Message: fmt.Sprintf("%s: status ignored: %s", k, errs[0].msg)}
	obj, _ = decode(doc.kind, k, doc.json) // was decoded before, without errors
	return obj
}

func duplicate(k source.Key, path string, line int, first string, firstLine int) Problem {
	return Problem{File: path, Line: line, Field: "metadata.name",
		Message: fmt.Sprintf("%s is already defined at %s:%d; that one counts", k, first, firstLine)}
}

// problems lists everything that is wrong, ordered by file and line. An
// ignored kind is listed once, where it was found first.
func (s *state) problems() []Problem {
	var all, ignored []Problem
	for _, files := range []map[string]*fileState{s.files, s.overlays} {
		for _, f := range files {
			all = append(all, f.problems...)
			ignored = append(ignored, f.ignored...)
		}
	}
	for k, claims := range s.claims {
		for _, c := range claims[1:] {
			all = append(all, duplicate(k, c.path, c.line, claims[0].path, claims[0].line))
		}
	}
	all = slices.AppendSeq(all, maps.Values(s.unread))
	all = slices.AppendSeq(all, maps.Values(s.broken))
	slices.SortFunc(ignored, compareProblems)
	seen := map[string]struct{}{}
	for _, p := range ignored {
		if _, dup := seen[p.Message]; !dup {
			seen[p.Message] = struct{}{}
			all = append(all, p)
		}
	}
	slices.SortFunc(all, compareProblems)
	return all
}

func compareProblems(a, b Problem) int {
	return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
		strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
}
