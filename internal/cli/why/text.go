package why

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

var roles = map[string]string{
	verdict.RoleClient: "the node proxy of the client", verdict.RoleWaypoint: "the waypoint", verdict.RoleDestination: "the node proxy of the destination",
}

// maxSame bounds the steps of one kind that decide nothing and are shown.
const maxSame = 5

// row is a step as it is printed.
type row struct{ mark, step, from, says string }

// Text renders the report. A star marks the steps that decide.
func (r *Report) Text() string {
	var b strings.Builder
	p := func(format string, args ...any) { b.WriteString(printer.Sprintf(format, args...)) }
	p("%s: %s\n", r.From, r.Asked)
	hops := make([][]row, len(r.Hops))
	wide := [2]int{}
	for i, h := range r.Hops {
		hops[i] = rows(h.Steps)
		for _, x := range hops[i] {
			wide[0], wide[1] = max(wide[0], utf8.RuneCountInString(x.step)), max(wide[1], utf8.RuneCountInString(x.from))
		}
	}
	for i, h := range r.Hops {
		p("\n%s, %s\n", h.Proxy, roles[h.Role])
		for _, x := range hops[i] {
			line := fmt.Sprintf("%2s %-*s  %-*s  %s", x.mark, wide[0], x.step, wide[1], x.from, x.says)
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	p("\n%s\n", r.verdict())
	if r.Next != "" {
		p("next: %s\n", r.Next)
	}
	if r.Command != "" {
		p("  %s\n", r.Command)
	}
	return b.String()
}

// verdict is the last line.
func (r *Report) verdict() string {
	last := r.Last()
	if !r.Allowed {
		s := fmt.Sprintf("refused by %s: %s: %s", last.Proxy, r.Reason, r.Detail)
		switch {
		case r.GRPC > 0:
			s += fmt.Sprintf(" (the client gets the gRPC status %d)", r.GRPC)
		case r.Status > 0:
			s += fmt.Sprintf(" (the client gets %d)", r.Status)
		}
		return s
	}
	switch n := last.Next; {
	case n == nil:
		return "allowed"
	case n.To == verdict.ToAnswer:
		return fmt.Sprintf("allowed: %s answers with %d", last.Proxy, r.Status)
	case n.To == verdict.ToProgram:
		return fmt.Sprintf("allowed: pod %s/%s gets it on %s", n.Namespace, n.Name, n.Authority)
	}
	return "allowed: it leaves the mesh, to " + last.Next.Authority
}

func rows(steps []verdict.Step) []row {
	var out []row
	same, left := 0, 0
	flush := func() {
		if left > 0 {
			out = append(out, row{says: fmt.Sprintf("… and %d more", left)})
		}
		same, left = 0, 0
	}
	for i, s := range steps {
		if i > 0 && steps[i-1].Step != s.Step {
			flush()
		}
		last := i+1 == len(steps) || steps[i+1].Step != s.Step
		if same++; same > maxSame && !s.Decides && !last {
			left++
			continue
		}
		if s.Decides || last {
			flush()
		}
		x := row{step: printer.Field(s.Step), from: printer.Field(s.Object), says: printer.Field(s.Says)}
		if s.Rule != "" {
			x.from = strings.TrimPrefix(x.from+", "+printer.Field(s.Rule), ", ")
		}
		if s.Decides {
			x.mark = "*"
		}
		out = append(out, x)
	}
	return out
}
