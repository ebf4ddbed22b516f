package gateway

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Question implements exchange.Asker.
func (c *session) Question(x *exchange.Exchange) (q extauthz.Question, destination string) {
	q = extauthz.Question{Source: c.remote, Principal: name(c.peer), Called: c.dest.Target(), Self: name(c.shard.g.opts.Identity), Metadata: x.Metadata}
	if all := c.tokens.Claims(); len(all) > 0 {
		q.Token = all[0]
	}
	if c.dest.Service == nil {
		return q, c.dest.Workload.UID
	}
	return q, c.dest.Service.Key().String()
}

// Authorizer implements exchange.Asker: an authorizer is reached as a backend is, and its
// connections are of all clients.
func (c *session) Authorizer(x *exchange.Exchange, to *pool.Target, learned int) (outcome func(reason.Reason), wait bool, err *reason.Error) {
	p, s := x.Authorizer, c.shard
	where, err := s.whereabouts("")
	if err != nil {
		return nil, false, err
	}
	up := &route.Upstream{Service: route.PortKey{Namespace: p.Namespace, Hostname: p.Hostname, Port: p.Port}}
	if p.Namespace == "" {
		up.Service.Namespace = place.NamespaceOf(p.Hostname)
		if svc := where.Snapshot.ServiceByHostname(p.Hostname, where.Self.Namespace); svc != nil {
			up.Service.Namespace = svc.Namespace
		}
	}
	if up.Service.Namespace == "" {
		return nil, false, reason.Errorf(reason.NoHealthyUpstream, "there is no service %s (write namespace/%s for a ServiceEntry)", p.Hostname, p.Hostname)
	}
	cfg, b := &route.Config{Upstreams: map[string]*route.Upstream{p.Name: up}}, &route.Backend{Name: p.Name}
	if learned < maxLearned && s.learn(s.unknownBackend(cfg, b), x.Resume()) {
		return nil, true, nil
	}
	e, err := s.pick(c, cfg, b, "", nil, netip.Addr{})
	if err != nil && learned < maxLearned && s.learn(e.unknown, x.Resume()) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	*to = e.target
	// The count of waypoints stays: two that ask services behind each other end there.
	to.HTTP2, to.Client = p.GRPC || e.http2(false), pool.Client{Hops: e.target.Client.Hops}
	return func(why reason.Reason) { s.outcome(&e, why) }, false, nil
}

// Continue implements exchange.Asker.
func (c *session) Continue(x *exchange.Exchange, h *message.Head, reroute bool) *reason.Error {
	unproven, err := c.begin(h, x.Start)
	switch {
	case err != nil:
		return err
	case unproven != nil:
		return unproven
	}
	c.access.Metadata(x.Metadata)
	if x.Changed(h); reroute {
		return c.lookUp(x)
	}
	return nil
}

// Asked implements exchange.Asker.
func (c *session) Asked(x *exchange.Exchange, o extauthz.Outcome) {
	if f := c.shard.g.opts.Telemetry.Asked; f != nil {
		f(x.Authorizer.Name, o)
	}
}
