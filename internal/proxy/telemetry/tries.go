package telemetry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descRetries = prometheus.NewDesc("waypoint_request_retries_total", "Times that a request was sent again, to another endpoint or the same (unstable).", nil, nil)
	descLeftOut = prometheus.NewDesc("waypoint_endpoints_left_out_total", "Times that an endpoint was left out because it could not be reached (unstable).", nil, nil)
)

// Tries counts what a proxy of requests does when endpoints fail. The zero value has counted
// none. All methods may be called from any goroutine.
type Tries struct{ retries, leftOut atomic.Uint64 }

// Ended counts a request that was sent n times.
func (t *Tries) Ended(n int) {
	if n > 1 {
		t.retries.Add(uint64(n - 1))
	}
}

// LeftOut counts an endpoint that was left out.
func (t *Tries) LeftOut() { t.leftOut.Add(1) }

// Describe implements prometheus.Collector.
func (t *Tries) Describe(ch chan<- *prometheus.Desc) { ch <- descRetries; ch <- descLeftOut }

// Collect implements prometheus.Collector.
func (t *Tries) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descRetries, prometheus.CounterValue, float64(t.retries.Load()))
	ch <- prometheus.MustNewConstMetric(descLeftOut, prometheus.CounterValue, float64(t.leftOut.Load()))
}
