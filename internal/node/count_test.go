package node

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// TestCountOfPods: the metric has the pods that wait for a proxy, then those that are in the
// mesh, and none that are outside of it.
func TestCountOfPods(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.connected = false
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		reg := prometheus.NewRegistry()
		reg.MustRegister(b.Agent)
		check := func(what string, enrolled, pending float64) {
			t.Helper()
			all, err := reg.Gather()
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			got := map[string]float64{}
			for _, m := range all[0].Metric {
				got[m.Label[0].GetValue()] = m.GetGauge().GetValue()
			}
			if diff := cmp.Diff(map[string]float64{"enrolled": enrolled, "pending": pending, "working": 0}, got); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
		}
		check("without a proxy", 0, 1)
		b.w.set(func() { b.w.connected = true })
		b.ProxiesChanged()
		synctest.Wait()
		check("with a proxy", 1, 0)
		b.label(nil)
		sleep(DefaultResync)
		check("outside of the mesh", 0, 0)
	})
}
