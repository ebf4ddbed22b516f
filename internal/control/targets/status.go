package targets

import (
	"fmt"
	"slices"
	"strings"

	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// condition says where a policy with targets acts, and how what is enforced differs from
// what is written.
func condition(p *securityv1.AuthorizationPolicy, req *policy.Requests, bound, open []binding) status.Condition {
	where, missing, none := places(bound, open)
	if none != nil {
		return *none
	}
	at := strings.Join(where, ", ")
	parts := []string{fmt.Sprintf("%s %s", does(p, req), at)}
	switch {
	case req.Lossy != "":
		parts = append(parts, req.Lossy)
	case len(p.Spec.Rules) == 0 && p.Spec.Action == apisecurity.AuthorizationPolicy_ALLOW:
		parts = append(parts, "without rules it allows nothing")
	case len(p.Spec.Rules) == 0:
		parts = append(parts, "without rules it matches nothing; add a rule ({} matches everything)")
	}
	if len(missing) > 0 {
		parts = append(parts, fmt.Sprintf("not for %d of %d targets: %s", len(open), len(bound)+len(open), strings.Join(missing, "; ")))
	}
	text := strings.Join(parts, "; ")
	switch {
	case req.Invalid:
		return status.No(status.WaypointAccepted, status.ReasonInvalid, "%s", text)
	case req.Lossy != "":
		return status.No(status.WaypointAccepted, status.ReasonUnsupportedValue, "%s", text)
	case len(missing) > 0:
		return status.No(status.WaypointAccepted, status.ReasonPartiallyInvalid, "%s", text)
	}
	return status.Yes(status.WaypointAccepted, status.ReasonAccepted, "%s", text)
}

// places returns where a policy with targets acts, and why not for the others. none is the
// condition of a policy that acts nowhere.
func places(bound, open []binding) (where, missing []string, none *status.Condition) {
	unsure := false
	for _, b := range open {
		unsure = unsure || b.open.Status == status.Unknown
		text := b.open.Message
		if len(bound)+len(open) > 1 {
			text = b.what + ": " + text
		}
		missing = append(missing, text)
	}
	if len(bound) == 0 {
		var c status.Condition
		switch text := strings.Join(missing, "; "); {
		case len(open) == 1:
			c = *open[0].open
		case unsure:
			c = status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint, "%s", text)
		default:
			c = status.No(status.WaypointAccepted, status.ReasonInvalid, "no proxy enforces it: %s", text)
		}
		return nil, missing, &c
	}
	for _, b := range bound {
		if w := b.where(); !slices.Contains(where, w) {
			where = append(where, w)
		}
	}
	return where, missing, nil
}

// does returns what gateways do with a policy.
func does(p *securityv1.AuthorizationPolicy, req *policy.Requests) string {
	switch {
	case p.Annotations[wellknown.AnnotationDryRun] == "true":
		return "dry run: evaluated and counted, and not enforced, by"
	case req.Policy.GetProvider() != nil:
		return fmt.Sprintf("external authorizer %s is asked about requests that match, by", req.Policy.GetProvider().GetName())
	case p.Spec.Action == apisecurity.AuthorizationPolicy_AUDIT:
		return "requests that match are counted by"
	}
	return "enforced by"
}
