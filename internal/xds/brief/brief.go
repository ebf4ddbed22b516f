// Package brief keeps the names that a client follows only briefly: those that programs
// choose. It decides which of them end. Values in, values out.
package brief

import (
	"container/list"
	"slices"
)

// Most bounds the names that no resource has. It is small beside the names that a control
// plane serves a client, so that the others have room.
const Most = 4096

// Names are the brief names of one type. Of too many that no resource has, the oldest end:
// their subscriptions take room, and no resource comes or goes with them.
//
//	added ──answer──> present <──resource comes / last one is removed──> absent
//	  ^                                                                    │
//	  └──────────────────────────── added again ────────────────────── ended
//
// They are for one goroutine at a time.
type Names struct {
	most   int
	names  map[string]*name
	absent *list.List // of names that no resource has, the oldest first
	// held are the names that a resource has.
	held map[string][]string
}

type name struct {
	resources []string
	absent    *list.Element // nil while it has resources, or no answer
}

// New makes Names of which at most so many are absent.
func New(most int) *Names {
	return &Names{most: most, names: map[string]*name{}, absent: list.New(), held: map[string][]string{}}
}

// Add follows a name briefly.
func (n *Names) Add(s string) { n.names[s] = &name{} }

// Keep makes a name stay: it is none of these any more.
func (n *Names) Keep(s string) {
	if d := n.names[s]; d != nil {
		n.found(d)
		delete(n.names, s)
	}
}

// Present notes that a resource has a name, or an alias.
func (n *Names) Present(s, resource string) {
	d := n.names[s]
	if d == nil || slices.Contains(d.resources, resource) {
		return
	}
	d.resources = append(d.resources, resource)
	n.held[resource] = append(n.held[resource], s)
	n.found(d)
}

// Removed notes that a resource is gone, or that no resource has a name.
func (n *Names) Removed(resource string) {
	names := n.held[resource]
	delete(n.held, resource)
	for _, s := range append(names, resource) {
		d := n.names[s]
		if d == nil {
			continue
		}
		d.resources = slices.DeleteFunc(d.resources, func(r string) bool { return r == resource })
		if len(d.resources) == 0 && d.absent == nil {
			d.absent = n.absent.PushBack(s)
		}
	}
}

func (n *Names) found(d *name) {
	if d.absent != nil {
		n.absent.Remove(d.absent)
		d.absent = nil
	}
}

// Shed returns the names that end: the oldest that no resource has, a quarter at once.
func (n *Names) Shed() (ended []string) {
	if n.absent.Len() <= n.most {
		return nil
	}
	for n.absent.Len() > n.most-n.most/4 {
		s, _ := n.absent.Remove(n.absent.Front()).(string)
		delete(n.names, s)
		ended = append(ended, s)
	}
	return ended
}
