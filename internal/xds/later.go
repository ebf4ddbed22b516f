package xds

import "slices"

// A workload names policies, and both are types of resources. A client must
// have a policy before the workload that names it, and keep it until it has
// the workload that no longer does. So what is new of a first type goes out
// before the other types, and what is removed (or narrowed: Resource.Late)
// waits until the client has accepted what the other types were owed before.
// In one response, what is new comes first.

// later is the part of a watch that keeps this order among what a client
// follows of a first type.
type later struct {
	// late are names among pending that wait, with what s.notes was when they
	// became so; afterHello for those that a new client may have.
	late map[string]uint64
	// absent are names among pending that the client has no version of: they
	// cannot wait, since another type may name them already. It is empty where the
	// watch tracks: there they are what is pending and not held.
	absent map[string]struct{}
	// backlogFirst: pending is not sent before the backlog is, so that all in
	// the backlog is new to the client.
	backlogFirst bool
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
	s.clock++
	if !s.isFirst(typeURL) {
		s.notes++
	}
}

// dueNow reports whether something waits to be sent.
func (w *watch) dueNow() bool { return len(w.pending)+len(w.backlog) > 0 || w.owesFirst }

// postpone makes a change pending, and decides whether it waits. What a client
// has no version of goes out at once, and is forgotten if it is removed before.
func (w *watch) postpone(c change, note uint64) {
	pending, absent := has(w.pending, c.name), w.isAbsent(c.name)
	if pending && c.late && !w.isLate(c.name) {
		w.undone(note)
	}
	switch {
	case absent && c.resource == nil && !has(w.names, c.name):
		w.settle(c.name)
		return
	case absent:
	case c.added && !pending:
		if !w.tracks() {
			w.noteAbsent(c.name)
		}
	case c.late:
		w.wait(c.name, note)
	case w.isLate(c.name):
		delete(w.late, c.name)
	}
	w.pending[c.name] = struct{}{}
}

// isAbsent reports whether a name is pending that the client has no version of.
func (w *watch) isAbsent(name string) bool {
	if w.tracks() {
		return has(w.pending, name) && !has(w.held, name)
	}
	return has(w.absent, name)
}

func (w *watch) noteAbsent(name string) {
	if w.absent == nil {
		w.absent = map[string]struct{}{}
	}
	w.absent[name] = struct{}{}
}

// isLate reports whether a name has a note of its own that it waits for.
func (w *watch) isLate(name string) bool {
	note, late := w.late[name]
	return late && note != afterHello
}

// undone makes all that waits wait for the other types as they are now. A
// change that was about to be sent is undone: what waits may rest on it, as a
// policy that is narrowed rests on one that takes its place everywhere.
func (w *watch) undone(note uint64) {
	for name := range w.late {
		w.wait(name, note)
	}
}

// settle forgets that a name is pending.
func (w *watch) settle(name string) {
	delete(w.pending, name)
	delete(w.late, name)
	delete(w.absent, name)
}

func (w *watch) wait(name string, note uint64) {
	if w.late == nil {
		w.late = map[string]uint64{}
	}
	if old, waits := w.late[name]; !waits || old != afterHello {
		w.late[name] = note
	}
}

// postponeKnown takes in what a client has already. What is gone, or Late and
// different, waits for the rest of its first requests; the backlog keeps only
// what is new to the client.
func (w *watch) postponeKnown(t *table, req *request) {
	w.backlogFirst = true
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
		if _, differs := changed[string(name)]; !differs {
			return
		}
		r := t.resources[string(name)]
		delete(changed, r.Name)
		w.pending[r.Name] = struct{}{}
		if r.Late {
			w.wait(r.Name, afterHello)
		}
	})
	// With known names the backlog is the client's own, not shared.
	w.backlog = slices.DeleteFunc(w.backlog, func(name string) bool { _, fresh := changed[name]; return !fresh })
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

// isPostponed reports whether a pending name is of those that wait.
func (w *watch) isPostponed(t *table, name string) bool {
	if _, late := w.late[name]; !late {
		return false
	}
	r, there := w.get(t, name)
	return !there || r.Late
}

// news reports whether something that does not wait is to be sent.
func (w *watch) news(t *table) bool {
	if len(w.backlog) > 0 {
		return true
	}
	for name := range w.pending {
		if !w.isPostponed(t, name) {
			return true
		}
	}
	return false
}
