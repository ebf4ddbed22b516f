// Package rbac decides whether a connection may be made. Policies are
// compiled once and evaluated without allocation; what cannot be compiled
// never widens what is allowed.
package rbac

import (
	"encoding/json"
	"net/netip"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Conn is what policies look at.
type Conn struct {
	// Source identity; zero when the connection is plaintext.
	Identity identity.Identity
	Src, Dst netip.AddrPort
}

// Policy is a compiled policy. It is immutable.
type Policy struct{ key string }

// Compile compiles a policy. With an error the policy is still usable and
// fails closed: an ALLOW matches nothing, a DENY matches everything it is
// scoped to, an unknown action or scope denies every workload of its
// namespace (of the mesh for the global scope).
func Compile(a *securitypb.Authorization) (*Policy, error) { return &Policy{}, nil }

// Key returns namespace/name.
func (p *Policy) Key() string { return p.key }

// Matches tells whether the policy's rules match a connection.
func (p *Policy) Matches(c *Conn) bool { return false }

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
	// Reason is OK, PolicyDenied or NotAllowed.
	Reason reason.Reason
	// Policy is the one that decided, as namespace/name; may be empty.
	Policy string
	// DryRun lists policies under trial that matched; nil without any.
	DryRun []DryRun
	// WouldDeny: no ALLOW is enforced, and none of those under trial matched.
	WouldDeny bool
	// Unknown are names of Target.Policies that are not in the set; they were
	// skipped. nil without any.
	Unknown []string
}

// Error returns nil when allowed, else the error that refuses the connection.
func (d Decision) Error() *reason.Error {
	if d.Allowed {
		return nil
	}
	return &reason.Error{Reason: d.Reason, Detail: d.Policy}
}

// Set is all policies at one moment. It is immutable; nil is the empty set.
type Set struct{}

// Evaluate decides a connection to t.
func (s *Set) Evaluate(t Target, c *Conn) Decision { return Decision{Allowed: true} }

// Dump renders all policies as the JSON array of /config_dump.
func (s *Set) Dump() (json.RawMessage, error) { return json.RawMessage("[]"), nil }

// Update is one resource: its name and what it holds.
type Update struct {
	Name   string // of the resource
	Policy *securitypb.Authorization
}

// Rejection is a policy that could not be compiled and now fails closed.
type Rejection struct {
	Name string
	Err  error
}
