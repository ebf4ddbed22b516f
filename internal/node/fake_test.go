package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// fdPath names an open namespace for everybody in this process.
func fdPath(ns *netns.NS) string { return fmt.Sprintf("/proc/self/fd/%d", ns.File().Fd()) }

// world is everything around an agent, and writes down what happens to it.
type world struct {
	mu     sync.Mutex
	events []string

	found map[string]*netns.NS // the resolver's

	rules       string // of the one namespace: "", capture, quiesce, broken
	connections int
	kernelErr   error

	connected  bool
	served     map[string]netns.ID
	registered map[string]netns.ID
	kept       map[string]bool
	refuse     bool
	listed     map[string]netns.ID // what was registered when a proxy could first connect
	listedKept map[string]bool

	announced map[string]string // by pod name
	mute      bool              // nobody can be told
	told      []Notice
	applied   nft.Config
}

func newWorld() *world {
	return &world{
		found: map[string]*netns.NS{}, served: map[string]netns.ID{}, registered: map[string]netns.ID{},
		kept: map[string]bool{}, announced: map[string]string{}, connected: true,
	}
}

func (w *world) note(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf(format, args...))
}

// take returns what has happened since it was called last.
func (w *world) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

func (w *world) set(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

func (w *world) Find(uids []string, prove func(*netns.NS) error) (*netns.NS, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, uid := range uids {
		if ns := w.found[uid]; ns != nil {
			if err := prove(ns); err != nil {
				return nil, err
			}
			return ns.Dup()
		}
	}
	return nil, ErrNoNamespace
}

func (w *world) Apply(_ *netns.NS, cfg nft.Config) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kernelErr != nil {
		return w.kernelErr
	}
	w.rules, w.applied = "capture", cfg
	if cfg.Quiesce {
		w.rules = "quiesce"
	}
	w.note("rules %s", w.rules)
	return nil
}

func (w *world) Check(*netns.NS, nft.Config) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rules == "capture" {
		return nil, w.kernelErr
	}
	return []string{"rules are not there"}, w.kernelErr
}

func (w *world) Remove(*netns.NS) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rules != "" {
		w.note("rules removed")
	}
	w.rules = ""
	return nil
}

func (w *world) Present(*netns.NS) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rules != "", w.kernelErr
}

func (w *world) Connections(*netns.NS) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.connections, nil
}

func (w *world) Register(l zds.Workload) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.registered[l.UID] = l.NS.ID()
	return nil
}

func (w *world) Keep(uid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept[uid] = true
}

func (w *world) Add(_ context.Context, l zds.Workload) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.registered[l.UID] = l.NS.ID()
	switch {
	case !w.connected:
		return zds.ErrNoProxy
	case w.refuse:
		return &zds.RefusedError{UID: l.UID, Reason: "no"}
	case w.served[l.UID] == l.NS.ID():
		return nil
	}
	w.served[l.UID] = l.NS.ID()
	w.note("served")
	return nil
}

func (w *world) Del(_ context.Context, uid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.served[uid]; ok {
		w.note("no longer served")
	}
	delete(w.served, uid)
	delete(w.registered, uid)
	delete(w.kept, uid)
	return nil
}

func (w *world) Served(uid string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.served[uid]
	return ok
}

func (w *world) Serve(ctx context.Context) error {
	w.set(func() { w.listed, w.listedKept = maps.Clone(w.registered), maps.Clone(w.kept) })
	<-ctx.Done()
	return nil
}

func (w *world) Annotate(_ context.Context, pod Pod, value string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mute {
		return errBroken
	}
	w.announced[pod.Name] = value
	w.note("announced %q", value)
	return nil
}

func (w *world) tell(_ Pod, n Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, n)
}

// bubble runs an agent over a fake world, on a clock of its own. The pod's
// namespace is real, and nothing is done to it.
type bubble struct {
	*Agent
	w   *world
	ns  *netns.NS
	pod Pod
}

func inBubble(t *testing.T, setup func(b *bubble), test func(t *testing.T, b *bubble)) {
	t.Helper()
	ns, _ := netnstest.Link(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.found["uid"] = ns
		a, err := New(Config{
			Policy:  Policy{Selectors: DefaultSelectors(), ExcludeNamespaces: []string{"kube-system"}},
			Proxies: w, Resolver: w, Annotator: w, Kernel: w, Logger: slog.New(slog.DiscardHandler),
			Tell: w.tell, Settle: DefaultSettle, Drain: DefaultDrain, Redirection: nft.Config{IPv6: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		b := &bubble{Agent: a, w: w, ns: ns, pod: Pod{UID: "uid", Name: "web", Namespace: "default", IPs: []netip.Addr{netnstest.PodIPv6}}}
		if setup != nil {
			setup(b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		a.Synced()
		synctest.Wait()
		test(t, b)
		cancel()
		<-done
		for _, st := range a.states {
			st.drop()
		}
	})
}

func (b *bubble) label(labels map[string]string) {
	b.SetNamespace("default", labels)
	synctest.Wait()
}

// heard gives the pod the annotation that was announced for it.
func (b *bubble) heard() {
	b.w.set(func() {
		b.pod.Annotations = nil
		if v := b.w.announced[b.pod.Name]; v != "" {
			b.pod.Annotations = map[string]string{"ambient.istio.io/redirection": v}
		}
	})
	b.Set(b.pod)
	synctest.Wait()
}

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

var errBroken = errors.New("the kernel says no")
