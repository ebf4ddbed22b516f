// Package managed counts for the metrics of a node proxy which pods it serves, and what it
// met in serving them.
package managed

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
)

// Metrics counts the pods' proxies.
type Metrics struct {
	node             atomic.Pointer[Node]
	Started, Stopped atomic.Uint64
	SourceLost       atomic.Uint64 // connections to programs without the client's address
	Foreign          atomic.Uint64 // listening sockets of others on the proxy's ports
	Older            atomic.Uint64 // connections from before enrolment that a policy ended
}

// Node is what is read when metrics are collected.
type Node struct {
	Counts  func() (up, pending int)
	Egress  *egress.Gate
	Budgets *budget.Node
}

// Follow has the metrics be those of a node.
func (m *Metrics) Follow(n Node) { m.node.Store(&n) }

var (
	descActive     = prometheus.NewDesc("workload_manager_active_proxy_count", "Pods that are served (unstable).", nil, nil)
	descPending    = prometheus.NewDesc("workload_manager_pending_proxy_count", "Pods that wait to be served (unstable).", nil, nil)
	descStarted    = prometheus.NewDesc("workload_manager_proxies_started_total", "Times that serving a pod began (unstable).", nil, nil)
	descSourceLost = prometheus.NewDesc("ambit_inbound_without_client_address_total", "Connections that a program got from the pod's own address, because every port of the client's address was taken (unstable).", nil, nil)
	descForeign    = prometheus.NewDesc("ambit_foreign_listeners_total", "Listening sockets of other programs that were found on the proxy's ports in a pod (unstable).", nil, nil)
	descOlder      = prometheus.NewDesc("ambit_uncaptured_connections_closed_total", "Connections from before enrolment that were ended because a policy denies them (unstable).", nil, nil)
	descUsed       = prometheus.NewDesc("ztunnel_budget_used", "What the pods of the node have taken of a resource that they share (unstable).", []string{"resource"}, nil)
	descTotal      = prometheus.NewDesc("ztunnel_budget_total", "How much there is of it (unstable).", []string{"resource"}, nil)
	descRefused    = prometheus.NewDesc("ztunnel_budget_refused_total", "Times that a pod had used up its share of it (unstable).", []string{"resource"}, nil)
	descStopped    = prometheus.NewDesc("workload_manager_proxies_stopped_total", "Times that serving a pod ended (unstable).", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descActive, descPending, descStarted, descStopped, descSourceLost, descForeign, descOlder, descUsed, descTotal, descRefused} {
		ch <- d
	}
	(&egress.Gate{}).Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	var up, pending int
	if n := m.node.Load(); n != nil {
		up, pending = n.Counts()
		n.Egress.Collect(ch)
		n.Budgets.Each(func(resource string, p *budget.Pool) {
			ch <- prometheus.MustNewConstMetric(descUsed, prometheus.GaugeValue, float64(p.Used()), resource)
			ch <- prometheus.MustNewConstMetric(descTotal, prometheus.GaugeValue, float64(p.Total()), resource)
			ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(p.Refused()), resource)
		})
	}
	ch <- prometheus.MustNewConstMetric(descActive, prometheus.GaugeValue, float64(up))
	ch <- prometheus.MustNewConstMetric(descPending, prometheus.GaugeValue, float64(pending))
	ch <- prometheus.MustNewConstMetric(descStarted, prometheus.CounterValue, float64(m.Started.Load()))
	ch <- prometheus.MustNewConstMetric(descStopped, prometheus.CounterValue, float64(m.Stopped.Load()))
	ch <- prometheus.MustNewConstMetric(descSourceLost, prometheus.CounterValue, float64(m.SourceLost.Load()))
	ch <- prometheus.MustNewConstMetric(descForeign, prometheus.CounterValue, float64(m.Foreign.Load()))
	ch <- prometheus.MustNewConstMetric(descOlder, prometheus.CounterValue, float64(m.Older.Load()))
}
