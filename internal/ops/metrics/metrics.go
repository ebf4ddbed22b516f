// Package metrics is the registry that every program of the mesh starts from:
// its build, its process and its runtime, served in Prometheus' formats.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambit-mesh/ambit/internal/ops/version"
)

// NewRegistry returns a registry with process_*, go_* and
// istio_build{component,tag} = 1.
func NewRegistry(component string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "istio_build",
		Help: "Which component and version this is; always 1.",
	}, []string{"component", "tag"})
	build.WithLabelValues(component, version.Get().Version).Set(1)
	r.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// maxScrapes bounds concurrent scrapes: each renders all series into memory.
const maxScrapes = 4

// Handler serves a registry. A collector that fails leaves its series out and
// the rest in place.
func Handler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
	})
}
