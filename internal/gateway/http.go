package gateway

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/gateway/outside"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// Client implements exchange.Owner.
func (c *session) Client() *filter.Client { return &c.seen }

// Route implements exchange.Owner.
func (c *session) Route(x *exchange.Exchange) *reason.Error {
	x.Port = c.dest.Port
	cfg := c.shard.g.opts.Config()
	if cfg == nil {
		return errNoConfig
	}
	x.Config = cfg
	path := len(x.Request.Path)
	unproven, err := c.begin(x.Request, x.Start)
	if err != nil {
		return err
	}
	x.Access, x.Unproven = c.access, unproven
	if s := c.shard.traces.Begin(c.shard.observed(c), x.Request, &c.tunnel); s != nil {
		x.Own = s
	}
	if len(x.Request.Path) < path {
		x.Path = x.Request.Path // a token that was taken out is not for logs
	}
	return c.lookUp(x)
}

// lookUp finds the rule of a request.
func (c *session) lookUp(x *exchange.Exchange) *reason.Error {
	x.Rule = nil
	if c.dest.Service == nil {
		return nil
	}
	table := x.Config.Port(c.dest.Key).TableFor(c.peer.Namespace)
	if table == nil {
		return nil
	}
	if x.Rule = table.Lookup(x.Request); x.Rule == nil {
		return errNoRoute
	}
	return nil
}

var errNoConfig = reason.Errorf(reason.UnknownDestination, "no routes have come from the control plane yet")

// errNoRoute is shared: requests that nothing matches cost no allocation.
var errNoRoute = &reason.Error{Reason: reason.NoRoute}

// Pick implements exchange.Owner.
func (c *session) Pick(x *exchange.Exchange) (wait bool, err *reason.Error) {
	c.put(x)
	if x.Learned < maxLearned {
		if names := c.shard.unknownBackend(x.Config, x.Backend); len(names) > 0 {
			if x.Learned++; c.shard.learn(names, x.Resume()) {
				return true, nil
			}
		}
	}
	if c.dest.ByName() && !outside.Called(&c.dest, x.Request.Authority) {
		return false, errNoRoute
	}
	last := netip.Addr{}
	if x.Tries > 0 && upstream.Unreachable(x.Reason) {
		last = x.Target.App.Addr()
	}
	e, err := c.shard.pick(c, x.Config, x.Backend, x.Session.UID, x.Excluded(), last)
	if err != nil && len(e.unknown) > 0 && x.Learned < maxLearned {
		if x.Learned++; c.shard.learn(e.unknown, x.Resume()) {
			return true, nil
		}
	}
	if err != nil {
		return false, err
	}
	x.Target, x.Endpoint, x.Service, x.Upstream = e.target, e.workload, e.service, e.upstream
	// Upgrades go by HTTP/1, unless the port declares HTTP/2.
	x.Target.HTTP2 = e.http2(x.Request.Version == message.HTTP2 && !x.Switching())
	if x.Limits = (pool.Limits{}); e.upstream != nil {
		x.Limits = pool.Limits{Connections: int(e.upstream.Limits.Connections), Pending: int(e.upstream.Limits.Pending)}
	}
	c.shard.taken(e.workload, e.upstream)
	if s := spanOf(x); s != nil {
		s.Sent(c.shard.loop.Now())
	}
	return false, nil
}

// maxLearned bounds the waits of a request or connection for what the directory does not have:
// for the service of its backend, for the waypoint of that, and for addresses of a name and
// what stands at two of them.
const maxLearned = 5

// Held implements exchange.Owner.
func (c *session) Held(x *exchange.Exchange) {
	x.Session = c.shard.sticky.Find(x.Config, x.Rule.Rule, x.Request, c.shard.g.opts.Directory(), c.shard.loop.Now())
}

// Hold implements exchange.Owner.
func (c *session) Hold(x *exchange.Exchange, h *message.Head) {
	if x.Backend != nil && x.Endpoint != nil {
		c.shard.sticky.Answer(x.Config, x.Rule, x.Backend, x.Endpoint.UID, x.Session, h, c.shard.g.opts.Directory(), c.shard.loop.Now())
	}
}

// put gives back what the last try has taken.
func (c *session) put(x *exchange.Exchange) {
	if x.Endpoint != nil {
		c.shard.given(x.Endpoint, x.Upstream)
		x.Endpoint, x.Upstream = nil, nil
	}
}

// Outcome implements exchange.Owner.
func (c *session) Outcome(x *exchange.Exchange, why reason.Reason) {
	e := endpoint{workload: x.Endpoint, service: x.Service, port: c.dest.Port}
	if x.Upstream != nil {
		e.port = x.Upstream.Service.Port
	}
	c.shard.outcome(&e, why)
}

// Mirror implements exchange.Owner.
func (c *session) Mirror(x *exchange.Exchange, b *route.Backend, to *pool.Target) bool {
	e, err := c.shard.pick(c, x.Config, b, "", nil, netip.Addr{})
	if err != nil {
		return false
	}
	*to = e.target
	to.HTTP2 = e.http2(x.Request.Version == message.HTTP2)
	return true
}

// Progress implements exchange.Owner.
func (c *session) Progress(x *exchange.Exchange) {
	c.report(c.shard.g.opts.Telemetry.Progress, x, x.Endpoint)
}

// Done implements exchange.Owner.
func (c *session) Done(x *exchange.Exchange) {
	endpoint := x.Endpoint
	c.put(x)
	c.report(c.shard.g.opts.Telemetry.Request, x, endpoint)
	if s := spanOf(x); s != nil {
		c.shard.traces.Release(s)
	}
}

// report calls a hook with the record of a request.
func (c *session) report(f func(*Record), x *exchange.Exchange, endpoint *workload.Workload) {
	if f == nil {
		return
	}
	h, r := x.Request, &c.shard.record
	*r = c.record()
	r.HTTP, r.Start, r.Duration = true, x.Start, c.shard.loop.Now().Sub(x.Start)
	r.Reason, r.Err, r.Status = x.Reason, x.Err, x.Status
	r.Version = "HTTP/1.1"
	switch h.Version {
	case message.HTTP11:
	case message.HTTP2:
		r.Version = "HTTP/2"
	case message.HTTP10:
		r.Version = "HTTP/1.0"
	}
	r.Method, r.Authority, r.Path = h.Method, h.Authority, x.Path
	r.UserAgent, r.RequestID = h.Get(message.UserAgent), h.Get(message.XRequestID)
	r.ForwardedFor, r.Traceparent = h.Get(message.XForwardedFor), h.Get(message.Traceparent)
	if x.Rule != nil {
		r.Route = x.Rule.Rule.Origin
	}
	r.Backend, r.Endpoint, r.Upstream = x.Service, endpoint, x.Target.App
	if r.BackendPort = c.dest.Port; x.Backend != nil && x.Config.Upstreams[x.Backend.Name] != nil {
		r.BackendPort = x.Config.Upstreams[x.Backend.Name].Service.Port
	}
	if x.Target.Tunnel.IsValid() {
		r.Identities = x.Target.Identities
	}
	r.Answered, r.Direct, r.Messages, r.Heads = x.Answered, x.Direct, x.Messages, x.Heads
	r.GRPC, r.GRPCStatus, r.Tries, r.FirstByte = x.GRPC, x.GRPCStatus, x.Tries, x.FirstByte
	r.Received, r.Sent, r.head, r.span, r.metadata = x.Received, x.Sent, h, spanOf(x), x.Metadata
	f(r)
	*r = Record{}
}
