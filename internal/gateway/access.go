package gateway

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// begin begins a decision by the policies in force: about a request that came at a
// moment, or, with a nil head, about a connection that carries no HTTP. Of a request, it
// makes the head what routes and policies look at. unproven is why its tokens were not
// accepted.
func (c *session) begin(h *message.Head, at time.Time) (unproven, err *reason.Error) {
	set, authentications := c.shard.g.opts.Policies(), c.shard.g.opts.Authentications()
	if set == nil || authentications == nil {
		return nil, errNoConfig
	}
	snapshot := c.shard.g.opts.Directory()
	if c.judged != snapshot {
		if w, err := c.shard.whereabouts(c.peer.Namespace); err == nil {
			switch w.Standing(&c.dest) {
			case place.Used:
			case place.Left:
				c.shard.loop.Post(c.last)
			case place.Replaced:
				c.shard.loop.Post(c.drain)
				return nil, errMoved // a new connection finds the other waypoint
			}
		}
	}
	switch {
	case c.access == nil:
		services := c.dest.Services(snapshot)
		c.access = authz.NewAccess(rbac.Conn{Identity: c.peer, Src: c.remote, Dst: c.dest.Target()}, services, c.shard.g.opts.Telemetry.Policy)
		c.tokens = authn.NewCheck(c.shard.verifier, authenticated(services))
	case c.dest.Workload != nil && c.judged != snapshot:
		// The pod may have become an endpoint of another service.
		services := c.dest.Services(snapshot)
		c.access.Services(services)
		c.tokens.Services(authenticated(services))
	}
	c.judged = snapshot
	var claims []*jwt.Claims
	if h != nil {
		unproven = c.tokens.Request(authentications, h, at)
		claims = c.tokens.Claims()
	}
	c.access.Begin(set, h, claims)
	return unproven, nil
}

// authenticated returns services as package authn has them.
func authenticated(services []authz.Service) []authn.Service {
	out := make([]authn.Service, len(services))
	for i, s := range services {
		out[i] = authn.Service(s)
	}
	return out
}

// judge decides about a connection that carries no HTTP.
func (c *session) judge() *reason.Error {
	if _, err := c.begin(nil, time.Time{}); err != nil {
		return err
	}
	if err := c.access.Judge(); err != nil {
		return err
	}
	return c.unasked()
}

// unasked refuses a connection without HTTP on a port where a route has requests
// authorized. A port that declares TCP has no requests.
func (c *session) unasked() *reason.Error {
	if c.dest.Service != nil && c.dest.Carries() != place.CarriesTCP && c.shard.g.opts.Config().Port(c.dest.Key).TableFor(c.peer.Namespace).Asks() {
		return errUnasked
	}
	return nil
}

var errUnasked = reason.Errorf(reason.PolicyUnsupported, "a route asks an external authorizer about requests, and the connection carries no HTTP")

// rejudge looks again at what is under way: at a request as it came, with the tokens
// that were valid then and the changes that were made, or, with a nil head, at a
// connection that carries no HTTP.
func (c *session) rejudge(h *message.Head, at time.Time, changed func(*message.Head)) *reason.Error {
	if h != nil {
		again := &message.Head{} // this one is looked at as often as policies change
		again.CopyFrom(h)
		h = again
	}
	unproven, err := c.begin(h, at)
	if h != nil {
		changed(h)
	}
	switch {
	case err == errMoved: //nolint:errorlint // never wrapped
		return errChanged // policies change, and this gateway does not get them
	case err != nil:
		return nil //nolint:nilerr // no policies have come yet
	case unproven != nil, c.access.Rejudge() != nil:
		return errChanged
	}
	return nil
}

var errMoved = reason.Errorf(reason.AddressMismatch, "it uses another waypoint now")

var errChanged = &reason.Error{Reason: reason.PolicyChanged}

// Recheck ends the connections, and the requests under way, that policies do not allow
// any more. It follows a change of the policies.
func (g *Gateway) Recheck() { g.recheck(func(*session) bool { return true }) }

// Rerouted ends the connections without HTTP at ports where a route has requests
// authorized now. It follows a change of the routes.
func (g *Gateway) Rerouted() {
	g.each(func(s *shard) {
		for c := range s.sessions {
			if c.tcp != nil && c.unasked() != nil {
				c.close(reason.PolicyChanged)
			}
		}
	})
}

// Moved ends the connections to a service that uses another waypoint now, those that
// are in use behind their requests. The requests themselves are for Recheck.
func (g *Gateway) Moved(name workload.NamespacedName) {
	g.each(func(s *shard) {
		w, err := s.whereabouts("")
		if err != nil {
			return
		}
		for c := range s.sessions {
			if d := &c.dest; d.Concerns(name) && w.Standing(d) == place.Replaced {
				c.drain()
			}
		}
	})
}

// Joined is Recheck for the connections to a workload, whose services have changed.
func (g *Gateway) Joined(uid string) {
	g.recheck(func(c *session) bool { return c.dest.Workload != nil && c.dest.Workload.UID == uid })
}

func (g *Gateway) recheck(concerns func(*session) bool) {
	g.each(func(s *shard) {
		for c := range s.sessions {
			if c.tcp != nil && concerns(c) && c.rejudge(nil, time.Time{}, nil) != nil {
				c.close(reason.PolicyChanged)
			}
		}
		s.engine.Recheck(func(x *exchange.Exchange, h *message.Head) *reason.Error {
			if c, ok := x.Owner().(*session); ok && concerns(c) {
				return c.rejudge(h, x.Start, func(h *message.Head) { c.access.Metadata(x.Metadata); x.Changed(h) })
			}
			return nil
		})
	})
}
