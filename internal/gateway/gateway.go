package gateway

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/early"
	"github.com/ambit-mesh/ambit/internal/gateway/lines"
	"github.com/ambit-mesh/ambit/internal/gateway/outside"
	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/gateway/spans"
	"github.com/ambit-mesh/ambit/internal/gateway/tracer"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sticky"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/export"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Gateway serves CONNECT streams. Its methods may be called from any goroutine,
// but Serve.
type Gateway struct {
	opts     Options
	shards   []*shard
	active   atomic.Int64
	draining atomic.Bool
	absent   absent
}

// shard is the part of a gateway that one loop owns. It is made by the first
// connection there.
type shard struct {
	g        *Gateway
	loop     *poll.Loop
	engine   *exchange.Engine
	pool     *pool.Pool
	sessions map[*session]struct{}
	room     early.Room     // for connections that are made ahead
	load     map[string]int // requests and connections under way by endpoint (UID)
	loadFn   func(uid string) int
	record   Record                    // scratch: of the request that has ended
	requests map[*route.Upstream]int   // requests under way, of upstreams that have a bound
	strange  map[identity.Identity]int // targets that a client named and that do not exist
	targets  map[targetKey]pool.Target
	outside  outside.Finder
	served   place.Served
	sticky   *sticky.Table
	budgets  *lines.Budgets
	health   *upstream.Outliers
	verifier *authn.Verifier
	http     codec.ServerConfig
	traces   *tracer.Tracer
	values   spans.Values      // scratch: of spans
	line     accesslog.Request // scratch: of a line
	lines    lines.Writer
}

// New returns a Gateway that serves nothing yet.
func New(opts Options) *Gateway {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.silence = cmp.Or(opts.silence, silence)
	return &Gateway{opts: opts, shards: make([]*shard, opts.Loops.Len())}
}

// Timeouts of connections that carry HTTP, those of Istio's waypoints but for heads,
// which have none there.
const (
	httpIdle = time.Hour
	headTime = time.Minute
	// silence is how long the first bytes of a connection whose port declares nothing
	// may take, when no endpoint is connected meanwhile. Then it carries no HTTP.
	silence = 100 * time.Millisecond
)

// maxStrange bounds, on each loop, the targets that one client identity has the
// gateway request from the control plane and that do not exist: a subscription lasts as
// long as the stream. Such a client then reaches what is known already.
const maxStrange = 256

func (g *Gateway) shard(l *poll.Loop) *shard {
	if s := g.shards[l.Index()]; s != nil {
		return s
	}
	s := g.newShard(l)
	g.shards[l.Index()] = s
	return s
}

func (g *Gateway) newShard(l *poll.Loop) *shard {
	s := &shard{
		g: g, loop: l, sessions: map[*session]struct{}{}, room: early.NewRoom(), load: map[string]int{}, requests: map[*route.Upstream]int{}, strange: map[identity.Identity]int{}, targets: map[targetKey]pool.Target{}, outside: outside.Finder{Names: g.opts.Names},
		sticky:  sticky.NewTable(),
		budgets: lines.NewBudgets(), health: upstream.NewOutliers(), verifier: authn.NewVerifier(),
		http: codec.ServerConfig{Timeouts: codec.Timeouts{Idle: httpIdle, Head: headTime}},
	}
	s.loadFn = s.loadOf
	s.pool = pool.New(l, pool.Config{Dial: s.dial})
	s.engine = exchange.NewEngine(l, exchange.Config{Pool: s.pool, Normalise: normalise, MaxChecks: g.opts.maxChecks})
	s.traces = tracer.New(tracer.Config{Loop: l, Pool: s.pool, Reach: s.reach, Observed: g.opts.Observed, Self: g.opts.Self, Address: g.opts.Source.String(), Counters: g.opts.Spans, Log: g.opts.Log})
	if g.opts.Records != nil {
		s.lines.Records = export.New(export.Config{Loop: l, Pool: s.pool, Reach: s.reach, Prefix: s.traces.Prefix, Counters: g.opts.Records, Log: g.opts.Log, Method: export.MethodLogs})
	}
	return s
}

// normalise is how paths are made the one form that routes and policies see.
var normalise message.Normalisation

// incoming is one CONNECT stream before it is answered.
type incoming struct {
	authority string
	peer      identity.Identity
	remote    netip.AddrPort
	baggage   string
	trace     string // traceparent
	hops      string
	accept    func() stream.Conn
	refuse    func(status int)
	gone      func() bool // the client has given up
	asked     []string    // resources that were requested
}

// Serve takes one request of a tunnel, on the tunnel's loop: it is the OnRequest
// of an hbone.Server.
func (g *Gateway) Serve(r *hbone.Request) {
	if r.Method != "CONNECT" { //nolint:usestdlibvars // net/http is not linked
		r.Refuse(404, hbone.ResponseHeader{})
		return
	}
	g.shard(r.Loop).serve(&incoming{
		authority: r.Header.Authority, peer: r.PeerIdentity, remote: r.Remote, baggage: r.Header.Baggage,
		trace: r.Header.Traceparent, hops: r.Header.Hops,
		accept: func() stream.Conn { return r.Stream(hbone.ResponseHeader{}) },
		refuse: func(status int) { r.Refuse(status, hbone.ResponseHeader{}) },
		gone:   r.Gone,
	})
}

func (s *shard) serve(in *incoming) {
	target, err := connect.ParseTarget(in.authority)
	if err != nil {
		s.refused(in, reason.Errorf(reason.BadRequest, "%w", err))
		return
	}
	hops, err := connect.ParseHops(in.hops)
	if err != nil {
		s.refused(in, reason.Errorf(reason.BadRequest, "%w", err))
		return
	}
	if hops > connect.MaxHops {
		s.refused(in, reason.Errorf(reason.WaypointLoop, "%d waypoints have sent it on", hops))
		return
	}
	where, re := s.whereabouts(in.peer.Namespace)
	if re != nil {
		s.refused(in, re)
		return
	}
	var names []string
	if s.strange[in.peer] < maxStrange {
		names = where.Unknown(target, in.remote.Addr())
	}
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(in.asked, n) })
	in.asked = append(in.asked, names...) // once each: two rounds, one of them for the waypoint
	if s.learn(names, func() { s.serve(in) }) {
		return
	}
	if in.gone() {
		return
	}
	dest, re := where.Find(target)
	if re != nil && re.Reason == reason.UnknownDestination && len(in.asked) > 0 {
		s.strange[in.peer]++
	}
	if re == nil && s.g.opts.Config() == nil {
		re = errNoConfig
	}
	if re != nil {
		s.refused(in, re)
		return
	}
	client, baggage := where.Client(in.peer, in.remote.Addr(), in.baggage)
	c := &session{
		shard: s, dest: dest, peer: in.peer, remote: in.remote, client: client, baggage: baggage, start: s.loop.Now(),
		says:  pool.Client{Forwarded: connect.ForwardedFor(in.remote.Addr(), dest.Hostname()), Baggage: in.baggage},
		trace: in.trace, tunnel: spans.ParseTunnel(in.trace), hops: hops,
		seen: s.g.seen(in),
	}
	if dest.Carries() == place.CarriesTCP {
		if re := c.judge(); re != nil { // the client's node proxy logs why
			s.refused(in, re)
			return
		}
	}
	s.sessions[c] = struct{}{}
	s.g.active.Add(1)
	c.open(in.accept())
}

// seen returns what programs are sent of a client.
func (g *Gateway) seen(in *incoming) filter.Client {
	c := filter.Client{Address: in.remote.Addr().String()}
	if g.opts.ClientCertificate && !in.peer.IsZero() {
		c.Certificate = []byte("By=" + g.opts.Identity.String() + ";URI=" + in.peer.String())
	}
	return c
}

// whereabouts returns what decisions depend on now.
func (s *shard) whereabouts(namespace string) (place.Whereabouts, *reason.Error) {
	o := &s.g.opts
	w := place.Whereabouts{Snapshot: o.Directory(), Network: o.Network, Self: o.Self(), Source: o.Source, Namespace: namespace, Hosts: o.Hosts, Answered: o.Answered}
	if w.Self == nil {
		return w, reason.Errorf(reason.UnknownSource, "this gateway's own workload has not come yet")
	}
	return w, nil
}

// refused answers a CONNECT with an error, so that the client's node proxy can log
// the reason.
func (s *shard) refused(in *incoming, err *reason.Error) {
	status := err.Reason.HTTP().Status
	if err.Reason == reason.UnknownDestination && err != errNoConfig || err.Reason == reason.AddressMismatch {
		status = 404
	}
	now := s.loop.Now()
	r := &Record{Start: now, Reason: err.Reason, Err: err, ClientIdentity: in.peer, ClientAddr: in.remote, GRPCStatus: -1, Status: status, shard: s}
	if t, err := connect.ParseTarget(in.authority); err == nil && !t.IsHost() {
		r.Called = t.Addr
	}
	s.closed(r)
	in.refuse(status)
}

func (s *shard) closed(r *Record) {
	if f := s.g.opts.Telemetry.ConnectionClosed; f != nil {
		f(r)
	}
}

// Drain makes the request under way, or the next one, the last of each connection. A
// client that sends one on a connection that was just closed would lose it, so that idle
// ones stay. CONNECT streams that still come are served, so that nothing is lost before
// the client has seen that the tunnel goes away.
func (g *Gateway) Drain() {
	g.draining.Store(true)
	g.each(func(s *shard) {
		for c := range s.sessions {
			c.last()
		}
	})
}

// EndIdle ends the connections that carry no request. It follows Drain.
func (g *Gateway) EndIdle() {
	g.each(func(s *shard) {
		for c := range s.sessions {
			c.drain()
		}
	})
}

// Active returns how many CONNECT streams are carried now.
func (g *Gateway) Active() int { return int(g.active.Load()) }

// End ends what clients have opened, now.
func (g *Gateway) End() {
	g.draining.Store(true)
	g.each(func(s *shard) {
		for c := range s.sessions {
			c.close(reason.Draining)
		}
	})
}

// Close ends everything now.
func (g *Gateway) Close() {
	g.End()
	g.each(func(s *shard) {
		s.traces.Close()
		s.lines.Records.Close()
		s.pool.Drain()
	})
}

// RemoveWorkload ends the connections to an endpoint that was removed, those in use
// behind their requests.
func (g *Gateway) RemoveWorkload(uid string) {
	g.each(func(s *shard) {
		s.pool.Remove(uid)
		s.health.Forget(uid)
	})
}

// each runs f on every loop that has a shard.
func (g *Gateway) each(f func(*shard)) {
	for i := range g.opts.Loops.Len() {
		g.opts.Loops.Loop(i).Post(func() {
			if s := g.shards[i]; s != nil {
				f(s)
			}
		})
	}
}

// taken and given count what is under way on an endpoint, and of an upstream that has
// a bound.
func (s *shard) taken(w *workload.Workload, up *route.Upstream) {
	s.load[w.UID]++
	if up != nil && up.Limits.Requests > 0 {
		s.requests[up]++
	}
}

func (s *shard) given(w *workload.Workload, up *route.Upstream) {
	give(s.load, w.UID)
	if up != nil && up.Limits.Requests > 0 {
		give(s.requests, up)
	}
}

func give[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}
