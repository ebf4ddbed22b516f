package ztunnel

import (
	"context"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	explained "github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/explain"
)

// Explain answers a question about a connection of a pod, or to one. In on-demand mode
// it first requests what the connection would request.
func (n *Node) Explain(_ context.Context, q explained.Question) (*explained.Verdict, error) {
	answer := explain.Outbound
	switch q.Direction {
	case explained.Outbound:
	case explained.Inbound:
		answer = explain.Inbound
	default:
		return nil, explained.ErrDirection
	}
	if n.Demand != nil {
		unknown := func(s *workload.Snapshot) []string { return explain.Unknown(n.world(s), &q) }
		if names := unknown(n.Directory.Snapshot()); len(names) > 0 {
			if err := n.demand().Fetch(names, unknown); err != nil {
				return nil, err
			}
		}
	}
	return answer(n.world(n.Directory.Snapshot()), &q)
}

func (n *Node) world(s *workload.Snapshot) *explain.World {
	return &explain.World{
		Snapshot: s, Policies: n.Policies.Set(), Network: n.Config.Network, Node: n.Config.NodeName, Domain: n.Config.ClusterDomain,
		LocalhostTunnel: n.Config.LocalhostAppTunnel, Served: n.serves, Load: n.loads.Of, Exempt: n.egress.Exempt, Gate: &n.egress, Egress: n.egressOf, Traffic: n.Traffic,
	}
}

// serves returns a pod of this node, and whether its connections are accepted.
func (n *Node) serves(namespace, name string) (info bootstrap.Workload, accepting, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.byName[podName{namespace, name}] {
		if !p.self && (!ok || p.up) {
			info, accepting, ok = p.info, p.up, true
		}
	}
	return info, accepting, ok
}
