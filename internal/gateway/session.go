package gateway

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/early"
	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/gateway/spans"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/sniff"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// session is one CONNECT stream. While its first bytes decide what it carries, it is
// the stream's Sink.
type session struct {
	shard  *shard
	dest   place.Destination
	peer   identity.Identity
	remote netip.AddrPort
	client *workload.Workload // nil when unknown
	// baggage is what a client that is not in the directory says of itself.
	baggage connect.Baggage
	says    pool.Client   // to endpoints, of the client
	trace   string        // of the client's connection, as its tunnel says
	hops    connect.Hops  // waypoints that have sent it on
	tunnel  spans.Tunnel  // the same, for requests
	seen    filter.Client // to programs, of the client
	start   time.Time
	access  *authz.Access      // nil before the first decision
	tokens  *authn.Check       // nil as long as access is
	judged  *workload.Snapshot // the directory of the last decision
	source  source             // of telemetry

	conn  stream.Conn
	first []byte // bytes that have not decided yet
	quiet poll.Deadline
	ahead *ahead       // an endpoint that is connected meanwhile; nil without one
	http  codec.Server // when it carries HTTP
	tcp   *joint       // when it does not
	over  bool
	// protocol is HTTP/1.1, HTTP/2 or TCP; "" before that is known.
	protocol string
}

// open decides what a stream carries.
func (c *session) open(conn stream.Conn) {
	c.conn = conn
	carries := c.dest.Carries()
	if carries == place.CarriesUnknown && c.routedRaw() {
		carries = place.CarriesTCP
	}
	switch carries {
	case place.CarriesTCP:
		c.carryTCP(false)
		return
	case place.CarriesUnknown:
		c.quiet.Arm(c.shard.loop, early.Hesitation, c.hesitated)
	case place.CarriesHTTP:
		c.quiet.Arm(c.shard.loop, headTime, func() { c.close(reason.HeadTimeout) })
	}
	conn.Bind(c)
}

// routedRaw reports whether a port that declares nothing has routes of connections and
// none of requests: then all of its connections take those.
func (c *session) routedRaw() bool {
	p := c.shard.g.opts.Config().Port(c.dest.Key)
	return c.dest.Service != nil && p.ConnectionsFor(c.peer.Namespace) != nil && p.TableFor(c.peer.Namespace) == nil
}

// OnData implements stream.Sink.
func (c *session) OnData(p []byte, end bool) {
	c.first = append(c.first, p...)
	g := sniff.Look(c.first)
	if c.dest.Carries() == place.CarriesHTTP && (g == sniff.Other || end) {
		g = sniff.HTTP1 // which refuses what it is not
	}
	switch {
	case g == sniff.HTTP1:
		c.protocol = "HTTP/1.1"
		c.carryHTTP(codec.NewHTTP1Server, end)
	case g == sniff.HTTP2:
		c.protocol = "HTTP/2"
		c.carryHTTP(codec.NewHTTP2Server, end)
	case g == sniff.Other || end:
		c.carryTCP(end)
	case c.dest.Carries() == place.CarriesUnknown:
		c.soon()
	}
}

// OnWritable implements stream.Sink.
func (c *session) OnWritable() {}

// OnClose implements stream.Sink.
func (c *session) OnClose(why reason.Reason, err error) {
	c.closed(why, err)
	c.end()
}

func (c *session) carryHTTP(open func(stream.Conn, *codec.ServerConfig) codec.Server, end bool) {
	c.quiet.Stop()
	c.decided(telemetry.KindHTTP)
	if a := c.ahead; a != nil { // requests have routes, and go to connections of the pool
		c.ahead = nil
		a.leave()
	}
	cfg := c.shard.http
	cfg.Accept = func(down codec.Response) codec.Receiver { return c.shard.engine.Accept(c, down) }
	cfg.Refused = c.refused
	cfg.Closed = func(reason.Reason) { c.end() }
	c.http = open(c.conn, &cfg)
	first := c.first
	c.first = nil
	c.http.OnData(first, end)
	if c.shard.g.draining.Load() && !c.over {
		c.http.Drain()
	}
}

// decided counts what has decided, unless the port declares it.
func (c *session) decided(by telemetry.Kind) {
	if f := c.shard.g.opts.Telemetry.Decided; f != nil && c.dest.Carries() == place.CarriesUnknown {
		f(by)
	}
}

// last has the client go elsewhere behind its next answer.
func (c *session) last() {
	if c.http != nil {
		c.http.Last()
	}
}

// drain does so behind the request under way, and ends an idle connection.
func (c *session) drain() {
	switch {
	case c.http != nil:
		c.http.Drain()
	case c.tcp == nil && len(c.first) == 0 && c.dest.Carries() == place.CarriesUnknown:
		c.close(reason.Draining)
	}
}

// close ends the session now.
func (c *session) close(why reason.Reason) {
	switch {
	case c.over:
	case c.http != nil:
		c.http.Close(why)
	case c.tcp != nil:
		c.tcp.fail(why, nil)
	default:
		c.conn.Abort(why)
		c.closed(why, nil)
		c.end()
	}
}

// end forgets the session.
func (c *session) end() {
	if c.over {
		return
	}
	c.over = true
	if c.source.lines != nil {
		c.shard.budgets.Leave(c.peer)
	}
	c.quiet.Stop()
	if a := c.ahead; a != nil {
		c.ahead = nil
		a.leave()
	}
	delete(c.shard.sessions, c)
	c.shard.g.active.Add(-1)
}

// record returns what is the same of all requests of a session.
func (c *session) record() Record {
	return Record{
		Start: c.start, Client: c.client, ClientIdentity: c.peer, ClientAddr: c.remote, Baggage: c.baggage,
		Service: c.dest.Service, Port: c.dest.Port, Called: c.dest.Called(), Endpoint: c.dest.Workload, GRPCStatus: -1, shard: c.shard, from: c,
	}
}

// closed reports the end of a connection that carries no HTTP.
func (c *session) closed(why reason.Reason, err error) {
	r := c.record()
	r.Duration, r.Reason, r.Err = c.shard.loop.Now().Sub(c.start), why, err
	c.shard.closed(&r)
}

// refused reports a request whose head could not be read.
func (c *session) refused(status int, err error) {
	if f := c.shard.g.opts.Telemetry.Request; f != nil {
		r := c.record()
		r.HTTP, r.Start, r.Reason, r.Err, r.Status = true, c.shard.loop.Now(), reason.MalformedRequest, err, status
		if status == reason.HeadTimeout.HTTP().Status {
			r.Reason = reason.HeadTimeout
		}
		f(&r)
	}
}
