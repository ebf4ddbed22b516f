package ztunnel

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/legs"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

// This file is the last part of a connection's way, to the program, which may
// need several tries.

// dial makes one try to connect to the program at to, from src where that is
// valid.
func (in *incoming) dial(to netip.AddrPort, src netip.Addr) {
	if src.IsValid() && in.pod.usedUp.Has(src, to) {
		in.pod.node.Metrics.SourceLost.Add(1)
		src = netip.Addr{}
	}
	fd, err := in.pod.socket(legs.Captured, to.Addr(), src)
	if err != nil {
		in.dialled(-1, to, src, err)
		return
	}
	relay.Connect(in.loop, fd, to, bounds.ConnectTimeout, func(err error) { in.dialled(fd, to, src, err) })
}

// dialled ends a try: the next one begins, or the connection goes on.
func (in *incoming) dialled(fd int, to netip.AddrPort, src netip.Addr, err error) {
	if err == nil {
		in.connected(fd, nil)
		return
	}
	why, _ := in.pod.set.Aborted(in.conn)
	switch {
	case why != reason.OK:
	case src.IsValid() && sockopt.NoPortLeft(err):
		sockopt.Close(fd)
		in.pod.usedUp.Add(src, to)
		in.pod.node.Metrics.SourceLost.Add(1)
		in.pod.node.log.Debug("no port is left for the client's address, the program gets the pod's",
			"client", src, "to", to, "error", err)
		in.dial(to, netip.Addr{})
		return
	case errors.Is(err, syscall.ECONNREFUSED) && in.tryFamily(fd, to, err):
		return
	}
	if in.first != nil {
		err = in.first
	}
	in.connected(fd, err)
}

// tryFamily dials the pod's address of the other family, when the program did
// not listen on the one that was asked for. It reports whether it did so: once
// for a connection, and only to where policies let the connection go.
func (in *incoming) tryFamily(fd int, to netip.AddrPort, err error) bool {
	other, ok := in.local.OtherFamily(to.Addr())
	if in.first != nil || !ok {
		return false
	}
	at := netip.AddrPortFrom(other, to.Port())
	access := in.conn.Access()
	access.Dst = at
	if !in.pod.node.Policies.Set().Evaluate(target(in.local), &access).Allowed {
		return false
	}
	in.first = err
	sockopt.Close(fd)
	in.dial(at, netip.Addr{}) // the client's address is of the wrong family
	return true
}

// tryFamily goes to the other address of an endpoint without a tunnel that
// listens on one family only. The endpoint of a tunnel has a proxy for that.
func (o *outgoing) tryFamily(err *reason.Error) bool {
	r := &o.route
	if o.refused != nil || r.Protocol != connect.TCP || r.Via != route.Direct || r.Workload == nil || !errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	other, ok := r.Workload.OtherFamily(r.Next.Addr())
	if !ok {
		return false
	}
	o.refused = &refusal{first: r.Next, other: netip.AddrPortFrom(other, r.Next.Port()), err: err}
	o.attempts-- // it is the same endpoint
	o.pod.leave(o.conn)
	r.Next = o.refused.other
	o.loop.Post(o.connect)
	return true
}

// refusal is what became of the first of an endpoint's two addresses.
type refusal struct {
	first, other netip.AddrPort
	err          *reason.Error
}

// firstRefusal returns what is reported when the other address failed with err
// as well: the failure of the address that was chosen first.
func (o *outgoing) firstRefusal(err *reason.Error) *reason.Error {
	f := o.refused
	if f == nil || o.route.Next != f.other {
		return err
	}
	o.pod.leave(o.conn)
	o.route.Next = f.first
	o.enter()
	return f.err
}
