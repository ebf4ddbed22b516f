package xds

import (
	"maps"
	"slices"
	"time"
)

// watch is one type of a session.
type watch struct {
	// scope is what the client may have. It is decided once.
	scope Scope
	// wildcard: the client follows all of its scope.
	wildcard bool
	// names asked for besides; they may be aliases.
	names map[string]struct{}
	// held are the resources that the client has, when the watch tracks.
	held map[string]struct{}
	// dropped are those of them that were unsubscribed. They are pending.
	dropped map[string]struct{}
	// strays is how many names the client began with that it may not have, or
	// that are gone, beside those that it asks for.
	strays int
	// backlog is what a new client is still to be sent, in order; it may be
	// shared with other sessions.
	backlog []string
	// pending are resources that changed since they were sent, or names that
	// are owed an answer. Bodies are taken when sending.
	pending map[string]struct{}
	// owesFirst: a wildcard client waits for an answer, which may be empty.
	owesFirst bool
	// sent is the nonce that is not answered yet: one response of a type is
	// under way at a time, so changes to a slow client coalesce.
	sent     string
	acked    string
	rejected string
	// since is when the oldest change that is owed was published, under that of the
	// response under way. Zero is none: what a new client begins with does not count.
	since, under time.Time
	later
	debts
}

// start takes the first request of a type in. Without names it follows
// everything that it may have.
func (s *session) start(t *table, scope Scope, req *request) *watch {
	w := &watch{
		scope: scope,
		names: make(map[string]struct{}), held: make(map[string]struct{}), pending: make(map[string]struct{}),
		dropped: make(map[string]struct{}),
	}
	s.add(req.GetTypeUrl(), w)
	first, subscribe := s.isFirst(req.GetTypeUrl()), req.GetResourceNamesSubscribe()
	w.wildcard = (len(subscribe) == 0 || slices.Contains(subscribe, Wildcard)) &&
		!slices.Contains(req.GetResourceNamesUnsubscribe(), Wildcard)
	w.owesFirst = w.wildcard
	if !w.tracks() {
		w.catchUp(t, req)
		if first {
			w.postponeKnown(t, req)
		}
		return w
	}
	known := req.versions()
	for _, name := range subscribe {
		if name != Wildcard {
			w.names[name] = struct{}{}
		}
	}
	w.recall(t, known, first)
	w.oweGroups(t, first)
	rest := slices.DeleteFunc(slices.Clone(subscribe), func(n string) bool {
		_, have := known[n]
		return have || n == Wildcard
	})
	w.subscribe(t, rest, known)
	return w
}

// recall takes in what a client has, whose watch tracks. A client of single
// names also follows what it has. What is gone, or Late and different, waits for
// the rest of the first requests when it is of a first type.
func (w *watch) recall(t *table, known map[string]string, first bool) {
	for name, version := range known {
		w.held[name] = struct{}{}
		if !w.wildcard {
			w.names[name] = struct{}{}
		}
		r, ok := w.get(t, name)
		if ok && r.Version == version {
			continue
		}
		w.pending[name] = struct{}{}
		if !ok && w.wildcard {
			w.strays++
		}
		if first && (!ok || r.Late) {
			w.wait(name, afterHello)
			w.owesFirst = true // its answer ends the wait
		}
	}
	if !w.wildcard {
		for name := range known {
			w.oweParts(t, name, known)
		}
	}
}

// oweGroups owes the members of the groups that the client follows and that it
// does not have.
func (w *watch) oweGroups(t *table, first bool) {
	for _, name := range t.members(w.groups()) {
		switch {
		case has(w.held, name):
		case w.wildcard:
			w.backlog = append(w.backlog, name)
		default:
			w.pending[name] = struct{}{}
		}
	}
	w.backlogFirst = first
}

// oweParts owes the parts of something, less those that are known already.
func (w *watch) oweParts(t *table, of string, known map[string]string) {
	for name := range t.parts[of] {
		r, ok := w.get(t, name)
		if !ok {
			continue
		}
		if version, has := known[name]; !has || version != r.Version {
			w.pending[name] = struct{}{}
		}
	}
}

// catchUp owes a wildcard client whatever differs from what it knows; nil is
// nothing.
func (w *watch) catchUp(t *table, req *request) {
	w.backlog = t.all()
	if !req.knows() {
		return
	}
	current, n := make([]uint64, (t.numbers+63)/64), 0 // a bit for each entry
	req.known(func(name, version []byte) {
		r, ok := t.resources[string(name)]
		if !ok {
			w.pending[string(name)] = struct{}{}
		} else if r.Version == string(version) {
			bit := uint64(1) << (r.number % 64)
			if current[r.number/64]&bit == 0 {
				n++
			}
			current[r.number/64] |= bit
		}
	})
	w.backlog = nil
	if n == len(t.resources) {
		return
	}
	for _, name := range t.all() {
		if n := t.resources[name].number; current[n/64]&(1<<(n%64)) == 0 {
			w.backlog = append(w.backlog, name)
		}
	}
}

// subscribe adds names. A name asked for again is answered again, while parts
// of what it means that are known already are not.
func (w *watch) subscribe(t *table, names []string, known map[string]string) {
	for _, name := range names {
		if name == Wildcard {
			w.widen(t)
			continue
		}
		w.names[name] = struct{}{}
		resolved := w.resolve(t, name)
		for _, r := range resolved {
			w.pending[r] = struct{}{}
			w.oweParts(t, r, known)
		}
		// What has the name now may be gone when the answer goes out.
		w.pending[name] = struct{}{}
	}
}

// widen makes the client follow everything that it may have.
func (w *watch) widen(t *table) {
	if w.wildcard {
		return
	}
	w.wildcard, w.owesFirst = true, true
	if w.tracks() {
		w.oweGroups(t, w.backlogFirst)
		return
	}
	clear(w.held)
	w.catchUp(t, nil)
}

// narrow makes the client follow single names only. One that followed every
// resource of the type is answered again: what it has is not known.
func (w *watch) narrow(t *table) {
	if !w.wildcard {
		return
	}
	known := w.tracks()
	w.wildcard, w.backlog = false, nil
	if !known {
		w.owesFirst, w.late, w.absent = false, nil, nil
		clear(w.pending)
		w.subscribe(t, slices.Collect(maps.Keys(w.names)), nil)
	}
	w.oweGroups(t, w.backlogFirst)
}

// unsubscribe removes names, and with them what the client held for them, which it is sent
// the removal of: it may have been under way. What it holds for an alias that has changed
// hands since, it still follows.
func (w *watch) unsubscribe(t *table, names []string) {
	if len(names) == 0 {
		return
	}
	for _, name := range names {
		delete(w.names, name)
	}
	if slices.Contains(names, Wildcard) {
		w.narrow(t)
	}
	if !w.tracks() {
		return
	}
	drop := func(name string) {
		switch {
		case w.wanted(t, name):
		case has(w.held, name):
			w.pending[name] = struct{}{}
			w.dropped[name] = struct{}{}
		default:
			w.settle(name)
		}
	}
	if slices.Contains(names, Wildcard) {
		for name := range w.pending {
			drop(name)
		}
		for name := range w.held {
			drop(name)
		}
		return
	}
	for _, name := range names {
		for _, of := range append(slices.Clone(w.resolve(t, name)), name) {
			drop(of)
			for part := range t.parts[of] {
				drop(part)
			}
		}
	}
}

// wanted reports whether a name is asked for, or is that of a resource that is.
func (w *watch) wanted(t *table, name string) bool {
	if has(w.names, name) {
		return true
	}
	r, ok := w.get(t, name)
	return ok && w.asked(t, r)
}

func (w *watch) respond(t *table, typeURL string, limit int, released uint64) *reply {
	resp := &reply{typeURL: typeURL}
	due := len(w.pending) + len(w.backlog)
	if limit > 0 {
		due = min(due, limit/guessedBody)
	}
	resp.grow(due)
	size := 0
	if w.backlogFirst {
		size = w.addBacklog(resp, t, size, limit)
	}
	size = w.addPending(resp, t, size, limit, released)
	if !w.backlogFirst {
		w.addBacklog(resp, t, size, limit)
	}
	if resp.partial = len(w.backlog) > 0; !resp.partial {
		w.backlog = nil
	}
	if resp.resources() == 0 && len(resp.removed) == 0 && !w.owesFirst {
		return nil
	}
	w.owesFirst = false
	return resp
}

// addPending puts pending names into a response, until its size, which it
// returns, is at the limit. What waits comes last, once it need not wait.
func (w *watch) addPending(resp *reply, t *table, size, limit int, released uint64) int {
	full := func() bool { return limit > 0 && size >= limit }
	for name := range w.pending {
		if full() {
			return size
		}
		if !w.isPostponed(t, name) {
			w.settle(name)
			size += w.add(resp, t, name)
		}
	}
	for name, note := range w.late {
		if full() {
			return size
		}
		if note <= released {
			w.settle(name)
			size += w.add(resp, t, name)
		}
	}
	return size
}

// addBacklog is addPending for the backlog.
func (w *watch) addBacklog(resp *reply, t *table, size, limit int) int {
	for len(w.backlog) > 0 && (limit == 0 || size < limit) {
		name := w.backlog[0]
		w.backlog = w.backlog[1:]
		if w.backlogFirst {
			w.settle(name) // the client never had it, and gets the newest
		}
		if r, ok := w.get(t, name); ok {
			size += w.send(resp, r)
		}
	}
	return size
}

// add puts a resource or its absence into a response and returns the bytes. What
// the client may not have is absent.
func (w *watch) add(resp *reply, t *table, name string) int {
	r, ok := w.get(t, name)
	if has(w.dropped, name) {
		delete(w.dropped, name)
		if !w.wanted(t, name) {
			resp.removed = append(resp.removed, name)
			delete(w.held, name)
			return len(name)
		}
	}
	if !ok {
		// A name that has become an alias is answered by what has it.
		if !w.tracks() || len(w.resolve(t, name)) == 0 {
			resp.removed = append(resp.removed, name)
			delete(w.held, name)
		}
		return len(name)
	}
	return w.send(resp, r)
}

// send puts a resource into a response and returns the bytes.
func (w *watch) send(resp *reply, r *Resource) int {
	if w.tracks() {
		w.held[r.Name] = struct{}{}
	}
	resp.add(r)
	return len(r.Name) + len(r.Body)
}
