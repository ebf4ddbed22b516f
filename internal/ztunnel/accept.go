package ztunnel

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// restAfter is after how many connections that were not redirected a port of a pod rests
// for a moment. Each costs the loop as much as a real one, and a program that makes one
// in error does not notice.
const restAfter = 16

// accepted takes a connection in that was redirected to a port of the proxy, and returns
// its destination. A connection that was not redirected is reset: the proxy would
// carry it to itself, again and again. So is one for which the pod has no
// descriptors; then the pod's other ones wait for a moment.
func (p *pod) accepted(l *poll.Loop, rep telemetry.Reporter, at uint16, fd int, remote netip.AddrPort, sockets int64) (netip.AddrPort, bool) {
	dst, err := sockopt.OriginalDstOf(fd, !remote.Addr().Is4())
	if err != nil || dst.Port() == at { // else it cannot be the socket's own address
		local, lerr := sockopt.LocalAddr(fd)
		if lerr != nil {
			poll.ResetFD(fd)
			return netip.AddrPort{}, false
		}
		if err != nil || dst == local {
			p.node.Recorder.Failed(p.logs, rep, remote, local, reason.Errorf(reason.RecursiveCall, "to %s: the connection was not redirected", local))
			poll.ResetFD(fd)
			if p.misdirected.Add(1)%restAfter == 0 {
				l.RestAccepting()
			}
			return netip.AddrPort{}, false
		}
	}
	if err := p.carry(sockets); err != nil {
		p.node.Recorder.Failed(p.logs, rep, remote, dst, err)
		poll.ResetFD(fd)
		l.RestAccepting()
		return netip.AddrPort{}, false
	}
	return dst, true
}
