package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

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

	// scope returns what the client may have of a type; nil is everything. It
	// is called without locks.
	scope func(node *core.Node, typeURL string) (Scope, error)
	// converged gets how long a change took until the client has accepted it; may be nil.
	converged func(typeURL string, took time.Duration)

	mu     sync.Mutex // taken after the cache's
	node   *core.Node // of the first request; used by request only
	types  map[string]*watch
	order  []string // of types: the preferred ones, then the others by name
	nonces uint64
	notes  uint64 // counts what the types other than the first were owed
	clock  uint64 // counts what all types were owed
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

// changed takes in what the cache changed at once; the cache is locked. The
// first types come last: what waits among them waits for the other types'
// changes too.
func (s *session) changed(updates []typeChanges) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, first := range [...]bool{false, true} {
		for _, u := range updates {
			if w := s.types[u.typeURL]; w != nil && s.isFirst(u.typeURL) == first {
				s.take(w, u)
			}
		}
	}
}

// take owes the client the changes of one type that it follows.
func (s *session) take(w *watch, u typeChanges) {
	first, woken := s.isFirst(u.typeURL), false
	var t *table
	if w.tracks() {
		t = s.cache.types[u.typeURL]
	}
	for _, c := range u.changes {
		if t != nil {
			var sees bool
			if c, sees = w.seen(t, c); !sees {
				continue
			}
			if c.added {
				w.oweParts(t, c.name, nil)
			}
		}
		if first {
			w.postpone(c, s.notes)
		} else {
			w.pending[c.name] = struct{}{}
		}
		woken = true
	}
	if woken {
		if w.since.IsZero() {
			w.since = time.Now()
		}
		s.owed(u.typeURL)
		s.signal()
	}
}

func has(set map[string]struct{}, name string) bool { _, ok := set[name]; return ok }

// errScope is wrapped by errors that say why a client may have nothing of a type.
var errScope = errors.New("no resources of this type")

// decide asks what the client may have of the type of a request.
func (s *session) decide(req *request) (Scope, error) {
	if s.node == nil {
		s.node = req.GetNode()
	}
	if s.scope == nil {
		return Scope{All: true}, nil
	}
	scope, err := s.scope(s.node, req.GetTypeUrl())
	if err != nil {
		return Scope{}, fmt.Errorf("%w: %w", errScope, err)
	}
	return scope, nil
}

// request takes a message of the client in. The error ends the stream.
// Rejected is the detail of a NACK, empty for everything else. It is called by
// one goroutine, the only one that adds types.
func (s *session) request(req *request) (rejected string, err error) {
	w := s.types[req.GetTypeUrl()]
	var scope Scope
	if w == nil {
		if scope, err = s.decide(req); err != nil {
			return "", err
		}
	}
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.signal()
	if slices.Contains(req.GetNode().GetClientFeatures(), featurePartial) {
		s.chunk = chunkBytes
	}
	t := s.cache.types[req.GetTypeUrl()]
	if t == nil {
		t = &table{} // nothing yet; clients do not add types to the cache
	}
	if w == nil {
		if len(s.types) >= maxTypes {
			return "", fmt.Errorf("more than %d types of resources", maxTypes)
		}
		w = s.start(t, scope, req)
	} else {
		w.subscribe(t, req.GetResourceNamesSubscribe(), nil)
	}
	w.unsubscribe(t, req.GetResourceNamesUnsubscribe())
	if w.dueNow() {
		s.owed(req.GetTypeUrl())
	}
	n := 0
	for _, w := range s.types {
		n += len(w.names) + w.strays
	}
	if n > s.mostNames {
		return "", fmt.Errorf("%d subscriptions, at most %d are served", n, s.mostNames)
	}
	if nonce := req.GetResponseNonce(); nonce != "" && nonce == w.sent {
		s.accepted(w)
		w.sent, w.acked = "", nonce
		w.rejected = ""
		if req.GetErrorDetail() == nil {
			w.paid = w.covered
			if !w.under.IsZero() && s.converged != nil {
				s.converged(req.GetTypeUrl(), time.Since(w.under))
			}
		}
		w.under = time.Time{}
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

// next returns a response that is due, or nil.
func (s *session) next() *reply {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, typeURL := range s.order {
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
			w.covers, w.covered = s.notes, s.clock
			w.under, w.since = w.since, time.Time{}
		}
		s.nonces++
		resp.nonce = strconv.FormatUint(s.nonces, 10)
		w.sent = resp.nonce
		return resp
	}
	return nil
}

// add adds a type.
func (s *session) add(typeURL string, w *watch) {
	s.types[typeURL] = w
	s.order = slices.Sorted(maps.Keys(s.types))
	slices.SortStableFunc(s.order, func(a, b string) int { return s.preference(a) - s.preference(b) })
}

func (s *session) preference(typeURL string) int {
	if i := slices.Index(s.first, typeURL); i >= 0 {
		return i
	}
	return len(s.first)
}

// status describes what the client follows.
func (s *session) status() []TypeStatus {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []TypeStatus
	for _, typeURL := range s.order {
		w := s.types[typeURL]
		st := TypeStatus{
			TypeURL: typeURL, Wildcard: w.wildcard, Resources: len(w.held), Pending: len(w.pending) + len(w.backlog),
			Acked: w.acked, Sent: w.sent, Error: w.rejected,
		}
		if t := s.cache.types[typeURL]; !w.tracks() && t != nil {
			st.Resources = max(0, len(t.resources)-st.Pending)
		}
		if st.Sent == "" {
			st.Sent = st.Acked
		}
		out = append(out, st)
	}
	return out
}
