package nft

import (
	"fmt"
	"strings"
)

// String renders the table in the language of the nft program, for people and
// for comparison in tests.
func (s Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", s.family(), s.Table)
	for _, t := range s.Timeouts {
		fmt.Fprintf(&b, "\t%s\n", t)
	}
	for _, set := range s.Sets {
		fmt.Fprintf(&b, "\t%s\n", set)
	}
	for i, c := range s.Chains {
		if i > 0 || len(s.Sets)+len(s.Timeouts) > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %d; policy accept;\n", c.Name, c.Type, c.Hook, c.Priority)
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (s Ruleset) family() string {
	if s.Bridge {
		return "bridge"
	}
	return "inet"
}

func (r Rule) String() string {
	var parts []string
	for _, m := range r.Match {
		parts = append(parts, m.String())
	}
	if r.Count {
		parts = append(parts, "counter")
	}
	parts = append(parts, r.Do.String())
	if r.Note != "" {
		parts = append(parts, fmt.Sprintf("comment %q", r.Note))
	}
	return strings.Join(parts, " ")
}
