package filter

import "github.com/ambit-mesh/ambit/internal/mesh/reason"

// authenticated refuses a request with a token that was not accepted.
func authenticated(c *Call) Verdict { return c.refuse(c.Unproven) }

func audit(c *Call) Verdict {
	if c.Access != nil {
		c.Access.Audit()
	}
	return Continue
}

func deny(c *Call) Verdict {
	if c.Access == nil {
		return Continue
	}
	return c.refuse(c.Access.Deny())
}

func allowed(c *Call) Verdict {
	if c.Access == nil {
		return Continue
	}
	return c.refuse(c.Access.Allow())
}

func (c *Call) refuse(err *reason.Error) Verdict {
	if err == nil {
		return Continue
	}
	c.Refusal = err
	return Refuse
}
