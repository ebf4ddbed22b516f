// Package filter holds what happens to a request between its arrival and its
// backend, and to the response on the way back. Filters are pure: they change heads,
// or answer.
package filter

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Verdict is what a filter decides of a request.
type Verdict uint8

// The verdicts.
const (
	Continue Verdict = iota
	Answer           // Call.Reply is the response
	Refuse           // Call.Refusal is why
	Ask              // Call.Authorizer has to be asked; Resume goes on
)

// Call is one request on its way through the filters.
type Call struct {
	// Request is the head as it will be forwarded, Response that of the answer.
	Request, Response *message.Head
	// Rule is what the request takes, by which of its matches; nil without routes.
	Rule    *route.Target
	Backend *route.Backend // nil before one is chosen
	// Port of the service or listener that was called, TLS whether the client used
	// it: a redirect repeats both.
	Port uint16
	TLS  bool
	// Access decides by policies, and has begun with this request; nil allows
	// everything.
	Access *authz.Access
	// Authorizer is the one to ask. Allowed are the names of those that have allowed the
	// request, and OnResponse is what they change of the response.
	Authorizer *extauthz.Provider
	Allowed    []string
	OnResponse []extauthz.Edit
	// Unproven is why a token of the request was not accepted; nil when all were, or
	// there is none.
	Unproven *reason.Error

	Refusal *reason.Error // of Refuse
	Reply   message.Head  // of Answer: Status and fields
	Origin  []byte        // of the request, for CORS on the way back; nil when not permitted
}

// Filter is a place in the order. One without functions is not built yet: it
// marks where policy will act, for authors of policies rely on the order.
type Filter struct {
	Name string
	// Unrouted filters also see requests that no route takes: who may not send a
	// request does not learn whether it has a route.
	Unrouted bool
	Request  func(*Call) Verdict
	Response func(*Call)
}

// Order is the order of filters on requests. Responses pass it backwards. It is
// that of Istio's waypoints, with two differences: CORS stands before the policies,
// for a preflight request carries no credentials; and external authorization stands
// behind JWT, so that it sees verified claims. Tokens are verified before a route is
// looked for, so that routes see no header that a client forged; a request whose token
// was not accepted is refused at the place of JWT, so that CORS applies to the answer.
//
// Everything before "route" decides on the request as the client sent it.
var Order = [...]Filter{
	{Name: "client-certificate"},
	{Name: "cors", Request: corsRequest, Response: corsResponse},
	{Name: "extensions-authn"},
	{Name: "jwt", Unrouted: true, Request: authenticated},
	{Name: "extensions-authz"},
	{Name: "external-authorization", Unrouted: true, Request: external, Response: externalResponse},
	{Name: "authorization-audit", Unrouted: true, Request: audit},
	{Name: "authorization-deny", Unrouted: true, Request: deny},
	{Name: "authorization-allow", Unrouted: true, Request: allowed},
	{Name: "rate-limit"},
	{Name: "fault"},
	{Name: "extensions"},
	{Name: "redirect", Request: redirect},
	{Name: "route", Request: ruleRequest, Response: ruleResponse},
	{Name: "rewrite", Request: rewrite},
}

// active are those that do something.
var active = func() (fs []*Filter) {
	for i := range Order {
		if Order[i].Request != nil || Order[i].Response != nil {
			fs = append(fs, &Order[i])
		}
	}
	return fs
}()

// asking is the place of the filter that asks, in active.
var asking = slices.IndexFunc(active, func(f *Filter) bool { return f.Name == "external-authorization" })

// Request passes a request through the filters until one answers, refuses or asks.
func Request(c *Call) Verdict { return from(c, 0) }

// Resume goes on with a request that an authorizer has allowed, at the place where it was
// asked.
func Resume(c *Call) Verdict { return from(c, asking) }

func from(c *Call, first int) Verdict {
	for _, f := range active[first:] {
		if f.Request == nil || c.Rule == nil && !f.Unrouted {
			continue
		}
		if v := f.Request(c); v != Continue {
			return v
		}
	}
	return Continue
}

// Backend applies what a backend demands of its requests.
func Backend(c *Call) {
	if c.Backend != nil {
		edit(c.Request, c.Backend.Filters.Request)
	}
}

// Response passes a response back through the filters.
func Response(c *Call) {
	if c.Backend != nil {
		edit(c.Response, c.Backend.Filters.Response)
	}
	for i := len(active) - 1; i >= 0; i-- {
		if f := active[i]; f.Response != nil && (c.Rule != nil || f.Unrouted) {
			f.Response(c)
		}
	}
}
