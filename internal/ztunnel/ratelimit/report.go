package ratelimit

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api/admin"
)

// Dump lists the limits for /config_dump.
func (n *Node) Dump() []admin.RateLimit {
	out := []admin.RateLimit{}
	for _, e := range n.entries() {
		l := e.limit
		out = append(out, admin.RateLimit{
			Object: l.String(), Namespace: l.Namespace, Hosts: l.Hosts, Workloads: l.Workloads, Settings: l.Text(), DryRun: l.DryRun,
			Allowed: e.allowed.Load(), Refused: e.refused.Load(), Reported: e.reported.Load(), Unanswered: e.unanswered.Load(), Parties: e.room.taken.Load(),
		})
	}
	return out
}

func (n *Node) entries() (out []*entry) {
	for _, list := range *n.now.Load() {
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.limit.Namespace, b.limit.Namespace), cmp.Compare(a.limit.Name, b.limit.Name))
	})
	return out
}

var descConnections = prometheus.NewDesc("ambit_rate_limit_connections_total",
	"New connections that a RateLimit is for: allowed, refused, or reported by a dry run (unstable).", []string{"namespace", "name", "decision"}, nil)

// Describe implements prometheus.Collector.
func (n *Node) Describe(ch chan<- *prometheus.Desc) { ch <- descConnections }

// Collect implements prometheus.Collector.
func (n *Node) Collect(ch chan<- prometheus.Metric) {
	for _, e := range n.entries() {
		for decision, v := range map[string]uint64{"allowed": e.allowed.Load(), "refused": e.refused.Load(), "dry_run": e.reported.Load(), "unanswered": e.unanswered.Load()} {
			ch <- prometheus.MustNewConstMetric(descConnections, prometheus.CounterValue, float64(v), e.limit.Namespace, e.limit.Name, decision)
		}
	}
}
