package xds

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

const (
	// chunkBytes bounds the bodies of one response to clients that understand
	// partial ones: the next is not made before the client has answered, so
	// that one which is slow costs neither end more than that, and what
	// changes meanwhile goes out first.
	chunkBytes = 256 << 10
	// guessedBody is of how large a resource is, to make room.
	guessedBody = 256
	// maxNames bounds the subscriptions of one client by name: more than a
	// node ever talks to, little enough to keep.
	maxNames = 200_000
	// otherNames is the same for a client that serves no node.
	otherNames = 20_000
)

// session is the server's knowledge of one client: what it follows, what it
// has and what it is owed. It does no IO. A client that follows everything
// costs nothing per resource: it has all but what is listed as pending.
type session struct {
	cache *Cache
	first []string // types that go out before others
	chunk int      // bytes; 0 is unbounded
	// mostNames bounds the subscriptions by name of all types together.
	mostNames int
	wake      chan struct{}

	// groups tells what the node of a client follows without asking; may be
	// nil.
	groups func(*core.Node) []string

	mu     sync.Mutex // taken after the cache's
	node   *core.Node // of the first request
	types  map[string]*watch
	nonces uint64
	notes  uint64 // counts what the types other than the first were owed
}

// watch is one type of a session.
type watch struct {
	wildcard bool
	// names asked for, when not wildcard; they may be aliases.
	names map[string]struct{}
	// held are the resources sent because of names.
	held map[string]struct{}
	// backlog is what a new client is still to be sent, in order; shared with
	// other sessions.
	backlog []string
	// pending are resources that changed since they were sent, or names that
	// are owed an answer. Bodies are taken when sending.
	pending map[string]struct{}
	// owesFirst: a wildcard client waits for an answer, be it empty.
	owesFirst bool
	// sent is the nonce that is not answered yet: one response of a type is
	// under way at a time, so changes to a slow client coalesce.
	sent     string
	acked    string
	rejected string
	later
}

func newSession(c *Cache, first []string) *session {
	return &session{cache: c, first: first, wake: make(chan struct{}, 1), types: make(map[string]*watch), mostNames: maxNames}
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// changed is called by the cache, which is locked.
func (s *session) changed(typeURL string, changes []change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.types[typeURL]
	if w == nil {
		return
	}
	woken := false
	for _, c := range changes {
		if !w.interested(c) {
			continue
		}
		if _, held := w.held[c.name]; !held && !w.wildcard {
			w.oweNews(s.cache.types[typeURL], c.name, nil)
		}
		s.postpone(w, typeURL, c)
		w.pending[c.name] = struct{}{}
		woken = true
	}
	if woken {
		s.owed(typeURL)
		s.signal()
	}
}

func (w *watch) interested(c change) bool {
	if w.wildcard {
		return true
	}
	if has(w.held, c.name) || has(w.names, c.name) {
		return true
	}
	return slices.ContainsFunc(c.aliases, func(a string) bool { return has(w.names, a) }) ||
		slices.ContainsFunc(c.with, func(g string) bool { return has(w.names, g) || has(w.held, g) || has(w.pending, g) })
}

func has(set map[string]struct{}, name string) bool { _, ok := set[name]; return ok }

// request takes a message of the client in. The error ends the stream.
// Rejected is the detail of a NACK, empty for everything else.
func (s *session) request(req *request) (rejected string, err error) {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.signal()
	if n := req.GetNode(); n != nil && s.node == nil {
		s.node = n
	}
	if slices.Contains(req.GetNode().GetClientFeatures(), featurePartial) {
		s.chunk = chunkBytes
	}
	t := s.cache.types[req.GetTypeUrl()]
	if t == nil {
		t = &table{} // nothing yet; clients do not add types to the cache
	}
	w := s.types[req.GetTypeUrl()]
	if w == nil {
		if len(s.types) >= maxTypes {
			return "", fmt.Errorf("more than %d types of resources", maxTypes)
		}
		w = s.start(t, req)
	} else {
		w.subscribe(t, req.GetResourceNamesSubscribe(), nil)
	}
	w.unsubscribe(t, req.GetResourceNamesUnsubscribe())
	if w.dueNow() {
		s.owed(req.GetTypeUrl())
	}
	n := 0
	for _, w := range s.types {
		n += len(w.names)
	}
	if n > s.mostNames {
		return "", fmt.Errorf("%d subscriptions, at most %d are served", n, s.mostNames)
	}
	if nonce := req.GetResponseNonce(); nonce != "" && nonce == w.sent {
		s.accepted(w)
		w.sent, w.acked = "", nonce
		w.rejected = ""
		if e := req.GetErrorDetail(); e != nil {
			w.rejected = e.GetMessage()
			if w.rejected == "" {
				w.rejected = "rejected without a reason"
			}
			return w.rejected, nil
		}
	}
	return "", nil
}

// maxTypes bounds the types of one client; there are three in this mesh.
const maxTypes = 32

// start takes the first request of a type in. Without names it follows
// everything.
func (s *session) start(t *table, req *request) *watch {
	w := &watch{
		names: make(map[string]struct{}), held: make(map[string]struct{}), pending: make(map[string]struct{}),
	}
	s.types[req.GetTypeUrl()] = w
	subscribe := req.GetResourceNamesSubscribe()
	w.wildcard = len(subscribe) == 0 || slices.Contains(subscribe, Wildcard)
	if w.wildcard && !slices.Contains(req.GetResourceNamesUnsubscribe(), Wildcard) {
		w.owesFirst = true
		w.catchUp(t, req)
		if s.isFirst(req.GetTypeUrl()) {
			w.postponeKnown(t, req)
		}
		return w
	}
	known := req.versions()
	// What a client of single names has it also follows.
	w.wildcard = false
	for name, version := range known {
		w.names[name] = struct{}{}
		r, ok := t.resources[name]
		if ok {
			w.held[name] = struct{}{}
		}
		if !ok || r.Version != version {
			w.pending[name] = struct{}{}
		}
		w.oweNews(t, name, known)
	}
	if s.groups != nil && s.node != nil {
		for _, g := range s.groups(s.node) {
			w.names[g] = struct{}{}
			w.oweNews(t, g, known)
		}
	}
	rest := slices.DeleteFunc(slices.Clone(subscribe), func(n string) bool {
		_, have := known[n]
		return have || n == Wildcard
	})
	w.subscribe(t, rest, known)
	return w
}

// oweNews owes the parts of something, less those that are known already.
func (w *watch) oweNews(t *table, of string, known map[string]string) {
	for name := range t.parts[of] {
		if version, ok := known[name]; !ok || version != t.resources[name].Version {
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
			if !w.wildcard {
				w.wildcard, w.owesFirst = true, true
				w.catchUp(t, nil)
			}
			continue
		}
		w.names[name] = struct{}{}
		resolved := t.resolve(name)
		for _, r := range resolved {
			w.pending[r] = struct{}{}
			w.oweNews(t, r, known)
		}
		if len(resolved) == 0 {
			w.pending[name] = struct{}{}
		}
	}
}

// unsubscribe removes names, and with them what the client held for them.
func (w *watch) unsubscribe(t *table, names []string) {
	for _, name := range names {
		if name == Wildcard {
			w.wildcard, w.owesFirst, w.backlog = false, false, nil
			continue
		}
		delete(w.names, name)
	}
	if len(names) == 0 || w.wildcard {
		return
	}
	for _, m := range [...]map[string]struct{}{w.held, w.pending} {
		for name := range m {
			if !w.wanted(t, name) {
				delete(m, name)
			}
		}
	}
}

// wanted tells whether a resource is asked for: by its name or an alias, or
// because something that it is a part of is.
func (w *watch) wanted(t *table, name string) bool {
	return w.named(t, name) || slices.ContainsFunc(t.groupsOf(name), func(g string) bool { return w.named(t, g) })
}

func (w *watch) named(t *table, name string) bool {
	return has(w.names, name) || slices.ContainsFunc(t.aliasesOf(name), func(a string) bool { return has(w.names, a) })
}

// next returns a response that is due, or nil.
func (s *session) next() *reply {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, typeURL := range s.order() {
		w, t := s.types[typeURL], s.cache.types[typeURL]
		if t == nil || !t.synced {
			continue
		}
		released := s.released(w, typeURL)
		if w.sent != "" {
			if s.isFirst(typeURL) && w.news(t) {
				return nil // what names them must not overtake them
			}
			continue
		}
		resp := w.respond(t, typeURL, s.chunk, released)
		if resp == nil {
			continue
		}
		if !w.dueNow() {
			w.covers = s.notes
		}
		s.nonces++
		resp.nonce = strconv.FormatUint(s.nonces, 10)
		w.sent = resp.nonce
		return resp
	}
	return nil
}

// order lists the types: the preferred ones, then the others by name.
func (s *session) order() []string {
	out := slices.Sorted(maps.Keys(s.types))
	slices.SortStableFunc(out, func(a, b string) int { return s.preference(a) - s.preference(b) })
	return out
}

func (s *session) preference(typeURL string) int {
	if i := slices.Index(s.first, typeURL); i >= 0 {
		return i
	}
	return len(s.first)
}

func (w *watch) respond(t *table, typeURL string, limit int, released uint64) *reply {
	resp := &reply{typeURL: typeURL}
	due := len(w.pending) + len(w.backlog)
	if limit > 0 {
		due = min(due, limit/guessedBody)
	}
	resp.grow(due)
	size := 0
	for name := range w.pending {
		if limit > 0 && size >= limit {
			break
		}
		if w.waits(t, name, released) {
			continue
		}
		delete(w.late, name)
		delete(w.pending, name)
		size += w.add(resp, t, name)
	}
	for len(w.backlog) > 0 && (limit == 0 || size < limit) {
		name := w.backlog[0]
		w.backlog = w.backlog[1:]
		// Gone since: the client never had it.
		if _, ok := t.resources[name]; ok {
			size += w.add(resp, t, name)
		}
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

// add puts a resource or its absence into a response and returns the bytes.
func (w *watch) add(resp *reply, t *table, name string) int {
	r, ok := t.resources[name]
	if !ok {
		// A name that turns out to be an alias by now is answered by what has it.
		if len(t.aliases[name]) == 0 || w.wildcard {
			resp.removed = append(resp.removed, name)
			delete(w.held, name)
		}
		return len(name)
	}
	if !w.wildcard {
		w.held[name] = struct{}{}
	}
	resp.add(r.Resource)
	return len(name) + len(r.Body)
}

// status describes what the client follows.
func (s *session) status() []TypeStatus {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []TypeStatus
	for _, typeURL := range s.order() {
		w := s.types[typeURL]
		st := TypeStatus{
			TypeURL: typeURL, Wildcard: w.wildcard, Resources: len(w.held), Pending: len(w.pending) + len(w.backlog),
			Acked: w.acked, Sent: w.sent, Error: w.rejected,
		}
		if t := s.cache.types[typeURL]; w.wildcard && t != nil {
			st.Resources = max(0, len(t.resources)-st.Pending)
		}
		if st.Sent == "" {
			st.Sent = st.Acked
		}
		out = append(out, st)
	}
	return out
}
