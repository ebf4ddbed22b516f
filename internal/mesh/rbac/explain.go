package rbac

// Considered is a policy that a decision looked at.
type Considered struct {
	Policy string // namespace/name
	Deny   bool   // else it is an ALLOW
	DryRun bool
	// Rule is the place of the first rule that matches, -1 when none does.
	// Rules is how many the policy has here. Rules that can never match are not
	// sent to proxies.
	Rule, Rules int
	Broken      error // why the policy fails closed, or nil
}

// Matches reports whether the policy matches the connection. An ALLOW that fails
// closed never does.
func (c *Considered) Matches() bool { return c.Rule >= 0 || c.Broken != nil && c.Deny }

// Explain returns what Evaluate decides, and the policies that are for t in the order
// in which it looks at them.
func (s *Set) Explain(t Target, c *Conn) (Decision, []Considered) {
	if s == nil {
		s = &Set{}
	}
	v := NewView(c)
	var scopes [2]*scoped
	scopes[0], _ = s.namespaces.get("")
	if t.Namespace != "" {
		scopes[1], _ = s.namespaces.get(t.Namespace)
	}
	var all []Considered
	for _, phase := range [...]action{deny, allow} {
		for _, sc := range scopes {
			if sc == nil {
				continue
			}
			for _, p := range sc.policies {
				all = appendConsidered(all, phase, p, &v)
			}
		}
		for _, name := range t.Policies {
			if p, ok := s.named(name); ok {
				all = appendConsidered(all, phase, p, &v)
			}
		}
	}
	return s.Evaluate(t, c), all
}

func appendConsidered(all []Considered, phase action, p *Policy, v *View) []Considered {
	if p.action != phase {
		return all
	}
	c := Considered{Policy: p.key, Deny: p.action == deny, DryRun: p.dryRun, Rule: -1, Rules: len(p.rules), Broken: p.broken}
	if p.broken == nil {
		for i, g := range p.rules {
			if g.holds(v) {
				c.Rule = i
				break
			}
		}
	}
	return append(all, c)
}
