package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
)

// An object that changes only in what the equality does not notice is never
// delivered.
func TestSameNoticesEveryField(t *testing.T) {
	eqtest.Fields(t, func(a, b *discoveryv1.EndpointSlice) bool { return same(a, b) }, "ObjectMeta.ResourceVersion")
	eqtest.Fields(t, func(a, b *corev1.Service) bool { return same(a, b) }, "ObjectMeta.ResourceVersion")
	eqtest.Fields(t, func(a, b *corev1.Node) bool { return same(a, b) }, "ObjectMeta.ResourceVersion")
}
