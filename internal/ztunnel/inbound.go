package ztunnel

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/proxyproto"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

// incoming is one connection to the pod's program, on its way there.
type incoming struct {
	pod   *pod
	loop  *poll.Loop
	local *workload.Workload
	conn  *conns.Conn
	// to is where the program listens, src what the connection there is bound
	// to, if valid.
	to    netip.AddrPort
	src   netip.Addr
	first error // why the program could not be reached at the first address; nil while one is tried
	// accept hands the connected socket over; refuse answers instead. One of
	// the two is called, once.
	accept func(up int, done func(*relay.Flow, relay.Result)) *relay.Flow
	refuse func(status int)
}

// request is called for every stream of a tunnel.
func (p *pod) request(r *hbone.Request) {
	start := time.Now()
	if err := p.carry(route.InboundSockets(connect.HBONE)); err != nil {
		p.refuseRequest(r, http.StatusServiceUnavailable, err)
		return
	}
	p.known(r.Loop, func(w *workload.Workload, err *reason.Error) {
		if err != nil {
			p.early(r, http.StatusServiceUnavailable, err)
			return
		}
		client := netip.Addr{}
		if !p.node.foreign(&r.Header) {
			client = r.Remote.Addr()
		}
		target, _ := connect.ParseTarget(r.Header.Authority) // judged later
		p.meet(r.Loop, w, client, r.Local.Addr(), target.Addr.Addr(), func() { p.serve(r, w, start) })
	})
}

// foreign reports whether a request says that it comes from another network.
func (n *Node) foreign(h *hbone.Header) bool {
	return h.Crosses && !strings.EqualFold(h.ForwardedNetwork, n.Config.Network)
}

// believed returns what a request says of its source, when its word counts: it has
// come through a gateway, is allowed, and speaks of the namespace whose identity it
// has proven.
func (n *Node) believed(r *hbone.Request, local *workload.Workload, snap *workload.Snapshot, to netip.AddrPort) connect.Baggage {
	none := connect.Baggage{}
	if !route.FromGateway(snap, n.Config.Network, local, r.Remote.Addr(), r.PeerIdentity) {
		return none
	}
	b, err := connect.ParseBaggage(r.Header.Baggage)
	if err != nil || b.Namespace != r.PeerIdentity.Namespace {
		return none
	}
	access := rbac.Conn{Identity: r.PeerIdentity, Src: r.Remote, Dst: to}
	if !n.Policies.Set().Evaluate(target(local), &access).Allowed {
		return none // nothing that is refused makes a series
	}
	return b
}

// meet requests, in on-demand mode, the addresses that an inbound connection
// refers to: the client, the service, and the target of a tunnel to at when the
// pod may be a gateway for it. They improve telemetry only: the connection does
// not depend on an answer.
func (p *pod) meet(l *poll.Loop, local *workload.Workload, client, at, target netip.Addr, then func()) {
	n := p.node
	p.learn(l, func(s *workload.Snapshot) []string {
		names := route.UnknownInbound(s, n.Config.Network, local, client)
		if !target.IsValid() || target == at || local.ApplicationTunnel.Present {
			return names
		}
		strange := route.Unknown(s, n.Config.Network, target, local.Namespace, hosts.Match{})
		if len(strange) > 0 && n.strange.Add(int64(len(strange))) > bounds.MaxStrange {
			return names
		}
		return append(names, strange...)
	}, func(*reason.Error) { then() })
}

// early refuses a request about which nothing was decided.
func (p *pod) early(r *hbone.Request, status int, err *reason.Error) {
	p.refuseRequest(r, status, err)
	p.drop(route.InboundSockets(connect.HBONE))
}

func (p *pod) refuseRequest(r *hbone.Request, status int, err *reason.Error) {
	p.node.Recorder.Failed(p.logs, telemetry.Destination, r.Remote, r.Local, err)
	r.Refuse(status, hbone.ResponseHeader{Status: status})
}

func (p *pod) serve(r *hbone.Request, local *workload.Workload, start time.Time) {
	n := p.node
	snap := n.Directory.Snapshot()
	// What cannot be read says nothing; it is telemetry only.
	client, host, _ := connect.ParseForwarded(r.Header.Forwarded)
	plan, status, err := route.Inbound(route.In{
		Snapshot: snap, Network: n.Config.Network, Local: local,
		At: r.Local, Method: r.Method, Authority: r.Header.Authority, Host: host,
		LocalhostTunnel: n.Config.LocalhostAppTunnel,
	})
	if err != nil {
		p.early(r, status, err)
		return
	}
	if s := plan.Service; s != nil && s.Hostname == host {
		host = s.Hostname // which does not keep the header in memory
	}
	c := &conns.Conn{Inbound: true, Protocol: connect.HBONE, Asked: plan.Upstream, Name: host}
	c.Src, c.Dst, c.Target, c.Log = r.Remote, r.Local, plan.Target, p.logs
	c.Sockets = int32(route.InboundSockets(connect.HBONE)) //nolint:gosec // at most 3
	c.Trace, _ = connect.ParseTrace(r.Header.Traceparent)
	if a := client.Addr(); a != r.Remote.Addr() {
		c.Forwarded = &a // of a waypoint's client
	}
	k := telemetry.Key{
		Reporter: telemetry.Destination, MTLS: true, Dst: local,
		Service: telemetry.RefTo(plan.Service), SrcIdentity: r.PeerIdentity,
	}
	c.More = p.seen.Inbound(local, &c.Trace, k.Service)
	// Another network's addresses say nothing here: then the source is what
	// it says of itself.
	if !n.foreign(&r.Header) {
		k.Src = snap.WorkloadByAddr(n.Config.Network, r.Remote.Addr())
	}
	if k.Src == nil && n.Config.ResponseBaggage {
		k.Baggage = n.believed(r, local, snap, plan.Upstream)
	}
	var prefix []byte
	if plan.Proxy.IsValid() {
		prefix = proxyproto.Append(nil, proxyproto.Header{Src: r.Remote, Dst: plan.Proxy, Identity: r.PeerIdentity.String()})
	}
	resp := hbone.ResponseHeader{Status: http.StatusOK}
	if n.Config.ResponseBaggage {
		resp.Baggage = connect.BaggageOf(local).String()
	}
	in := &incoming{
		pod: p, loop: r.Loop, local: local, conn: c,
		accept: func(up int, done func(*relay.Flow, relay.Result)) *relay.Flow {
			return r.Accept(up, prefix, resp, done)
		},
		refuse: func(status int) { r.Refuse(status, hbone.ResponseHeader{Status: status}) },
	}
	src := netip.Addr{}
	if plan.KeepSource && p.origSrc {
		src = r.Remote.Addr()
	}
	in.admit(k, start, plan.Connect, src)
}

// acceptPlaintext takes a captured connection without a tunnel in.
func (p *pod) acceptPlaintext(l *poll.Loop, fd int, remote netip.AddrPort) {
	start := time.Now()
	dst, ok := p.accepted(l, telemetry.Destination, wellknown.PortInbound, fd, remote, route.InboundSockets(connect.TCP))
	if !ok {
		return
	}
	p.node.Recorder.SocketOpened(telemetry.Destination)
	early := func(err *reason.Error) {
		p.node.Recorder.Failed(p.logs, telemetry.Destination, remote, dst, err)
		p.node.Recorder.SocketClosed(telemetry.Destination)
		poll.ResetFD(fd)
		p.drop(route.InboundSockets(connect.TCP))
	}
	if route.Recursive(dst.Port()) {
		early(reason.Errorf(reason.RecursiveCall, "to %s", dst))
		return
	}
	p.known(l, func(local *workload.Workload, err *reason.Error) {
		if err != nil {
			early(err)
			return
		}
		p.meet(l, local, remote.Addr(), dst.Addr(), netip.Addr{}, func() { p.servePlaintext(l, fd, remote, dst, local, start) })
	})
}

func (p *pod) servePlaintext(l *poll.Loop, fd int, remote, dst netip.AddrPort, local *workload.Workload, start time.Time) {
	n := p.node
	snap := n.Directory.Snapshot()
	c := &conns.Conn{Inbound: true, Protocol: connect.TCP, Asked: dst}
	c.Src, c.Dst, c.Log = remote, dst, p.logs
	c.Sockets = int32(route.InboundSockets(connect.TCP)) //nolint:gosec // at most 3
	k := telemetry.Key{
		Reporter: telemetry.Destination, Dst: local,
		Src:     snap.WorkloadByAddr(n.Config.Network, remote.Addr()),
		Service: telemetry.RefTo(route.CalledService(snap, local, dst.Port(), "")),
	}
	c.More = p.seen.Inbound(local, &c.Trace, k.Service)
	in := &incoming{
		pod: p, loop: l, local: local, conn: c,
		accept: func(up int, done func(*relay.Flow, relay.Result)) *relay.Flow {
			return relay.Start(l, relay.Pair{Down: fd, Up: up, OnClose: done})
		},
		refuse: func(int) {
			n.Recorder.SocketClosed(telemetry.Destination)
			poll.ResetFD(fd)
		},
	}
	src := netip.Addr{}
	if p.origSrc {
		src = remote.Addr()
	}
	in.admit(k, start, dst, src)
}

// admit asks the policies and connects. The connection is registered first:
// a policy that changes in between is seen by one of the two.
func (in *incoming) admit(k telemetry.Key, start time.Time, to netip.AddrPort, src netip.Addr) {
	p, n := in.pod, in.pod.node
	n.Recorder.Begin(&in.conn.Conn, k, start)
	p.set.Add(in.conn)
	if p.closed.Load() {
		in.deny(http.StatusServiceUnavailable, reason.WorkloadRemoved, nil, "")
		return
	}
	in.to, in.src = to, src
	in.judge()
}

// connected ends the way to the program. fd is -1 where no socket was made.
func (in *incoming) connected(fd int, err error) {
	if why, policy := in.pod.set.Aborted(in.conn); why != reason.OK {
		sockopt.Close(fd)
		status := http.StatusServiceUnavailable
		if why == reason.PolicyChanged {
			status = http.StatusUnauthorized
		}
		in.deny(status, why, nil, policy)
		return
	}
	if err != nil {
		sockopt.Close(fd)
		e := reason.As(reason.ConnectFailure, err)
		in.deny(http.StatusServiceUnavailable, e.Reason, e, "")
		return
	}
	f := in.accept(fd, in.pod.inboundDone(in.conn))
	observed.Measure(&in.conn.Conn, f, false)
	in.pod.set.Carry(in.conn, f)
}

// deny ends a connection that was not let in, or could not be.
func (in *incoming) deny(status int, why reason.Reason, err error, policy string) {
	in.pod.node.Recorder.End(&in.conn.Conn, relay.Result{Reason: why, Err: err}, policy)
	in.pod.set.Remove(in.conn)
	in.refuse(status)
	in.pod.drop(int64(in.conn.Sockets))
}

// inboundDone is the end of a connection that was carried. What it holds lives
// as long as the connection, so it is little.
func (p *pod) inboundDone(c *conns.Conn) func(*relay.Flow, relay.Result) {
	return func(_ *relay.Flow, res relay.Result) {
		policy := ""
		if res.Reason == reason.PolicyChanged {
			_, policy = p.set.Aborted(c)
		}
		if c.Protocol == connect.TCP {
			p.node.Recorder.SocketClosed(telemetry.Destination)
		}
		p.node.Recorder.End(&c.Conn, res, policy)
		p.set.Remove(c)
		p.drop(int64(c.Sockets))
	}
}
