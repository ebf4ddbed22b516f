package registry

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

const confined = `
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: b, labels: {ambit.mesh/outbound-traffic-policy: DRY_RUN}}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: a}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: strict, namespace: a, annotations: {ambit.mesh/outbound-traffic-policy: REGISTRY_ONLY}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: free, namespace: b, annotations: {ambit.mesh/outbound-traffic-policy: ALLOW_ANY}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.3}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: b}
spec: {address: 10.0.0.4}
`

// TestOutbound: the mesh, the namespace and the pod together are what proxies get, and
// each change of the mesh reaches them.
func TestOutbound(t *testing.T) {
	r, rec := load(t, confined)
	modes := func() (out [4]egress.Mode) {
		for i, name := range []string{"Kubernetes//Pod/a/plain", "Kubernetes//Pod/a/strict", "Kubernetes//Pod/b/free", "Kubernetes/networking.istio.io/WorkloadEntry/b/vm"} {
			out[i] = egress.FromExtensions(rec.address(t, name).GetWorkload().GetExtensions())
		}
		return out
	}
	only, dry := egress.RegistryOnly, egress.DryRun
	for _, step := range []struct {
		mesh *egress.Mode
		want [4]egress.Mode
	}{
		{nil, [4]egress.Mode{egress.AllowAny, only, dry, dry}},
		{&only, [4]egress.Mode{only, only, dry, dry}},
		{&dry, [4]egress.Mode{dry, only, dry, dry}},
		{nil, [4]egress.Mode{egress.AllowAny, only, dry, dry}},
	} {
		r.SetOutbound(step.mesh)
		if got := modes(); got != step.want {
			t.Errorf("mesh %v: %v, want %v", step.mesh, got, step.want)
		}
	}
}
