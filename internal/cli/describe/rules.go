package describe

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// policyRow is one policy in a description.
type policyRow struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"` // namespace/name
	Action string `json:"action"`
	// EnforcedBy is a proxy, or "nowhere".
	EnforcedBy string `json:"enforcedBy"`
	// Says is what the rules come to, or why nobody enforces them.
	Says string `json:"says"`
}

// nowhere is where a policy is enforced that no proxy has.
const nowhere = "nowhere"

// Names under which PeerAuthentications reach a node proxy.
const (
	strictPolicy    = "istio_converted_static_strict"
	convertedPrefix = "converted_peer_authentication_"
)

// applies reports whether a proxy enforces a policy for a workload.
func applies(p admin.Policy, w *admin.Workload) bool {
	switch p.Scope {
	case "Global":
		return true
	case "Namespace":
		return p.Namespace == w.Namespace
	}
	return slices.Contains(w.Policies, p.Namespace+"/"+p.Name)
}

// admission is who gets in: refusals first, as a proxy decides.
type admission struct {
	Refused  []string `json:"refused"`
	Accepted []string `json:"accepted"`
}

// admit says what policies together come to.
func admit(policies []admin.Policy) admission {
	a := admission{Refused: []string{}, Accepted: []string{}}
	allows := false
	for _, p := range policies {
		by := " (" + policyName(p) + ")"
		switch {
		case p.DryRun:
		case p.Action == "Deny":
			for _, r := range p.Rules {
				a.Refused = append(a.Refused, ruleText(r)+by)
			}
		default:
			allows = true
			for _, r := range p.Rules {
				a.Accepted = append(a.Accepted, ruleText(r)+by)
			}
		}
	}
	switch {
	case allows && len(a.Accepted) == 0:
		a.Refused = append(a.Refused, "everyone: an ALLOW policy without rules allows nobody")
	case allows:
		a.Refused = append(a.Refused, "everyone else")
	case len(a.Refused) > 0:
		a.Accepted = append(a.Accepted, "everyone else")
	default:
		a.Accepted = append(a.Accepted, "everyone, with mutual TLS or without: no policy applies")
	}
	return a
}

// policyName is a policy as its author knows it.
func policyName(p admin.Policy) string {
	if name, ok := strings.CutPrefix(p.Name, convertedPrefix); ok {
		return "PeerAuthentication " + p.Namespace + "/" + name
	}
	if p.Name == strictPolicy {
		return "PeerAuthentication: mutual TLS is required"
	}
	if strings.HasPrefix(p.Name, wellknown.DerivedWaypointPolicy) {
		return "the waypoint is required"
	}
	return p.Namespace + "/" + p.Name
}

// ruleText returns the clients that a rule is about.
func ruleText(rule [][]admin.Match) string {
	var clauses []string
	for _, matches := range rule {
		var either []string
		for _, m := range matches {
			if s := matchText(m); s != "" {
				either = append(either, s)
			}
		}
		if len(either) > 0 {
			clauses = append(clauses, strings.Join(either, " or "))
		}
	}
	if len(clauses) == 0 {
		return "everyone"
	}
	return strings.Join(clauses, ", ")
}

func matchText(m admin.Match) string {
	var all []string
	add := func(words string, list []string) {
		if len(list) > 0 {
			all = append(all, words+" "+strings.Join(list, " or "))
		}
	}
	if slices.ContainsFunc(m.NotPrincipals, func(t admin.Text) bool { return t.Kind == admin.Presence }) {
		all = append(all, "whoever proves no identity (plaintext)")
	} else {
		add("all but", texts(m.NotPrincipals))
	}
	add("from", texts(m.Principals))
	add("from service account", accounts(m.ServiceAccounts))
	add("not from service account", accounts(m.NotServiceAccounts))
	add("from namespace", texts(m.Namespaces))
	add("not from namespace", texts(m.NotNamespaces))
	add("from address", m.SourceIPs)
	add("not from address", m.NotSourceIPs)
	add("to address", m.DestinationIPs)
	add("not to address", m.NotDestinationIPs)
	add("to port", ports(m.DestinationPorts))
	add("to any port but", ports(m.NotDestinationPorts))
	return strings.Join(all, " ")
}

func texts(list []admin.Text) []string {
	var out []string
	for _, t := range list {
		switch t.Kind {
		case admin.Presence:
			out = append(out, "anyone in the mesh")
		case admin.Prefix:
			out = append(out, t.Value+"*")
		case admin.Suffix:
			out = append(out, "*"+t.Value)
		default:
			out = append(out, t.Value)
		}
	}
	return out
}

func accounts(list []admin.Account) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Namespace+"/"+a.ServiceAccount)
	}
	return out
}

func ports(list []uint16) []string {
	var out []string
	for _, p := range list {
		out = append(out, strconv.Itoa(int(p)))
	}
	return out
}

// waypointRef is what labels say about the waypoint of an object.
type waypointRef struct {
	Namespace, Name string
	From            string // which object's label decided
}

// waypointOf reads the labels that bind an object to a waypoint: its own
// decide, then its namespace's.
func waypointOf(what, namespace string, own, ofNamespace map[string]string) (ref waypointRef, ok bool) {
	for _, l := range []struct {
		from   string
		labels map[string]string
	}{{what, own}, {"namespace " + namespace, ofNamespace}} {
		name, set := l.labels[wellknown.LabelUseWaypoint]
		if !set {
			continue
		}
		if name == "" || name == wellknown.DataplaneModeNone {
			return ref, false
		}
		ns := l.labels[wellknown.LabelUseWaypointNamespace]
		if ns == "" {
			ns = namespace
		}
		return waypointRef{ns, name, l.from}, true
	}
	return ref, false
}

// advice is something that is wrong, and what to do.
type advice struct {
	What string `json:"what"`
	Next string `json:"next"`
}

// writer collects the lines of a description. Values are escaped.
type writer struct{ strings.Builder }

// field writes "Label:  value" with the values below each other.
func (w *writer) field(label, format string, args ...any) {
	_, _ = fmt.Fprintf(w, "%-14s %s\n", label+":", printer.Sprintf(format, args...))
}

func (w *writer) item(format string, args ...any) {
	w.WriteString("  " + printer.Sprintf(format, args...) + "\n")
}

func (w *writer) title(s string) { w.WriteString("\n" + printer.Field(s) + ":\n") }

func (w *writer) advice(list []advice) {
	if len(list) == 0 {
		return
	}
	w.title("To do")
	for _, a := range list {
		w.item("- %s", a.What)
		if a.Next != "" {
			w.item("  %s", a.Next)
		}
	}
}

func (w *writer) policies(rows []policyRow) {
	w.title("Policies")
	if len(rows) == 0 {
		w.item("none applies")
	}
	for _, r := range rows {
		by := "by " + r.EnforcedBy
		if r.EnforcedBy == nowhere {
			by = nowhere
		}
		w.item("%s %s (%s), enforced %s: %s", r.Kind, r.Name, r.Action, by, r.Says)
	}
}
