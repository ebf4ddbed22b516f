package tables

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// defaultsOf is a class of Gateways in a cluster.
type defaultsOf struct {
	cluster source.Cluster
	class   gatewayv1.ObjectName
}

// gatewayDefaults notes the ConfigMaps that change the objects of a class.
func (t *Tables) gatewayDefaults(in *Inputs) {
	defaults := collection.Map(in.configMaps.Collection, "defaults of classes", samePointer[corev1.ConfigMap], func(_ *collection.Reader, k Ref, c *corev1.ConfigMap) (*corev1.ConfigMap, bool) {
		return c, k.Namespace == t.Opts.RootNamespace && c.Labels[wellknown.LabelOverlayClass] != ""
	})
	t.defaults = collection.NewIndex(defaults, func(k Ref, c *corev1.ConfigMap) []defaultsOf {
		return []defaultsOf{{k.Cluster, gatewayv1.ObjectName(c.Labels[wellknown.LabelOverlayClass])}}
	})
}

// Plan returns a Gateway that is to run with what ConfigMaps change of its objects:
// first those of its class, of which the oldest counts, then its own.
func (t *Tables) Plan(r *collection.Reader, in *Inputs, k Ref, g *gatewayv1.Gateway) *deploy.Plan {
	p := &deploy.Plan{Gateway: g}
	var oldest *corev1.ConfigMap
	for _, c := range collection.Lookup(r, t.defaults, defaultsOf{k.Cluster, g.Spec.GatewayClassName}) {
		if oldest == nil || byAge(c, oldest) < 0 {
			oldest = c
		}
	}
	if oldest != nil {
		p.Overlays = append(p.Overlays, overlayOf(oldest))
	}
	name, err := deploy.Parameters(g)
	if err == nil && name != "" {
		c, ok := collection.Fetch(r, in.configMaps.Collection, k.At(k.Namespace, name))
		if ok {
			p.Overlays = append(p.Overlays, overlayOf(c))
		} else {
			err = fmt.Errorf("ConfigMap %s/%s of spec.infrastructure.parametersRef does not exist", k.Namespace, name)
		}
	}
	if p.Err = err; err == nil {
		p.Err = deploy.Check(g, p.Overlays)
	}
	return p
}

func byAge(a, b *corev1.ConfigMap) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
}

func overlayOf(c *corev1.ConfigMap) deploy.Overlay {
	return deploy.Overlay{From: "ConfigMap " + c.Namespace + "/" + c.Name, Data: c.Data}
}

// SamePlan reports whether two plans run the same.
func SamePlan(a, b *deploy.Plan) bool {
	return sameError(a.Err, b.Err) && slices.EqualFunc(a.Overlays, b.Overlays, deploy.Overlay.Equal)
}

func sameError(a, b error) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error())
}
