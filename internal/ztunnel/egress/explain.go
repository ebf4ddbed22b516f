package egress

import (
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Explain returns what the EgressPolicies of a pod make of a connection that does not exist:
// which ones decide, in which words, and why they refuse. ok is false where none decides.
func (g *Gate) Explain(p *Pod, a *Attempt) (object, says string, err *reason.Error, ok bool) {
	if len(a.Source.Egress) == 0 {
		return "", "", nil, false
	}
	object = "EgressPolicy " + strings.Join(a.Source.Egress, ", ")
	a.Exempt = g.Exempt
	call, outside := a.Outside()
	if !outside {
		return "", "", nil, false
	}
	policies, missing := g.Policies.Of(nil, a.Source.Egress)
	if missing != "" {
		return "EgressPolicy " + missing, "it has not come to the proxy",
			reason.Errorf(reason.PolicyUnavailable, "EgressPolicy %s of workload %s/%s", missing, a.Source.Namespace, a.Source.Name), true
	}
	call.Names = p.names(a, time.Now())
	d := egress.Decide(policies, &call, false)
	tried := egress.Decide(policies, &call, true)
	switch {
	case d.Outcome == egress.Refused:
		err = g.refusal(p, &a.Conn, &call, &d)
		return object, "no entry allows the connection: " + d.Cause, err, true
	case d.Outcome == egress.Undecided:
		return object, fmt.Sprintf("allowed for %s, if a TLS connection names it", names(policies, &call)), nil, true
	case tried.Outcome == egress.Refused:
		return object, "allowed; a dry run reports it: " + tried.Cause, nil, true
	}
	return object, "an entry allows the connection", nil, true
}

// names lists the names of a call that an entry may allow.
func names(policies []*egress.Policy, c *egress.Call) string {
	var out []string
	for _, n := range c.Names {
		one := *c
		one.Opening, one.SNI = egress.TLS, n.Host
		if egress.Decide(policies, &one, false).Outcome == egress.Allowed {
			out = append(out, n.Host)
		}
	}
	if len(out) == 0 {
		return "its name"
	}
	return strings.Join(out, ", ")
}
