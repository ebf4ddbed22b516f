package ca

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the authority and its server, under the names of Istio's CA. A
// nil *Metrics counts nothing.
type Metrics struct {
	requests, parseErrors, idErrors, issued, authFailures prometheus.Counter
	signErrors                                            *prometheus.CounterVec

	rootExpiry, chainExpiry, rotationDue atomic.Int64 // Unix seconds
}

// caError is the label of requests that the authority could not sign.
const caError = "ca_error"

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "citadel_server_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		requests:     counter("csr_count", "Certificate requests received."),
		parseErrors:  counter("csr_parsing_err_count", "Certificate requests that were malformed."),
		idErrors:     counter("id_extraction_err_count", "Certificate requests by callers that may not have the identity."),
		issued:       counter("success_cert_issuance_count", "Certificates issued."),
		authFailures: counter("authentication_failure_count", "Calls whose caller could not be authenticated."),
		signErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "citadel_server_csr_sign_err_count", Help: "Certificate requests that could not be signed.",
		}, []string{"error"}),
	}
	m.signErrors.WithLabelValues(caError)
	reg.MustRegister(m.signErrors)
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_" + name, Help: help}, f))
	}
	at := func(v *atomic.Int64) func() float64 { return func() float64 { return float64(v.Load()) } }
	left := func(v *atomic.Int64) func() float64 {
		return func() float64 { return time.Until(time.Unix(v.Load(), 0)).Seconds() }
	}
	gauge("root_cert_expiry_timestamp", "When the root certificate expires, Unix seconds.", at(&m.rootExpiry))
	gauge("root_cert_expiry_seconds", "Seconds until the root certificate expires.", left(&m.rootExpiry))
	gauge("cert_chain_expiry_timestamp", "When the signing chain expires, Unix seconds.", at(&m.chainExpiry))
	gauge("cert_chain_expiry_seconds", "Seconds until the signing chain expires.", left(&m.chainExpiry))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_ca_rotation_due_timestamp", Help: "When the present step of a change of the root ends, Unix seconds; 0 without such a change.",
	}, at(&m.rotationDue)))
	return m
}

// AuthenticationFailed counts a refused caller; for auth.Interceptors.
func (m *Metrics) AuthenticationFailed() {
	if m != nil {
		m.authFailures.Inc()
	}
}

func (m *Metrics) signer(s *signer) {
	if m != nil {
		m.rootExpiry.Store(s.root.NotAfter.Unix())
		m.chainExpiry.Store(s.notAfter.Unix())
	}
}

// rotation notes when the present step of a change of the root ends; zero without one.
func (m *Metrics) rotation(until time.Time) {
	if m == nil {
		return
	}
	if until.IsZero() {
		m.rotationDue.Store(0)
		return
	}
	m.rotationDue.Store(until.Unix())
}

func (m *Metrics) requested() {
	if m != nil {
		m.requests.Inc()
	}
}

func (m *Metrics) succeeded() {
	if m != nil {
		m.issued.Inc()
	}
}

func (m *Metrics) malformed() {
	if m != nil {
		m.parseErrors.Inc()
	}
}

func (m *Metrics) notAllowed() {
	if m != nil {
		m.idErrors.Inc()
	}
}

func (m *Metrics) signFailed() {
	if m != nil {
		m.signErrors.WithLabelValues(caError).Inc()
	}
}
