package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

// origin splits where a rule was written: the object, and its part.
func origin(t *route.Target) (object, rule string) {
	object, rule, _ = strings.Cut(t.Rule.Origin, ", ")
	return object, rule
}

// policies adds what policies say of the request or the connection that the access has
// begun with, and returns the refusal.
func (e *explainer) policies() *reason.Error {
	all, err := e.session.access.Explain()
	allows, asked := 0, ""
	for i := range all {
		p := &all[i]
		step := verdict.Step{Step: verdict.StepPolicy, Object: "AuthorizationPolicy " + p.Policy}
		if p.Matches {
			step.Rule = fmt.Sprintf("rule %d", p.Rule)
		}
		if p.Action == "ALLOW" && !p.DryRun {
			allows++
		}
		step.Says = p.Action + " does not match"
		if p.Matches {
			step.Says = p.Action + " matches"
		}
		if p.Provider != "" {
			step.Says += map[bool]string{true: ": asks ", false: ": does not ask "}[p.Matches && !p.DryRun] + p.Provider
		}
		if p.DryRun {
			step.Says += " (dry run: it decides nothing)"
		}
		unasked := p.Action == "CUSTOM" && err != nil && err.Detail == fmt.Sprintf("%s, rule %d", p.Policy, p.Rule)
		decides := p.Matches && !p.DryRun && (p.Action == "DENY" || p.Action == "ALLOW" && err == nil || unasked)
		if p.Action == "CUSTOM" && p.Matches && !p.DryRun && !unasked {
			asked = "if each external authorizer that is asked allows it, "
		}
		if decides && err != nil && err.Reason == reason.PolicyUnsupported {
			step.Says, step.Rule = "the waypoint cannot enforce it as it is, and denies", ""
		}
		if unasked {
			step.Says = "CUSTOM matches: an authorizer is asked about requests alone, and the connection carries no HTTP"
		}
		step.Decides = decides
		e.v.Steps = append(e.v.Steps, step)
		if decides {
			return err
		}
	}
	switch {
	case err != nil:
		e.v.Steps = append(e.v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: fmt.Sprintf("%s here, and none matches", verdict.Count(allows, "ALLOW policy is", "ALLOW policies are")), Decides: true})
	case len(all) == 0:
		e.v.Steps = append(e.v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: "no policy is for it at this waypoint", Decides: true})
	default:
		e.v.Steps = append(e.v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: asked + "no policy refuses", Decides: true})
	}
	return err
}

// route adds which rule the request takes, and which it does not fit.
func (e *explainer) route(x *exchange.Exchange, h *message.Head) {
	c := e.session
	var table *route.Table
	if c.dest.Service != nil {
		table = x.Config.Port(c.dest.Key).TableFor(c.peer.Namespace)
	}
	if table == nil {
		e.v.Add(verdict.StepRoute, "no route is for the port: requests go to the endpoints of the service")
		if c.dest.Service == nil {
			e.v.Steps[len(e.v.Steps)-1].Says = "a workload was called: routes are for services"
		}
		return
	}
	for _, s := range table.Explain(h) {
		step := verdict.Step{Step: verdict.StepRoute}
		step.Object, step.Rule, _ = strings.Cut(s.Origin, ", ")
		switch s.Misfit {
		case "":
			step.Says = "the request matches " + s.Match.String() + "; " + exchange.Describe(x.Rule.Rule)
		default:
			step.Says = "does not match: the " + s.Misfit + " of " + s.Match.String()
		}
		e.v.Steps = append(e.v.Steps, step)
	}
	if x.Rule == nil {
		e.v.Add(verdict.StepRoute, "routes exist for the port, and none matches the request")
	}
}

// connectionRoute adds which route a connection without HTTP takes, and returns the
// backend; nil when the port has no routes of connections.
func (e *explainer) connectionRoute(cfg *route.Config) (*route.Backend, *reason.Error) {
	c := e.session
	var routes *route.Connections
	if c.dest.Service != nil {
		routes = cfg.Port(c.dest.Key).ConnectionsFor(c.peer.Namespace)
	}
	if routes == nil {
		return nil, nil
	}
	first := opening.Silent
	if e.q.SNI != "" && routes.Named() {
		first.TLS, first.Name = true, e.q.SNI
	}
	target, failure := first.Find(routes)
	if target == nil {
		e.v.Steps = append(e.v.Steps, verdict.Step{Step: verdict.StepRoute, Says: "routes exist for the port, and none is for " + first.String(), Decides: true})
		return nil, reason.Errorf(reason.NoRoute, "%s", failure)
	}
	step := verdict.Step{Step: verdict.StepRoute, Says: "it takes " + first.String()}
	step.Object, step.Rule = origin(target)
	e.v.Steps = append(e.v.Steps, step)
	b, none := target.Pick(target.Largest())
	e.backends(target, b)
	if none != route.OK {
		return nil, reason.Errorf(reason.NoBackend, "%s", none)
	}
	return b, nil
}

// backends adds the backends of the rule, the chosen one first.
func (e *explainer) backends(rule *route.Target, chosen *route.Backend) {
	step := verdict.Step{Step: verdict.StepBackend}
	step.Object, step.Rule = origin(rule)
	var others []string
	for _, s := range rule.Shares() {
		if s.Backend == chosen {
			step.Says = s.String()
			step.Decides = s.Backend.Invalid != ""
			continue
		}
		others = append(others, s.String())
	}
	if chosen == nil {
		step.Says, step.Decides = "the rule has no backend with a weight", true
	}
	if len(others) > 0 {
		slices.Sort(others)
		step.Says += "; others: " + strings.Join(others, ", ")
	}
	e.v.Steps = append(e.v.Steps, step)
}

// endpoint adds where the request or the connection goes, once the backend's service is
// known.
func (e *explainer) endpoint(cfg *route.Config, b *route.Backend, done func(*verdict.Verdict, error)) {
	if e.learn(e.shard.unknownBackend(cfg, b), func() { e.endpoint(cfg, b, done) }) {
		return
	}
	c := e.session
	ep, err := e.shard.pick(c, cfg, b, e.kept, nil, netip.Addr{})
	if err != nil && e.learn(ep.unknown, func() { e.endpoint(cfg, b, done) }) {
		return
	}
	if err != nil {
		step := verdict.Step{Step: verdict.StepEndpoint, Says: "there is no endpoint to choose", Decides: true}
		if ep.service != nil {
			step.Object = "Service " + ep.service.Namespace + "/" + ep.service.Name
		}
		e.v.Steps = append(e.v.Steps, step)
		done(e.refused(err), nil)
		return
	}
	if ep.waypoint {
		e.another(&ep, done)
		return
	}
	w := ep.workload
	n := &verdict.Next{
		To: verdict.ToPod, Namespace: w.Namespace, Name: w.Name, Node: w.Node, UID: w.UID,
		Authority: ep.target.App.String(), Source: e.shard.g.opts.Source.String(),
	}
	if !strings.Contains(w.UID, "/Pod/") {
		n.To = verdict.ToOutside
	}
	if c.dest.Service != nil {
		n.Host = c.dest.Service.Hostname
	}
	says := "the workload that was called"
	if ep.service != nil {
		says = "an endpoint of " + ep.service.Hostname + " was chosen" + e.others(&ep)
	}
	e.v.Steps = append(e.v.Steps, verdict.Step{Step: verdict.StepEndpoint, Says: says, Object: "Pod " + w.Namespace + "/" + w.Name})
	if ep.target.Tunnel.IsValid() {
		n.Tunnel, n.Identity = true, e.shard.g.opts.Identity.String()
		e.v.Add(verdict.StepTunnel, fmt.Sprintf("mutual TLS to %s for %s, as %s; the other side must be %s",
			ep.target.Tunnel, ep.target.App, n.Identity, strings.ReplaceAll(ep.target.Identities, ",", ", ")))
	} else {
		e.v.Add(verdict.StepTunnel, "the endpoint is not in the mesh: plaintext to "+ep.target.App.String())
	}
	e.v.Next = n
	done(e.v, nil)
}

// another adds the waypoint that stands before the chosen service or endpoint.
func (e *explainer) another(ep *endpoint, done func(*verdict.Verdict, error)) {
	w := ep.workload
	n := &verdict.Next{
		To: verdict.ToWaypoint, Namespace: w.Namespace, Name: w.Name, Node: w.Node, UID: w.UID, Tunnel: true,
		Authority: ep.target.Authority(), Source: e.shard.g.opts.Source.String(), Identity: e.shard.g.opts.Identity.String(),
		Host: ep.service.Hostname, Hops: int(e.session.hops) + 1,
	}
	if h := e.forwarded; h != nil {
		n.Request = &verdict.Request{Method: string(h.Method), Host: string(h.Authority), Path: string(h.Path)}
		for i := range h.Fields {
			n.Request.Headers = append(n.Request.Headers, verdict.Header{Name: strings.ToLower(string(h.Fields[i].Name)), Value: string(h.Fields[i].Value)})
		}
	}
	e.v.Steps = append(e.v.Steps, verdict.Step{
		Step: verdict.StepWaypoint, Object: "Service " + ep.service.Namespace + "/" + ep.service.Name,
		Says: fmt.Sprintf("another waypoint stands before it: %s/%s gets it, and decides by its own routes and policies", w.Namespace, w.Name),
	})
	e.v.Add(verdict.StepTunnel, fmt.Sprintf("mutual TLS to %s for %s, as %s; the other side must be %s",
		ep.target.Tunnel, n.Authority, n.Identity, strings.ReplaceAll(ep.target.Identities, ",", ", ")))
	e.v.Next = n
	done(e.v, nil)
}

// others describes the endpoints that were not chosen.
func (e *explainer) others(ep *endpoint) string {
	now := e.shard.loop.Now()
	ready, ill, out := 0, 0, 0
	for w := range e.shard.g.opts.Directory().Endpoints(ep.service) {
		switch {
		case w.UID == ep.workload.UID:
		case !w.Healthy:
			ill++
		case e.shard.health.Ejected(upstream.Place{UID: w.UID, Port: ep.port}, now):
			out++
		default:
			ready++
		}
	}
	text := ""
	for _, part := range []struct {
		n    int
		what string
	}{{ready, "more are ready"}, {ill, "not ready"}, {out, "left out for a time, because they could not be reached"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	return text
}
