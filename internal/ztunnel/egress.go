package ztunnel

import (
	"context"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
)

// policiesCome waits for the EgressPolicies that the pod's workload names, and goes on. One
// that does not come in time refuses later.
func (o *outgoing) policiesCome(then func()) {
	g := &o.pod.node.egress
	if g.Policies.Complete(o.source.Egress) {
		then()
		return
	}
	names := func() []string {
		if w := o.pod.local(o.pod.node.Directory.Snapshot()); w != nil {
			o.source = w
		}
		return o.source.Egress
	}
	err := o.pod.off(o.loop, func() {
		ctx, cancel := context.WithTimeout(context.Background(), bounds.KnownTimeout)
		defer cancel()
		g.Policies.Await(ctx, names)
		o.loop.Post(then)
	})
	if err != nil {
		o.refuse(err)
	}
}

func (o *outgoing) egressConn(s *workload.Snapshot) egress.Conn {
	return egress.Conn{Snapshot: s, Network: o.pod.node.Config.Network, Source: o.source, Src: o.src, Dst: o.dst, Host: o.host}
}

// egressPermits asks the pod's outbound traffic policy about a connection on which nothing
// was decided yet.
func (o *outgoing) egressPermits(s *workload.Snapshot) *reason.Error {
	return o.pod.node.egress.Check(&o.pod.egress, o.pod.logs, o.egressConn(s))
}

// egressChanged asks again, once the connection is in the pod's list, if the policy became
// stricter meanwhile: a change after that has the reviewer look at the list. Then it asks the
// EgressPolicies, which are for what the route leads to.
func (o *outgoing) egressChanged() (err *reason.Error) {
	n := o.pod.node
	s := n.Directory.Snapshot()
	if w := o.pod.local(s); w != nil && egress.Watched(w) {
		stricter := w.Outbound > o.source.Outbound
		o.source = w
		if stricter {
			if err := o.egressPermits(s); err != nil {
				return err
			}
		}
	}
	if !egress.Watched(o.source) {
		return nil
	}
	o.hold, err = n.egress.Judge(&o.pod.egress, &egress.Attempt{
		Conn: o.egressConn(s), Route: &o.route, Open: o.conn, Lines: o.pod.logs,
		Local: func() (*workload.Snapshot, *workload.Workload) {
			s := n.Directory.Snapshot()
			return s, o.pod.local(s)
		},
	})
	return err
}

// egressOf returns what is known of a pod of this node.
func (n *Node) egressOf(namespace, name string) *egress.Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.byName[podName{namespace, name}] {
		return &p.egress
	}
	return &egress.Pod{}
}
