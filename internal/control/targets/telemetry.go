package targets

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// observe derives what gateways are sent of Telemetry objects.
func (t *Tables) observe() {
	spec := func(p *telemetryv1.Telemetry) attached { return &p.Spec }
	t.Telemetry, t.Layers = follow(t, "telemetry", wellknown.TypeTelemetry, t.in.Telemetry, t.in.Layers, spec,
		func(_ *telemetryv1.Telemetry, m *telemetry.Made, bound, open []binding) []status.Condition {
			where, missing, none := places(bound, open)
			if none != nil {
				return []status.Condition{*none}
			}
			return []status.Condition{observed(m, strings.Join(where, ", "), missing, len(bound)+len(open))}
		})
	whole := collection.NewIndex(t.in.Telemetry, func(k source.Ref, p *telemetryv1.Telemetry) []source.Space {
		if Everywhere(p) {
			return []source.Space{k.Home()}
		}
		return nil
	})
	served := collection.FlatMap(t.in.Destinations, "namespaces of gateways", func(_, _ struct{}) bool { return true }, compareTargets,
		func(_ *collection.Reader, at routes.Target, d *routes.Destination, emit func(servedNamespace, struct{})) {
			for _, g := range d.Gateways() {
				emit(servedNamespace{g, at.Ref.Home()}, struct{}{})
			}
		})
	namespaces := collection.NewIndex(served, func(k servedNamespace, _ struct{}) []source.Ref { return []source.Ref{k.gateway} })
	layers := collection.FlatMap(t.in.Gateways, "telemetry of namespaces", sameResource, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, g Gateway, emit func(string, *xds.Resource)) {
			if !g.Waypoint {
				return
			}
			send := func(kind, name string, at source.Ref, body []byte) {
				res := t.made(wellknown.TypeTelemetry, k, at, kind, name, body)
				emit(res.Name, res)
			}
			mesh, _ := collection.Fetch(r, t.in.Mesh, struct{}{})
			send("Mesh", "-", source.Ref{Namespace: "-", Name: "-"}, mesh.Layer(func(host string) (string, bool) { return t.in.HostOwner(r, host) }))
			root := source.Space{Cluster: k.Cluster, Name: t.in.RootNamespace}
			all := []source.Space{root, k.Home()}
			for n := range collection.Lookup(r, namespaces, k) {
				all = append(all, n.namespace)
			}
			for i, space := range all {
				if slices.Contains(all[:i], space) {
					continue
				}
				for at := range collection.Lookup(r, whole, space) {
					if m, ok := collection.Fetch(r, t.in.Layers, at); ok && m.Effective {
						send(source.Namespace.Name, space.Name, at, m.ForNamespace(space == root))
					}
				}
			}
		})
	t.Layers = append(t.Layers, layers)
	t.observeNodes(whole)
}

func compareTargets(a, b routes.Target) int {
	return cmp.Or(strings.Compare(a.Kind.Name, b.Kind.Name), a.Ref.Compare(b.Ref))
}

// servedNamespace is a namespace of which a gateway serves a service.
type servedNamespace struct {
	gateway   source.Ref
	namespace source.Space
}

// Everywhere reports whether a Telemetry is for all of its namespace.
func Everywhere(p *telemetryv1.Telemetry) bool {
	return len(p.Spec.GetSelector().GetMatchLabels()) == 0 && p.Spec.GetTargetRef() == nil && len(p.Spec.GetTargetRefs()) == 0
}

// Observed returns the conditions of a Telemetry without targets.
func Observed(k source.Ref, p *telemetryv1.Telemetry, m *telemetry.Made, root string) []status.Condition {
	nodes := ObservedAtNodes(k, p, m, root)
	switch {
	case Selects(p): // it is for node proxies alone
		return []status.Condition{nodes}
	case !Everywhere(p):
		return []status.Condition{status.No(status.WaypointAccepted, status.ReasonInvalid, "it has a selector and targetRefs: no proxy honours it; remove one of them")}
	case k.Namespace == root:
		return []status.Condition{observed(m, "every waypoint", nil, 0), nodes}
	}
	return []status.Condition{observed(m, "waypoints of namespace "+k.Namespace+", and others for its services", nil, 0), nodes}
}

func observed(m *telemetry.Made, where string, missing []string, targets int) status.Condition {
	parts := []string{"honoured by " + where}
	if !m.Effective {
		parts = []string{"nothing of it has an effect"}
	}
	if len(m.Invalid) > 0 {
		parts = append(parts, "correct "+strings.Join(m.Invalid, "; correct "))
	}
	if len(m.Refused) > 0 {
		parts = append(parts, "not honoured: "+strings.Join(m.Refused, "; "))
	}
	if len(missing) > 0 {
		parts = append(parts, fmt.Sprintf("not for %d of %d targets: %s", len(missing), targets, strings.Join(missing, "; ")))
	}
	text := strings.Join(parts, "; ")
	switch {
	case len(m.Invalid) > 0:
		return status.No(status.WaypointAccepted, status.ReasonInvalid, "%s", text)
	case len(m.Refused) > 0 || !m.Effective:
		return status.No(status.WaypointAccepted, status.ReasonUnsupportedValue, "%s", text)
	case len(missing) > 0:
		return status.No(status.WaypointAccepted, status.ReasonPartiallyInvalid, "%s", text)
	}
	return status.Yes(status.WaypointAccepted, status.ReasonAccepted, "%s", text)
}
