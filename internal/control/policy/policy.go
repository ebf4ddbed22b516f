// Package policy turns the policies users write into what node proxies
// execute. A node proxy sees connections, not requests; the invariant is that
// nothing is ever allowed that the policy as written would deny. So where a
// rule looks at something that cannot be seen, an ALLOW rule never matches,
// and a DENY rule matches whatever its other fields match.
package policy

import (
	"errors"
	"fmt"
	"strings"

	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Authorization is a translated AuthorizationPolicy. It is immutable.
type Authorization struct {
	// Policy is what node proxies get; nil when it is not for them.
	Policy *securitypb.Authorization
	// Targeted tells that it is for the waypoints of its targetRefs.
	Targeted bool
	// Selector is set for policies of some workloads only: those that have
	// all of these labels, in the policy's namespace or, from the root
	// namespace, in any.
	Selector map[string]string
	// Conditions tell what became of it, rule by rule where rules differ.
	Conditions []status.Condition
	// Effects tell for each rule of the policy what became of it, and Notes
	// why. Without a Policy there are none.
	Effects []Effect
	Notes   []Note
}

// Effect is how what is enforced of a rule compares with what is written.
type Effect uint8

// The effects, which keep to the invariant.
const (
	Exact      Effect = iota
	Narrowed          // an ALLOW rule that matches less
	Never             // an ALLOW rule that never matches
	Widened           // a DENY rule that matches more
	Everything        // a DENY rule that matches every connection
)

// Note is one thing that could not be kept.
type Note struct {
	Rule  int    // index
	Field string // path from spec on
	// Problem is what is wrong with a value; empty when the field is about
	// something that a node proxy cannot see.
	Problem string
}

// Translate compiles an AuthorizationPolicy. rootNamespace is the one whose
// policies hold for the whole mesh.
func Translate(p *securityv1.AuthorizationPolicy, rootNamespace string) *Authorization {
	return TrustDomains{}.Translate(p, rootNamespace)
}

// Translate is the function of that name in a mesh with these trust domains.
func (d TrustDomains) Translate(p *securityv1.AuthorizationPolicy, rootNamespace string) *Authorization {
	targeted := p.Spec.TargetRef != nil || len(p.Spec.TargetRefs) > 0
	selector := p.Spec.Selector.GetMatchLabels()
	if targeted && len(selector) == 0 {
		return &Authorization{Targeted: true, Conditions: []status.Condition{status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint,
			"the policy has targetRefs: the waypoint of its target enforces it, node proxies do not")}}
	}
	out := &Authorization{Selector: selector}
	pb := &securitypb.Authorization{
		Name:      p.Name,
		Namespace: p.Namespace,
		Scope:     scope(p.Namespace, rootNamespace, selector),
		DryRun:    p.Annotations[wellknown.AnnotationDryRun] == "true",
	}
	c := compiler{namespace: p.Namespace, domains: d}
	switch p.Spec.Action {
	case apisecurity.AuthorizationPolicy_ALLOW:
		pb.Action = securitypb.Action_ALLOW
	case apisecurity.AuthorizationPolicy_DENY:
		pb.Action, c.deny = securitypb.Action_DENY, true
	case apisecurity.AuthorizationPolicy_CUSTOM:
		// An external authorizer may refuse anything the rules match, and
		// nobody at this layer can ask it: everything they match is refused.
		pb.Action, c.deny = securitypb.Action_DENY, true
	default:
		// AUDIT never decides, so leaving it out allows nothing more.
		return &Authorization{Conditions: []status.Condition{status.No(status.ZtunnelAccepted, status.ReasonUnsupportedValue,
			"action %s is not supported by node proxies and has no effect there; use a waypoint (targetRefs) to audit requests", p.Spec.Action)}}
	}
	pb.Groups = c.rules(p.Spec.Rules)
	out.Policy, out.Effects, out.Notes = pb, c.effects, c.notes
	out.Conditions = []status.Condition{c.condition(p, targeted)}
	return out
}

func scope(namespace, root string, selector map[string]string) securitypb.Scope {
	switch {
	case len(selector) > 0:
		return securitypb.Scope_WORKLOAD_SELECTOR
	case namespace == root:
		return securitypb.Scope_GLOBAL
	}
	return securitypb.Scope_NAMESPACE
}

// compiler collects what could not be kept on the way.
type compiler struct {
	namespace string
	domains   TrustDomains
	deny      bool
	requests  bool // for a gateway, which sees requests
	current   int  // rule
	notes     []Note
	effects   []Effect
}

func (c *compiler) note(field, problem string) {
	c.notes = append(c.notes, Note{c.current, field, problem})
}

// lost lists the notes for people: fields a node proxy cannot see, and values
// that mean nothing.
func (c *compiler) lost() (unseen, invalid []string) {
	for _, n := range c.notes {
		if n.Problem == "" {
			unseen = append(unseen, n.Field)
		} else {
			invalid = append(invalid, n.Field+": "+n.Problem)
		}
	}
	return unseen, invalid
}

func (c *compiler) condition(p *securityv1.AuthorizationPolicy, targeted bool) status.Condition {
	var parts []string
	reason := status.ReasonUnsupportedValue
	if targeted {
		parts = append(parts, "a policy has either a selector or targetRefs: targetRefs are ignored")
		reason = status.ReasonInvalid
	}
	if p.Spec.Action == apisecurity.AuthorizationPolicy_CUSTOM {
		parts = append(parts, "node proxies cannot ask an external authorizer: everything the rules match is denied; attach the policy to a waypoint with targetRefs")
	}
	effect := "these rules never allow"
	if c.deny {
		effect = "these rules deny everything that their other fields match"
	}
	unseen, invalid := c.lost()
	if len(unseen) > 0 {
		parts = append(parts, fmt.Sprintf("node proxies see connections and not requests, so %s (%s); attach the policy to a waypoint with targetRefs to match requests",
			effect, strings.Join(unseen, ", ")))
	}
	if len(invalid) > 0 {
		reason = status.ReasonInvalid
		parts = append(parts, fmt.Sprintf("correct %s; until then %s", strings.Join(invalid, ", "), effect))
	}
	if len(parts) > 0 {
		return status.No(status.ZtunnelAccepted, reason, "%s", strings.Join(parts, "; "))
	}
	what := "enforced by the node proxies of the workloads it selects"
	switch {
	case p.Annotations[wellknown.AnnotationDryRun] == "true":
		what = "dry run: node proxies evaluate and log it, and enforce nothing"
	case len(p.Spec.Rules) == 0 && !c.deny:
		what = "enforced; without rules it allows nothing"
	case len(p.Spec.Rules) == 0:
		what = "without rules it denies nothing; add a rule ({} matches everything)"
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", what)
}

// rules compiles each rule to a group. A rule that cannot match is left out:
// no groups at all means never.
func (c *compiler) rules(rules []*apisecurity.Rule) []*securitypb.Group {
	groups := []*securitypb.Group{}
	c.each(rules, func(_ int, clauses []clause) {
		g := &securitypb.Group{}
		for _, cl := range clauses {
			r := &securitypb.Rules{}
			for i := range cl {
				r.Matches = append(r.Matches, cl[i].connection)
			}
			g.Rules = append(g.Rules, r)
		}
		if len(g.Rules) == 0 {
			g.Rules = []*securitypb.Rules{{}} // a clause without alternatives holds
		}
		groups = append(groups, g)
	})
	return groups
}

// each emits the clauses of every rule that can match.
func (c *compiler) each(rules []*apisecurity.Rule, emit func(place int, clauses []clause)) {
	for i, r := range rules {
		c.current = i
		before := len(c.notes)
		clauses, possible := c.rule(fmt.Sprintf("spec.rules[%d]", i), r)
		if possible {
			emit(i, clauses)
		}
		c.effects = append(c.effects, c.effect(clauses, possible, len(c.notes) > before))
	}
}

func (c *compiler) effect(clauses []clause, possible, lossy bool) Effect {
	switch {
	case !lossy:
		return Exact
	case !possible:
		return Never
	case !c.deny:
		return Narrowed
	case len(clauses) == 0:
		return Everything
	}
	return Widened
}

// rule returns the clauses of a rule, all of which must hold, and reports whether they
// can.
func (c *compiler) rule(at string, r *apisecurity.Rule) (clauses []clause, possible bool) {
	var from, to []match
	for i, f := range r.GetFrom() {
		from = append(from, c.source(fmt.Sprintf("%s.from[%d].source", at, i), f.GetSource()))
	}
	for i, t := range r.GetTo() {
		to = append(to, c.operation(fmt.Sprintf("%s.to[%d].operation", at, i), t.GetOperation()))
	}
	possible = add(&clauses, from)
	possible = add(&clauses, to) && possible
	for i, w := range r.GetWhen() {
		// Each condition is a clause of its own: all of them must hold.
		possible = add(&clauses, []match{c.when(fmt.Sprintf("%s.when[%d]", at, i), w)}) && possible
	}
	return clauses, possible
}

// match is one alternative of a clause: what it says of connections and, for gateways,
// of requests.
type match struct {
	connection *securitypb.Match
	request    *authzpb.Match
	// never: it cannot hold. all: it holds for everything.
	never, all bool
}

// clause is a list of alternatives, of which one must hold.
type clause []match

// add adds a clause; false when none of its alternatives can hold.
// Proxies skip an alternative without fields, so one that always holds makes
// the whole clause superfluous instead.
func add(to *[]clause, alternatives []match) bool {
	if len(alternatives) == 0 {
		return true
	}
	var c clause
	for _, a := range alternatives {
		if a.all {
			return true
		}
		if !a.never {
			c = append(c, a)
		}
	}
	if len(c) == 0 {
		return false
	}
	*to = append(*to, c)
	return true
}

// builder makes one match, field by field, keeping to the invariant.
type builder struct {
	c      *compiler
	at     string
	m      securitypb.Match
	remote securitypb.Match // of the address that headers tell, at a gateway
	r      authzpb.Match
	any    bool // some field is set in the result
	never  bool
	// written: some field is set in the policy.
	written bool
}

const (
	emptyPart  = "this part of the rule is empty, which does not mean everything; leave it out to mean that"
	emptyValue = "an empty value or list matches nothing; leave the field out to match everything"
)

func (c *compiler) builder(at string) *builder { return &builder{c: c, at: at} }

// done returns the match. A part without any field was written for a reason
// that is not known: it never allows and always denies.
func (b *builder) done() match {
	if !b.written {
		b.c.note(b.at, emptyPart)
		b.lost()
	}
	return match{connection: &b.m, request: b.request(), never: b.never, all: !b.any && !b.never}
}

// lost notes a constraint that cannot be expressed: an ALLOW must not match
// without it, a DENY must match regardless of it.
func (b *builder) lost() {
	if !b.c.deny {
		b.never = true
	}
}

// unseen notes a field that a node proxy cannot see, when it is set.
func (b *builder) unseen(field string, values ...[]string) {
	for _, v := range values {
		if len(v) == 0 {
			continue
		}
		b.written = true
		b.c.note(b.at+"."+field, "")
		b.lost()
		return
	}
}

// values parses a list into dst. A bad value of a positive list could have
// matched anything: a DENY drops the whole constraint, an ALLOW just the
// value. With a negative list it is the other way round: an ALLOW cannot
// match any more, and a DENY excepts only what it understood.
func values[T any](b *builder, dst *[]T, field string, list []string, negative bool, parse func(string) (T, error)) {
	if len(list) == 0 {
		return
	}
	b.written = true
	out := make([]T, 0, len(list))
	bad := false
	for _, s := range list {
		v, err := parse(s)
		if s == "" {
			err = errors.New(emptyValue)
		}
		if err != nil {
			b.c.note(b.at+"."+field, err.Error())
			bad = true
			continue
		}
		out = append(out, v)
	}
	switch {
	case bad && negative && !b.c.deny:
		b.never = true
		return
	case bad && b.c.deny && !negative:
		return // no constraint: denies more
	case len(out) == 0 && !negative:
		b.never = true
		return
	case len(out) == 0:
		return
	}
	*dst = out
	b.any = true
}

func (c *compiler) source(at string, s *apisecurity.Source) match {
	b := c.builder(at)
	if s == nil {
		return b.done()
	}
	m := &b.m
	values(b, &m.Principals, "principals", c.principals(s.Principals, false), false, parsePrincipal)
	values(b, &m.NotPrincipals, "notPrincipals", c.principals(s.NotPrincipals, true), true, parsePrincipal)
	values(b, &m.Namespaces, "namespaces", s.Namespaces, false, parseString)
	values(b, &m.NotNamespaces, "notNamespaces", s.NotNamespaces, true, parseString)
	values(b, &m.ServiceAccounts, "serviceAccounts", s.ServiceAccounts, false, c.parseAccount)
	values(b, &m.NotServiceAccounts, "notServiceAccounts", s.NotServiceAccounts, true, c.parseAccount)
	values(b, &m.SourceIps, "ipBlocks", s.IpBlocks, false, parseBlock)
	values(b, &m.NotSourceIps, "notIpBlocks", s.NotIpBlocks, true, parseBlock)
	if c.requests {
		values(b, &b.r.RequestPrincipals, "requestPrincipals", s.RequestPrincipals, false, parseString)
		values(b, &b.r.NotRequestPrincipals, "notRequestPrincipals", s.NotRequestPrincipals, true, parseString)
		values(b, &b.remote.SourceIps, "remoteIpBlocks", s.RemoteIpBlocks, false, parseBlock)
		values(b, &b.remote.NotSourceIps, "notRemoteIpBlocks", s.NotRemoteIpBlocks, true, parseBlock)
		values(b, &b.r.TrustDomains, "trustDomains", c.trustDomains(s.TrustDomains), false, parseString)
		values(b, &b.r.NotTrustDomains, "notTrustDomains", c.trustDomains(s.NotTrustDomains), true, parseString)
		return b.done()
	}
	b.unseen("requestPrincipals", s.RequestPrincipals)
	b.unseen("notRequestPrincipals", s.NotRequestPrincipals)
	b.unseen("remoteIpBlocks", s.RemoteIpBlocks)
	b.unseen("notRemoteIpBlocks", s.NotRemoteIpBlocks)
	// Seen by the proxy, but the protocol has no field for it.
	b.unseen("trustDomains", s.TrustDomains)
	b.unseen("notTrustDomains", s.NotTrustDomains)
	return b.done()
}

func (c *compiler) operation(at string, o *apisecurity.Operation) match {
	b := c.builder(at)
	if o == nil {
		return b.done()
	}
	values(b, &b.m.DestinationPorts, "ports", o.Ports, false, parsePort)
	values(b, &b.m.NotDestinationPorts, "notPorts", o.NotPorts, true, parsePort)
	if c.requests {
		values(b, &b.r.Hosts, "hosts", o.Hosts, false, parseString)
		values(b, &b.r.NotHosts, "notHosts", o.NotHosts, true, parseString)
		values(b, &b.r.Methods, "methods", o.Methods, false, parseString)
		values(b, &b.r.NotMethods, "notMethods", o.NotMethods, true, parseString)
		values(b, &b.r.Paths, "paths", o.Paths, false, parsePath)
		values(b, &b.r.NotPaths, "notPaths", o.NotPaths, true, parsePath)
		return b.done()
	}
	b.unseen("hosts", o.Hosts)
	b.unseen("notHosts", o.NotHosts)
	b.unseen("methods", o.Methods)
	b.unseen("notMethods", o.NotMethods)
	b.unseen("paths", o.Paths)
	b.unseen("notPaths", o.NotPaths)
	return b.done()
}

func (c *compiler) when(at string, w *apisecurity.Condition) match {
	b := c.builder(at)
	m := &b.m
	switch w.GetKey() {
	case "source.ip":
		both(b, &m.SourceIps, &m.NotSourceIps, w, parseBlock)
	case "source.principal":
		values(b, &m.Principals, "values", c.principals(w.GetValues(), false), false, parsePrincipal)
		values(b, &m.NotPrincipals, "notValues", c.principals(w.GetNotValues(), true), true, parsePrincipal)
	case "source.namespace":
		both(b, &m.Namespaces, &m.NotNamespaces, w, parseString)
	case "source.serviceAccount":
		both(b, &m.ServiceAccounts, &m.NotServiceAccounts, w, c.parseAccount)
	case "destination.ip":
		both(b, &m.DestinationIps, &m.NotDestinationIps, w, parseBlock)
	case "destination.port":
		both(b, &m.DestinationPorts, &m.NotDestinationPorts, w, parsePort)
	case "":
		b.written = true
		b.c.note(at+".key", "the condition has no key")
		b.lost()
	default:
		if c.requests && b.whenRequest(w) {
			break
		}
		b.written = len(w.GetValues())+len(w.GetNotValues()) > 0
		b.c.note(fmt.Sprintf("%s.key %q", at, w.GetKey()), "")
		b.lost()
	}
	return b.done()
}

func both[T any](b *builder, positive, negative *[]T, w *apisecurity.Condition, parse func(string) (T, error)) {
	values(b, positive, "values", w.GetValues(), false, parse)
	values(b, negative, "notValues", w.GetNotValues(), true, parse)
}
