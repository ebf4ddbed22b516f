// Package tracer is the traces of one loop of a gateway: what is observed of which
// service, the spans of requests under way, and their way to a collector.
package tracer

import (
	"log/slog"
	"math/rand/v2"

	"github.com/ambit-mesh/ambit/internal/gateway/spans"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/export"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Config is what a Tracer is made of. Observed and Counters may be nil.
type Config struct {
	Loop *poll.Loop
	Pool *pool.Pool
	// Reach chooses an endpoint of a collector; see export.Config.
	Reach func(c *observe.Collector, resume func()) (pool.Target, bool, *reason.Error)
	// Observed returns what is observed, nil before that has come.
	Observed func() *observe.Set
	// Self returns the gateway's own workload, nil while it is not known.
	Self     func() *workload.Workload
	Address  string // of the gateway
	Counters *otlp.Counters
	Log      *slog.Logger
}

// Tracer belongs to its loop.
type Tracer struct {
	cfg      Config
	exporter *export.Exporter
	encoder  otlp.Encoder
	spare    []*spans.Span
	add      func([]byte)
	to       *observe.Collector // of add
	party    string             // of add

	set    *observe.Set // that settings are made of
	of     map[observe.Service]*observe.Settings
	recent observe.Service   // whose settings were asked for last
	last   *observe.Settings // they
	self   spans.Self
	selfOf *workload.Workload // that self is made of
}

const (
	// maxSpare bounds the spans that a loop keeps for use again.
	maxSpare = 1024
	// maxObserved bounds the services whose settings a loop keeps.
	maxObserved = 4096
	// spanSize is about how many bytes the spans of one request take.
	spanSize = 4 << 10
)

// New returns a Tracer.
func New(cfg Config) *Tracer {
	if cfg.Counters == nil {
		cfg.Counters = otlp.NewCounters("waypoint", "spans")
	}
	t := &Tracer{cfg: cfg, of: map[observe.Service]*observe.Settings{}}
	t.exporter = export.New(export.Config{
		Loop: cfg.Loop, Pool: cfg.Pool, Reach: cfg.Reach, Prefix: t.Prefix, Counters: cfg.Counters, Log: cfg.Log, Method: export.MethodTraces,
	})
	t.add = func(body []byte) { t.exporter.Add(t.to, t.party, body) }
	return t
}

// Settings returns what is observed of the requests to a service, or, with the name of a
// namespace alone, to a workload in it.
func (t *Tracer) Settings(k observe.Service) *observe.Settings {
	if t.cfg.Observed == nil {
		return none
	}
	set := t.cfg.Observed()
	if set == nil {
		return none
	}
	if set != t.set || len(t.of) >= maxObserved {
		t.set, t.last = set, nil
		clear(t.of)
	}
	if t.last != nil && t.recent == k {
		return t.last
	}
	s := t.of[k]
	if s == nil {
		s = set.For(k)
		t.of[k] = s
	}
	t.recent, t.last = k, s
	return s
}

// none is what is observed before anything has come.
var none = (*observe.Set)(nil).For(observe.Service{})

// Begin decides whether a request has spans, and which headers its endpoint gets. It
// returns nil when it has none.
func (t *Tracer) Begin(o *observe.Settings, h *message.Head, tunnel *spans.Tunnel) *spans.Span {
	if o.Tracing == nil {
		return nil
	}
	var s *spans.Span
	if n := len(t.spare); n > 0 {
		s, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		s = &spans.Span{}
	}
	if s.Begin(o.Tracing, h, tunnel, rand.Uint64) {
		return s
	}
	t.Release(s)
	return nil
}

// Release takes the span of a request back that has ended.
func (t *Tracer) Release(s *spans.Span) {
	if len(t.spare) < maxSpare {
		t.spare = append(t.spare, s)
	}
}

// Report passes the spans of a request on. Clients decide which requests are sampled, so
// the room is shared by parties.
func (t *Tracer) Report(s *spans.Span, party string, v *spans.Values) {
	if t.to, t.party = s.Collector(), party; t.exporter.Admits(t.to, party, spanSize) {
		s.Encode(&t.encoder, t.me(), v, t.add)
	}
}

// Flush sends what waits, and reports whether nothing is left.
func (t *Tracer) Flush() bool { return t.exporter.Flush() }

// Close gives up what is left.
func (t *Tracer) Close() { t.exporter.Close() }

// me returns what spans say of this gateway.
func (t *Tracer) me() *spans.Self {
	if w := t.cfg.Self(); w != nil && w != t.selfOf {
		t.selfOf = w
		t.self = spans.Self{
			Name: w.CanonicalName, Namespace: w.Namespace, Cluster: w.ClusterID, Mesh: w.TrustDomain,
			Node: "waypoint~" + t.cfg.Address + "~" + w.Name + "." + w.Namespace + "~" + w.Namespace + ".svc." + wellknown.DefaultDomain,
		}
	}
	return &t.self
}

// Prefix names the process that sends.
func (t *Tracer) Prefix() *otlp.Prefix {
	me := t.me()
	var pod, node string
	if t.selfOf != nil {
		pod, node = t.selfOf.Name, t.selfOf.Node
	}
	return otlp.NewPrefix("ambit.waypoint", version.Get().Version, []otlp.Attribute{
		{Key: "service.name", Value: me.Name + "." + me.Namespace}, {Key: "service.namespace", Value: me.Namespace},
		{Key: "service.instance.id", Value: pod}, {Key: "k8s.namespace.name", Value: me.Namespace}, {Key: "k8s.pod.name", Value: pod},
		{Key: "k8s.node.name", Value: node}, {Key: "k8s.cluster.name", Value: me.Cluster},
	})
}
