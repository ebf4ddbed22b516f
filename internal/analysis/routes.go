package analysis

import (
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// routeParts returns what the control plane reports about entries of a status,
// the parents of a route and the listeners of a Gateway, each statement once.
func (m *mesh) routeParts(key source.Key) {
	said := map[status.Condition]bool{}
	for _, c := range m.parts[key] {
		if said[c] {
			continue
		}
		said[c] = true
		if code, next := m.part(c); code.id != "" {
			m.report(code, key, "", c.Message, next)
		}
	}
}

// part returns how a condition of an entry is reported, a code without an ID for
// not at all. With files alone, what is missing may be in the cluster.
func (m *mesh) part(c status.Condition) (code code, next string) {
	bad := status.False
	if c.Type == status.PartiallyInvalid {
		bad = status.True
	}
	if c.Status != bad {
		return code, ""
	}
	switch {
	case c.Type == status.Conflicted, c.Type == status.Programmed:
		return code, "" // good news, and said of the Gateway
	case c.Reason == status.ReasonNoMatchingParent:
		if m.mayMiss(source.Service.Kind, source.ServiceEntry.Kind) {
			return code, ""
		}
		return codeNoTarget, "correct the parentRef, or create the object"
	case c.Type == status.ResolvedRefs:
		if c.Reason == status.ReasonBackendNotFound && m.mayMiss(source.Service.Kind, source.ServiceEntry.Kind) ||
			c.Reason == status.ReasonRefNotPermitted && m.mayMiss(source.ReferenceGrant.Kind) {
			return code, ""
		}
		return codeBackendRefused, "correct the backendRef, or create what it needs"
	case c.Type == status.ResolvedWaypoints && c.Reason == status.ReasonWaypointIsNotReady:
		return code, "" // said of the Service
	case c.Type == status.ResolvedWaypoints:
		if m.mayMiss(source.Gateway.Kind) {
			return code, ""
		}
		return codeRouteWithoutWaypoint, "see the label istio.io/use-waypoint of the parent and of its namespace"
	case c.Reason == status.ReasonUnsupportedValue:
		return code, "" // admission names the rule
	}
	return codeCondition, "see conditions of the object's status"
}

// mayMiss reports whether objects of none of these kinds are among the files, so
// that they may be in the cluster.
func (m *mesh) mayMiss(kinds ...*source.Kind) bool {
	if !m.opts.Partial {
		return false
	}
	for _, k := range kinds {
		if m.has(k) {
			return false
		}
	}
	return true
}
