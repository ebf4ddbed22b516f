package gateway

import (
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/gateway/attributes"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// source is what telemetry keeps of the client of a session.
type source struct {
	counted telemetry.Client
	name    string // the identity, as it is written
	lines   *accesslog.Limit
}

// NewTelemetry returns the hooks that count and log what a gateway carries. directory
// returns the current one.
func NewTelemetry(rec *telemetry.Recorder, lines *accesslog.Requests, directory func() *workload.Snapshot) Telemetry {
	r := &reporter{rec: rec, lines: lines}
	r.current = func(w *workload.Workload) *workload.Workload {
		if w != nil {
			if now := directory().WorkloadByUID(w.UID); now != nil {
				return now
			}
		}
		return w
	}
	return Telemetry{Request: r.request, Progress: r.progress, ConnectionOpened: r.opened, ConnectionClosed: r.closed}
}

type reporter struct {
	rec     *telemetry.Recorder
	lines   *accesslog.Requests
	current func(*workload.Workload) *workload.Workload
}

// source returns what is kept of the client of a record.
func (t *reporter) source(r *Record) *source {
	c := r.from
	if c == nil { // of a CONNECT that was refused
		return &source{name: name(r.ClientIdentity), lines: r.shard.budgets.Of(r.ClientIdentity, t.rec)}
	}
	s := &c.source
	if s.lines == nil {
		s.name = name(r.ClientIdentity)
		s.lines = c.shard.budgets.Join(r.ClientIdentity, t.rec)
		s.counted = telemetry.Client{Loop: c.shard.loop.Index(), Src: r.Client, Identity: r.ClientIdentity, Baggage: r.Baggage}
	}
	return s
}

func name(id identity.Identity) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// upstream returns where a record's request went. A service that was called, but of
// which no endpoint was chosen, is the destination nevertheless.
func (r *Record) upstream() telemetry.Upstream {
	to := telemetry.Upstream{Workload: r.Endpoint, Service: r.Backend, MTLS: r.Identities != ""}
	if to.Service == nil {
		to.Service = r.Service
	}
	return to
}

func (t *reporter) count(s *source, r *Record, partial bool) {
	q := telemetry.Request{
		GRPC: r.GRPC, Status: r.Status, GRPCStatus: r.GRPCStatus, Reason: r.Reason, Duration: r.Duration,
		Received: r.Received + r.Heads.Request, Sent: r.Sent + r.Heads.Response,
		Asked: r.Messages.Request, Responded: r.Messages.Response, Partial: partial,
	}
	to := r.upstream()
	to.Tags = t.tags(s, r, to.Service)
	t.rec.Request(&s.counted, to, &q, t.current)
}

// tags evaluates the expressions that labels of a record's metrics are made of: those of
// the service that is the destination in them.
func (t *reporter) tags(s *source, r *Record, svc *workload.Service) telemetry.Tags {
	k := observe.Service{}
	if svc != nil {
		k = observe.Service{Namespace: svc.Namespace, Hostname: svc.Hostname}
	}
	values := r.shard.traces.Settings(k).Values
	if len(values) == 0 {
		return ""
	}
	e, more := t.describe(s, r)
	return attributes.Tags(values, e, &more)
}

func (t *reporter) request(r *Record) {
	s := t.source(r)
	t.count(s, r, false)
	t.log(s, r)
	t.spans(s, r)
}

func (t *reporter) progress(r *Record) { t.count(t.source(r), r, true) }

// opened counts a connection that carries no HTTP.
func (t *reporter) opened(r *Record) { t.begin(r, r.conn) }

func (t *reporter) begin(r *Record, c *telemetry.Conn) {
	to := r.upstream()
	c.Src = r.ClientAddr
	t.rec.Begin(c, telemetry.Key{
		Reporter: telemetry.Waypoint, MTLS: to.MTLS, Src: t.current(r.Client), Dst: t.current(to.Workload), Service: telemetry.RefTo(to.Service),
		SrcIdentity: r.ClientIdentity, Baggage: r.Baggage, Tags: t.tags(t.source(r), r, to.Service),
	}, r.Start)
	if r.flow != nil {
		c.Count(r.flow)
	}
}

func (t *reporter) closed(r *Record) {
	c := r.conn
	if c == nil || !c.Begun() {
		c = &telemetry.Conn{} // it got no endpoint
		t.begin(r, c)
	}
	t.rec.End(c, relay.Result{Sent: uint64(r.Received), Received: uint64(r.Sent), Reason: r.Reason, Err: r.Err}, "")
	t.log(t.source(r), r)
}

// log writes the line of a record.
func (t *reporter) log(s *source, r *Record) {
	if t.lines.Enabled() {
		e, more := t.describe(s, r)
		r.shard.lines.Write(t.lines, r.shard.observed(r.from).Logs, e, &more, s.lines)
	}
	r.shard.line = accesslog.Request{}
}

// describe returns a record as lines and expressions see it. It is valid until the next.
func (t *reporter) describe(s *source, r *Record) (e *accesslog.Request, more attributes.More) {
	e = &r.shard.line
	*e = accesslog.Request{
		Start: r.Start, Duration: r.Duration, Reason: r.Reason, Err: r.Err,
		Method: r.Method, Path: r.Path, Authority: r.Authority, Protocol: r.Version, Status: r.Status, Received: r.Received, Sent: r.Sent,
		FirstByte: r.FirstByte, ForwardedFor: r.ForwardedFor, UserAgent: r.UserAgent, ID: r.RequestID, TraceID: trace.IDOf(r.Traceparent), Tries: r.Tries,
		Answered: r.Answered, Direct: r.Direct, Upstream: r.Upstream, ClusterKind: "tcp", Called: r.Called, Client: r.ClientAddr, Route: r.Route, SNI: r.SNI,
		Src: accesslog.Party{Workload: r.Baggage.Workload, Namespace: r.Baggage.Namespace, Identity: s.name},
	}
	if r.HTTP {
		e.ClusterKind = "http"
	}
	if r.Backend != nil {
		e.ClusterHost, e.ClusterPort = r.Backend.Hostname, r.BackendPort
	}
	if r.Endpoint == nil {
		e.Upstream = netip.AddrPort{}
	}
	if w := r.Client; w != nil {
		e.Src.Workload, e.Src.Namespace = w.Name, w.Namespace
	}
	if w := r.Endpoint; w != nil {
		e.Dst = accesslog.Party{Workload: w.Name, Namespace: w.Namespace}
		if !strings.Contains(r.Identities, ",") {
			e.Dst.Identity = r.Identities
		}
	}
	more = attributes.More{Head: r.head, Heads: r.Heads, GRPC: r.GRPC, GRPCStatus: r.GRPCStatus, Metadata: r.metadata}
	if r.Service != nil {
		more.Destination = r.Service.Hostname
	}
	return e, more
}
