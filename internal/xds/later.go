package xds

import "slices"

// A workload names policies, and both are types of resources. A client must
// have a policy before the workload that names it, and keep it until it has
// the workload that no longer does. So what is new of a first type goes out
// before the other types, and what is removed (or narrowed: Resource.Late)
// waits until the client has accepted what the other types were owed before.

// later is the part of a watch that keeps this order.
type later struct {
	// late are names among pending that wait, with what s.notes was when they
	// became so; afterHello for those that a new client may have.
	late map[string]uint64
	// covers is what s.notes was when the response under way left nothing
	// pending; settled is that of the last one that was accepted.
	covers, settled uint64
}

// afterHello is more than any note: a client that connects sends its first
// request of every type before its first answer, which ends this wait.
const afterHello = ^uint64(0)

func (s *session) isFirst(typeURL string) bool { return slices.Contains(s.first, typeURL) }

// owed notes that a type has something to send.
func (s *session) owed(typeURL string) {
	if !s.isFirst(typeURL) {
		s.notes++
	}
}

// dueNow reports whether something waits to be sent.
func (w *watch) dueNow() bool { return len(w.pending)+len(w.backlog) > 0 || w.owesFirst }

// postpone decides whether a change waits.
func (s *session) postpone(w *watch, typeURL string, c change) {
	if !s.isFirst(typeURL) || !w.wildcard {
		return
	}
	_, pending := w.pending[c.name]
	_, waits := w.late[c.name]
	switch {
	case !c.late:
		// New to the cache. A client that still has the old one gets the new one
		// when it is due: it may be Late.
	case pending && !waits:
		// It was not sent yet: the client does not have it, or is about to get a
		// change that does not wait.
	default:
		w.wait(c.name, s.notes)
	}
}

func (w *watch) wait(name string, note uint64) {
	if w.late == nil {
		w.late = map[string]uint64{}
	}
	if old, waits := w.late[name]; !waits || old != afterHello {
		w.late[name] = note
	}
}

// postponeKnown makes what a client has already, and what is not so any more,
// wait for the rest of its first requests.
func (w *watch) postponeKnown(t *table, req *request) {
	for name := range w.pending { // it has them, and they are gone
		w.wait(name, afterHello)
	}
	if !req.knows() {
		return
	}
	changed := map[string]struct{}{}
	for _, name := range w.backlog {
		changed[name] = struct{}{}
	}
	req.known(func(name, _ []byte) {
		r, ok := t.resources[string(name)]
		if _, differs := changed[string(name)]; ok && r.Late && differs {
			delete(changed, r.Name)
			w.pending[r.Name] = struct{}{}
			w.wait(r.Name, afterHello)
		}
	})
	// The backlog is shared with other sessions, unless something differs.
	w.backlog = slices.DeleteFunc(slices.Clone(w.backlog), func(name string) bool { _, waits := w.late[name]; return waits })
}

// accepted takes in that a client answered a response.
func (s *session) accepted(w *watch) {
	w.settled = w.covers
	for name, note := range w.late {
		if note == afterHello {
			w.late[name] = s.notes
		}
	}
}

// released returns up to which note the client has accepted what the types
// other than the first were owed.
func (s *session) released(w *watch, typeURL string) uint64 {
	if len(w.late) == 0 || !s.isFirst(typeURL) {
		return 0
	}
	least := afterHello - 1
	for other, o := range s.types {
		if !s.isFirst(other) && (o.dueNow() || o.sent != "") {
			least = min(least, o.settled)
		}
	}
	return least
}

// waits reports whether a pending name is not sent yet.
func (w *watch) waits(t *table, name string, released uint64) bool {
	note, late := w.late[name]
	if !late || note <= released {
		return false
	}
	r, there := t.resources[name]
	return !there || r.Late
}

// news reports whether something that does not wait is to be sent.
func (w *watch) news(t *table) bool {
	if len(w.backlog) > 0 {
		return true
	}
	for name := range w.pending {
		if _, late := w.late[name]; !late {
			return true
		}
		if r, there := t.resources[name]; there && !r.Late {
			return true
		}
	}
	return false
}
