package route

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

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

// Share is a backend of a rule, and its part of the requests.
type Share struct {
	Backend *Backend
	Weight  uint32
	Total   uint64 // of all weights of the rule
}

// Shares returns the backends of a rule in its order.
func (t *Target) Shares() []Share {
	out := make([]Share, len(t.Rule.Backends))
	for i := range out {
		b := &t.Rule.Backends[i]
		out[i] = Share{b, b.Weight, t.total}
	}
	return out
}

// String renders a share, for output.
func (s Share) String() string {
	name := s.Backend.Name
	if name == "" {
		name = "a backend"
	}
	text := fmt.Sprintf("%s gets %d of %d", name, s.Weight, s.Total)
	if s.Weight > 0 && uint64(s.Weight) == s.Total {
		text = name + " gets all"
	}
	if s.Backend.Invalid != "" {
		text += " (not usable: " + s.Backend.Invalid + ")"
	}
	return text
}

// Largest returns a random number for which Pick chooses the backend with the largest
// weight, the first of several.
func (t *Target) Largest() uint64 {
	var before, at uint64
	best := uint32(0)
	for i := range t.Rule.Backends {
		w := t.Rule.Backends[i].Weight
		if w > best {
			best, at = w, before
		}
		before += uint64(w)
	}
	if at == 0 {
		return 0
	}
	q, r := bits.Div64(at, 0, t.total) // the least number whose share begins at it
	if r > 0 {
		q++
	}
	return q
}

var pathKinds = [...]string{Exact: "", Segments: "prefix ", Regex: "regular expression "}

// String renders a condition in one line, for output.
func (m *Match) String() string {
	var parts []string
	if m.Method != "" {
		parts = append(parts, m.Method)
	}
	if m.Path.Kind != Any {
		parts = append(parts, "path "+pathKinds[m.Path.Kind]+m.Path.Value)
	}
	for i := range m.Headers {
		parts = append(parts, "header "+valueText(&m.Headers[i]))
	}
	for i := range m.Query {
		parts = append(parts, "parameter "+valueText(&m.Query[i]))
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, " and ")
}

func valueText(v *Value) string {
	s := v.Name
	switch v.Kind {
	case Prefix:
		s += "=" + v.Value + "*"
	case Regex:
		s += "~" + v.Value
	case Present:
	default:
		s += "=" + v.Value
	}
	if v.Not {
		s = "not " + s
	}
	return s
}
