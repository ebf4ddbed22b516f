package ztunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// owner is the user who owns the listening sockets; 0 for the process's own.
func (n *Node) owner() uint32 {
	if n.Config.Mode != config.Shared || n.ownerless.Load() {
		return 0
	}
	return wellknown.UIDProxy
}

// withoutOwner goes on where sockets cannot be given their owner.
func (n *Node) withoutOwner(err error) {
	if n.ownerless.CompareAndSwap(false, true) {
		n.log.Warn("root in a pod can share the proxy's ports: add CHOWN to the capabilities of ztunnel", "error", err)
	}
}

// guardPorts ends listening sockets of other programs at the pods' ports. A pod that is
// not in the mesh may have them.
func (n *Node) guardPorts() {
	snap := n.Directory.Snapshot()
	for _, p := range n.list() {
		if p.ns != nil && !p.closed.Load() && tunnelled(p.local(snap)) {
			log := n.log.With("uid", p.uid, "workload", p.info.Namespace+"/"+p.info.Name)
			p.guard.Look(p.do, p.portNumbers(), log, func() { n.Metrics.Foreign.Add(1) })
		}
	}
}

// portNumbers returns the numbers of the pod's ports.
func (p *pod) portNumbers() []uint16 {
	var all []uint16
	for _, port := range p.ports() {
		all = append(all, port.number)
	}
	return all
}
