// Package wire is the form in which routes travel from the control plane to a
// gateway: messages of api/route, each of which holds one rule. The control
// plane encodes what the gateway decodes. Both ends check a message with the
// same function, so that the control plane never sends what a gateway of the
// same version rejects.
package wire

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Parent is a service port whose requests a rule is for.
type Parent struct {
	Port route.PortKey
	// Clients is the namespace whose clients the rule is for, in place of rules
	// that are for everybody; empty for everybody.
	Clients string
}

// Origin is where a rule was written.
type Origin struct {
	Kind, Namespace, Name string
	Rule                  int       // place in the route
	RuleName              string    // for people
	Created               time.Time // of the route, in whole seconds
}

// String renders kind, namespace, name and rule, for people.
func (o Origin) String() string {
	s := o.Kind + " " + o.Namespace + "/" + o.Name + ", rule " + strconv.Itoa(o.Rule)
	if o.RuleName != "" {
		s += " (" + o.RuleName + ")"
	}
	return s
}

// Rule is one rule of one route, for one gateway.
type Rule struct {
	Origin  Origin
	Parents []Parent
	// Dropped is why the rule fits no request; empty for a rule in effect. Its
	// parents have routes nevertheless.
	Dropped string
	// Rule is what package route executes. Its Origin, Route and Created follow
	// from Origin. The Name of a backend is an UpstreamName.
	Rule route.Rule
}

// fill sets what follows from the origin.
func (r *Rule) fill() {
	r.Rule.Origin, r.Rule.Route, r.Rule.Created = r.Origin.String(), r.Origin.Namespace+"/"+r.Origin.Name, r.Origin.Created
}

// ParseUpstream reads what PortKey.UpstreamName returns.
func ParseUpstream(s string) (k route.PortKey, err error) {
	namespace, rest, ok := strings.Cut(s, "/")
	hostname, port, ok2 := strings.Cut(rest, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	k = route.PortKey{Namespace: namespace, Hostname: hostname, Port: uint16(n)}
	if !ok || !ok2 || err != nil || k.UpstreamName() != s {
		return route.PortKey{}, fmt.Errorf("upstream %q is not namespace/hostname:port", s)
	}
	return k, nil
}

// Compile makes the tables of the rules that are in effect for one parent: for requests,
// and for connections that carry none. Each is nil without such rules. Rules that are
// dropped are left out. The order of rules does not matter.
func Compile(rules []*Rule) (*route.Table, *route.Connections) {
	var requests, connections []*Rule
	for _, r := range rules {
		if r.Rule.Carries == route.Requests {
			requests = append(requests, r)
		} else {
			connections = append(connections, r)
		}
	}
	var t *route.Table
	if len(requests) > 0 {
		t, _ = route.Compile(inEffect(requests), route.BySpecificity) // Decode has compiled each
		for _, r := range requests {
			if r.Rule.Guarded { // also when it fits no request
				t.Guard()
			}
		}
	}
	var c *route.Connections
	if len(connections) > 0 {
		c, _ = route.CompileConnections(inEffect(connections)) // Decode has checked each
		for _, r := range connections {
			if r.Rule.Carries == route.TLS {
				c.Demand()
			}
		}
	}
	return t, c
}

// inEffect returns what is executed of rules, in a fixed order.
func inEffect(rules []*Rule) []route.Rule {
	rules = slices.SortedFunc(slices.Values(rules), func(a, b *Rule) int {
		x, y := &a.Origin, &b.Origin
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name), cmp.Compare(x.Rule, y.Rule))
	})
	list := make([]route.Rule, 0, len(rules))
	for _, r := range rules {
		if r.Dropped == "" {
			list = append(list, r.Rule)
		}
	}
	return list
}
