package registry

import (
	"cmp"
	"fmt"
	"strings"

	typev1beta1 "istio.io/api/type/v1beta1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// kindGatewayClass can be a target; its objects are not read.
const kindGatewayClass = "GatewayClass"

// targets says whether there is a waypoint to enforce a policy of namespace
// n.Namespace for each of its targets.
func (d describer) targets(n Name, refs []*typev1beta1.PolicyTargetReference) status.Condition {
	if len(refs) == 1 {
		return d.target(n, refs[0])
	}
	var open []string
	bound, unsure := 0, false
	for _, ref := range refs {
		c := d.target(n, ref)
		if c.Status == status.True {
			bound++
			continue
		}
		unsure = unsure || c.Status == status.Unknown
		open = append(open, fmt.Sprintf("%s %s/%s: %s", ref.Kind, cmp.Or(ref.Namespace, n.Namespace), ref.Name, c.Message))
	}
	switch missing := strings.Join(open, "; "); {
	case len(open) == 0:
		return waypointAccepts("bound to the waypoints of all its targets, which enforce it; node proxies do not")
	case bound > 0:
		return status.Yes(status.WaypointAccepted, status.ReasonPartiallyInvalid, "bound for %d of %d targets; %s", bound, len(refs), missing)
	case unsure:
		return status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint, "%s", missing)
	default:
		return status.No(status.WaypointAccepted, status.ReasonInvalid, "nobody enforces it: %s", missing)
	}
}

func waypointAccepts(format string, args ...any) status.Condition {
	return status.Yes(status.WaypointAccepted, status.ReasonAccepted, format, args...)
}

func (d describer) target(n Name, ref *typev1beta1.PolicyTargetReference) status.Condition {
	no := func(reason, format string, args ...any) status.Condition {
		return status.No(status.WaypointAccepted, reason, format, args...)
	}
	at := Name{cmp.Or(ref.Namespace, n.Namespace), ref.Name}
	var there bool
	var waypoint *workloadpb.GatewayAddress
	switch ref.Kind {
	case kindGatewayClass:
		switch {
		case n.Namespace != d.t.opts.RootNamespace:
			return no(status.ReasonInvalid, "only a policy of the root namespace %s can be for a GatewayClass: move it there, or name a Gateway", d.t.opts.RootNamespace)
		case ref.Name != waypointClass:
			return no(status.ReasonInvalid, "GatewayClass %s is not that of waypoints: write %s", ref.Name, waypointClass)
		}
		return waypointAccepts("for every waypoint of class %s, which enforce it; node proxies do not", waypointClass)
	case source.KindGateway:
		return d.gatewayTarget(at)
	case source.KindService:
		s, ok := collection.Fetch(d.r, d.in.services.Collection, at)
		if there = ok; ok {
			waypoint, _ = d.t.waypointFor(d.r, at.Namespace, s.Labels, trafficService)
		}
	case source.KindServiceEntry:
		e, ok := collection.Fetch(d.r, d.in.entries.Collection, at)
		if there = ok; ok {
			waypoint, _ = d.t.entryWaypoint(d.r, at, e)
		}
	default:
		return no(status.ReasonInvalid, "nothing enforces a policy for a %s: name a Gateway, a GatewayClass, a Service or a ServiceEntry", ref.Kind)
	}
	switch {
	case !there:
		return no(status.ReasonTargetNotFound, "there is no %s %s", ref.Kind, at)
	case waypoint == nil:
		return no(status.ReasonAncestorNotBound, "%s %s has no waypoint, and nobody else enforces the policy: see its condition %s, or bind one with the label %s",
			ref.Kind, at, status.WaypointBound, wellknown.LabelUseWaypoint)
	}
	return waypointAccepts("bound to the waypoint of %s %s, which enforces it; node proxies do not", ref.Kind, at)
}

func (d describer) gatewayTarget(at Name) status.Condition {
	w, is := collection.Fetch(d.r, d.t.waypoints, at)
	g, there := collection.Fetch(d.r, d.in.gateways.Collection, at)
	switch {
	case !there:
		return status.No(status.WaypointAccepted, status.ReasonTargetNotFound, "there is no Gateway %s", at)
	case !is:
		return status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint,
			"Gateway %s is of class %s: whoever runs that class enforces the policy, or nobody does; node proxies do not", at, g.Spec.GatewayClassName)
	case w.address == nil:
		return status.No(status.WaypointAccepted, status.ReasonAncestorNotBound, "waypoint %s has no address yet: nobody enforces the policy until it has; see its pods", at)
	}
	return waypointAccepts("bound to waypoint %s, which enforces it; node proxies do not", at)
}
