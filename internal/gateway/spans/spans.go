// Package spans makes the spans of requests: one of the request as a server, and one of
// it as a client of an endpoint. It decides what headers the endpoint gets. It does no
// IO.
package spans

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

// Span is one request that is sampled. The zero value is none yet.
type Span struct {
	tracing *observe.Tracing
	trace   trace.ID
	parent  trace.SpanID // zero: the trace begins here
	server  trace.SpanID
	client  trace.SpanID
	remote  bool // parent is of another program
	link    connect.Trace
	state   []byte
	stored  [512]byte // of state
	sent    time.Time // when the request went to an endpoint; zero before
}

// Tunnel is what is known of the trace of a client's connection, by the traceparent of
// its tunnel.
type Tunnel struct {
	Trace connect.Trace
	// Used: a request of the connection is in that trace.
	Used bool
}

// ParseTunnel reads the traceparent of a tunnel.
func ParseTunnel(traceparent string) (t Tunnel) {
	t.Trace, _ = connect.ParseTrace(traceparent)
	return t
}

// Begin decides about a request: which trace it belongs to, and whether it gets spans.
// The headers are changed accordingly. It reports whether s is the request's now. random
// returns random numbers.
//
// A request without a context begins a trace. The first one of a connection belongs to
// the trace of the connection, so that what the node proxy logs of it can be found, and
// what the node proxy has decided about sampling counts for it. The others have a link to
// it: a trace of a connection would not end.
func (s *Span) Begin(t *observe.Tracing, h *message.Head, tunnel *Tunnel, random func() uint64) bool {
	in := trace.Extract(h)
	fresh := !in.Valid()
	joins := fresh && tunnel.Trace != connect.Trace{} && !tunnel.Used
	decision := in.Decision
	if joins && decision == trace.Undecided {
		decision = trace.Decision(tunnel.Trace.Decision)
	}
	sampled := t.Share.Take(decision, random())
	out := trace.Context{Trace: in.Trace, Forms: in.Forms, Decision: trace.Dropped}
	if sampled {
		out.Decision = trace.Sampled
	}
	switch {
	case joins:
		tunnel.Used = true
		out.Trace = trace.ID(tunnel.Trace.ID)
	case fresh:
		out.Trace = trace.NewID(random(), random())
	}
	if !sampled || t.Collector == nil {
		// The span of the sender stays the parent of what follows.
		if out.Span = in.Span; fresh {
			out.Span = trace.NewSpanID(random())
		}
		propagate(t, h, &out, fresh)
		return false
	}
	*s = Span{
		tracing: t, trace: out.Trace, parent: in.Span, remote: !fresh, server: trace.NewSpanID(random()), client: trace.NewSpanID(random()),
	}
	switch {
	case joins:
		s.parent, s.remote = trace.SpanID(tunnel.Trace.Span), true
	case trace.ID(tunnel.Trace.ID) != s.trace:
		s.link = tunnel.Trace
	}
	if !fresh {
		s.state = append(s.stored[:0], trace.State(h)...)
	}
	out.Span = s.client
	propagate(t, h, &out, fresh)
	return true
}

func propagate(t *observe.Tracing, h *message.Head, c *trace.Context, fresh bool) {
	if !t.Propagate {
		trace.Strip(h)
		return
	}
	trace.Inject(h, c, fresh)
}

// Traceparent returns the context that the connection to an endpoint gets which is made
// for the request: a part of the client's span.
func (s *Span) Traceparent() string {
	return connect.Trace{ID: s.trace, Span: s.client, Decision: connect.Sampled}.String()
}

// Collector returns where the spans go.
func (s *Span) Collector() *observe.Collector { return s.tracing.Collector }

// Sent notes when the request went to an endpoint for the first time.
func (s *Span) Sent(at time.Time) {
	if s.sent.IsZero() {
		s.sent = at
	}
}
