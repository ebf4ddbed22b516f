package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
)

// labOnly are kinds that the lab turns into others; the mesh does not read them.
var labOnly = map[string]bool{"Deployment": true}

// applyDocuments creates or replaces objects; all or none.
func (s *supervisor) applyDocuments(docs []objects.Document) ([]string, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	seen := map[objects.Key]string{}
	var said []string
	for _, doc := range docs {
		k := doc.Key()
		if first, twice := seen[k]; twice {
			return nil, fmt.Errorf("%s: %s is there already, at %s", doc.Origin, k, first)
		}
		seen[k] = doc.Origin
		switch old, there := next[k]; {
		case !there:
			said = append(said, k.String()+" created")
		case old.Text == doc.Text:
			said = append(said, k.String()+" unchanged")
			continue
		default:
			said = append(said, k.String()+" configured")
		}
		next[k] = doc
	}
	return said, s.become(next)
}

func (s *supervisor) deleteObject(k objects.Key) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	if _, ok := next[k]; !ok {
		return fmt.Errorf("%s: not found", k)
	}
	delete(next, k)
	if k.Kind == "Namespace" {
		for other := range next {
			if other.Namespace == k.Name {
				delete(next, other)
			}
		}
	}
	return s.become(next)
}

func (s *supervisor) labelObject(k objects.Key, labels map[string]*string) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	doc, ok := next[k]
	if !ok {
		return fmt.Errorf("%s: not found", k)
	}
	doc, err := doc.Relabel(labels)
	if err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	next[k] = doc
	return s.become(next)
}

func (s *supervisor) current() map[objects.Key]objects.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects
}

// become makes the lab what the objects say. s.applying is held.
func (s *supervisor) become(next map[objects.Key]objects.Document) error {
	var names []string
	for _, n := range s.nodes {
		names = append(names, n.name)
	}
	want, err := objects.Plan(next, names, s.proxies())
	if err != nil {
		return err
	}
	old := s.current()
	// Addresses first: whoever reads of a service finds its address, too.
	if err := errors.Join(s.setServices(want), s.setGateways(want)); err != nil {
		return err
	}
	if err := s.endPods(want); err != nil {
		return err
	}
	if err := s.writeObjects(old, next); err != nil {
		return err
	}
	if err := syncFiles(s.d.Generated(), want.Generated); err != nil {
		return err
	}
	s.mu.Lock()
	s.objects = next
	for _, n := range s.nodes {
		n.labels = nil
		if o := want.Nodes[n.name]; o != nil {
			n.labels = o.Labels
		}
	}
	s.notify()
	s.mu.Unlock()
	if err := s.beginPods(want); err != nil {
		return err
	}
	return s.wire()
}

func (s *supervisor) objectPath(k objects.Key) string {
	if labOnly[k.Kind] {
		return filepath.Join(s.d.Objects(), k.File())
	}
	return filepath.Join(s.d.Config(), k.File())
}

// writeObjects brings the directory that the mesh reads up to date, one file
// an object, each replaced in one step.
func (s *supervisor) writeObjects(old, next map[objects.Key]objects.Document) error {
	// Namespaces sort apart from the rest and first: a pod must not be seen
	// before the label that says whether it belongs to the mesh.
	keys := objects.SortedKeys(next)
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Kind == "Namespace" && keys[j].Kind != "Namespace" })
	for _, k := range keys {
		doc := next[k]
		if was, ok := old[k]; ok && was.Text == doc.Text {
			continue
		}
		text := "# from " + doc.Origin + "\n" + doc.Text
		if err := lab.WriteFile(s.objectPath(k), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for k := range old {
		if _, ok := next[k]; !ok {
			if err := os.Remove(s.objectPath(k)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// syncFiles makes a directory hold exactly the given files.
func syncFiles(dir string, want map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; !ok {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name, text := range want {
		path := filepath.Join(dir, name)
		if b, err := os.ReadFile(path); err == nil && string(b) == text {
			continue
		}
		if err := lab.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
