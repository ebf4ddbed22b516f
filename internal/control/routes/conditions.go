package routes

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/source"
)

// conditions are those of one entry of status.parents.
func (o *object) conditions(a *attachment, found *findings) []status.Condition {
	out := []status.Condition{o.accepted(a, found), o.resolved(found)}
	if len(found.partial) > 0 && (found.broken < len(o.rules) || len(o.rules) == 0) {
		out = append(out, status.Yes(status.PartiallyInvalid, status.ReasonUnsupportedValue, "%s", some(found.partial)))
	}
	if a.dest != nil {
		out = append(out, o.executed(a.dest))
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
	if idle := o.without(a.named); len(idle) > 0 {
		what := "no HTTP"
		if o.carries != route.Requests {
			what = "HTTP"
		}
		text += fmt.Sprintf("; without effect on port %s, which is declared to carry %s (see appProtocol)", portList(idle), what)
	}
	if len(a.taken) > 0 {
		text += "; " + conflictTexts(a.taken)
	}
	if o.hostnames {
		text += fmt.Sprintf("; hostnames have no meaning for a %s", a.target.Kind.Name)
	}
	return status.Yes(status.Accepted, status.ReasonAccepted, "%s", text)
}

// without returns the ports on which a route has no effect, because they carry something
// else.
func (o *object) without(ports []Port) (out []Port) {
	for _, p := range ports {
		if o.carries == route.Requests && p.Opaque || o.carries != route.Requests && p.Requests {
			out = append(out, p)
		}
	}
	return out
}

// otherwise is what becomes of what a dropped rule is for.
func (o *object) otherwise() string {
	if o.carries == route.Requests {
		return "its requests take other rules, or are answered with 404"
	}
	return "its connections take other routes, or are refused"
}

// resolved is about the references to backends. Its reason is that of the first
// one that is refused.
func (o *object) resolved(f *findings) status.Condition {
	if len(f.refs) == 0 {
		return status.Yes(status.ResolvedRefs, status.ReasonResolvedRefs, "every backend exists, and may be used")
	}
	texts := make([]string, 0, len(f.refs))
	for _, i := range f.refs {
		texts = append(texts, i.text)
	}
	return status.No(status.ResolvedRefs, f.refs[0].reason, "%s; the share of these backends is %s", some(texts), o.refusal())
}

// executed is about who executes the route.
func (o *object) executed(d *Destination) status.Condition {
	switch {
	case o.atNodes(d) && o.carries == route.TLS:
		return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted,
			"the node proxies of clients execute the route, as the destination has no waypoint: they read the name in the first message of TLS, and each connection gets a backend by weight")
	case o.atNodes(d):
		return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted,
			"the node proxies of clients execute the route, as the destination has no waypoint: each connection gets a backend by weight")
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
