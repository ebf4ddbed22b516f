package registry

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/status"
)

// namespaceOnly reports whether an entry says itself that it is for clients of
// its own namespace.
func namespaceOnly(e *networkingv1.ServiceEntry) bool {
	return slices.Equal(e.Spec.ExportTo, []string{"."})
}

// allowedScope is what the mesh lets entries of a namespace be; empty when it
// says nothing about entries.
func (t *tables) allowedScope(r *collection.Reader, home Space) meshconfig.Scope {
	if s, known := collection.Fetch(r, t.scopes, home); known {
		return s
	}
	// No rule, or not known as a namespace.
	v, some := collection.Fetch(r, t.visibility, struct{}{})
	if !some {
		return ""
	}
	return v.Of(nil)
}

// scope is the namespaces that see an entry: those that both the mesh and the entry allow.
func (t *tables) scope(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) meshconfig.Scope {
	switch allowed := t.allowedScope(r, k.Home()); {
	case allowed == meshconfig.None, allowed == meshconfig.Namespace:
		return allowed
	case namespaceOnly(e):
		return meshconfig.Namespace
	}
	return meshconfig.Public
}

// entryAllotted is allotted of an entry. One that the mesh keeps to its namespace
// is not given away to a waypoint of another.
func (t *tables) entryAllotted(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) (Ref, *waypoint, *status.Condition) {
	name, w, c := t.allotted(r, k.Home(), e.Labels, trafficService)
	if w == nil || name.Namespace == k.Namespace || t.allowedScope(r, k.Home()) != meshconfig.Namespace {
		return name, w, c
	}
	no := status.No(status.WaypointBound, status.ReasonCrossNamespaceWaypoint,
		"waypoint %s is of another namespace, and serviceEntryVisibility of the mesh keeps this entry to its own; use a waypoint of namespace %s", name, k.Namespace)
	return name, nil, &no
}

// visible says who sees an entry; nil when there is nothing to say, because
// neither the mesh nor the entry did.
func (d describer) visible(n Ref, e *networkingv1.ServiceEntry) *status.Condition {
	var c status.Condition
	allowed, to := d.t.allowedScope(d.r, n.Home()), e.Spec.ExportTo
	switch {
	case allowed == meshconfig.None:
		c = status.Yes(status.VisibilityApplied, status.ReasonNone,
			"nobody sees it: serviceEntryVisibility of the mesh hides the entries of namespace %s; ask who administers the mesh", n.Namespace)
	case allowed == meshconfig.Namespace:
		c = status.Yes(status.VisibilityApplied, status.ReasonNamespace,
			"only clients of namespace %s see it: serviceEntryVisibility of the mesh says so", n.Namespace)
	case namespaceOnly(e):
		c = status.Yes(status.VisibilityApplied, status.ReasonNamespace,
			`only clients of namespace %s see it: exportTo is ["."]; write ["*"] for the whole mesh`, n.Namespace)
	case len(to) > 0 && !slices.Contains(to, "*"):
		c = status.Yes(status.VisibilityApplied, status.ReasonPublic,
			`the whole mesh sees it: exportTo %q is not kept; write ["."] for the own namespace, and use an AuthorizationPolicy to decide who may call`, to)
	case allowed != "" || len(to) > 0:
		c = status.Yes(status.VisibilityApplied, status.ReasonPublic, "the whole mesh sees it")
	default:
		return nil
	}
	return &c
}
