package gateway

import (
	"context"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/gateway/spans"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/export"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// observed returns what is observed of a connection, which is nil for a CONNECT that was
// refused.
func (s *shard) observed(c *session) *observe.Settings {
	k := observe.Service{}
	switch {
	case c == nil:
	case c.dest.Service != nil:
		k = observe.Service{Namespace: c.dest.Service.Namespace, Hostname: c.dest.Service.Hostname}
	default:
		k.Namespace = c.dest.Workload.Namespace
	}
	return s.traces.Settings(k)
}

func spanOf(x *exchange.Exchange) *spans.Span {
	s, _ := x.Own.(*spans.Span)
	return s
}

// spans passes the spans of a record on.
func (t *reporter) spans(src *source, r *Record) {
	if r.span == nil {
		return
	}
	v := &r.shard.values
	*v = spans.Values{
		Start: r.Start, End: r.Start.Add(r.Duration), Port: r.Port, Version: r.Version, Method: r.Method, Authority: r.Authority, Path: r.Path,
		UserAgent: r.UserAgent, RequestID: r.RequestID, Head: r.head, Client: r.ClientAddr, Status: r.Status, GRPC: r.GRPC, GRPCStatus: r.GRPCStatus,
		Reason: r.Reason, Route: r.Route, Received: r.Received, Sent: r.Sent, Tries: r.Tries, Source: r.Client, SourceName: r.Baggage.Workload,
		SourceNamespace: r.Baggage.Namespace, SourceIdentity: src.name, Endpoint: r.Endpoint, Upstream: r.Upstream,
	}
	if r.Service != nil {
		v.Host = r.Service.Hostname
	}
	if r.Backend != nil {
		v.BackendHost, v.BackendPort = r.Backend.Hostname, r.BackendPort
	}
	r.shard.traces.Report(r.span, r.ClientIdentity.Namespace, v)
	*v = spans.Values{}
}

// reach chooses an endpoint of a collector, as for a request of this gateway's own.
func (s *shard) reach(c *observe.Collector, resume func()) (pool.Target, bool, *reason.Error) {
	where, err := s.whereabouts("")
	if err != nil {
		return pool.Target{}, false, err
	}
	svc := where.Snapshot.ServiceByName(c.Service.Namespace, c.Service.Hostname)
	if svc == nil {
		name := c.Service.Namespace + "/" + c.Service.Hostname
		if resume != nil && s.learn([]string{name}, resume) {
			return pool.Target{}, true, nil
		}
		return pool.Target{}, false, reason.Errorf(reason.NoHealthyUpstream, "service %s is not known", name)
	}
	e := endpoint{service: svc, port: c.Port, app: svc.App(c.Port)}
	own := &session{} // of no client
	if gw := s.before(&where, svc); !gw.IsZero() {
		app := netip.AddrPortFrom(hop.Address(svc, where.Network, netip.Addr{}), c.Port)
		if err = s.through(&e, &where, gw, app, own, nil); err != nil && resume != nil && s.learn(e.unknown, resume) {
			return pool.Target{}, true, nil
		}
		e.target.HTTP2 = e.http2(false)
		return e.target, false, err
	}
	up, err := hop.Near(where.Snapshot, workload.Query{
		Service: svc, Client: where.Self, Port: c.Port, Excluded: s.health.Excluding(c.Port, nil, s.loop.Now()), Load: s.loadFn, Rand: random,
	})
	if err != nil {
		return pool.Target{}, false, err
	}
	e.workload = up.Workload
	err = s.complete(&e, up, where.Self, own.says)
	e.target.HTTP2 = e.http2(false)
	return e.target, false, err
}

// Flush sends the spans and lines that wait, and returns when none is left or ctx ends.
func (g *Gateway) Flush(ctx context.Context) {
	export.FlushAll(ctx, g.opts.Loops, func(loop int) bool {
		s := g.shards[loop]
		return s == nil || s.traces.Flush() && s.lines.Records.Flush()
	})
}
