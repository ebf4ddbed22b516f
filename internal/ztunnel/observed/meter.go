package observed

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxEvaluation is how long the expressions of one namespace are evaluated in a second. All
// namespaces of a node share its loops, and who writes an expression chooses its cost.
const maxEvaluation = 50 * time.Millisecond

// meter is the time that the expressions of a namespace have taken.
type meter struct {
	second atomic.Int64 // since 1970
	used   atomic.Int64 // of it, in nanoseconds
}

// spend calls evaluate unless the time of this second is used up, and reports whether it did.
func (m *meter) spend(now time.Time, evaluate func()) bool {
	second := now.Unix()
	if last := m.second.Load(); last != second && m.second.CompareAndSwap(last, second) {
		m.used.Store(0)
	}
	if m.used.Load() >= int64(maxEvaluation) {
		return false
	}
	start := time.Now()
	evaluate()
	m.used.Add(int64(time.Since(start)))
	return true
}

// meter returns that of a namespace. There are as many as namespaces have had pods here.
func (n *Node) meter(namespace string) *meter {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.meters[namespace]
	if m == nil {
		m = &meter{}
		n.meters[namespace] = m
	}
	return m
}

// evaluate calls f, or counts that it does not.
func (h *half) evaluate(f func()) bool {
	if h.meter.spend(time.Now(), f) {
		return true
	}
	h.node.skipped.n.Add(1)
	return false
}

// skipped counts expressions that were not evaluated. It implements prometheus.Collector.
type skipped struct{ n atomic.Uint64 }

var descSkipped = prometheus.NewDesc("ztunnel_expressions_skipped_total",
	"Connections whose expressions of Telemetry objects were not evaluated: those of the namespace had used up their time (unstable).", nil, nil)

// Describe implements prometheus.Collector.
func (s *skipped) Describe(ch chan<- *prometheus.Desc) { ch <- descSkipped }

// Collect implements prometheus.Collector.
func (s *skipped) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descSkipped, prometheus.CounterValue, float64(s.n.Load()))
}
