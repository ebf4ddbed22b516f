package ztunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

// budgets are what the pods of a node share.
type budgets struct {
	sockets, waiting, tunnels, queues *budget.Pool
}

// share is what one pod takes of each.
type share struct {
	sockets, waiting, tunnels, queues *budget.Share
}

// newBudgets divides what a process with so many descriptors and loops has; 0
// descriptors stands for its limit.
func newBudgets(descriptors, loops int) budgets {
	if descriptors <= 0 {
		descriptors = process.Descriptors()
	}
	return budgets{
		sockets: budget.New(int64(descriptors - reserved(descriptors, loops))),
		waiting: budget.New(maxWaiting),
		tunnels: budget.New(maxTunnels),
		queues:  budget.New(maxQueued),
	}
}

// podDescriptors is what a pod costs without connections: its namespace, three
// listeners, two more for look-ups, a spare one for each, and two sockets of datagrams
// with what they ask of connection tracking.
const podDescriptors = 15

// reserved is how many descriptors no connection gets. They are for the control
// plane, the CA, the node agent, readiness, metrics, names that are resolved, the
// pods' own (for 150 of them), and the pipes of each loop.
func reserved(descriptors, loops int) int {
	need := 256 + 150*podDescriptors + loops*(2*poll.MaxPipes+8)
	return min(max(need, descriptors/8), descriptors/2)
}

// each calls f with every resource and its name in metrics.
func (b *budgets) each(f func(resource string, p *budget.Pool)) {
	f("descriptors", b.sockets)
	f("waiting_connections", b.waiting)
	f("tunnels", b.tunnels)
	f("queued_bytes", b.queues)
}

func (b *budgets) join() share {
	return share{sockets: b.sockets.Join(), waiting: b.waiting.Join(), tunnels: b.tunnels.Join(), queues: b.queues.Join()}
}

func (s *share) leave() {
	s.sockets.Leave()
	s.waiting.Leave()
	s.tunnels.Leave()
	s.queues.Leave()
}

// outboundSockets is how many descriptors a connection of the pod's program takes,
// by the way it goes: its own and, without a tunnel that others share, those on
// the other side. A tunnel inside another one has a pair of local sockets.
func outboundSockets(p connect.Protocol) int64 {
	switch p {
	case connect.HBONE:
		return 1
	case connect.DoubleHBONE:
		return 3
	}
	return 2
}

// inboundSockets is the same for connections to the pod's program.
func inboundSockets(p connect.Protocol) int64 {
	if p == connect.HBONE {
		return 1
	}
	return 2
}

// exhausted is the reason when the pod's share of something is used up.
func (p *pod) exhausted(what string) *reason.Error {
	return reason.Errorf(reason.ResourceExhausted, "pod %s/%s has used up its share of this node's %s", p.info.Namespace, p.info.Name, what)
}

// carry counts a connection that is carried, with its descriptors; drop is its
// end.
func (p *pod) carry(sockets int64) *reason.Error {
	if !p.share.sockets.Take(sockets) {
		return p.exhausted("descriptors")
	}
	p.node.occupied(1)
	return nil
}

func (p *pod) drop(sockets int64) {
	p.share.sockets.Give(sockets)
	p.node.occupied(-1)
}

// occupied counts what a drain waits for: connections that are carried, and TLS
// handshakes of tunnels. A client whose handshake is cut off does not repeat it.
func (n *Node) occupied(delta int) {
	if n.active.Add(int64(delta)) == 0 {
		select {
		case n.idle <- struct{}{}:
		default:
		}
	}
}

// off runs fn off the loop that asks, unless too many connections of the pod wait
// already.
func (p *pod) off(l *poll.Loop, fn func()) *reason.Error {
	if !p.share.waiting.Take(1) {
		return p.exhausted("waiting connections")
	}
	l.Go(func() {
		defer p.share.waiting.Give(1)
		fn()
	})
	return nil
}
