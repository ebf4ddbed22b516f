package ztunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/ztunnel/demand"
)

// exhausted is the reason when the pod's share of something is used up.
func (p *pod) exhausted(what string) *reason.Error {
	return reason.Errorf(reason.ResourceExhausted, "pod %s/%s has used up its share of this node's %s", p.info.Namespace, p.info.Name, what)
}

// carry counts a connection that is carried, with its descriptors; drop is its
// end.
func (p *pod) carry(sockets int64) *reason.Error {
	if !p.share.Sockets.Take(sockets) {
		return p.exhausted("descriptors")
	}
	p.node.occupied(1)
	return nil
}

func (p *pod) drop(sockets int64) {
	p.share.Sockets.Give(sockets)
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
	if !p.share.Waiting.Take(1) {
		return p.exhausted("waiting connections")
	}
	l.Go(func() {
		defer p.share.Waiting.Give(1)
		fn()
	})
	return nil
}

// learn has the directory filled with what a connection needs, when that comes
// on demand, and calls then on the loop. unknown lists what is missing; it is
// asked again after every answer, because an answer can need more. The error
// is why something is still missing; an address that no object has is no error.
func (p *pod) learn(l *poll.Loop, unknown func(*workload.Snapshot) []string, then func(*reason.Error)) {
	n := p.node
	if n.Demand == nil {
		then(nil)
		return
	}
	names := unknown(n.Directory.Snapshot())
	if len(names) == 0 {
		then(nil)
		return
	}
	err := p.off(l, func() {
		err := n.demand().Fetch(names, unknown)
		l.Post(func() { then(err) })
	})
	if err != nil {
		then(err)
	}
}

func (n *Node) demand() demand.Source {
	return demand.Source{Request: n.Demand, Directory: n.Directory, Log: n.log}
}
