package route

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Step is one match that was looked at for a request.
type Step struct {
	Origin string // of the rule
	Host   string // the host pattern that fitted
	Match  Match
	Misfit string // method, headers, query or path; "" if all fits
}

// maxSteps bounds an explanation: a page of output.
const maxSteps = 100

// Explain returns the matches whose host and path fit, in the order of their
// precedence, up to the one that decides. The last step has no misfit if the
// request has a route.
func (t *Table) Explain(h *message.Head) (steps []Step) {
	t.levels(h, func(p *paths) bool {
		var some []*entry
		p.lists(h.PathOnly(), func(l []*entry) { some = append(some, l...) })
		slices.SortFunc(some, func(a, b *entry) int { return a.rank - b.rank })
		for _, e := range some {
			s := Step{Origin: e.target.Rule.Origin, Host: e.target.Host, Match: e.match.source, Misfit: e.match.misfit(h)}
			steps = append(steps, s)
			if s.Misfit == "" || len(steps) == maxSteps {
				return false
			}
		}
		return true
	})
	return steps
}
