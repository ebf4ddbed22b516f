package authz

import "github.com/ambit-mesh/ambit/internal/mesh/reason"

// Considered is a policy that a decision looked at.
type Considered struct {
	Policy  string // namespace/name
	Action  string // CUSTOM, AUDIT, DENY or ALLOW
	DryRun  bool
	Matches bool
	Rule    int // place of the rule that matches, as its author numbers them from 0
	Rules   int
	// Provider is who a CUSTOM policy has asked.
	Provider string
}

// Explain returns the refusal of the request, or of the connection, and the policies that are for the request in the
// order in which they are looked at. It reports no verdicts.
func (a *Access) Explain() ([]Considered, *reason.Error) {
	var all []Considered
	add := func(action string, part func(*list) []*Policy) {
		for _, l := range a.lists {
			for _, p := range part(l) {
				c := Considered{Policy: p.key, Action: action, DryRun: p.dryRun, Rules: len(p.rules)}
				if p.provider != nil {
					c.Provider = p.provider.String()
				}
				if r := p.matches(a); r != nil {
					c.Matches, c.Rule = true, r.place
				}
				all = append(all, c)
			}
		}
	}
	add("CUSTOM", func(l *list) []*Policy { return l.custom })
	add("AUDIT", func(l *list) []*Policy { return l.audit })
	add("DENY", func(l *list) []*Policy { return l.deny })
	add("ALLOW", func(l *list) []*Policy { return l.allow })
	return all, a.Rejudge()
}
