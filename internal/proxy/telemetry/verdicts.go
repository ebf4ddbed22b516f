package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descVerdicts       = prometheus.NewDesc("ambit_policy_verdicts_total", "Verdicts of policies that decide nothing: of AUDIT, and of dry runs.", []string{"policy", "verdict"}, nil)
	descAuthorizations = prometheus.NewDesc("ambit_external_authorizations_total", "Questions to external authorizers, by what came of them: allowed, denied, error, fail_open.", []string{"authorizer", "outcome"}, nil)
)

// Verdicts counts what policies say that decide nothing, or what external authorizers do.
// All methods may be called from any goroutine. Its series end with their policies.
type Verdicts struct {
	desc   *prometheus.Desc
	mu     sync.Mutex
	counts map[verdict]uint64
}

type verdict struct{ policy, verdict string }

// NewVerdicts returns a count of nothing.
func NewVerdicts() *Verdicts { return &Verdicts{desc: descVerdicts, counts: map[verdict]uint64{}} }

// NewAuthorizations returns a count of the answers of external authorizers, which take the
// place of policies.
func NewAuthorizations() *Verdicts {
	return &Verdicts{desc: descAuthorizations, counts: map[verdict]uint64{}}
}

// Count counts one verdict.
func (v *Verdicts) Count(policy, what string) {
	v.mu.Lock()
	v.counts[verdict{policy, what}]++
	v.mu.Unlock()
}

// Keep drops the series of policies that keep does not report.
func (v *Verdicts) Keep(keep func(policy string) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k := range v.counts {
		if !keep(k.policy) {
			delete(v.counts, k)
		}
	}
}

// Describe sends nothing: the series are not known beforehand.
func (v *Verdicts) Describe(chan<- *prometheus.Desc) {}

// Collect is called for every scrape.
func (v *Verdicts) Collect(ch chan<- prometheus.Metric) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, n := range v.counts {
		ch <- prometheus.MustNewConstMetric(v.desc, prometheus.CounterValue, float64(n), k.policy, k.verdict)
	}
}
