package rbac

import (
	"errors"

	securitypb "github.com/ambit-mesh/ambit/api/security"
)

// Condition is what one Match demands of a connection: for policies that look at
// more than connections, and have this part in common with those of this package.
type Condition struct{ m match }

// CompileCondition compiles a message. refuses says what the condition is for: blocks
// that can be read in two ways are read as the stricter one. A message without a
// field is an error.
func CompileCondition(pb *securitypb.Match, refuses bool) (Condition, error) {
	m, err := compileMatch(pb)
	if err != nil {
		return Condition{}, err
	}
	a := allow
	if refuses {
		a = deny
	}
	m.settleBlocks(a)
	if m.empty() {
		return Condition{}, errors.New("a condition without a field")
	}
	return Condition{m}, nil
}

// Holds reports whether the connection has what the condition demands.
func (c *Condition) Holds(v *View) bool { return c.m.holds(v) }

// LooksAtDestination reports whether the condition is about the destination's address,
// which a connection to a name does not have.
func (c *Condition) LooksAtDestination() bool {
	return len(c.m.destinations)+len(c.m.notDestinations) > 0
}
