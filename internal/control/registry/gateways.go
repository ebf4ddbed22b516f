package registry

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/gateways"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// gatewayPods notes which pods are ready proxies of a Gateway.
func (t *tables) gatewayPods(in *inputs) {
	proxies := collection.Map(in.pods.Collection, "ready proxies of gateways", same[Ref], func(_ *collection.Reader, k Ref, p *corev1.Pod) (Ref, bool) {
		name := p.Labels[wellknown.LabelGatewayName]
		return k.At(k.Namespace, name), name != "" && !source.Ended(p) && ready(p)
	})
	t.proxies = collection.NewIndex(proxies, func(_ Ref, gateway Ref) []Ref { return []Ref{gateway} })
}

func (d describer) class(_ Ref, c *gatewayv1.GatewayClass) []status.Section {
	if !gateways.OwnClass(c) {
		return []status.Section{{Conditions: []status.Condition{status.Maybe(status.Accepted, status.ReasonPending, "controller %s is not Ambit", c.Spec.ControllerName)}}}
	}
	return []status.Section{{Conditions: gateways.Class(c), Fields: gateways.ClassFields(c)}}
}

func (d describer) gateway(n Ref, g *gatewayv1.Gateway) []status.Section {
	if !gateways.Own(g) {
		return []status.Section{{Conditions: []status.Condition{
			status.Maybe(status.Accepted, status.ReasonPending, "Ambit does not serve the class %s (it serves %s)", g.Spec.GatewayClassName, waypointClass),
		}}}
	}
	domain := d.t.cluster(d.r, n.Cluster).domain
	var b gateways.Backing
	if ns, name, ok := gateways.ServiceOf(g, domain); ok {
		at := n.At(ns, name)
		b.Name = at.String()
		var s *corev1.Service
		if s, b.Service = collection.Fetch(d.r, d.in.services.Collection, at); b.Service {
			b.IPs = clusterIPs(s)
		}
	}
	if deploy.Managed(g) {
		b.Parameters = d.t.plan(d.r, d.in, n, g).Err
	}
	for range collection.Lookup(d.r, d.t.proxies, n) {
		b.Ready++
	}
	return gateways.Describe(g, b, domain)
}

// clusterIPs are the addresses of a Service within its cluster; none for a
// headless one.
func clusterIPs(s *corev1.Service) (out []string) {
	for _, ip := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	return out
}
