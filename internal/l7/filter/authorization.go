package filter

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// authenticated refuses a request with a token that was not accepted.
func authenticated(c *Call) Verdict { return c.refuse(c.Unproven) }

// maxAuthorizers bounds the authorizers that are asked about one request, one after the
// other.
const maxAuthorizers = 8

var errAuthorizers = reason.Errorf(reason.PolicyUnsupported, "more than %d external authorizers are to be asked about the request", maxAuthorizers)

// external has the next authorizer asked: those of policies, then that of the rule.
func external(c *Call) Verdict {
	if c.Authorizer = nil; c.Access != nil {
		c.Authorizer = c.Access.Ask(c.Allowed)
	}
	if c.Authorizer == nil && c.Rule != nil {
		if p := c.Rule.Rule.Filters.ExternalAuth; p != nil && !slices.Contains(c.Allowed, p.Name) {
			c.Authorizer = p
		}
	}
	switch {
	case c.Authorizer == nil:
		return Continue
	case len(c.Allowed) >= maxAuthorizers:
		return c.refuse(errAuthorizers)
	}
	return Ask
}

func externalResponse(c *Call) { extauthz.Edits(c.Response, c.OnResponse) }

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
