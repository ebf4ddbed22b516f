// Package rbac decides whether a connection may be made. Policies are
// compiled once and evaluated without allocation; what cannot be compiled
// never widens what is allowed.
package rbac

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Conn is what policies look at.
type Conn struct {
	// Identity of the source; zero when the connection is plaintext.
	Identity identity.Identity
	Src, Dst netip.AddrPort
}

// Target is the workload a connection is for.
type Target struct {
	Namespace string
	// Policies are the selector policies of the workload, as namespace/name.
	Policies []string
}

// DryRun is what a policy under trial would have done.
type DryRun struct {
	Policy string // namespace/name
	Deny   bool   // it would have denied; else it is an ALLOW that matched
}

// Decision is the outcome for one connection.
type Decision struct {
	Allowed bool
	// Reason is OK, PolicyDenied, NotAllowed, PolicyUnavailable or WaypointRequired.
	Reason reason.Reason
	// Policy is the one that decided, or that is missing, as namespace/name;
	// empty when none did.
	Policy string
	// DryRun lists policies under trial that matched; nil without any.
	DryRun []DryRun
	// WouldDeny: no ALLOW is enforced, and none of those under trial matched.
	WouldDeny bool
}

// Error returns nil when allowed, else the error that refuses the connection.
func (d Decision) Error() *reason.Error {
	if d.Allowed {
		return nil
	}
	return &reason.Error{Reason: d.Reason, Detail: d.Policy}
}

// Set is all policies at one moment. It is immutable; nil is the empty set.
type Set struct {
	names      cow[*Policy] // by resource name
	namespaces cow[*scoped] // by namespace; "" holds those of the whole mesh
	size       int
	// retired are policies that were removed while a workload may still name
	// them, by resource name. Not changed once the Set is visible.
	retired map[string]*Policy
}

// scoped are the policies of one namespace or of the mesh, sorted by key so
// that the policy that is named does not depend on the order of arrival.
type scoped struct{ policies []*Policy }

// Len counts the policies.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.size
}

// Has reports whether there is a policy, by the name of its resource. One that was removed
// and may still hold counts.
func (s *Set) Has(name string) bool {
	if s == nil {
		return false
	}
	_, ok := s.named(name)
	return ok
}

// Evaluate decides a connection to t: a DENY that matches refuses; a policy
// that t names and the set does not have may be one, so it refuses as well;
// without any ALLOW in force the rest is allowed; else an ALLOW must match.
func (s *Set) Evaluate(t Target, c *Conn) Decision {
	if s == nil {
		s = &Set{}
	}
	var buf [principalSize]byte
	v := View{c, principal(buf[:0], &c.Identity)}
	var e evaluation
	var scopes [2]*scoped
	scopes[0], _ = s.namespaces.get("")
	if t.Namespace != "" {
		scopes[1], _ = s.namespaces.get(t.Namespace)
	}
	for _, phase := range [...]action{deny, allow} {
		for _, sc := range scopes {
			if sc == nil {
				continue
			}
			for _, p := range sc.policies {
				if e.consider(phase, p, &v) {
					return e.decision
				}
			}
		}
		missing := ""
		for _, name := range t.Policies {
			if p, ok := s.named(name); !ok {
				missing = name
			} else if e.consider(phase, p, &v) {
				return e.decision
			}
		}
		if missing != "" {
			e.decision.Reason, e.decision.Policy = reason.PolicyUnavailable, missing
			return e.decision
		}
	}
	return e.conclude()
}

// named returns the policy that a workload names: one that was removed holds
// until no workload names it.
func (s *Set) named(name string) (*Policy, bool) {
	p, ok := s.names.get(name)
	if !ok {
		p, ok = s.retired[name]
	}
	return p, ok
}

// evaluation is one Evaluate in progress.
type evaluation struct {
	decision Decision
	// enforced, trial: an ALLOW of that kind exists. trialMatched: one under
	// trial matched.
	enforced, trial, trialMatched bool
}

// consider looks at one policy in the phase of its action; true ends the
// evaluation.
func (e *evaluation) consider(phase action, p *Policy, v *View) bool {
	if p.action != phase {
		return false
	}
	if phase == allow {
		e.enforced = e.enforced || !p.dryRun
		e.trial = e.trial || p.dryRun
	}
	if !p.matches(v) {
		return false
	}
	switch {
	case p.dryRun:
		e.decision.DryRun = append(e.decision.DryRun, DryRun{p.key, phase == deny})
		e.trialMatched = e.trialMatched || phase == allow
		return false
	case phase == deny:
		e.decision.Reason = p.refusal
	default:
		e.decision.Allowed = true
	}
	e.decision.Policy = p.key
	return true
}

func (e *evaluation) conclude() Decision {
	if e.enforced {
		e.decision.Reason = reason.NotAllowed
		return e.decision
	}
	e.decision.Allowed = true
	e.decision.WouldDeny = e.trial && !e.trialMatched
	return e.decision
}

// View is a connection as matchers see it.
type View struct {
	c *Conn
	// principal is the identity without its scheme; nil without an identity.
	principal []byte
}

// NewView returns the view of a connection, which has to stay as it is. The view may be
// used again for every evaluation of the connection.
func NewView(c *Conn) View { return View{c, principal(nil, &c.Identity)} }

// Conn returns the connection.
func (v *View) Conn() *Conn { return v.c }

// principalSize is room for a trust domain and an account of 253 characters
// each, a namespace of 63, and what joins them, so that rendering one does not
// allocate.
const principalSize = 584

// principal renders an identity into buf.
func principal(buf []byte, id *identity.Identity) []byte {
	if id.IsZero() {
		return nil
	}
	buf = append(buf, id.TrustDomain...)
	buf = append(buf, "/ns/"...)
	buf = append(buf, id.Namespace...)
	buf = append(buf, "/sa/"...)
	return append(buf, id.ServiceAccount...)
}
