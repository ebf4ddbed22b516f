package readiness

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestCount: a pod is ready after one probe that passes, and no longer after as many
// failures as its threshold, one after the other, or when a container ends.
func TestCount(t *testing.T) {
	for _, tc := range []struct {
		threshold     int
		probes, ready string // of each probe: passed, failed, down; and whether the pod is ready then
	}{
		{3, "ffff", "----"},
		{3, "ffp", "--+"},
		{3, "pffpff", "++++++"},
		{3, "pfffff", "+++---"},
		{3, "pfffpffp", "+++-++++"},
		{1, "pfp", "+-+"},
		{3, "pdfp", "+--+"},
		{3, "pfdpff", "++-+++"},
	} {
		var c Count
		got := ""
		for _, p := range tc.probes {
			ready := false
			switch p {
			case 'p':
				ready = c.Passed()
			case 'f':
				ready = c.Failed(tc.threshold)
			case 'd':
				ready = c.Down()
			}
			got += map[bool]string{true: "+", false: "-"}[ready]
		}
		if got != tc.ready {
			t.Errorf("threshold %d, probes %s: ready is %s, and not %s", tc.threshold, tc.probes, got, tc.ready)
		}
	}
}

func TestDefaults(t *testing.T) {
	probe := func(period, threshold int32) *corev1.Probe {
		return &corev1.Probe{PeriodSeconds: period, FailureThreshold: threshold}
	}
	spec := func(probes ...*corev1.Probe) *corev1.PodSpec {
		s := &corev1.PodSpec{}
		for _, p := range probes {
			s.Containers = append(s.Containers, corev1.Container{ReadinessProbe: p})
		}
		return s
	}
	for want, s := range map[time.Duration]*corev1.PodSpec{
		10 * time.Second: spec(nil, probe(0, 0), probe(20, 0)), 2 * time.Second: spec(probe(5, 0), nil, probe(2, 0)),
	} {
		if got := Period(s); got != want {
			t.Errorf("the period is %v, and not %v", got, want)
		}
	}
	for want, p := range map[int]*corev1.Probe{3: probe(0, 0), 1: probe(0, 1), 7: probe(0, 7)} {
		if got := Threshold(p); got != want {
			t.Errorf("the threshold is %d, and not %d", got, want)
		}
	}
}
