package observed

import (
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
	"github.com/ambit-mesh/ambit/internal/mesh/condition"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

// Pod is what is observed of one pod. The nil Pod observes nothing. Its methods may be
// called from any goroutine.
type Pod struct {
	node  *Node
	local func(*workload.Snapshot) *workload.Workload
	last  atomic.Pointer[halves]
}

// Join adds a pod. local returns its workload, nil while it is not known.
func (n *Node) Join(local func(*workload.Snapshot) *workload.Workload) *Pod {
	if n == nil {
		return nil
	}
	p := &Pod{node: n, local: local}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[p] = struct{}{}
	return p
}

// Leave removes the pod.
func (p *Pod) Leave() {
	if p == nil {
		return
	}
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	delete(p.node.pods, p)
}

// halves are the settings of a workload, as some layers have them.
type halves struct {
	set            *observe.Set
	namespace, uid string
	client, server half
}

// half is what is observed of one half of a workload's connections. It is immutable, and
// the Watcher of those without spans.
type half struct {
	node     *Node
	settings *observe.Settings
	line     bool                    // connections have a line, those for which
	filter   []*condition.Expression // one of these holds, or all without any
	quiet    bool                    // nothing is wanted of any connection but its line
	tags     func(*accesslog.Entry) telemetry.Tags
	meter    *meter
}

// of returns the settings of the pod at this moment.
func (p *Pod) of(w *workload.Workload) *halves {
	set := p.node.cfg.Layers.Set()
	if h := p.last.Load(); h != nil && h.set == set && h.uid == w.UID && h.namespace == w.Namespace {
		return h
	}
	h := &halves{set: set, namespace: w.Namespace, uid: w.UID}
	m := p.node.meter(w.Namespace)
	h.client.compile(p.node, set.ForWorkload(w.Namespace, w.UID, observe.Client), m)
	h.server.compile(p.node, set.ForWorkload(w.Namespace, w.UID, observe.Server), m)
	p.last.Store(h)
	return h
}

func (h *half) compile(n *Node, s *observe.Settings, m *meter) {
	h.node, h.settings, h.line, h.meter = n, s, len(s.Logs) > 0, m
	for _, l := range s.Logs {
		if l.Filter == nil { // a line without a condition
			h.filter = nil
			break
		}
		if x, is := l.Filter.(*condition.Expression); is {
			h.filter = append(h.filter, x)
		}
	}
	if len(s.Values) > 0 {
		h.tags = func(e *accesslog.Entry) (t telemetry.Tags) {
			h.evaluate(func() { t = tags(s.Values, e) })
			return t
		}
	}
	h.quiet = h.line && len(h.filter) == 0 && h.tags == nil
}

// traces reports whether connections to a service begin traces. Those that carry spans to
// a collector do not: each of them would be the cause of the next.
func (p *Pod) traces(h *half, to telemetry.ServiceRef) bool {
	t := h.settings.Tracing
	return t != nil && t.Collector != nil && !p.node.cfg.Layers.Set().Collects(observe.Service{Namespace: to.Namespace, Hostname: to.Hostname})
}

// Outbound decides what is observed of a connection that a pod begins. It decides about
// the trace, once for all attempts. The result is nil for most.
func (p *Pod) Outbound(w *workload.Workload, t *connect.Trace, to telemetry.ServiceRef) *telemetry.More {
	if p == nil {
		return nil
	}
	h := &p.of(w).client
	if t.Decision == connect.Undecided && p.traces(h, to) {
		t.Decision = decide(h.settings.Tracing.Share, t.Decision, random())
	}
	if t.Decision != connect.Sampled {
		return h.more(nil)
	}
	return h.more(&span{half: h, kind: otlp.KindClient, id: t.Span})
}

// Inbound decides the same for a connection to a pod. t is the context in the request of its
// tunnel, zero for none. What a program has written into the connection is never looked at.
func (p *Pod) Inbound(w *workload.Workload, t *connect.Trace, to telemetry.ServiceRef) *telemetry.More {
	if p == nil {
		return nil
	}
	h := &p.of(w).server
	if !p.traces(h, to) {
		return h.more(nil)
	}
	d := decide(h.settings.Tracing.Share, t.Decision, random())
	if d != connect.Sampled {
		return h.more(nil)
	}
	s := &span{half: h, kind: otlp.KindServer, id: trace.NewSpanID(random())}
	switch {
	case t.IsZero():
		*t = connect.Trace{ID: trace.NewID(random(), random()), Span: s.id, Decision: d}
	case t.Decision == connect.Sampled:
		s.parent, s.remote = t.Span, true
	default: // its sender has no span
		t.Decision = d
	}
	return h.more(s)
}

// decide reports whether a trace is sampled: as its beginning has decided, else by a random
// number.
func decide(share trace.Share, d connect.Decision, random uint64) connect.Decision {
	if share.Take(trace.Decision(d), random) {
		return connect.Sampled
	}
	return connect.Dropped
}

func (h *half) more(s *span) *telemetry.More {
	switch {
	case s != nil && h.settings.Tracing != nil && h.settings.Tracing.Collector != nil:
		return &telemetry.More{Watch: s, Tags: h.tags}
	case h.quiet:
		return nil
	}
	return &telemetry.More{Watch: h, Tags: h.tags}
}

// Ended implements telemetry.Watcher.
func (h *half) Ended(e *telemetry.End) (line bool) {
	if !h.line || len(h.filter) == 0 {
		return h.line
	}
	h.evaluate(func() {
		for _, f := range h.filter {
			if line = f.Holds((*attributes)(e.Entry)); line {
				return
			}
		}
	})
	return line
}
