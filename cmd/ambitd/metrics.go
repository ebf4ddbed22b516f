package main

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// controlMetrics are the control plane's own, with Istio's names where it has
// one.
type controlMetrics struct {
	clients   prometheus.Gauge
	pushes    *prometheus.CounterVec
	resources *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	rejects   *prometheus.CounterVec
	changes   *prometheus.CounterVec
	known     *prometheus.GaugeVec
	keys      *prometheus.CounterVec
	converged *prometheus.HistogramVec
}

func newMetrics(reg *prometheus.Registry) *controlMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	m := &controlMetrics{
		clients:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Connected xDS clients."}),
		pushes:    counter("pilot_xds_pushes", "Responses sent, by type."),
		resources: counter("ambit_xds_pushed_resources_total", "Resources sent or removed, by type."),
		bytes:     counter("ambit_xds_pushed_bytes_total", "Bytes of resources sent, by type."),
		rejects:   counter("pilot_total_xds_rejects", "Responses that a client rejected, by type."),
		changes:   counter("ambit_registry_changes_total", "Resources that changed, by type."),
		known:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ambit_registry_resources", Help: "Resources there are, by type."}, []string{"type"}),
	}
	m.keys = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_jwks_fetches_total", Help: "Attempts to fetch the keys of issuers of tokens, by result."}, []string{"result"})
	m.converged = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pilot_proxy_convergence_time", Help: "Seconds from a change until a client has accepted it, by type.", Buckets: []float64{.01, .05, .1, .5, 1, 3, 5, 10, 20, 30},
	}, []string{"type"})
	for _, url := range served { // the first one must be seen as a rise, from 0
		m.rejects.WithLabelValues(shortType(url))
	}
	reg.MustRegister(m.clients, m.pushes, m.resources, m.bytes, m.rejects, m.changes, m.known, m.keys, m.converged)
	return m
}

func (m *controlMetrics) server() xds.ServerMetrics {
	return xds.ServerMetrics{
		Clients: func(d int) { m.clients.Add(float64(d)) },
		Pushed: func(url string, resources, removed, bytes int) {
			t := typeLabel(url)
			m.pushes.WithLabelValues(t).Inc()
			m.resources.WithLabelValues(t).Add(float64(resources + removed))
			m.bytes.WithLabelValues(t).Add(float64(bytes))
		},
		Rejected: func(url string) { m.rejects.WithLabelValues(typeLabel(url)).Inc() },
		Converged: func(url string, took time.Duration) {
			m.converged.WithLabelValues(typeLabel(url)).Observe(took.Seconds())
		},
	}
}

// served are the types that have a label of their own.
var served = registry.Types()

// typeLabel bounds the values of the label: the type is the client's to name.
func typeLabel(url string) string {
	if slices.Contains(served, url) {
		return shortType(url)
	}
	return "other"
}

func (m *controlMetrics) updated(cache *xds.Cache) func(string, int, int) {
	return func(url string, set, removed int) {
		t := shortType(url)
		m.changes.WithLabelValues(t).Add(float64(set + removed))
		m.known.WithLabelValues(t).Set(float64(cache.Len(url)))
	}
}

func (m *controlMetrics) keysFetched(ok bool) {
	result := "ok"
	if !ok {
		result = "failed"
	}
	m.keys.WithLabelValues(result).Inc()
}

func (m *controlMetrics) problems(reg *prometheus.Registry, problems func() []api.Problem) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_source_problems", Help: "Mistakes in the configuration.",
	}, func() float64 {
		count := 0.0
		for _, p := range problems() {
			if !p.Ignored {
				count++
			}
		}
		return count
	}))
}
