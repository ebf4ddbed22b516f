package xds

import (
	"container/list"
	"slices"
)

// absences holds the brief demands of a type that no resource has. When there are too many,
// the oldest end: their subscriptions take room, and no resource comes or goes with them.
//
//	asked ──answer──> present <──resource comes / last one is removed──> absent
//	  ^                                                                    │
//	  └──────────────────────────── asked again ────────────────────── ended
type absences struct {
	most   int
	absent *list.List // of names, the oldest first
	// held are the names of brief demands by the resource that has them.
	held map[string][]string
	// ended is to be sent.
	ended []string
}

func newAbsences() absences {
	return absences{most: maxAbsent, absent: list.New(), held: map[string][]string{}}
}

// present notes that a resource has a name.
func (w *followed) present(name, resource string) {
	d := w.demands[name]
	if d.end(); d == nil || !d.brief || slices.Contains(d.resources, resource) {
		return
	}
	d.resources = append(d.resources, resource)
	w.held[resource] = append(w.held[resource], name)
	w.forget(d)
}

// removed notes that a resource, or what was asked for by name, is not there.
func (w *followed) removed(resource string) {
	names := w.held[resource]
	delete(w.held, resource)
	for _, name := range append(names, resource) {
		d := w.demands[name]
		if d == nil || !d.brief {
			continue
		}
		d.resources = slices.DeleteFunc(d.resources, func(r string) bool { return r == resource })
		if len(d.resources) == 0 && d.absent == nil {
			d.absent = w.absent.PushBack(name)
		}
	}
}

// forget takes a demand out of those that no resource has.
func (w *followed) forget(d *demand) {
	if d.absent != nil {
		w.absent.Remove(d.absent)
		d.absent = nil
	}
}

// keep makes a demand stay.
func (w *followed) keep(d *demand) {
	d.brief, d.resources = false, nil
	w.forget(d)
}

// shed ends the oldest when there are too many, a quarter at once.
func (w *followed) shed() {
	if w.absent.Len() <= w.most {
		return
	}
	for w.absent.Len() > w.most-w.most/4 {
		name, _ := w.absent.Remove(w.absent.Front()).(string)
		delete(w.demands, name)
		w.ended = append(w.ended, name)
	}
}
