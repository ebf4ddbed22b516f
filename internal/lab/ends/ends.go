// Package ends decides how a pod of a lab ends, in the phases of Kubernetes: its end is asked
// for and the mesh can read that; hooks run; programs are asked to end, and have what is left of
// the grace period; then they are killed, and the object goes.
package ends

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultGrace is the grace period of a pod that names none. Kubernetes has 30 s, which
// is long for a person at a keyboard.
const DefaultGrace = 3 * time.Second

// Terminating is the phase that a list of pods shows from the request on.
const Terminating = "Terminating"

// Grace returns how long a pod may take to end.
func Grace(spec *corev1.PodSpec) time.Duration {
	if t := spec.TerminationGracePeriodSeconds; t != nil {
		return max(0, time.Duration(*t)*time.Second)
	}
	return DefaultGrace
}

// Mark makes an object say that its end was asked for at a time, as the API server does.
func Mark(m *metav1.ObjectMeta, asked time.Time, grace time.Duration) {
	seconds := int64(grace / time.Second)
	until := metav1.NewTime(asked.Add(grace)).Rfc3339Copy()
	m.DeletionTimestamp, m.DeletionGracePeriodSeconds = &until, &seconds
}

// Endpoint is a pod as a service may lead to it.
type Endpoint struct{ Ready, Ending bool }

// Used returns which pods a service leads to, as kube-proxy does: those that are ready and
// not about to end. If there are none, those that are ready and about to end. With all, the
// service asks for pods that are not ready, too.
func Used(pods []Endpoint, all bool) []bool {
	used := make([]bool, len(pods))
	found := false
	for i, p := range pods {
		used[i] = all || p.Ready && !p.Ending
		found = found || used[i]
	}
	if found {
		return used
	}
	for i, p := range pods {
		used[i] = p.Ready
	}
	return used
}

// Hook returns what a container does before it is asked to end; nil for nothing.
func Hook(c *corev1.Container) *corev1.LifecycleHandler {
	if c.Lifecycle == nil {
		return nil
	}
	return c.Lifecycle.PreStop
}
