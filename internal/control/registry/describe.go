package registry

import (
	"cmp"
	"slices"
	"strconv"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/gateways"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// noteCanary adds to the condition of a bound waypoint what becomes of the
// canary beside it. A namespace's canary is for those that use its waypoint.
func (d describer) noteCanary(home tables.Space, labels, annotations map[string]string, c *status.Condition) {
	primary, own, _ := d.t.WantedWaypoint(d.r, home, labels)
	use := tables.UseCanary(labels, annotations)
	if !own {
		info, _ := collection.Fetch(d.r, d.t.Namespaces, home)
		use = use.Under(info.Canary)
	}
	if !use.Set || use.Name == "" || use.Name == wellknown.DataplaneModeNone {
		return
	}
	canary := tables.Space{Cluster: home.Cluster, Name: cmp.Or(use.Namespace, home.Name)}.At(use.Name)
	percent, err := strconv.Atoi(use.Weight)
	switch {
	case canary == primary:
		c.Reason = status.ReasonCanarySameAsPrimary
		c.Message += "; the canary is the same waypoint: name another one in the label " + wellknown.LabelUseWaypointCanary + ", or remove it"
	case use.Weighted && (err != nil || percent < 0 || percent > 100):
		c.Reason = status.ReasonCanaryInvalidWeight
		c.Message += "; the canary " + canary.String() + " gets nothing: its weight " + strconv.Quote(use.Weight) +
			" is not a whole number from 0 to 100; correct the annotation " + wellknown.AnnotationUseWaypointCanaryWeight
	case percent > 0:
		c.Reason = status.ReasonCanaryNotHonoured
		c.Message += "; the canary " + canary.String() + " gets nothing: this mesh does not split connections between waypoints, and all go to the first;" +
			" to change over, write the canary's name into the label " + wellknown.LabelUseWaypoint
	}
}

func (d describer) class(_ tables.Ref, c *gatewayv1.GatewayClass) []status.Section {
	if !gateways.OwnClass(c) {
		return []status.Section{{Conditions: []status.Condition{status.Maybe(status.Accepted, status.ReasonPending, "controller %s is not Ambit", c.Spec.ControllerName)}}}
	}
	return []status.Section{{Conditions: gateways.Class(c), Fields: gateways.ClassFields(c)}}
}

func (d describer) gateway(n tables.Ref, g *gatewayv1.Gateway) []status.Section {
	if !gateways.Own(g) {
		return []status.Section{{Conditions: []status.Condition{
			status.Maybe(status.Accepted, status.ReasonPending, "Ambit does not serve the class %s (it serves %s)", g.Spec.GatewayClassName, tables.WaypointClass),
		}}}
	}
	domain := d.t.Cluster(d.r, n.Cluster).Domain
	var b gateways.Backing
	if ns, name, ok := gateways.ServiceOf(g, domain); ok {
		at := n.At(ns, name)
		b.Name = at.String()
		var s *corev1.Service
		if s, b.Service = collection.Fetch(d.r, d.in.Services.Collection, at); b.Service {
			b.IPs = service.ClusterIPs(s)
		}
	}
	if deploy.Managed(g) {
		b.Parameters = d.t.Plan(d.r, d.in, n, g).Err
	}
	for range collection.Lookup(d.r, d.t.Proxies, n) {
		b.Ready++
	}
	return gateways.Describe(g, b, domain)
}

// route returns a section per parent of a route that is the mesh's business.
func (d describer) route(results *collection.Collection[tables.Ref, *routes.Result], n tables.Ref) (out []status.Section) {
	res, ok := collection.Fetch(d.r, results, n)
	if !ok {
		return nil
	}
	for _, p := range res.Parents {
		out = append(out, status.Section{List: routes.Parents, Key: status.KeyOf(p.Ref), Conditions: p.Conditions})
	}
	return out
}

func (d describer) telemetry(n tables.Ref, p *telemetryv1.Telemetry) []status.Condition {
	if res, ok := collection.Fetch(d.r, d.t.Targets.Telemetry, n); ok {
		return res.Conditions
	}
	return targets.Observed(n, p, d.t.Observes(d.r, p), d.t.Opts.RootNamespace)
}

// visible returns the condition of which namespaces see an entry; nil when neither the
// mesh nor the entry restricts them.
func (d describer) visible(n tables.Ref, e *networkingv1.ServiceEntry) *status.Condition {
	var c status.Condition
	allowed, to := d.t.AllowedScope(d.r, n.Home()), e.Spec.ExportTo
	switch {
	case allowed == meshconfig.None:
		c = status.Yes(status.VisibilityApplied, status.ReasonNone,
			"no namespace sees it: serviceEntryVisibility of the mesh hides the entries of namespace %s; ask the administrator of the mesh", n.Namespace)
	case allowed == meshconfig.Namespace:
		c = status.Yes(status.VisibilityApplied, status.ReasonNamespace,
			"only clients of namespace %s see it: serviceEntryVisibility of the mesh demands it", n.Namespace)
	case tables.NamespaceOnly(e):
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

func (d describer) rule(n tables.Ref, _ *networkingv1.DestinationRule) []status.Condition {
	c, ok := d.t.Traffic.Condition(d.r, n)
	if !ok {
		return nil
	}
	return []status.Condition{c}
}

func (d describer) limit(n tables.Ref, _ *ambit.RateLimit) []status.Condition {
	c, ok := d.t.Limits.Condition(d.r, n)
	if !ok {
		return nil
	}
	return []status.Condition{c}
}
