package egress

import (
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
)

// Gate applies the policies of a node's pods, counts, and reports.
type Gate struct {
	Exempt Exempt
	Log    *slog.Logger

	counts Counts
}

// Counts are connections that were refused, and those that were only reported.
type Counts struct{ refused, reported atomic.Uint64 }

// Check returns why a connection of a pod is refused; nil for one that goes on. One that
// is only reported gets a line in the log, within the pod's limit.
func (g *Gate) Check(pod *Counts, lines *accesslog.Limit, c Conn) *reason.Error {
	c.Exempt = g.Exempt
	refused, reported := Decide(&c)
	switch {
	case refused != nil:
		g.counts.refused.Add(1)
		pod.refused.Add(1)
	case reported != nil:
		g.counts.reported.Add(1)
		pod.reported.Add(1)
		if lines.Permit(false) {
			g.Log.Info("REGISTRY_ONLY would refuse the connection", "src", c.Src, "dst", c.Dst,
				"workload", c.Source.Namespace+"/"+c.Source.Name, "reason", reported.Reason, "error", reported)
		}
	}
	return refused
}

// Ended counts an open connection that a new policy ended.
func (g *Gate) Ended(pod *Counts) {
	g.counts.refused.Add(1)
	pod.refused.Add(1)
}

// State describes a pod. Its workload is nil while it is not known: then the pod makes no
// connections.
func (c *Counts) State(w *workload.Workload) *admin.Egress {
	if w == nil {
		return nil
	}
	return &admin.Egress{Mode: w.Outbound.String(), Refused: c.refused.Load(), Reported: c.reported.Load()}
}

var descConnections = prometheus.NewDesc("ambit_egress_connections_total",
	"Connections to addresses in no registry, by what the outbound traffic policy did with them (unstable).", []string{"decision"}, nil)

// Describe implements prometheus.Collector.
func (g *Gate) Describe(ch chan<- *prometheus.Desc) { ch <- descConnections }

// Collect implements prometheus.Collector.
func (g *Gate) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descConnections, prometheus.CounterValue, float64(g.counts.refused.Load()), "refused")
	ch <- prometheus.MustNewConstMetric(descConnections, prometheus.CounterValue, float64(g.counts.reported.Load()), "reported")
}
