package routes

import (
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/source"
)

// object is a route of any kind as its author wrote it. Nothing in it depends on
// other objects.
type object struct {
	kind      *source.Kind
	ref       source.Ref
	created   time.Time
	hostnames bool // it has some, which have no meaning for a service
	carries   route.Carries
	names     []string // that clients of TLS want; none is every
	parents   []gatewayv1.ParentReference
	rules     []rule
}

// rule is a rule without what its references become.
type rule struct {
	name string
	// base has matches, filters but for mirrors, timeouts and retry.
	base     route.Rule
	mirrors  []mirror
	auth     *authorizer
	backends []backend
	// dropped is why the rule fits no request: a match that cannot be evaluated.
	dropped string
	// failing is why all its requests are answered with 500: a filter or another
	// field that cannot be executed, and that may be a restriction.
	failing string
	// without is what the rule is executed without, though its author wrote it.
	without []string
}

// backend is a reference that gets a share of the requests.
type backend struct {
	ref     gatewayv1.BackendObjectReference
	weight  uint32
	filters route.Filters
	failing string // why its share is answered with 500, before it is looked up
}

// authorizer is a reference that is asked about requests; how is without the service.
type authorizer struct {
	ref gatewayv1.BackendObjectReference
	how *authzpb.Provider
}

// mirror is a reference that gets copies.
type mirror struct {
	ref                    gatewayv1.BackendObjectReference
	numerator, denominator uint32
}

// refusal is what becomes of a request or a connection without a backend.
func (o *object) refusal() string {
	if o.carries == route.Requests {
		return "answered with 500"
	}
	return "refused"
}

// what is what the route is for.
func (o *object) what() string {
	if o.carries == route.Requests {
		return "requests"
	}
	return "connections"
}

// fail notes the first reason for which a rule is not executed.
func (r *rule) fail(why string) {
	if r.failing == "" {
		r.failing = why
	}
}

// drop notes the first reason for which a rule fits no request.
func (r *rule) drop(why string) {
	if r.dropped == "" {
		r.dropped = why
	}
}

// value returns what p points to, or the zero value for nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// or returns what p points to, or a default for nil.
func or[T any](p *T, otherwise T) T {
	if p != nil {
		return *p
	}
	return otherwise
}

func weightOf(w *int32) uint32 {
	if n := or(w, 1); n > 0 {
		return uint32(n)
	}
	return 0
}
