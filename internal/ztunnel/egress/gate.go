package egress

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

// Gate applies the policies of a node's pods, counts, and reports.
type Gate struct {
	Exempt   Exempt
	Policies *Policies
	// Hosts are services that are found by the names that look-ups have led from.
	Hosts *hosts.Table
	// NameServers are those whose answers count.
	NameServers []netip.Addr
	Log         *slog.Logger

	registry, policy counts
}

// Check returns why a connection of a pod is refused by its outbound traffic policy; nil for
// one that goes on. One that is only reported gets a line in the log, within the pod's limit.
// What an EgressPolicy lists counts as registered.
func (g *Gate) Check(pod *Pod, lines *accesslog.Limit, c Conn) *reason.Error {
	c.Exempt = g.Exempt
	refused, reported := Decide(&c)
	if (refused != nil || reported != nil) && g.Listed(pod, &c) {
		return nil
	}
	switch {
	case refused != nil:
		g.registry.refused.Add(1)
		pod.registry.refused.Add(1)
		call := plain(pod, &c)
		pod.note(&call, decidedRefused)
	case reported != nil:
		g.registry.reported.Add(1)
		pod.registry.reported.Add(1)
		if lines.Permit(false) {
			g.Log.Info("REGISTRY_ONLY would refuse the connection", "src", c.Src, "dst", c.Dst,
				"workload", c.Source.Namespace+"/"+c.Source.Name, "reason", reported.Reason, "error", reported)
		}
	}
	return refused
}

// Host returns the service that a connection of a pod is to by a look-up.
func (g *Gate) Host(p *Pod, namespace string, dst netip.AddrPort, first opening.Opening) hosts.Match {
	if g.Hosts.Empty() || p.Answers.Seen() == 0 {
		return hosts.Match{}
	}
	var buf [8]egress.Name
	return g.Hosts.Find(p.Answers.Names(buf[:0], dst.Addr(), time.Now()), namespace, dst.Port(), hosts.First(first))
}

// plain returns the call of a connection to an address as it is.
func plain(pod *Pod, c *Conn) egress.Call {
	a := Attempt{Conn: *c, Route: &route.Route{}}
	return egress.Call{Addr: c.Dst.Addr().Unmap(), Port: c.Dst.Port(), Names: pod.names(&a, time.Now())}
}

// Listed reports whether an EgressPolicy of the pod lists the destination.
func (g *Gate) Listed(pod *Pod, c *Conn) bool {
	if len(c.Source.Egress) == 0 {
		return false
	}
	policies, missing := g.Policies.Of(nil, c.Source.Egress)
	if missing != "" {
		return false
	}
	call := plain(pod, c)
	return egress.Decide(policies, &call, false).Listed
}

var (
	descConnections = prometheus.NewDesc("ambit_egress_connections_total",
		"Connections to addresses in no registry, by what the outbound traffic policy did with them (unstable).", []string{"decision"}, nil)
	descPolicy = prometheus.NewDesc("ambit_egress_policy_connections_total",
		"Connections to the outside of the mesh, of pods with EgressPolicies, by what these decided (unstable).", []string{"decision"}, nil)
)

// Describe implements prometheus.Collector.
func (g *Gate) Describe(ch chan<- *prometheus.Desc) { ch <- descConnections; ch <- descPolicy }

// Collect implements prometheus.Collector.
func (g *Gate) Collect(ch chan<- prometheus.Metric) {
	for _, m := range []struct {
		desc     *prometheus.Desc
		n        uint64
		decision string
	}{
		{descConnections, g.registry.refused.Load(), decidedRefused}, {descConnections, g.registry.reported.Load(), decidedReported},
		{descPolicy, g.policy.refused.Load(), decidedRefused}, {descPolicy, g.policy.reported.Load(), decidedReported},
		{descPolicy, g.policy.allowed.Load(), decidedAllowed},
	} {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(m.n), m.decision)
	}
}
