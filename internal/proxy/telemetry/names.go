package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

const (
	// maxNames bounds the series of resolved names in a process. One costs
	// about 500 bytes of memory and 400 of every scrape.
	maxNames = 4096
	// maxNamesOfSource bounds those of one source, so that no tenant uses up
	// the names of the others.
	maxNamesOfSource = 256
)

var descDNS = prometheus.NewDesc("istio_on_demand_dns_total", "Endpoints that were resolved for a connection (unstable).", []string{
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "hostname",
}, nil)

// nameLabels are the labels of one series: a source's, and a hostname.
type nameLabels struct {
	workload, service, revision, namespace, principal, cluster string
	hostname                                                   string
}

func (l *nameLabels) source() nameLabels {
	s := *l
	s.hostname = ""
	return s
}

// ends are the workloads for which a name was resolved: the source, and the
// endpoint that has the name. The endpoint is nil for names beyond the bounds.
type ends struct{ src, dst *workload.Workload }

// nameSeries counts. It lives while one of its holders is in the directory.
type nameSeries struct {
	n       uint64
	holders map[ends]struct{}
}

// names counts the names of endpoints that were resolved for connections. What
// others name is bounded, and goes when the workload does that had the name.
type names struct {
	mu       sync.Mutex // guards what follows
	series   map[nameLabels]*nameSeries
	bySource map[nameLabels]int         // series of a source, without hostname
	of       map[*workload.Workload]int // holders that a workload is part of
}

func newNames() *names {
	return &names{series: map[nameLabels]*nameSeries{}, bySource: map[nameLabels]int{}, of: map[*workload.Workload]int{}}
}

func labelsOf(src *workload.Workload, hostname string) nameLabels {
	return nameLabels{
		workload: unknown(src.WorkloadName), service: unknown(src.CanonicalName), revision: unknown(src.CanonicalRevision),
		namespace: unknown(src.Namespace), principal: src.Identity().String(), cluster: unknown(src.ClusterID), hostname: hostname,
	}
}

// Resolved counts that the name of endpoint dst was resolved for a connection
// of src.
func (r *Recorder) Resolved(src, dst *workload.Workload, hostname string) {
	n := r.names
	// Before the check: what goes after it is taken away by changed.
	n.mu.Lock()
	defer n.mu.Unlock()
	if live := r.live.Workload; live != nil && (!live(src) || !live(dst)) {
		return
	}
	n.add(ends{src, dst}, labelsOf(src, hostname), 1)
}

// add counts, under the hostname "unknown" when the source has too many.
func (n *names) add(e ends, l nameLabels, by uint64) {
	s := n.series[l]
	if s == nil && (len(n.series) >= maxNames || n.bySource[l.source()] >= maxNamesOfSource) {
		l.hostname, e.dst = unknown(""), nil
		s = n.series[l]
	}
	if s == nil {
		s = &nameSeries{holders: map[ends]struct{}{}}
		n.series[l] = s
		n.bySource[l.source()]++
	}
	s.n += by
	if _, ok := s.holders[e]; ok {
		return
	}
	s.holders[e] = struct{}{}
	n.hold(e, 1)
}

func (n *names) hold(e ends, delta int) {
	for _, w := range [...]*workload.Workload{e.src, e.dst} {
		if w == nil {
			continue
		}
		if n.of[w] += delta; n.of[w] <= 0 {
			delete(n.of, w)
		}
	}
}

// changed follows the directory as Recorder.WorkloadChanged does.
func (n *names) changed(old, now *workload.Workload) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of[old] == 0 {
		return
	}
	for l, s := range n.series {
		for e := range s.holders {
			if e.src == old || e.dst == old {
				delete(s.holders, e)
				n.hold(e, -1)
				n.keep(s, l, e, old, now)
			}
		}
		if len(s.holders) == 0 {
			delete(n.series, l)
			if n.bySource[l.source()]--; n.bySource[l.source()] <= 0 {
				delete(n.bySource, l.source())
			}
		}
	}
}

// keep lets a workload that only changed hold on to a series whose labels it
// still has.
func (n *names) keep(s *nameSeries, l nameLabels, e ends, old, now *workload.Workload) {
	if now == nil || e.dst == old && now.Hostname != old.Hostname {
		return
	}
	if e.src == old {
		e.src = now
	}
	if e.dst == old {
		e.dst = now
	}
	if labelsOf(e.src, l.hostname) != l {
		return
	}
	s.holders[e] = struct{}{}
	n.hold(e, 1)
}

func (n *names) collect(ch chan<- prometheus.Metric) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for l, s := range n.series {
		ch <- prometheus.MustNewConstMetric(descDNS, prometheus.CounterValue, float64(s.n),
			l.workload, l.service, l.revision, l.namespace, l.principal, l.service, l.revision, l.cluster, l.hostname)
	}
}
