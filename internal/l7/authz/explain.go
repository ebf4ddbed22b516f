package authz

import "github.com/ambit-mesh/ambit/internal/mesh/reason"

// Considered is a policy that a decision looked at.
type Considered struct {
	Policy  string // namespace/name
	Action  string // AUDIT, DENY or ALLOW
	DryRun  bool
	Matches bool
	Rule    int // place of the rule that matches, as its author numbers them from 0
	Rules   int
}

// Explain returns what Judge returns, and the policies that are for the request in the
// order in which they are looked at. It reports no verdicts.
func (a *Access) Explain() ([]Considered, *reason.Error) {
	var all []Considered
	add := func(action string, part func(*list) []*Policy) {
		for _, l := range a.lists {
			for _, p := range part(l) {
				c := Considered{Policy: p.key, Action: action, DryRun: p.dryRun, Rules: len(p.rules)}
				if r := p.matches(a); r != nil {
					c.Matches, c.Rule = true, r.place
				}
				all = append(all, c)
			}
		}
	}
	add("AUDIT", func(l *list) []*Policy { return l.audit })
	add("DENY", func(l *list) []*Policy { return l.deny })
	add("ALLOW", func(l *list) []*Policy { return l.allow })
	return all, a.Rejudge()
}
