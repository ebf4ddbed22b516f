package gateway

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/early"
	"github.com/ambit-mesh/ambit/internal/gateway/pair"
	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sniff"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// joint is a connection that carries no HTTP, on its way to an endpoint and then
// joined with it.
type joint struct {
	session         *session
	down            stream.Conn
	pair            pair.Pair
	joined          bool // pair carries it
	end             endpoint
	route           *route.Backend
	routes          *route.Connections
	undecided       *route.Config // while the first bytes decide about the route
	cancel          func()        // of the dial under way
	failed          []string
	last            *reason.Error // of the endpoint that failed last
	lastAddr        netip.Addr    // of that endpoint
	client, server  pair.Early    // what has come before there was a pair
	watch           early.Watch   // of what the client sends first
	guessed         bool          // what the client sends first has not decided yet
	record          Record
	conn            telemetry.Conn
	learned         int  // how often it has waited for what the directory does not have
	silent, patient bool // the client has sent nothing for a time, or no whole message
	over            bool
}

// maxTries bounds the endpoints that one connection is tried at.
const maxTries = 3

// carryTCP joins the stream with an endpoint.
func (c *session) carryTCP(end bool) {
	c.quiet.Stop()
	r := &joint{session: c, down: c.conn, client: pair.Early{Bytes: c.first, End: end}}
	r.guessed = !end && c.dest.Carries() != place.CarriesTCP && !c.routedRaw() && sniff.Look(c.first) == sniff.Undecided
	a := c.ahead
	c.decided(early.Decided(c.first, a != nil && len(a.said) > 0))
	c.first, c.ahead = nil, nil
	c.tcp, c.protocol = r, "TCP"
	r.record = c.record()
	r.record.conn, r.record.flow = &r.conn, &r.pair
	c.conn.Bind((*jointDown)(r))
	cfg := c.shard.g.opts.Config()
	if a != nil {
		defer a.leave() // unless it is used
	}
	if cfg == nil {
		r.fail(reason.UnknownDestination, reason.Errorf(reason.UnknownDestination, "no routes have come from the control plane yet"))
		return
	}
	if c.dest.Carries() != place.CarriesTCP { // else it was judged before it was accepted
		if err := c.judge(); err != nil {
			r.fail(err.Reason, err)
			return
		}
	}
	if c.dest.Service != nil {
		r.routes = cfg.Port(c.dest.Key).ConnectionsFor(c.peer.Namespace)
	}
	if a != nil && r.routes == nil {
		a.use(r, cfg)
		return
	}
	r.choose(cfg)
}

// helloTime bounds the wait for the first message of TLS.
const helloTime = opening.MaxTime

// choose takes the route of the connection, once its first bytes show what it carries. A
// server that speaks first is found by the silence of its client.
func (r *joint) choose(cfg *route.Config) {
	c := r.session
	if r.routes == nil {
		r.begin(cfg)
		return
	}
	to := early.Choose(r.routes, r.client, r.silent)
	if to.Wait {
		if r.undecided = cfg; !c.quiet.Armed() {
			wait := helloTime
			if r.routes.Plain() != nil {
				wait = silence
			}
			c.quiet.Arm(c.shard.loop, wait, r.waited)
		}
		return
	}
	r.undecided = nil
	c.quiet.Stop()
	if r.record.SNI = to.Name; to.Failure != "" {
		r.fail(reason.NoRoute, reason.Errorf(reason.NoRoute, "%s", to.Failure))
		return
	}
	r.record.Route = to.Target.Rule.Origin
	b, failure := to.Target.Pick(rand.Uint64())
	if failure != route.OK {
		r.fail(reason.NoBackend, reason.Errorf(reason.NoBackend, "%s", failure))
		return
	}
	r.route = b
	r.begin(cfg)
}

// waited decides about a client that has sent nothing, or no whole message, for a time.
func (r *joint) waited() {
	cfg := r.undecided
	switch {
	case cfg == nil:
	case len(r.client.Bytes) == 0 && r.routes.Plain() != nil:
		r.silent = true
		r.choose(cfg)
	case r.routes.Plain() != nil && !r.patient:
		r.patient = true // it has begun like TLS: it is not anything else because it is slow
		r.session.quiet.Arm(r.session.shard.loop, helloTime, r.waited)
	default:
		r.fail(reason.NoRoute, reason.Errorf(reason.NoRoute, "no TLS handshake has come for %v", helloTime))
	}
}

// begin looks for an endpoint.
func (r *joint) begin(cfg *route.Config) {
	c := r.session
	if c.shard.learn(c.shard.unknownBackend(cfg, r.route), func() { r.try(cfg) }) {
		return
	}
	r.try(cfg)
}

// try dials an endpoint.
func (r *joint) try(cfg *route.Config) {
	if r.over {
		return
	}
	c := r.session
	failed := func(uid string) bool { return slices.Contains(r.failed, uid) }
	e, err := c.shard.pick(c, cfg, r.route, "", failed, r.lastAddr)
	if err != nil && r.learned < maxLearned {
		if r.learned++; c.shard.learn(e.unknown, func() { r.try(cfg) }) {
			return
		}
	}
	if err != nil && r.last != nil {
		// An endpoint that failed has perhaps another address.
		if e, err = c.shard.pick(c, cfg, r.route, "", nil, r.lastAddr); err == nil && e.target.App.Addr() == r.lastAddr {
			err = r.last
		}
	}
	if err != nil {
		if r.last != nil {
			err = r.last // why the last one failed says more
		}
		r.fail(err.Reason, err)
		return
	}
	t := c.target(&e)
	r.end = e
	r.record.Tries++
	c.shard.taken(e.workload, e.upstream)
	r.cancel = c.shard.dial(c.shard.loop, &t, func(s stream.Conn, err *reason.Error) { r.dialled(cfg, s, err) })
}

// target returns where a connection without HTTP is made to.
func (c *session) target(e *endpoint) pool.Target {
	t := e.target
	if t.Tunnel.IsValid() {
		host := ""
		if e.service != nil {
			host = e.service.Hostname
		}
		t.Client = pool.Client{Forwarded: connect.Forwarded(c.remote, host), Baggage: c.says.Baggage, Trace: c.trace, Hops: t.Client.Hops}
	}
	return t
}

// dialled takes the outcome of a dial to r.end.
func (r *joint) dialled(cfg *route.Config, up stream.Conn, err *reason.Error) {
	e, s := r.end, r.session.shard
	r.cancel = nil
	if err == nil {
		s.outcome(&e, reason.OK)
		r.join(up)
		return
	}
	s.given(e.workload, e.upstream)
	r.end = endpoint{}
	s.outcome(&e, err.Reason)
	r.last, r.lastAddr, r.failed = err, e.target.App.Addr(), append(r.failed, e.workload.UID)
	if len(r.failed) >= maxTries {
		r.fail(err.Reason, err)
		return
	}
	r.try(cfg)
}

// join begins to relay.
func (r *joint) join(up stream.Conn) {
	r.joined = true
	r.record.Endpoint, r.record.Backend, r.record.Upstream = r.end.workload, r.end.service, r.end.target.App
	if r.record.BackendPort = r.session.dest.Port; r.end.upstream != nil {
		r.record.BackendPort = r.end.upstream.Service.Port
	}
	if r.end.target.Tunnel.IsValid() {
		r.record.Identities = r.end.target.Identities
	}
	if f := r.session.shard.g.opts.Telemetry.ConnectionOpened; f != nil {
		f(&r.record)
	}
	cfg := pair.Config{Idle: tcpIdle, Ended: r.finish}
	if r.guessed {
		cfg.Look = r.watch.Look
	}
	client, server := r.client, r.server
	r.client, r.server = pair.Early{}, pair.Early{}
	r.pair.Join(r.down, up, cfg, client, server)
}

// tcpIdle is how long a connection may carry nothing, Istio's.
const tcpIdle = time.Hour

// fail cuts both sides.
func (r *joint) fail(why reason.Reason, err error) {
	switch {
	case r.over:
	case r.joined:
		r.pair.Cut(why, err)
	default:
		r.down.Abort(why)
		r.finish(why, err)
	}
}

// finish ends the connection.
func (r *joint) finish(why reason.Reason, err error) {
	if r.over {
		return
	}
	r.over = true
	r.undecided = nil
	if r.cancel != nil {
		r.cancel()
	}
	c := r.session
	if r.end.workload != nil {
		c.shard.given(r.end.workload, r.end.upstream)
	}
	r.record.Reason, r.record.Err, r.record.Duration = why, err, c.shard.loop.Now().Sub(r.record.Start)
	received, sent := r.pair.Bytes()
	r.record.Received, r.record.Sent = int64(received), int64(sent)
	c.shard.closed(&r.record)
	c.end()
}

// jointDown is a joint as the Sink of the client's stream, before there is a pair.
type jointDown joint

// OnData implements stream.Sink.
func (d *jointDown) OnData(p []byte, end bool) {
	d.client.Bytes = append(d.client.Bytes, p...) // bounded by the client's credit
	d.client.End = d.client.End || end
	if d.undecided != nil {
		(*joint)(d).choose(d.undecided)
	}
}

// OnWritable implements stream.Sink.
func (d *jointDown) OnWritable() {}

// OnClose implements stream.Sink.
func (d *jointDown) OnClose(why reason.Reason, err error) { (*joint)(d).finish(why, err) }
