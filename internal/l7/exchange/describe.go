package exchange

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Describe returns timeouts, retries, copies and the authorizer of a rule in words.
func Describe(r *route.Rule) string {
	var all []string
	if d := r.Timeouts.Request; d > 0 {
		all = append(all, "timeout "+d.String())
	}
	if d := r.Timeouts.Try; d > 0 {
		all = append(all, "timeout of one try "+d.String())
	}
	retries := fmt.Sprintf("at most %d retries", Retries(r))
	if r.Retry != nil && len(r.Retry.Codes) > 0 {
		retries += fmt.Sprintf(", also on %v", r.Retry.Codes)
	}
	all = append(all, retries)
	if len(r.Filters.Mirrors) > 0 {
		all = append(all, "mirrored")
	}
	if p := r.Filters.ExternalAuth; p != nil {
		all = append(all, "if it is allowed by "+p.String())
	}
	return strings.Join(all, ", ")
}
