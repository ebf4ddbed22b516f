// Package authz decides which requests and connections a gateway carries:
// AuthorizationPolicy, compiled once and evaluated without allocation. What a policy
// says of connections is decided by package rbac, as node proxies do; this package
// adds what only a reader of HTTP has.
//
// The invariant: nothing is ever allowed that the policies as written deny. So what
// can be read in two ways is read as the stricter one. Lists that refuse (those of a
// DENY, and the exceptions of an ALLOW) match when any reading of a request does;
// lists that allow match only when every reading does.
package authz

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Service names a service that policies are for, in lower case.
type Service struct{ Namespace, Hostname string }

// Verdict is what a policy says that decides nothing.
type Verdict uint8

// The verdicts.
const (
	Audited        Verdict = iota // an AUDIT policy matched
	WouldDeny                     // a DENY under trial matched
	WouldAllow                    // an ALLOW under trial matched
	WouldAllowNone                // no ALLOW is enforced, and none of those under trial matched
	WouldAsk                      // a CUSTOM under trial matched
)

// String returns the verdict as it is counted.
func (v Verdict) String() string {
	return [...]string{"audited", "would_deny", "would_allow", "would_allow_none", "would_ask"}[min(v, WouldAsk)]
}

// Note is a verdict, and the policy that it is of: namespace/name, empty for
// WouldAllowNone.
type Note struct {
	Policy  string
	Verdict Verdict
}

// list holds the policies for one service, or for everything, by what they do. Each
// part is sorted by name, so that the policy that is named does not depend on the
// order of arrival.
type list struct{ deny, allow, audit, custom []*Policy }

// Access decides about the requests of one connection, one after the other: Begin, then
// Judge, or Ask, Audit, Deny and Allow in this order. It belongs to one goroutine.
type Access struct {
	conn     rbac.Conn
	view     rbac.View
	services []Service
	set      *Set
	lists    []*list // of set, for services
	report   func(Note)

	// Of the request that was begun.
	head      *message.Head
	tokens    []*jwt.Claims
	metadata  *extauthz.Metadata
	path      reading
	pathKnown bool
	// Scratch.
	canonical, joined []byte
}

// NewAccess returns the Access of a connection to services: the one that the client
// called, or all that a workload backs at its port. report, which may be nil, gets the
// verdicts that decide nothing.
func NewAccess(c rbac.Conn, services []Service, report func(Note)) *Access {
	a := &Access{conn: c, services: services, report: report}
	if report == nil {
		a.report = func(Note) {}
	}
	a.view = rbac.NewView(&a.conn)
	return a
}

// Begin begins a decision by the policies of s: about a request whose path is in its
// normal form, or, with a nil head, about a connection that carries no HTTP. tokens are
// those of the request that were verified, the one that counts first. Begin reports
// whether there is any policy.
func (a *Access) Begin(s *Set, h *message.Head, tokens []*jwt.Claims) bool {
	a.head, a.tokens, a.metadata, a.path, a.pathKnown = h, tokens, nil, reading{}, false
	if a.set != s {
		a.set = s
		a.look()
	}
	return len(a.lists) > 0
}

// Services makes the connection one to other services.
func (a *Access) Services(services []Service) {
	a.services = services
	a.look()
}

func (a *Access) look() {
	clear(a.lists)
	a.lists = a.lists[:0]
	if a.set == nil {
		return
	}
	if l := a.set.everything; l != nil {
		a.lists = append(a.lists, l)
	}
	for _, s := range a.services {
		if l := a.set.services[s]; l != nil {
			a.lists = append(a.lists, l)
		}
	}
}

// Ask returns the external authorizer that has to be asked about the request next: of
// those of the CUSTOM policies that match, the first by name that has not allowed it
// yet. nil is none.
func (a *Access) Ask(allowed []string) (next *extauthz.Provider) {
	for _, l := range a.lists {
		for _, p := range l.custom {
			switch {
			case p.dryRun:
				if len(allowed) == 0 && p.matches(a) != nil {
					a.report(Note{p.key, WouldAsk})
				}
			case next != nil && p.provider.Name >= next.Name, slices.Contains(allowed, p.provider.Name), p.matches(a) == nil:
			default:
				next = p.provider
			}
		}
	}
	return next
}

// unasked returns the refusal of a connection without HTTP that a CUSTOM policy matches.
func (a *Access) unasked() *reason.Error {
	for _, l := range a.lists {
		for _, p := range l.custom {
			if r := p.matches(a); r != nil && !p.dryRun {
				return r.refusal
			}
		}
	}
	return nil
}

// Judge returns why a connection that carries no HTTP is refused, or nil. It is refused
// when a CUSTOM policy matches: an authorizer cannot be asked.
func (a *Access) Judge() *reason.Error {
	if err := a.unasked(); err != nil {
		return err
	}
	a.Audit()
	if err := a.Deny(); err != nil {
		return err
	}
	return a.Allow()
}

// Audit reports the AUDIT policies that match.
func (a *Access) Audit() {
	for _, l := range a.lists {
		for _, p := range l.audit {
			if p.matches(a) != nil {
				a.report(Note{p.key, Audited})
			}
		}
	}
}

// Deny returns the refusal of the first DENY policy that matches.
func (a *Access) Deny() *reason.Error {
	for _, l := range a.lists {
		for _, p := range l.deny {
			r := p.matches(a)
			switch {
			case r == nil:
			case p.dryRun:
				a.report(Note{p.key, WouldDeny})
			default:
				return r.refusal
			}
		}
	}
	return nil
}

// errNotAllowed is shared: a refusal costs no allocation.
var errNotAllowed = &reason.Error{Reason: reason.NotAllowed}

// Allow returns a refusal if there are ALLOW policies and none matches.
func (a *Access) Allow() *reason.Error {
	enforced, trial, matched := false, false, false
	for _, l := range a.lists {
		for _, p := range l.allow {
			enforced, trial = enforced || !p.dryRun, trial || p.dryRun
			switch {
			case p.matches(a) == nil:
			case p.dryRun:
				matched = true
				a.report(Note{p.key, WouldAllow})
			default:
				return nil
			}
		}
	}
	if enforced {
		return errNotAllowed
	}
	if trial && !matched {
		a.report(Note{"", WouldAllowNone})
	}
	return nil
}

// Rejudge is a decision without reports: for what was judged before. A request that an
// authorizer has allowed is not asked about again.
func (a *Access) Rejudge() (err *reason.Error) {
	report := a.report
	a.report = func(Note) {}
	if a.head == nil {
		err = a.unasked()
	}
	if err == nil {
		err = a.Deny()
	}
	if err == nil {
		err = a.Allow()
	}
	a.report = report
	return err
}
