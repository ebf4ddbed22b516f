// Package kube watches the objects that the mesh reads in the Kubernetes API
// and delivers what changed. Objects are cut down to what is read of them
// before anything is kept. While the API cannot be reached, what was seen
// stays; afterwards only the difference is delivered.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/metadata"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Options say what to watch.
type Options struct {
	Client *client.Client
	// Kinds are some of source.Kinds.
	Kinds []*source.Kind
	// Node restricts pods to those of one node; empty for all.
	Node string
	// DiscoverySelectors pick the namespaces that the mesh looks at, by their
	// labels; one of them is enough. None: all. Namespaces and Nodes are
	// delivered in any case.
	DiscoverySelectors []metav1.LabelSelector
	Logger             *slog.Logger          // nil for none
	Registerer         prometheus.Registerer // nil for none
	// ClusterID is the value of the label cluster of all metrics.
	ClusterID string
}

// Origin of every event, for people.
const Origin = "cluster"

// Problem is an object that cannot be used as it is now.
type Problem struct {
	Key     source.Key `json:"key"`
	Message string     `json:"message"`
}

// String renders Kind/namespace/name: message.
func (p Problem) String() string { return p.Key.String() + ": " + p.Message }

// Source watches a cluster. Run may be called once; everything else at any
// time, from any goroutine.
type Source struct {
	log     *slog.Logger
	feeds   []*feed
	ops     chan op
	metrics *sourceMetrics
	state   *state // owned by Run

	mu        sync.Mutex
	problems  []Problem
	selectors []labels.Selector
	selected  chan struct{} // selectors were replaced
}

// queue is how many changes wait for the sink before watches are read no
// further.
const queue = 256

// New prepares a Source.
func New(o Options) (*Source, error) {
	selectors, err := readSelectors(o.DiscoverySelectors)
	if err != nil {
		return nil, err
	}
	meta, err := metadata.NewForConfig(o.Client.Config)
	if err != nil {
		return nil, fmt.Errorf("watch the Kubernetes API: %w", err)
	}
	s := &Source{log: o.Logger, ops: make(chan op, queue), selectors: selectors, selected: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.metrics, err = newMetrics(o.Registerer, o.ClusterID); err != nil {
		return nil, fmt.Errorf("watch the Kubernetes API of cluster %q: %w", o.ClusterID, err)
	}
	health := newHealth(s.log, s.metrics)
	// The labels of namespaces decide which objects are delivered.
	kinds := append(slices.Clone(o.Kinds), source.Namespace.Kind)
	slices.SortFunc(kinds, (*source.Kind).Compare)
	for _, kind := range slices.Compact(kinds) {
		s.feeds = append(s.feeds, newFeed(kind, opener{client: o.Client, metadata: meta, node: o.Node}, s.ops, health))
	}
	s.state = newState(o.Kinds, selectors)
	return s, nil
}

func readSelectors(list []metav1.LabelSelector) ([]labels.Selector, error) {
	out := make([]labels.Selector, 0, len(list))
	for i := range list {
		sel, err := metav1.LabelSelectorAsSelector(&list[i])
		if err != nil {
			return nil, fmt.Errorf("discovery selector %d: %w", i+1, err)
		}
		out = append(out, sel)
	}
	return out, nil
}

// SetDiscoverySelectors replaces the selectors, or none of them when one is
// wrong. Objects that are no longer looked at are delivered as gone, those
// that now are as new.
func (s *Source) SetDiscoverySelectors(selectors []metav1.LabelSelector) error {
	read, err := readSelectors(selectors)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.selectors = read
	s.mu.Unlock()
	select {
	case s.selected <- struct{}{}:
	default: // Run will look anyway
	}
	return nil
}

// Problems lists what is wrong now, ordered by key.
func (s *Source) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// Run delivers everything to sink and then every change, until ctx ends
// (which returns nil, and removes the metrics). The first delivery is all there is, once every kind
// was listed; a kind that is not installed counts as listed.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	defer s.metrics.stop()
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range s.feeds {
		g.Go(func() error {
			f.run(ctx)
			return nil
		})
	}
	g.Go(func() error {
		s.deliver(ctx, sink)
		return nil
	})
	return g.Wait()
}

// deliver is the one goroutine that owns the state and calls the sink.
func (s *Source) deliver(ctx context.Context, sink source.Sink) {
	synced := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.selected:
			s.mu.Lock()
			selectors := s.selectors
			s.mu.Unlock()
			s.state.setSelectors(selectors)
		case o := <-s.ops:
			s.state.apply(o)
			s.drain()
		}
		s.report()
		if len(s.state.synced) < len(s.feeds) {
			continue
		}
		if events := s.state.flush(); len(events) > 0 {
			s.metrics.delivered(events, s.state)
			sink.Apply(events)
		}
		if !synced {
			synced = true
			sink.Synced()
		}
	}
}

// drain takes what else waits, so that a burst is one delivery.
func (s *Source) drain() {
	for range queue {
		select {
		case o := <-s.ops:
			s.state.apply(o)
		default:
			return
		}
	}
}

// report publishes and logs what is wrong.
func (s *Source) report() {
	if !s.state.newProblems {
		return
	}
	s.state.newProblems = false
	now := make([]Problem, 0, len(s.state.problems))
	for _, key := range slices.SortedFunc(maps.Keys(s.state.problems), source.Key.Compare) {
		now = append(now, Problem{key, s.state.problems[key]})
	}
	s.mu.Lock()
	before := s.problems
	s.problems = now
	s.mu.Unlock()
	for _, p := range now {
		if !slices.Contains(before, p) {
			s.log.Warn("an object cannot be used as it is; its last good state stays in effect", "object", p.Key.String(), "error", p.Message)
		}
	}
}

// sourceMetrics count what goes wrong and what is there.
type sourceMetrics struct {
	reachable prometheus.Gauge
	failures  *prometheus.CounterVec
	events    *prometheus.CounterVec
	objects   *prometheus.GaugeVec
	stop      func() // removes them from where they were registered
}

func newMetrics(reg prometheus.Registerer, cluster string) (*sourceMetrics, error) {
	m := &sourceMetrics{
		reachable: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ambit_kube_reachable", Help: "Whether the Kubernetes API answers: 1 or 0."}),
		failures:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_kube_watch_failures_total", Help: "Attempts to list or watch that failed, by kind."}, []string{"kind"}),
		events:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_kube_events_total", Help: "Changes of objects that were passed on, by kind."}, []string{"kind"}),
		objects:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ambit_kube_objects", Help: "Objects there are, by kind."}, []string{"kind"}),
	}
	m.stop = func() {}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"cluster": cluster}, reg)
	var registered []prometheus.Collector
	m.stop = func() {
		for _, c := range registered {
			reg.Unregister(c)
		}
	}
	for _, c := range []prometheus.Collector{m.reachable, m.failures, m.events, m.objects} {
		if err := reg.Register(c); err != nil {
			m.stop()
			return nil, err
		}
		registered = append(registered, c)
	}
	return m, nil
}

func (m *sourceMetrics) delivered(events []source.Event, s *state) {
	for _, e := range events {
		m.events.WithLabelValues(e.Key.Kind.String()).Inc()
	}
	for kind, objects := range s.kinds {
		m.objects.WithLabelValues(kind.String()).Set(float64(len(objects)))
	}
}

// backoff is how long to wait after n attempts in a row that came to nothing.
func backoff(n int, jitter float64) time.Duration {
	d := min(firstWait<<min(n, 20), maxWait)
	return time.Duration(float64(d) * (0.5 + jitter/2))
}

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 30 * time.Second
)

// message is an error's text, bounded.
func message(err error) string {
	const most = 500
	text := cmp.Or(err, errors.New("unknown")).Error()
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

// Trim returns what the source keeps of an object of a kind that is cut down;
// others it returns as they are.
func Trim(obj metav1.Object) metav1.Object {
	if kind, ok := source.KindFor(obj); ok && kind.Trim != nil {
		return kind.Trim(new(source.Interner), obj)
	}
	return obj
}
