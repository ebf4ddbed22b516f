package routes

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// conditions are those of one entry of status.parents.
func (o *object) conditions(a *attachment, found *findings) []status.Condition {
	out := []status.Condition{o.accepted(a, found), found.resolved()}
	if len(found.partial) > 0 && (found.broken < len(o.rules) || len(o.rules) == 0) {
		out = append(out, status.Yes(status.PartiallyInvalid, status.ReasonUnsupportedValue, "%s", some(found.partial)))
	}
	if a.dest != nil {
		out = append(out, waypoint(a.dest))
	}
	return out
}

func (o *object) accepted(a *attachment, found *findings) status.Condition {
	switch {
	case a.refused != nil:
		return *a.refused
	case found.broken > 0 && found.broken == len(o.rules):
		return status.No(status.Accepted, status.ReasonUnsupportedValue, "no rule can be executed: %s", some(found.partial))
	}
	text := fmt.Sprintf("attached to %s, port %s", a.target, portList(a.named))
	if a.consumer(o) {
		text += fmt.Sprintf("; for clients of namespace %s only, because the %s is of another namespace", o.ref.Namespace, a.target.Kind.Name)
	}
	var opaque []Port
	for _, p := range a.named {
		if p.Opaque {
			opaque = append(opaque, p)
		}
	}
	if len(opaque) > 0 {
		text += fmt.Sprintf("; without effect on port %s, which is declared to carry no HTTP (see appProtocol)", portList(opaque))
	}
	if o.hostnames {
		text += fmt.Sprintf("; hostnames have no meaning for a %s", a.target.Kind.Name)
	}
	return status.Yes(status.Accepted, status.ReasonAccepted, "%s", text)
}

// resolved is about the references to backends. Its reason is that of the first
// one that is refused.
func (f *findings) resolved() status.Condition {
	if len(f.refs) == 0 {
		return status.Yes(status.ResolvedRefs, status.ReasonResolvedRefs, "every backend exists, and may be used")
	}
	texts := make([]string, 0, len(f.refs))
	for _, i := range f.refs {
		texts = append(texts, i.text)
	}
	return status.No(status.ResolvedRefs, f.refs[0].reason, "%s; the share of these backends is answered with 500", some(texts))
}

// waypoint is about who executes the route.
func waypoint(d *Destination) status.Condition {
	switch {
	case d.Gateway == (source.Ref{}):
		return status.No(status.ResolvedWaypoints, status.ReasonAncestorNotBound, "the route has no effect: %s", d.Unbound)
	case !d.Ready:
		return status.No(status.ResolvedWaypoints, status.ReasonWaypointIsNotReady, "the route has no effect yet: %s", d.Unbound)
	}
	return status.Yes(status.ResolvedWaypoints, status.ReasonResolvedWaypoints, "waypoint %s executes the route", d.Gateway)
}

// maxTexts bounds a message.
const maxTexts = 5

// some joins the first few texts, and counts the others.
func some(texts []string) string {
	if n := len(texts) - maxTexts; n > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(texts[:maxTexts], "; "), n)
	}
	return strings.Join(texts, "; ")
}
