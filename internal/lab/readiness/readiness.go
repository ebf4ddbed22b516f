// Package readiness decides when a pod of a lab is ready, by the answers of its readiness
// probes, as a kubelet does.
package readiness

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Defaults of Kubernetes.
const (
	defaultPeriod    = 10 * time.Second
	defaultThreshold = 3
)

// Period returns how often a pod is probed that is ready: as often as the probe of its
// containers that is the most frequent.
func Period(spec *corev1.PodSpec) time.Duration {
	d := defaultPeriod
	for i := range spec.Containers {
		if p := spec.Containers[i].ReadinessProbe; p != nil && p.PeriodSeconds > 0 {
			d = min(d, time.Duration(p.PeriodSeconds)*time.Second)
		}
	}
	return d
}

// Threshold returns how many failures of a probe, one after the other, make a container
// not ready that was.
func Threshold(p *corev1.Probe) int {
	if p.FailureThreshold > 0 {
		return int(p.FailureThreshold)
	}
	return defaultThreshold
}

// Count is what the probes of a pod have answered. The zero value is a pod that is not ready.
type Count struct {
	ready    bool
	failures int // one after the other
}

// Passed reports that a pod whose probes passed is ready.
func (c *Count) Passed() bool {
	*c = Count{ready: true}
	return true
}

// Failed reports whether a pod is still ready after one more failure of a probe that has a
// threshold. One that was not ready is not.
func (c *Count) Failed(threshold int) bool {
	c.failures++
	c.ready = c.ready && c.failures < threshold
	return c.ready
}

// Down reports that a pod whose containers do not all run is not ready.
func (c *Count) Down() bool {
	*c = Count{}
	return false
}
