package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
)

// An object that changes only in what the equality does not notice is never
// delivered.
func TestSameNoticesEveryField(t *testing.T) {
	eqtest.Fields(t, func(a, b *discoveryv1.EndpointSlice) bool { return same(source.EndpointSlice.Kind, a, b) }, "ObjectMeta.ResourceVersion")
	eqtest.Fields(t, func(a, b *corev1.Service) bool { return same(source.Service.Kind, a, b) }, "ObjectMeta.ResourceVersion")
	eqtest.Fields(t, func(a, b *corev1.Node) bool { return same(source.Node.Kind, a, b) }, "ObjectMeta.ResourceVersion")
	eqtest.Fields(t, func(a, b *gatewayv1.Gateway) bool { return same(source.Gateway.Kind, a, b) }, "ObjectMeta.ResourceVersion")
}
