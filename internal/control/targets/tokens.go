package targets

import (
	"fmt"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
)

// tokenConditions say where a RequestAuthentication acts, and whether the keys that it
// needs are known.
func tokenConditions(_ *securityv1.RequestAuthentication, t *policy.Tokens, bound, open []binding) []status.Condition {
	out := []status.Condition{tokensAccepted(t, bound, open)}
	if c := keysFetched(t); c != nil {
		out = append(out, *c)
	}
	return out
}

func tokensAccepted(t *policy.Tokens, bound, open []binding) status.Condition {
	where, missing, none := places(bound, open)
	if none != nil {
		return *none
	}
	parts := []string{"tokens are verified by " + strings.Join(where, ", ")}
	if len(t.Keys) == 0 {
		parts = []string{"without jwtRules it looks at no token; add a rule"}
	}
	for _, i := range t.Invalid {
		parts = append(parts, fmt.Sprintf("correct %s; until then no token of this rule is accepted", i))
	}
	parts = append(parts, t.Ignored...)
	if len(missing) > 0 {
		parts = append(parts, fmt.Sprintf("not for %d of %d targets: %s", len(open), len(bound)+len(open), strings.Join(missing, "; ")))
	}
	text := strings.Join(parts, "; ")
	switch {
	case len(t.Invalid) > 0:
		return status.No(status.WaypointAccepted, status.ReasonInvalid, "%s", text)
	case len(missing) > 0:
		return status.No(status.WaypointAccepted, status.ReasonPartiallyInvalid, "%s", text)
	}
	return status.Yes(status.WaypointAccepted, status.ReasonAccepted, "%s", text)
}

// keysFetched is nil when all keys are in the policy.
func keysFetched(t *policy.Tokens) *status.Condition {
	var known, pending, stale, absent []string
	for _, k := range t.Keys {
		switch {
		case k.Source == (jwks.Source{}):
		case k.State == nil:
			pending = append(pending, k.Source.String())
		case k.State.Problem == "":
			known = append(known, fmt.Sprintf("%d of %s", k.State.Count, k.Source))
		case k.State.Keys != "":
			stale = append(stale, k.State.Problem)
		default:
			absent = append(absent, k.State.Problem)
		}
	}
	var c status.Condition
	switch {
	case len(absent) > 0:
		c = status.No(status.KeysFetched, status.ReasonKeysUnavailable,
			"no token of these issuers is accepted, unless a waypoint has keys from before: %s", strings.Join(append(absent, stale...), "; "))
	case len(stale) > 0:
		c = status.No(status.KeysFetched, status.ReasonKeysOutdated, "the keys that were fetched last stay in use: %s", strings.Join(stale, "; "))
	case len(pending) > 0:
		c = status.Maybe(status.KeysFetched, status.ReasonPending, "no token of these issuers is accepted until the keys have come: %s", strings.Join(pending, ", "))
	case len(known) > 0:
		c = status.Yes(status.KeysFetched, status.ReasonKeysFetched, "keys: %s", strings.Join(known, ", "))
	default:
		return nil
	}
	return &c
}
