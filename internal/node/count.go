package node

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"
)

// States of pods in metrics.
const (
	stateEnrolled = "enrolled"
	statePending  = "pending" // asked for, and not enrolled yet
	stateWorking  = "working" // worked on at this moment
)

// count returns how many pods that belong to the mesh are in each state. It does not wait
// for pods that are worked on, which can take seconds.
func (a *Agent) count() map[string]int {
	a.mu.Lock()
	pods := maps.Clone(a.pods)
	a.mu.Unlock()
	n := map[string]int{stateEnrolled: 0, statePending: 0, stateWorking: 0}
	for uid, pod := range pods {
		st := a.state(uid)
		if !st.mu.TryLock() {
			n[stateWorking]++
			continue
		}
		enrolled := st.enrolled
		st.mu.Unlock()
		if wanted, _ := a.wants(pod); enrolled {
			n[stateEnrolled]++
		} else if wanted {
			n[statePending]++
		}
	}
	return n
}

var descPods = prometheus.NewDesc("ambit_cni_pods",
	"Pods of the node that are in the mesh, wait to be, or are worked on, by state (unstable).", []string{"state"}, nil)

// Describe implements prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) { ch <- descPods }

// Collect implements prometheus.Collector.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	for state, n := range a.count() {
		ch <- prometheus.MustNewConstMetric(descPods, prometheus.GaugeValue, float64(n), state)
	}
}
