package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the agent's, by the names that Istio's has.
type Metrics struct {
	events *prometheus.CounterVec
	failed *prometheus.CounterVec
	plugin *prometheus.CounterVec
}

// NewMetrics registers the metrics; connected is how many proxies are.
func NewMetrics(r prometheus.Registerer, connected func() int) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_events_total",
			Help: "Pods worked on, by what was done.",
		}, []string{"type"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_cni_reconcile_failures_total",
			Help: "Pods worked on without success, by what was to be done.",
		}, []string{"type"}),
		plugin: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_cni_plugin_requests_total",
			Help: "Requests of the CNI plugin, by the status of the answer.",
		}, []string{"response_code"}),
	}
	r.MustRegister(m.events, m.failed, m.plugin, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ztunnel_connected",
		Help: "How many generations of ztunnel are connected.",
	}, func() float64 { return float64(connected()) }))
	return m
}

// Observe counts a piece of work; it is for Config.Observe.
func (m *Metrics) Observe(event string, err error) {
	m.events.WithLabelValues(event).Inc()
	if err != nil {
		m.failed.WithLabelValues(event).Inc()
	}
}

// Plugin counts an answer to the plugin; it is for PluginHandler.
func (m *Metrics) Plugin(status int) {
	m.plugin.WithLabelValues(strconv.Itoa(status)).Inc()
}
