package tables

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/status"
)

// NamespaceOnly reports whether an entry says itself that it is for clients of
// its own namespace.
func NamespaceOnly(e *networkingv1.ServiceEntry) bool {
	return slices.Equal(e.Spec.ExportTo, []string{"."})
}

// AllowedScope is what the mesh lets entries of a namespace be; empty when it
// says nothing about entries.
func (t *Tables) AllowedScope(r *collection.Reader, home Space) meshconfig.Scope {
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

// Scope is the namespaces that see an entry: those that both the mesh and the entry allow.
func (t *Tables) Scope(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) meshconfig.Scope {
	switch allowed := t.AllowedScope(r, k.Home()); {
	case allowed == meshconfig.None, allowed == meshconfig.Namespace:
		return allowed
	case NamespaceOnly(e):
		return meshconfig.Namespace
	}
	return meshconfig.Public
}

// entryAllotted is allotted of an entry. One that the mesh keeps to its namespace
// is not given away to a waypoint of another.
func (t *Tables) entryAllotted(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) (Ref, *Waypoint, *status.Condition) {
	name, w, c := t.allotted(r, k.Home(), e.Labels, TrafficService)
	if w == nil || name.Namespace == k.Namespace || t.AllowedScope(r, k.Home()) != meshconfig.Namespace {
		return name, w, c
	}
	no := status.No(status.WaypointBound, status.ReasonCrossNamespaceWaypoint,
		"waypoint %s is of another namespace, and serviceEntryVisibility of the mesh keeps this entry to its own; use a waypoint of namespace %s", name, k.Namespace)
	return name, nil, &no
}
