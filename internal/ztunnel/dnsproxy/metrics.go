package dnsproxy

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

// protocol is how a question comes.
type protocol uint8

const (
	udp protocol = iota
	tcp
	protocols
)

func (p protocol) String() string { return [protocols]string{"udp", "tcp"}[p] }

// kinds are the types of questions that have a series of their own.
var kinds = []struct {
	number uint16
	name   string
}{
	{dns.TypeA, "A"},
	{dns.TypeAAAA, "AAAA"},
	{dns.TypeCNAME, "CNAME"},
	{dns.TypePTR, "PTR"},
	{dns.TypeTXT, "TXT"},
	{dns.TypeSRV, "SRV"},
	{65, "HTTPS"},
}

// otherKind is the label of all others.
const otherKind = "other"

func kindOf(t uint16) int {
	for i := range kinds {
		if kinds[i].number == t {
			return i
		}
	}
	return len(kinds)
}

func kindName(i int) string {
	if i == len(kinds) {
		return otherKind
	}
	return kinds[i].name
}

func typeName(t uint16) string {
	if i := kindOf(t); i < len(kinds) {
		return kinds[i].name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// Metrics counts look-ups. The names and labels are those of Istio's proxy.
type Metrics struct {
	requests, upstream, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
	shed, wrong                  atomic.Uint64
	flights                      atomic.Pointer[budget.Pool]

	mu   sync.Mutex // guards uses
	uses map[source]int
}

// source is the pod in labels. Replicas share theirs.
type source struct{ service, revision string }

// NewMetrics makes one.
func NewMetrics() *Metrics {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		uses:     map[source]int{},
		requests: counter("istio_dns_requests_total", "Look-ups of pods (unstable).", labels),
		upstream: counter("istio_dns_upstream_requests_total", "Look-ups that were passed to the pods' name servers (unstable).", labels[1:]),
		failures: counter("istio_dns_upstream_failures_total", "Look-ups that the pods' name servers did not answer (unstable).", labels[1:]),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_dns_upstream_request_duration_seconds", Help: "How long the pods' name servers took (unstable).",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, labels[1:]),
	}
}

var (
	descShed  = prometheus.NewDesc("ztunnel_dns_shed_total", "Look-ups that were refused because too many of their pod waited already (unstable).", nil, nil)
	descWrong = prometheus.NewDesc("ztunnel_dns_wrong_answers_total", "Messages from a name server's address that answer another question (unstable).", nil, nil)
	descWait  = prometheus.NewDesc("ztunnel_dns_waiting", "Look-ups that wait for name servers (unstable).", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{m.requests, m.upstream, m.failures, m.duration} {
		c.Describe(ch)
	}
	ch <- descShed
	ch <- descWrong
	ch <- descWait
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.requests, m.upstream, m.failures, m.duration} {
		c.Collect(ch)
	}
	ch <- prometheus.MustNewConstMetric(descShed, prometheus.CounterValue, float64(m.shed.Load()))
	ch <- prometheus.MustNewConstMetric(descWrong, prometheus.CounterValue, float64(m.wrong.Load()))
	waiting := int64(0)
	if f := m.flights.Load(); f != nil {
		waiting = f.Used()
	}
	ch <- prometheus.MustNewConstMetric(descWait, prometheus.GaugeValue, float64(waiting))
}

// use counts a pod with these labels.
func (m *Metrics) use(s source, delta int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uses[s] += delta; m.uses[s] > 0 {
		return
	}
	delete(m.uses, s)
	gone := prometheus.Labels{"source_canonical_service": s.service, "source_canonical_revision": s.revision}
	m.requests.DeletePartialMatch(gone)
	m.upstream.DeletePartialMatch(gone)
	m.failures.DeletePartialMatch(gone)
	m.duration.DeletePartialMatch(gone)
}

// series are the metrics of one pod, for as long as its labels stay the same.
type series struct {
	mu     sync.Mutex // guards what follows
	labels *labelled
	gone   bool
}

// labelled is the metrics with the labels of a workload. Counters are made when they are
// first used.
type labelled struct {
	source
	workload  *workload.Workload
	requests  [protocols][]prometheus.Counter
	upstream  [protocols]prometheus.Counter
	failures  [protocols]prometheus.Counter
	durations [protocols]prometheus.Observer
}

// with calls f with the metrics of the pod.
func (p *Pod) with(f func(m *Metrics, l *labelled)) {
	s, m, w := &p.series, p.node.Metrics, p.Workload()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	if s.labels == nil || s.labels.workload != w {
		s.relabel(m, w)
	}
	f(m, s.labels)
}

// relabel takes the labels of a workload; the caller holds mu.
func (s *series) relabel(m *Metrics, w *workload.Workload) {
	now := source{"unknown", "unknown"}
	if w != nil {
		now = source{orUnknown(w.CanonicalName), orUnknown(w.CanonicalRevision)}
	}
	if s.labels != nil && s.labels.source == now {
		s.labels.workload = w
		return
	}
	m.use(now, 1)
	if s.labels != nil {
		m.use(s.labels.source, -1)
	}
	s.labels = &labelled{source: now, workload: w}
	for i := range s.labels.requests {
		s.labels.requests[i] = make([]prometheus.Counter, len(kinds)+1)
	}
}

// forget takes the series of a pod away that no other pod has.
func (s *series) forget(m *Metrics) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.labels != nil && !s.gone {
		m.use(s.labels.source, -1)
	}
	s.gone = true
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// count counts a question.
func (p *Pod) count(q *dns.Question, proto protocol) {
	p.asks.Add(1)
	kind := kindOf(q.Type)
	p.with(func(m *Metrics, l *labelled) {
		c := &l.requests[proto][kind]
		if *c == nil {
			*c = m.requests.WithLabelValues(kindName(kind), proto.String(), l.service, l.revision)
		}
		(*c).Inc()
	})
}

// passed counts a question that is passed on.
func (p *Pod) passed(proto protocol) {
	p.passes.Add(1)
	p.with(func(m *Metrics, l *labelled) { count(&l.upstream[proto], m.upstream, proto, l) })
}

// upstreamFailed counts a question that gets no answer.
func (p *Pod) upstreamFailed(proto protocol) {
	p.with(func(m *Metrics, l *labelled) { count(&l.failures[proto], m.failures, proto, l) })
}

// upstreamTook notes how long an answer took.
func (p *Pod) upstreamTook(proto protocol, d time.Duration) {
	p.with(func(m *Metrics, l *labelled) {
		o := &l.durations[proto]
		if *o == nil {
			*o = m.duration.WithLabelValues(proto.String(), l.service, l.revision)
		}
		(*o).Observe(d.Seconds())
	})
}

func count(c *prometheus.Counter, vec *prometheus.CounterVec, proto protocol, l *labelled) {
	if *c == nil {
		*c = vec.WithLabelValues(proto.String(), l.service, l.revision)
	}
	(*c).Inc()
}
