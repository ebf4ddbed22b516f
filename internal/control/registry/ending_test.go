package registry

import (
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
)

// TestPodsThatEnd: the workload of a pod has the phase of the pod's end, and is not healthy
// in any of them. One that is not about to end has no phase.
func TestPodsThatEnd(t *testing.T) {
	const asked, up = ", deletionTimestamp: 2026-01-01T00:00:00Z", `podIP: 10.0.0.9, phase: Running, conditions: [{type: Ready, status: "True"}]`
	for name, tc := range map[string]struct {
		meta, status string
		healthy      bool
		want         ending.Phase
	}{
		"ready":                 {"", up, true, ending.None},
		"not ready":             {"", "podIP: 10.0.0.9, phase: Running", false, ending.None},
		"asked, and ready":      {asked, up, false, ending.Serving},
		"asked, and not":        {asked, "podIP: 10.0.0.9, phase: Running", false, ending.Closing},
		"asked, and has failed": {asked, `podIP: 10.0.0.9, phase: Failed, conditions: [{type: Ready, status: "True"}], containerStatuses: [{state: {running: {}}}]`, false, ending.Closing},
	} {
		t.Run(name, func(t *testing.T) {
			_, rec := load(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop"+tc.meta+"}\nspec: {containers: [{name: c}]}\nstatus: {"+tc.status+"}\n")
			w := rec.workload(t, "Kubernetes//Pod/shop/p")
			if got := ending.FromExtensions(w.Extensions); got != tc.want || (w.Status == workloadpb.WorkloadStatus_HEALTHY) != tc.healthy {
				t.Errorf("phase %v, status %v", got, w.Status)
			}
		})
	}
}
