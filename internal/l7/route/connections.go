package route

import (
	"cmp"
	"slices"
	"strings"
)

// Carries is what the connections of a rule carry.
type Carries uint8

// What they carry.
const (
	Requests Carries = iota // the rule is for requests
	TLS                     // connections of TLS, by the name in their first message
	Anything                // connections that carry neither
)

// Connections finds the rule for a connection that carries no HTTP. It is safe for use by
// several goroutines.
type Connections struct {
	exact, wildcard map[string]*Target // of TLS; wildcard: by what follows "*"
	any             *Target            // of TLS
	tls             bool               // there are rules of TLS, in effect or not
	plain           *Target            // of all that is not TLS
	targets         []*Target          // all, in the order of their precedence
}

// CompileConnections makes the table of rules for connections. Of several rules for the
// same, that of the older route is in effect.
func CompileConnections(rules []Rule) (*Connections, []Problem) {
	c := &Connections{exact: map[string]*Target{}, wildcard: map[string]*Target{}}
	var problems []Problem
	order := make([]int, 0, len(rules))
	for i := range rules {
		if err := checkHosts(rules[i].Hosts); err != nil {
			problems = append(problems, Problem{i, err})
			continue
		}
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := &rules[i], &rules[j]
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Route, b.Route))
	})
	for _, i := range order {
		rule := rules[i]
		t := newTarget(&rule, Match{}, "")
		c.targets = append(c.targets, t)
		switch rule.Carries {
		case Requests:
		case TLS:
			c.tls = true
			if len(rule.Hosts) == 0 {
				first(&c.any, t)
			}
			for _, host := range rule.Hosts {
				c.add(strings.ToLower(host), t)
			}
		case Anything:
			first(&c.plain, t)
		}
	}
	return c, problems
}

func first(at **Target, t *Target) {
	if *at == nil {
		*at = t
	}
}

func (c *Connections) add(host string, t *Target) {
	m, key := c.exact, host
	switch {
	case host == "*":
		first(&c.any, t)
		return
	case host[0] == '*':
		m, key = c.wildcard, host[1:]
	}
	if m[key] == nil {
		m[key] = t
	}
}

// Named reports whether the name that a client of TLS wants decides. It may be called on
// nil.
func (c *Connections) Named() bool { return c != nil && c.tls }

// Demand has connections of TLS refused that no rule fits, also when no rule of TLS is in
// effect.
func (c *Connections) Demand() { c.tls = true }

// Plain returns the rule for connections that are not TLS, or nil.
func (c *Connections) Plain() *Target { return c.plain }

// Lookup returns the rule for a connection of TLS, or nil: that for the name, else that
// for the longest wildcard. The name is in lower case, and empty for a client that names
// none. Without rules of TLS, that for all connections.
func (c *Connections) Lookup(name string) *Target {
	if !c.tls {
		return c.plain
	}
	if t := c.exact[name]; t != nil {
		return t
	}
	for rest := name; len(c.wildcard) > 0 && rest != ""; {
		dot := strings.IndexByte(rest[1:], '.')
		if dot < 0 {
			break
		}
		rest = rest[1+dot:]
		if t := c.wildcard[rest]; t != nil {
			return t
		}
	}
	return c.any
}

// Names returns the names of clients of TLS that take a rule, in order: "*" for those that
// no other rule is for.
func (c *Connections) Names(t *Target) (names []string) {
	for name, at := range c.exact {
		if at == t {
			names = append(names, name)
		}
	}
	for suffix, at := range c.wildcard {
		if at == t {
			names = append(names, "*"+suffix)
		}
	}
	if c.any == t {
		names = append(names, "*")
	}
	slices.Sort(names)
	return names
}

// Targets returns the rules, in the order of their precedence.
func (c *Connections) Targets() []*Target {
	if c == nil {
		return nil
	}
	return c.targets
}
