// Package jwks fetches the public keys of the issuers that RequestAuthentications name,
// and keeps them up to date. Users of the mesh choose the addresses, so a Client
// connects to none that could be the control plane's own surroundings, and bounds what it
// reads.
package jwks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/fair"
)

// Source is where keys come from, for the policies of one namespace.
type Source struct {
	Namespace string
	URI       string // of a key set
	Issuer    string // whose metadata name the URI, if URI is empty
}

// String returns the address, for logs and statuses.
func (s Source) String() string { return cmp.Or(s.URI, s.Issuer) }

// Compare orders sources.
func (s Source) Compare(o Source) int {
	return cmp.Or(strings.Compare(s.Namespace, o.Namespace), strings.Compare(s.URI, o.URI), strings.Compare(s.Issuer, o.Issuer))
}

// State is what is known of a source. It is immutable.
type State struct {
	Keys    string // the key set, of public keys; empty while none is known
	Count   int
	Problem string // of the last attempt; empty when it went well
}

// Same reports whether two states are alike.
func Same(a, b *State) bool { return *a == *b }

// Bounds of what is fetched.
const (
	maxSources     = 1024
	maxSourcesEach = 64 // of a namespace
	places         = 16 // at a time
	placesEach     = 2
)

// Waits between attempts. After a failure they double.
const (
	// DefaultRefresh is how old keys become.
	DefaultRefresh = 20 * time.Minute
	firstRetry     = 2 * time.Second
	// retryMost is the longest wait while no key is known, and laterMost with keys.
	retryMost = time.Minute
	laterMost = 5 * time.Minute
)

// Config is what a Fetcher needs.
type Config struct {
	// Fetch reads the keys of a source; Client.Fetch.
	Fetch func(context.Context, Source) (text string, keys int, err error)
	// Refresh is how long keys are not fetched again; about: it varies by a tenth.
	Refresh time.Duration
	// Fetched, if set, is called after each attempt.
	Fetched func(ok bool)
	Log     *slog.Logger
}

// Fetcher keeps the keys of sources up to date. Its methods may be called from any
// goroutine.
type Fetcher struct {
	cfg   Config
	queue *fair.Queue
	wake  chan struct{}

	mu     sync.Mutex
	wanted map[Source]struct{} // guarded by mu
}

// New returns a Fetcher that fetches nothing before Run.
func New(cfg Config) *Fetcher {
	cfg.Refresh = cmp.Or(cfg.Refresh, DefaultRefresh)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fetched == nil {
		cfg.Fetched = func(bool) {}
	}
	return &Fetcher{
		cfg: cfg, wake: make(chan struct{}, 1), wanted: map[Source]struct{}{},
		queue: fair.New(fair.Limits{Places: places, PlacesEach: placesEach}),
	}
}

// Want makes the Fetcher fetch the keys of a source, Forget ends that. Neither waits.
func (f *Fetcher) Want(s Source) {
	f.mu.Lock()
	f.wanted[s] = struct{}{}
	f.mu.Unlock()
	f.signal()
}

// Forget ends what Want began.
func (f *Fetcher) Forget(s Source) {
	f.mu.Lock()
	delete(f.wanted, s)
	f.mu.Unlock()
	f.signal()
}

func (f *Fetcher) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run fetches until ctx ends. report gets the state of a source after each change, and
// nil when it is no longer wanted.
func (f *Fetcher) Run(ctx context.Context, report func(Source, *State)) {
	w := work{under: map[Source]*task{}, over: map[Source]struct{}{}}
	var all sync.WaitGroup
	defer all.Wait()
	for {
		f.settle(ctx, w, &all, report)
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
	}
}

// task is the work on one source.
type task struct {
	stop context.CancelFunc
	done chan struct{}
}

// work is what a Fetcher does: tasks, and sources that are beyond a bound.
type work struct {
	under map[Source]*task
	over  map[Source]struct{}
}

// settle begins and ends tasks until they are those that are wanted. A source beyond a
// bound is reported as a failure.
func (f *Fetcher) settle(ctx context.Context, w work, all *sync.WaitGroup, report func(Source, *State)) {
	f.mu.Lock()
	var begin []Source
	for s := range f.wanted {
		if w.under[s] == nil {
			begin = append(begin, s)
		}
	}
	var end []Source
	for s := range w.under {
		if _, is := f.wanted[s]; !is {
			end = append(end, s)
		}
	}
	for s := range w.over {
		if _, is := f.wanted[s]; !is {
			end = append(end, s)
		}
	}
	f.mu.Unlock()
	for _, s := range end {
		if t := w.under[s]; t != nil {
			t.stop()
			<-t.done
		}
		delete(w.under, s)
		delete(w.over, s)
		report(s, nil)
	}
	slices.SortFunc(begin, Source.Compare)
	each := map[string]int{}
	for s := range w.under {
		each[s.Namespace]++
	}
	for _, s := range begin {
		if len(w.under) >= maxSources || each[s.Namespace] >= maxSourcesEach {
			w.over[s] = struct{}{}
			report(s, &State{Problem: fmt.Sprintf("not fetched: at most %d sources of keys of a namespace, and %d of the mesh, are looked at (remove some)", maxSourcesEach, maxSources)})
			continue
		}
		delete(w.over, s)
		each[s.Namespace]++
		own, stop := context.WithCancel(ctx)
		t := &task{stop: stop, done: make(chan struct{})}
		w.under[s] = t
		all.Go(func() {
			defer close(t.done)
			f.follow(own, s, func(st *State) { report(s, st) })
		})
	}
}

// follow keeps the keys of one source up to date until ctx ends.
func (f *Fetcher) follow(ctx context.Context, s Source, report func(*State)) {
	known, last := &State{}, (*State)(nil)
	wait := firstRetry
	for {
		text, n, err := f.once(ctx, s)
		if ctx.Err() != nil {
			return
		}
		f.cfg.Fetched(err == nil)
		next := f.cfg.Refresh
		if err != nil {
			now := *known
			now.Problem = err.Error()
			known = &now
			most := retryMost
			if known.Keys != "" {
				most = min(laterMost, f.cfg.Refresh)
			}
			next = min(wait, most)
			wait = min(2*wait, laterMost)
		} else {
			known, wait = &State{Keys: text, Count: n}, firstRetry
		}
		if last == nil || !Same(last, known) {
			f.tell(s, known)
			report(known)
			last = known
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next - next/10 + rand.N(next/5+1)):
		}
	}
}

func (f *Fetcher) tell(s Source, st *State) {
	if st.Problem != "" {
		f.cfg.Log.Warn("keys not fetched", "namespace", s.Namespace, "source", s.String(), "keys_known", st.Count, "error", st.Problem)
		return
	}
	f.cfg.Log.Info("keys fetched", "namespace", s.Namespace, "source", s.String(), "keys", st.Count)
}

// once fetches, in its turn: namespaces take turns.
func (f *Fetcher) once(ctx context.Context, s Source) (string, int, error) {
	release, err := f.queue.Take(ctx, s.Namespace)
	if err != nil {
		return "", 0, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	text, n, err := f.cfg.Fetch(ctx, s)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v: %w", fetchTimeout, err)
	}
	return text, n, err
}
