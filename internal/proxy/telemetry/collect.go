package telemetry

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// labelNames are the labels of the TCP metrics, in Istio's order.
var labelNames = [...]string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
	"source_region", "source_zone", "destination_region", "destination_zone",
}

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labelNames[:], nil)
}

var (
	descOpened    = desc("istio_tcp_connections_opened_total", "Connections that were opened.")
	descClosed    = desc("istio_tcp_connections_closed_total", "Connections that ended.")
	descReceived  = desc("istio_tcp_received_bytes_total", "Bytes from clients to servers.")
	descSent      = desc("istio_tcp_sent_bytes_total", "Bytes from servers to clients.")
	descFailed    = desc("istio_tcp_connections_failed_total", "Connections that failed, by why (unstable).")
	descSockets   = prometheus.NewDesc("istio_tcp_sockets_open", "Application connections and tunnels accepted and still open (unstable).", []string{"reporter"}, nil)
	descRevoked   = prometheus.NewDesc("istio_crl_policy_rejections_total", "Peers refused or ended because their certificate is revoked (unstable).", []string{"reporter"}, nil)
	descUntracked = prometheus.NewDesc("istio_crl_untracked_connections_total", "Tunnels that could not be looked up in revocation lists that changed (unstable).", []string{"reporter"}, nil)
)

// Describe sends nothing: the series are not known beforehand.
func (r *Recorder) Describe(chan<- *prometheus.Desc) {}

// Collect is called for every scrape.
func (r *Recorder) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	all := make([]*series, 0, len(r.series))
	for _, s := range r.series {
		all = append(all, s)
	}
	r.mu.Unlock()
	for _, s := range all {
		s.collect(ch)
	}
	r.names.collect(ch)
	if n := r.uncounted.Load(); n > 0 {
		ch <- prometheus.MustNewConstMetric(descUncounted, prometheus.CounterValue, float64(n))
	}
	complete, failed := r.lines.Suppressed()
	ch <- prometheus.MustNewConstMetric(r.suppressed, prometheus.CounterValue, float64(complete), "complete")
	ch <- prometheus.MustNewConstMetric(r.suppressed, prometheus.CounterValue, float64(failed), "failed")
	for rep := range numReporters {
		if n := r.revoked[rep].Load(); n > 0 {
			ch <- prometheus.MustNewConstMetric(descRevoked, prometheus.CounterValue, float64(n), rep.String())
		}
		if n := r.untracked[rep].Load(); n > 0 {
			ch <- prometheus.MustNewConstMetric(descUntracked, prometheus.CounterValue, float64(n), rep.String())
		}
		if n := r.sockets[rep].Load(); n > 0 || rep != Waypoint {
			ch <- prometheus.MustNewConstMetric(descSockets, prometheus.GaugeValue, float64(n), rep.String())
		}
	}
}

// bytes sums what ended and what is open. A connection is always in exactly
// one of the two, so the sum never goes back.
func (s *series) bytes() (sent, received uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent, received = s.sent, s.received
	for c := s.live; c != nil; c = c.next {
		if c.flow != nil {
			up, down := c.flow.Bytes()
			received += up
			sent += down
		}
	}
	return sent, received
}

func (s *series) collect(ch chan<- prometheus.Metric) {
	sent, received := s.bytes()
	s.collectRequests(ch)
	opened := s.opened.Load()
	if opened == 0 && s.reporter == Waypoint {
		return // requests alone
	}
	ch <- &counter{descOpened, s, 0, opened}
	ch <- &counter{descReceived, s, 0, received}
	ch <- &counter{descSent, s, 0, sent}
	for i := range s.closed {
		if n := s.closed[i].Load(); n > 0 {
			ch <- &counter{descClosed, s, i, n}
		}
		if n := s.failed[i].Load(); n > 0 {
			ch <- &counter{descFailed, s, i, n}
		}
	}
}

// InOrder gives the metrics of traffic their labels in Istio's order: the registry
// sorts them by name.
func InOrder(g prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		fams, err := g.Gather()
		for _, f := range fams {
			if n := f.GetName(); !strings.HasPrefix(n, "istio_tcp_") && !strings.HasPrefix(n, "istio_re") {
				continue
			}
			for _, m := range f.Metric {
				slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return labelOrder[a.GetName()] - labelOrder[b.GetName()] })
			}
		}
		return fams, err
	})
}

var labelOrder = func() map[string]int {
	order := make(map[string]int, len(labelNames)+2)
	for i, n := range labelNames {
		order[n] = 3 * i
	}
	// Between request_protocol and response_flags.
	order["response_code"], order["grpc_response_status"] = order["request_protocol"]+1, order["request_protocol"]+2
	return order
}()

// counter is one value of a series.
type counter struct {
	desc  *prometheus.Desc
	s     *series
	flag  int
	value uint64
}

func (c *counter) Desc() *prometheus.Desc { return c.desc }

var (
	protoTCP    = "tcp"
	secMTLS     = "mutual_tls"
	secUnknown  = "unknown"
	numPartyLbl = len(labelValues{}.party)
)

// Write fills the message. Names and values are pointed to, not copied.
func (c *counter) Write(m *dto.Metric) error {
	v := &c.s.labels
	pairs := make([]dto.LabelPair, len(labelNames))
	m.Label = make([]*dto.LabelPair, 0, len(labelNames))
	add := func(value *string) {
		i := len(m.Label)
		pairs[i].Name, pairs[i].Value = &labelNames[i], value
		m.Label = append(m.Label, &pairs[i])
	}
	for i := range numPartyLbl {
		add(&v.party[i])
	}
	add(&protoTCP)
	add(&c.s.reporter.flags()[c.flag])
	if v.mtls {
		add(&secMTLS)
	} else {
		add(&secUnknown)
	}
	if v.located {
		for i := range v.locality {
			add(&v.locality[i])
		}
	}
	n := float64(c.value)
	m.Counter = &dto.Counter{Value: &n}
	return nil
}
