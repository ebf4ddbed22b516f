// Package pool holds the connections of one loop to endpoints: HTTP/1 connections
// that wait for their next request, and HTTP/2 connections that are shared.
//
// A connection serves one Target only: one workload, at one address, by one
// protocol. So it never meets another workload that has got the same address.
package pool

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Target says which requests may share a connection. Comparable.
type Target struct {
	// App is where the endpoint's application listens, UID its workload. Behind another
	// waypoint, UID is that of its proxy, and App what it is asked for.
	App netip.AddrPort
	UID string
	// Host is what a waypoint is asked for in place of App's address: a service without
	// one.
	Host string
	// Tunnel is where the endpoint's tunnels end. Invalid: it is reached without.
	Tunnel netip.AddrPort
	// Identities are those the end of the tunnel may have: sorted, joined by commas.
	Identities string
	// Client is what the tunnel says of the client, if it says anything: then the
	// connection is this client's own.
	Client Client
	HTTP2  bool
}

// Client is what the CONNECT of a connection says of the client. Trace is its
// traceparent, Hops how many waypoints have sent it on.
type Client struct{ Forwarded, Baggage, Trace, Hops string }

// Authority is what the end of the tunnel is asked for.
func (t *Target) Authority() string {
	if t.Host != "" {
		return t.Host + ":" + strconv.Itoa(int(t.App.Port()))
	}
	return t.App.String()
}

// Limits are bounds of one target, below those of the pool. Zero is the pool's.
type Limits struct{ Connections, Pending int }

// Dial makes a connection. It calls done on the loop, never inline, exactly once
// unless cancel is called before.
type Dial func(l *poll.Loop, to *Target, done func(stream.Conn, *reason.Error)) (cancel func())

// Config says how a Pool works. Zero fields take the defaults named.
type Config struct {
	Dial Dial
	// MaxConnections bounds the connections to one target (1,024), MaxPending the
	// requests that wait for one on this loop (8,192), MaxIdle the connections of
	// the loop that wait for a request (4,096).
	MaxConnections, MaxPending, MaxIdle int
	// IdleTimeout is how long a connection waits for a request (1 min).
	IdleTimeout time.Duration
}

// Waiter is a request that waits for a connection. Its methods are never called
// from Get.
type Waiter interface {
	OnReady(codec.Request)
	OnFail(*reason.Error)
}

// Traced is a Waiter in a trace. A connection that is made for it begins in that trace,
// whoever uses the connection later.
type Traced interface {
	// Traceparent returns the context for the tunnel; "" for none.
	Traceparent() string
}

// Pool is the connections of one loop. Everything is called there.
type Pool struct {
	loop    *poll.Loop
	cfg     Config
	targets map[Target]*entry
	recent  [recent]*entry // those of targets that were used last
	sweeper poll.Deadline
	sweepFn func()
	idle    int
	waiting int
	closed  bool
}

// entry is one target.
type entry struct {
	pool    *Pool
	target  Target
	conns   []*conn // all that take requests
	free    []*conn // HTTP/1: those without a request, the last used at the end
	waiting []Waiter
	limits  Limits // of the last Get
	dialing int
	gone    bool // not in Pool.targets
}

// conn is one connection. It is its client's owner.
type conn struct {
	entry  *entry
	client codec.Client
	since  time.Time // when it fell idle
	idle   bool
}

// New returns an empty pool.
func New(l *poll.Loop, cfg Config) *Pool {
	cfg.MaxConnections = or(cfg.MaxConnections, 1024)
	cfg.MaxPending = or(cfg.MaxPending, 8192)
	cfg.MaxIdle = or(cfg.MaxIdle, 4096)
	cfg.IdleTimeout = or(cfg.IdleTimeout, time.Minute)
	p := &Pool{loop: l, cfg: cfg, targets: map[Target]*entry{}}
	p.sweepFn = p.sweep
	return p
}

func or[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Get returns an exchange on a connection that has room, or has w wait for one:
// then both results are nil. fresh has w wait for a connection that has carried
// nothing yet.
func (p *Pool) Get(t *Target, w Waiter, limits Limits, fresh bool) (codec.Request, *reason.Error) {
	if p.closed {
		return nil, reason.Errorf(reason.Draining, "no new requests")
	}
	e := p.entry(t)
	e.limits = limits
	if !fresh && len(e.waiting) == 0 {
		if c := e.pick(); c != nil {
			return c.open(), nil
		}
	}
	if p.waiting >= p.cfg.MaxPending {
		e.forget()
		return nil, reason.Errorf(reason.ResourceExhausted, "%d requests wait for connections already", p.waiting)
	}
	if n := limits.Pending; n > 0 && len(e.waiting) >= n {
		return nil, reason.Errorf(reason.ResourceExhausted, "%d requests wait for connections to %s already", n, t.App)
	}
	p.waiting++
	e.waiting = append(e.waiting, w)
	e.dial()
	return nil, nil
}

// recent is how many entries are found without the hash of a whole target.
const recent = 16

// entry returns the entry of a target, which it makes if there is none.
func (p *Pool) entry(t *Target) *entry {
	at := uint(t.App.Port())
	if n := len(t.UID); n > 0 {
		at += uint(t.UID[n-1])
	}
	last := &p.recent[at%recent]
	if e := *last; e != nil && !e.gone && e.target == *t {
		return e
	}
	e := p.targets[*t]
	if e == nil {
		e = &entry{pool: p, target: *t}
		p.targets[*t] = e
	}
	*last = e
	return e
}

// Cancel has w not wait any more.
func (p *Pool) Cancel(t *Target, w Waiter) {
	e := p.targets[*t]
	if e == nil {
		return
	}
	if i := slices.Index(e.waiting, w); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
		p.waiting--
		e.forget()
	}
}

// Remove ends the connections to a workload, those in use behind their requests.
func (p *Pool) Remove(uid string) {
	for _, e := range p.targets {
		if e.target.UID == uid {
			e.close()
		}
	}
}

// Drain ends every connection behind its requests. Further Gets fail.
func (p *Pool) Drain() {
	p.closed = true
	for _, e := range p.targets {
		e.fail(reason.Errorf(reason.Draining, "no new requests"))
		e.close()
	}
	p.sweeper.Stop()
}

// Idle returns how many connections wait for a request.
func (p *Pool) Idle() int { return p.idle }

// sweep ends the connections that were idle for too long.
func (p *Pool) sweep() {
	for _, e := range p.targets {
		for _, c := range slices.Clone(e.conns) {
			if c.idle && p.loop.Now().Sub(c.since) >= p.cfg.IdleTimeout {
				c.client.Close()
			}
		}
		e.forget()
	}
	p.watch()
}

// watch has sweep run while there are idle connections.
func (p *Pool) watch() {
	if p.idle > 0 && !p.closed && !p.sweeper.Armed() {
		p.sweeper.Arm(p.loop, p.cfg.IdleTimeout/2, p.sweepFn)
	}
}

// pick returns a connection with room, or nil.
func (e *entry) pick() *conn {
	if !e.target.HTTP2 {
		if n := len(e.free); n > 0 {
			c := e.free[n-1]
			e.free[n-1] = nil
			e.free = e.free[:n-1]
			return c
		}
		return nil
	}
	for _, c := range e.conns {
		if c.client.Room() > 0 {
			return c
		}
	}
	return nil
}

// dial makes as many connections as those that wait need.
func (e *entry) dial() {
	p := e.pool
	need := len(e.waiting)
	if e.target.HTTP2 {
		need = min(need, 1) // many share it
	}
	most := p.cfg.MaxConnections
	if n := e.limits.Connections; n > 0 {
		most = min(most, n)
	}
	for e.dialing < need && len(e.conns)+e.dialing < most {
		to := &e.target
		if t, is := e.waiting[e.dialing].(Traced); is && to.Client.Trace == "" {
			if parent := t.Traceparent(); parent != "" {
				own := e.target
				own.Client.Trace, to = parent, &own
			}
		}
		e.dialing++
		p.cfg.Dial(p.loop, to, e.dialed)
	}
}

// dialed takes a new connection, or the failure to make one.
func (e *entry) dialed(s stream.Conn, err *reason.Error) {
	p := e.pool
	e.dialing--
	if err != nil {
		if e.target.HTTP2 {
			e.fail(err)
		} else if len(e.waiting) > 0 {
			e.next().OnFail(err)
		}
		e.dial()
		e.forget()
		return
	}
	c := &conn{entry: e}
	if e.target.HTTP2 {
		c.client = codec.NewHTTP2Client(s, c)
	} else {
		c.client = codec.NewHTTP1Client(s, c)
	}
	e.conns = append(e.conns, c)
	if p.closed || e.gone {
		c.client.Close()
		return
	}
	e.serve(c)
}

// next takes the first that waits.
func (e *entry) next() Waiter {
	w := e.waiting[0]
	e.waiting = slices.Delete(e.waiting, 0, 1)
	e.pool.waiting--
	return w
}

// serve gives the room of c to those that wait.
func (e *entry) serve(c *conn) {
	for len(e.waiting) > 0 && c.client.Room() > 0 {
		e.next().OnReady(c.open())
	}
	if len(e.waiting) > 0 {
		e.dial()
	}
	if c.client.Active() == 0 && c.client.Room() > 0 {
		c.rest()
	}
}

// open begins an exchange.
func (c *conn) open() codec.Request {
	if c.idle {
		c.idle = false
		c.entry.pool.idle--
	}
	return c.client.Open()
}

// rest has a connection wait for its next request.
func (c *conn) rest() {
	p := c.entry.pool
	if p.idle >= p.cfg.MaxIdle {
		c.client.Close()
		return
	}
	if !c.idle {
		c.idle = true
		p.idle++
		if !c.entry.target.HTTP2 {
			c.entry.free = append(c.entry.free, c)
		}
	}
	c.since = p.loop.Now()
	p.watch()
}

// OnRoom implements codec.ClientOwner.
func (c *conn) OnRoom(codec.Client) {
	if c.client != nil { // nil: inside of its constructor
		c.entry.serve(c)
	}
}

// OnGone implements codec.ClientOwner.
func (c *conn) OnGone(codec.Client) {
	e := c.entry
	if c.idle {
		c.idle = false
		e.pool.idle--
	}
	e.conns = slices.DeleteFunc(e.conns, func(o *conn) bool { return o == c })
	e.free = slices.DeleteFunc(e.free, func(o *conn) bool { return o == c })
	if len(e.waiting) > 0 {
		e.dial()
	}
	e.forget()
}

// fail fails every request that waits.
func (e *entry) fail(err *reason.Error) {
	for len(e.waiting) > 0 {
		e.next().OnFail(err)
	}
}

// close ends the connections behind their requests.
func (e *entry) close() {
	for _, c := range slices.Clone(e.conns) {
		c.client.Close()
	}
	e.forget()
}

// forget drops an entry that holds nothing.
func (e *entry) forget() {
	if !e.gone && len(e.conns) == 0 && len(e.waiting) == 0 && e.dialing == 0 {
		e.gone = true
		delete(e.pool.targets, e.target)
	}
}
