package otlp

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Counters are what became of the messages of a process. All methods may be called from
// any goroutine.
type Counters struct {
	sent, full, failed atomic.Uint64

	descSent, descDropped *prometheus.Desc
}

// NewCounters returns the counters of a program's messages: of its spans, or of what else
// they are called.
func NewCounters(program, what string) *Counters {
	return &Counters{
		descSent:    prometheus.NewDesc(program+"_"+what+"_sent_total", "Messages of OTLP that a collector has accepted (unstable).", nil, nil),
		descDropped: prometheus.NewDesc(program+"_"+what+"_dropped_total", "Messages of OTLP that were dropped: the queue was full, or the collector did not accept them (unstable).", []string{"cause"}, nil),
	}
}

// Sent counts messages that a collector has accepted.
func (c *Counters) Sent(n int) { c.sent.Add(uint64(n)) }

// Full counts messages that found no room.
func (c *Counters) Full(n int) { c.full.Add(uint64(n)) }

// Failed counts messages that no collector has accepted.
func (c *Counters) Failed(n int) { c.failed.Add(uint64(n)) }

// Values returns the counts.
func (c *Counters) Values() (sent, full, failed uint64) {
	return c.sent.Load(), c.full.Load(), c.failed.Load()
}

// Describe implements prometheus.Collector.
func (c *Counters) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.descSent
	ch <- c.descDropped
}

// Collect implements prometheus.Collector.
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	sent, full, failed := c.Values()
	ch <- prometheus.MustNewConstMetric(c.descSent, prometheus.CounterValue, float64(sent))
	ch <- prometheus.MustNewConstMetric(c.descDropped, prometheus.CounterValue, float64(full), "full")
	ch <- prometheus.MustNewConstMetric(c.descDropped, prometheus.CounterValue, float64(failed), "failed")
}
