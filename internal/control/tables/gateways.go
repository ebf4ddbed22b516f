package tables

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// gatewayPods notes which pods are ready proxies of a Gateway.
func (t *Tables) gatewayPods(in *Inputs) {
	proxies := collection.Map(in.Pods.Collection, "ready proxies of gateways", Same[Ref], func(_ *collection.Reader, k Ref, p *corev1.Pod) (Ref, bool) {
		name := p.Labels[wellknown.LabelGatewayName]
		return k.At(k.Namespace, name), name != "" && !source.Ended(p) && ready(p)
	})
	t.Proxies = collection.NewIndex(proxies, func(_ Ref, gateway Ref) []Ref { return []Ref{gateway} })
}
