package gateway

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sni"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// joint is a connection that carries no HTTP, on its way to an endpoint and then
// joined with it.
type joint struct {
	session          *session
	down             stream.Conn
	up               stream.Conn // nil before there is one
	end              endpoint
	route            *route.Backend
	routes           *route.Connections
	undecided        *route.Config // while the first bytes decide about the route
	cancel           func()        // of the dial under way
	failed           []string
	last             *reason.Error // of the endpoint that failed last
	lastAddr         netip.Addr    // of that endpoint
	held             []byte        // what the client has sent before there is an endpoint
	heldEnd          bool          // and the end of its direction
	record           Record
	conn             telemetry.Conn
	moving           traffic
	owedDown, owedUp int // credit for bytes that wait on the other side
	ended            int // sides that have ended in both directions
	idle             poll.Deadline
	moved            time.Time // of the last bytes
	learned          bool      // a waypoint was waited for
	silent, patient  bool      // the client has sent nothing for a time, or no whole message
	over             bool
}

// traffic counts the bytes of a connection: a scrape reads them at any time.
type traffic struct{ received, sent atomic.Uint64 }

// Bytes implements telemetry.Flow.
func (t *traffic) Bytes() (fromClient, toClient uint64) { return t.received.Load(), t.sent.Load() }

// maxTries bounds the endpoints that one connection is tried at.
const maxTries = 3

// carryTCP joins the stream with an endpoint.
func (c *session) carryTCP(end bool) {
	c.quiet.Stop()
	r := &joint{session: c, down: c.conn, held: c.first, heldEnd: end}
	c.first = nil
	c.tcp, c.protocol = r, "TCP"
	r.record = c.record()
	r.record.conn, r.record.flow = &r.conn, &r.moving
	c.conn.Bind((*jointDown)(r))
	cfg := c.shard.g.opts.Config()
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
	r.choose(cfg)
}

// helloTime bounds the wait for the first message of TLS.
const helloTime = headTime

// choose takes the route of the connection, once its first bytes show what it carries. A
// server that speaks first is found by the silence of its client.
func (r *joint) choose(cfg *route.Config) {
	c := r.session
	if r.routes == nil {
		r.begin(cfg)
		return
	}
	name, v := "", sni.Plain
	if r.routes.Named() && !r.silent {
		if name, v = sni.Read(r.held); v == sni.More && !r.heldEnd {
			if r.undecided = cfg; !c.quiet.Armed() {
				wait := helloTime
				if r.routes.Plain() != nil {
					wait = silence
				}
				c.quiet.Arm(c.shard.loop, wait, r.waited)
			}
			return
		}
		if len(r.held) == 0 {
			v = sni.Plain // the client has ended its direction at once
		}
	}
	r.undecided = nil
	c.quiet.Stop()
	target := r.routes.Plain()
	switch r.record.SNI = name; {
	case v == sni.Hello:
		target = r.routes.Lookup(name)
	case v != sni.Plain:
		r.fail(reason.NoRoute, reason.Errorf(reason.NoRoute, "its TLS handshake cannot be read"))
		return
	}
	if target == nil {
		r.fail(reason.NoRoute, reason.Errorf(reason.NoRoute, "%s", unmatched(v, name)))
		return
	}
	r.record.Route = target.Rule.Origin
	b, failure := target.Pick(rand.Uint64())
	if failure != route.OK {
		r.fail(reason.NoBackend, reason.Errorf(reason.NoBackend, "%s", failure))
		return
	}
	r.route = b
	r.begin(cfg)
}

// unmatched describes a connection that no route fits.
func unmatched(v sni.Verdict, name string) string {
	switch {
	case v != sni.Hello:
		return "a connection without TLS, on a port that has routes of TLS alone"
	case name == "":
		return "a connection of TLS whose client names no server"
	}
	return "a connection of TLS to " + name
}

// waited decides about a client that has sent nothing, or no whole message, for a time.
func (r *joint) waited() {
	cfg := r.undecided
	switch {
	case cfg == nil:
	case len(r.held) == 0 && r.routes.Plain() != nil:
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
	if err != nil && !r.learned {
		if r.learned = true; c.shard.learn(e.unknown, func() { r.try(cfg) }) {
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
	t := e.target
	if t.Tunnel.IsValid() {
		host := ""
		if e.service != nil {
			host = e.service.Hostname
		}
		t.Client = pool.Client{Forwarded: connect.Forwarded(c.remote, host), Baggage: c.says.Baggage, Trace: c.trace, Hops: t.Client.Hops}
	}
	r.end = e
	r.record.Tries++
	c.shard.taken(e.workload, e.upstream)
	r.cancel = c.shard.dial(c.shard.loop, &t, func(s stream.Conn, err *reason.Error) {
		r.cancel = nil
		if err == nil {
			c.shard.outcome(&e, reason.OK)
			r.joined(s)
			return
		}
		c.shard.given(r.end.workload, r.end.upstream)
		r.end = endpoint{}
		c.shard.outcome(&e, err.Reason)
		r.last, r.lastAddr, r.failed = err, e.target.App.Addr(), append(r.failed, e.workload.UID)
		if len(r.failed) >= maxTries {
			r.fail(err.Reason, err)
			return
		}
		r.try(cfg)
	})
}

// joined begins to relay.
func (r *joint) joined(up stream.Conn) {
	r.up = up
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
	r.moved = r.session.shard.loop.Now()
	r.idle.Arm(r.session.shard.loop, tcpIdle, r.idleTime)
	up.Bind((*jointUp)(r))
	if p := r.held; len(p) > 0 {
		r.held = nil
		r.toUp(p)
	}
	if r.heldEnd {
		r.up.CloseWrite()
	}
}

// tcpIdle is how long a connection may carry nothing, Istio's.
const tcpIdle = time.Hour

// idleTime ends a connection that has carried nothing. The deadline is not moved by
// each byte: it comes back for what is left.
func (r *joint) idleTime() {
	if left := tcpIdle - r.session.shard.loop.Now().Sub(r.moved); left > 0 {
		r.idle.Rearm(left)
		return
	}
	r.fail(reason.StreamIdle, nil)
}

func (r *joint) toUp(p []byte) {
	r.moved = r.session.shard.loop.Now()
	r.moving.received.Add(uint64(len(p)))
	if r.up.Write(p) && r.owedDown == 0 {
		r.down.Consumed(len(p))
		return
	}
	r.owedDown += len(p)
}

// fail cuts both sides.
func (r *joint) fail(why reason.Reason, err error) {
	if r.over {
		return
	}
	r.down.Abort(why)
	if r.up != nil {
		r.up.Abort(why)
	}
	r.finish(why, err)
}

// finish ends the connection.
func (r *joint) finish(why reason.Reason, err error) {
	if r.over {
		return
	}
	r.over = true
	r.undecided = nil
	r.idle.Stop()
	if r.cancel != nil {
		r.cancel()
	}
	c := r.session
	if r.end.workload != nil {
		c.shard.given(r.end.workload, r.end.upstream)
	}
	r.record.Reason, r.record.Err, r.record.Duration = why, err, c.shard.loop.Now().Sub(r.record.Start)
	received, sent := r.moving.Bytes()
	r.record.Received, r.record.Sent = int64(received), int64(sent)
	c.shard.closed(&r.record)
	c.end()
}

// closed notes that one side has ended in both directions.
func (r *joint) closed(why reason.Reason, err error, other stream.Conn) {
	if why != reason.OK {
		if other != nil {
			other.Abort(why)
		}
		r.finish(why, err)
		return
	}
	if r.ended++; r.ended == 2 {
		r.finish(reason.OK, nil)
	}
}

// jointDown is a joint as the Sink of the client's stream.
type jointDown joint

// OnData implements stream.Sink.
func (d *jointDown) OnData(p []byte, end bool) {
	r := (*joint)(d)
	switch {
	case r.up == nil:
		r.held = append(r.held, p...) // bounded by the client's credit
		r.heldEnd = r.heldEnd || end
		if r.undecided != nil {
			r.choose(r.undecided)
		}
		return
	case len(p) > 0:
		r.toUp(p)
	}
	if end {
		r.up.CloseWrite()
	}
}

// OnWritable implements stream.Sink.
func (d *jointDown) OnWritable() {
	if n := d.owedUp; n > 0 {
		d.owedUp = 0
		d.up.Consumed(n)
	}
}

// OnClose implements stream.Sink.
func (d *jointDown) OnClose(why reason.Reason, err error) { (*joint)(d).closed(why, err, d.up) }

// jointUp is a joint as the Sink of the endpoint's stream.
type jointUp joint

// OnData implements stream.Sink.
func (u *jointUp) OnData(p []byte, end bool) {
	if len(p) > 0 {
		u.moving.sent.Add(uint64(len(p)))
		u.moved = u.session.shard.loop.Now()
		if u.down.Write(p) && u.owedUp == 0 {
			u.up.Consumed(len(p))
		} else {
			u.owedUp += len(p)
		}
	}
	if end {
		u.down.CloseWrite()
	}
}

// OnWritable implements stream.Sink.
func (u *jointUp) OnWritable() {
	if n := u.owedDown; n > 0 {
		u.owedDown = 0
		u.down.Consumed(n)
	}
}

// OnClose implements stream.Sink.
func (u *jointUp) OnClose(why reason.Reason, err error) { (*joint)(u).closed(why, err, u.down) }
