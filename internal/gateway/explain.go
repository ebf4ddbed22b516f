package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

// explainer answers one question, on a loop. Its session is in no list, and has no
// stream.
type explainer struct {
	shard   *shard
	q       *verdict.Question
	v       *verdict.Verdict
	session *session
	asked   []string // resources that were requested
	grpc    bool     // failures are answered as a status of gRPC
	// forwarded is the head of the request as it leaves; nil for a connection that
	// carries no HTTP.
	forwarded *message.Head
	kept      string // the endpoint of the request's session
}

// maxExplained bounds, in the life of a gateway, the names that questions have had
// requested from the control plane and that do not exist: each is a subscription. Beyond
// it, questions are answered by what is known already.
const maxExplained = 1024

// absent keeps names that were requested for questions and do not exist.
type absent struct {
	mu    sync.Mutex // guards names
	names map[string]struct{}
}

// add notes names, and drop returns those of names that may still be requested.
func (a *absent) add(names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names == nil {
		a.names = map[string]struct{}{}
	}
	for _, n := range names {
		if len(a.names) < maxExplained {
			a.names[n] = struct{}{}
		}
	}
}

func (a *absent) drop(names []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names) >= maxExplained {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := a.names[n]; return ok })
}

// Explain answers a question about a connection through this gateway, and the request on
// it. It requests what is not known yet from the control plane, as the connection would.
// It dials nothing, and counts and logs nothing.
func (g *Gateway) Explain(ctx context.Context, q verdict.Question) (*verdict.Verdict, error) {
	type answer struct {
		v   *verdict.Verdict
		err error
	}
	answered := make(chan answer, 1)
	done := func(v *verdict.Verdict, err error) { answered <- answer{v, err} }
	if !g.onShard(0, func(s *shard) { (&explainer{shard: s, q: &q}).begin(done) }) {
		return nil, errors.New("the proxy is ending")
	}
	select {
	case a := <-answered:
		return a.v, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// onShard runs f on the first loop, from the i-th, that has a shard: what one loop has
// seen of endpoints is not known to another. Without any, f gets one for its own use.
func (g *Gateway) onShard(i int, f func(*shard)) bool {
	l := g.opts.Loops.Loop(i)
	return l.Post(func() {
		switch s := g.shards[i]; {
		case s != nil:
			f(s)
		case i+1 < g.opts.Loops.Len():
			g.onShard(i+1, f)
		default:
			f(g.newShard(l))
		}
	})
}

func (e *explainer) begin(done func(*verdict.Verdict, error)) {
	target, err := connect.ParseTarget(e.q.Authority)
	if err != nil {
		done(nil, fmt.Errorf("%w: authority: %w", verdict.ErrQuestion, err))
		return
	}
	e.v = verdict.New(verdict.RoleWaypoint)
	if e.q.Hops > connect.MaxHops {
		done(e.refuse(verdict.StepDestination, "the waypoint does not take it", reason.Errorf(reason.WaypointLoop, "%d waypoints have sent it on", e.q.Hops)), nil)
		return
	}
	where, re := e.shard.whereabouts(e.q.Identity.Namespace)
	if re != nil {
		done(e.refuse(verdict.StepDestination, "the waypoint has just started", re), nil)
		return
	}
	if e.learn(where.Unknown(target, e.q.Source), func() { e.begin(done) }) {
		return
	}
	dest, re := where.Find(target)
	if re == nil && e.shard.g.opts.Config() == nil {
		re = errNoConfig
	}
	if re != nil {
		done(e.refuse(verdict.StepDestination, "the waypoint does not take "+target.String(), re), nil)
		return
	}
	e.destination(&dest)
	remote := netip.AddrPortFrom(e.q.Source, 0)
	client, _ := where.Client(e.q.Identity, e.q.Source, "")
	c := &session{
		shard: e.shard, dest: dest, peer: e.q.Identity, remote: remote, client: client, judged: where.Snapshot,
		seen: e.shard.g.seen(&incoming{peer: e.q.Identity, remote: remote}), hops: connect.Hops(e.q.Hops),
	}
	// It reports verdicts of policies to no counter.
	services := dest.Services(where.Snapshot)
	c.access = authz.NewAccess(rbac.Conn{Identity: c.peer, Src: c.remote, Dst: dest.Target()}, services, nil)
	c.tokens = authn.NewCheck(e.shard.verifier, authenticated(services))
	e.session = c
	http := e.readsHTTP()
	if http && e.q.HTTP != nil && !*e.q.HTTP {
		done(e.refuse(verdict.StepProtocol, "a connection that carries no HTTP is answered as a malformed request", &reason.Error{Reason: reason.MalformedRequest}), nil)
		return
	}
	if http {
		e.request(done)
		return
	}
	e.connection(done)
}

// learn requests what the directory lacks, each name once.
func (e *explainer) learn(names []string, again func()) bool {
	missing := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(e.asked, n) })
	e.shard.g.absent.add(missing)
	names = slices.DeleteFunc(e.shard.g.absent.drop(names), func(n string) bool { return slices.Contains(e.asked, n) })
	e.asked = append(e.asked, names...)
	return e.shard.learn(names, again)
}

func (e *explainer) refuse(step, says string, err *reason.Error) *verdict.Verdict {
	e.v.Steps = append(e.v.Steps, verdict.Step{Step: step, Says: says, Decides: true})
	return e.refused(err)
}

func (e *explainer) refused(err *reason.Error) *verdict.Verdict {
	switch {
	case !e.v.HTTP: // the connection is cut, or not accepted
		e.v.Status = 0
	case e.v.Status == 0:
		e.v.Status = err.Reason.HTTP().Status
	}
	if e.grpc {
		e.v.GRPC, e.v.Status = exchange.GRPCStatus(e.v.Status, err.Reason), 200
	}
	return e.v.Refuse(err)
}

func (e *explainer) destination(d *place.Destination) {
	step := verdict.Step{Step: verdict.StepDestination}
	if d.Service != nil {
		e.v.Service = d.Service.Key().String()
		step.Object, step.Says = "Service "+d.Service.Namespace+"/"+d.Service.Name, fmt.Sprintf("%s is port %d of %s, which uses this waypoint", e.q.Authority, d.Port, d.Service.Hostname)
	} else {
		step.Object, step.Says = "Pod "+d.Workload.Namespace+"/"+d.Workload.Name, e.q.Authority+" is an address of the workload, which uses this waypoint"
	}
	e.v.Called = d.Called()
	e.v.Steps = append(e.v.Steps, step)
}

// readsHTTP adds how the connection is read, and reports whether that is HTTP.
func (e *explainer) readsHTTP() bool {
	asked := e.q.HTTP
	says := ""
	switch e.session.dest.Carries() {
	case place.CarriesTCP:
		if says = "the port declares TCP: requests are not read, and routes and policies of requests do not apply"; asked == nil || !*asked {
			says = "the port declares TCP"
		}
	case place.CarriesHTTP:
		e.v.HTTP = true
		says = "the port declares HTTP"
	case place.CarriesUnknown:
		if e.session.routedRaw() {
			says = "the port declares nothing, and has routes of connections: requests are not read"
			break
		}
		e.v.HTTP = asked != nil && *asked
		if says = "the port declares nothing: the first bytes decide, and these are not HTTP"; e.v.HTTP {
			says = "the port declares nothing: the first bytes decide, and these are HTTP"
		}
	}
	e.v.Add(verdict.StepProtocol, says)
	return e.v.HTTP
}

// connection is one that carries no HTTP.
func (e *explainer) connection(done func(*verdict.Verdict, error)) {
	c := e.session
	if _, err := c.begin(nil, time.Time{}); err != nil {
		done(e.refuse(verdict.StepPolicy, "there are no policies yet", err), nil)
		return
	}
	if err := e.policies(); err != nil {
		done(e.refused(err), nil)
		return
	}
	if err := c.unasked(); err != nil {
		done(e.refuse(verdict.StepRoute, err.Err.Error(), err), nil)
		return
	}
	cfg := c.shard.g.opts.Config()
	backend, err := e.connectionRoute(cfg)
	if err != nil {
		done(e.refused(err), nil)
		return
	}
	e.endpoint(cfg, backend, done)
}

// request takes the described request the way of exchange.begin.
func (e *explainer) request(done func(*verdict.Verdict, error)) {
	c := e.session
	host := e.q.Host
	if host == "" {
		host = e.q.Authority
		if s := c.dest.Service; s != nil {
			host = s.Hostname
		}
	}
	h, err := message.NewRequest(e.q.Method, host, e.q.Path, func(add func(name, value string)) {
		for _, f := range e.q.Headers {
			add(f.Name, f.Value)
		}
	})
	if err != nil {
		done(nil, fmt.Errorf("%w: %w", verdict.ErrQuestion, err))
		return
	}
	h.RemoveHopByHop()
	filter.Arrive(h, c.Client(), false, 0, 0)
	if f := h.NormalisePath(normalise); f != nil {
		e.v.Status = f.Status()
		done(e.refuse(verdict.StepProtocol, "the path can be read in two ways", reason.Errorf(reason.MalformedRequest, "%w", f)), nil)
		return
	}
	x := &exchange.Exchange{Call: filter.Call{Request: h}, Start: e.shard.loop.Now()}
	e.grpc = exchange.IsGRPC(h)
	unrouted := c.Route(x)
	if unrouted != nil && unrouted.Reason != reason.NoRoute {
		done(e.refuse(verdict.StepRoute, "the request cannot be routed", unrouted), nil)
		return
	}
	e.grpc = e.grpc || x.Rule != nil && x.Rule.Rule.GRPC
	e.route(x, h)
	x.Access = nil // policies are explained one by one
	judged := false
	for i := range filter.Order {
		f := &filter.Order[i]
		if f.Name == policyFilter && !judged {
			judged = true
			if err := e.policies(); err != nil {
				done(e.refused(err), nil)
				return
			}
		}
		if f.Request == nil || x.Rule == nil && !f.Unrouted {
			continue
		}
		switch f.Request(&x.Call) {
		case filter.Continue, filter.Ask:
		case filter.Answer:
			done(e.answered(f.Name, &x.Call), nil)
			return
		case filter.Refuse:
			done(e.refuse(verdict.StepFilter, f.Name+" refuses the request", x.Refusal), nil)
			return
		}
	}
	if unrouted != nil {
		done(e.refuse(verdict.StepRoute, "the request has no route", unrouted), nil)
		return
	}
	var backend *route.Backend
	if x.Rule != nil {
		b, failure := x.Rule.Pick(x.Rule.Largest())
		if x.Rule.Rule.Session != nil {
			if c.Held(x); x.Session.Backend != nil {
				b, failure, e.kept = x.Session.Backend, route.OK, x.Session.UID
				e.v.Add(verdict.StepBackend, "the request is in a session, which keeps it on its endpoint")
			}
		}
		e.backends(x.Rule, b)
		if failure != route.OK {
			done(e.refused(reason.Errorf(reason.NoBackend, "%s", failure)), nil)
			return
		}
		x.Backend, backend = b, b
	}
	filter.Backend(&x.Call)
	e.forwarded = h
	e.endpoint(x.Config, backend, done)
}

// policyFilter is the first of the filters that policies are.
const policyFilter = "external-authorization"

// answered is a request that a filter answers in the place of an endpoint.
func (e *explainer) answered(name string, call *filter.Call) *verdict.Verdict {
	e.v.Status = call.Reply.Status
	says := fmt.Sprintf("the waypoint answers itself with %d", call.Reply.Status)
	if l := call.Reply.Find(message.NewKey("location"), 0); l >= 0 {
		says += ", location " + string(call.Reply.Fields[l].Value)
	}
	step := verdict.Step{Step: verdict.StepFilter, Says: name + ": " + says, Decides: true}
	if call.Rule != nil {
		step.Object, step.Rule = origin(call.Rule)
	}
	e.v.Steps = append(e.v.Steps, step)
	e.v.LastDecides()
	e.v.Next = &verdict.Next{To: verdict.ToAnswer}
	return e.v
}
