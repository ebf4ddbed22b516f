package ztunnel

import (
	modes "github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
)

// egressPermits asks the pod's outbound traffic policy about a connection on which nothing
// was decided yet.
func (o *outgoing) egressPermits(s *workload.Snapshot) *reason.Error {
	n := o.pod.node
	return n.egress.Check(&o.pod.egress, o.pod.logs, egress.Conn{Snapshot: s, Network: n.Config.Network, Source: o.source, Src: o.src, Dst: o.dst})
}

// egressChanged asks again, once the connection is in the pod's list, if the policy became
// stricter meanwhile: a change after that has the reviewer look at the list.
func (o *outgoing) egressChanged() *reason.Error {
	s := o.pod.node.Directory.Snapshot()
	w := o.pod.local(s)
	if w == nil || w.Outbound <= o.source.Outbound {
		return nil
	}
	o.source = w
	return o.egressPermits(s)
}

// reviewEgress ends connections out of the pod that its outbound traffic policy would
// refuse, when that has come into force. Only the reviewer calls it.
func (p *pod) reviewEgress(local *workload.Workload) {
	was := p.outbound
	if p.outbound = local.Outbound; p.outbound != modes.RegistryOnly || was == modes.RegistryOnly {
		return
	}
	n := p.node
	s := n.Directory.Snapshot()
	for _, c := range p.set.All() {
		q := egress.Conn{Snapshot: s, Network: n.Config.Network, Source: local, Src: c.Src, Dst: c.Asked, Exempt: n.egress.Exempt}
		if !c.Inbound && q.Refusal() != nil {
			n.egress.Ended(&p.egress)
			p.set.Abort(c, reason.NotInRegistry, "")
		}
	}
}
