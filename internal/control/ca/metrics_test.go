package ca_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/control/ca"
)

// TestRotationMetric: the metric has when the present step of a change of the root ends, so
// that a step that does not end is seen as overdue; without a change it is 0.
func TestRotationMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		a := open(t, ca.Config{StateDir: t.TempDir(), Metrics: ca.NewMetrics(reg)})
		defer a.Close() //nolint:errcheck // the test is over
		due := func() int64 {
			t.Helper()
			all, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range all {
				if f.GetName() == "ambit_ca_rotation_due_timestamp" {
					return int64(f.Metric[0].GetGauge().GetValue())
				}
			}
			t.Fatal("no metric")
			return 0
		}
		if n := due(); n != 0 {
			t.Errorf("%d without a change", n)
		}
		if err := a.StartRotation(); err != nil {
			t.Fatal(err)
		}
		first := due()
		if until := a.Status().Until.Unix(); first != until || first <= time.Now().Unix() {
			t.Errorf("%d, want %d", first, until)
		}
		time.Sleep(time.Until(time.Unix(first, 0)) + 2*time.Hour) // without a tick
		if n := due(); n != first {
			t.Errorf("a step that was not ended: %d, want %d", n, first)
		}
		steps := map[int64]bool{}
		for range 24 * 200 {
			a.Tick()
			if a.Status().Stage == ca.Steady {
				break
			}
			steps[due()] = true
			time.Sleep(time.Hour)
		}
		if n := due(); n != 0 || len(steps) == 0 {
			t.Errorf("%d after the change, with %d steps", n, len(steps))
		}
	})
}
