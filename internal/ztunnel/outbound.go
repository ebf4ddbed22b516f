package ztunnel

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/resolve"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/legs"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/race"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
	"github.com/ambit-mesh/ambit/internal/ztunnel/socks5"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// outgoing is one captured connection of a program, on its way to the next
// hop. Everything happens on one loop at a time; it is handed from loop to
// loop by Post.
type outgoing struct {
	pod      *pod
	loop     *poll.Loop
	fd       int   // the program's socket; -1 when it has been given away
	sockets  int64 // descriptors taken of the pod's share
	src, dst netip.AddrPort
	start    time.Time
	trace    connect.Trace
	source   *workload.Workload

	route    route.Route
	host     hosts.Match    // what a look-up of the pod has led from
	roll     uint64         // by which a route chooses
	first    traffic.First  // what its first bytes have shown, where that chooses the route
	held     *traffic.Group // that counts the connection
	hold     *relay.Hold    // keeps its first bytes; nil where EgressPolicies do not need them
	attempts int
	failed   []string     // UIDs of workloads that were tried
	others   []netip.Addr // of the endpoint's name, to be tried after the route's
	refused  *refusal     // of the endpoint's first address, when its other one is tried
	conn     *conns.Conn
	socks    *socks5.Client // the program waits for a reply; nil when it was captured
	status   int            // what the last next hop has answered, 0 for nothing
}

// acceptOutbound takes a captured connection in.
func (p *pod) acceptOutbound(l *poll.Loop, fd int, remote netip.AddrPort) {
	now := time.Now()
	dst, ok := p.accepted(l, telemetry.Source, wellknown.PortOutbound, fd, remote, 1)
	if !ok {
		return
	}
	p.node.Recorder.SocketOpened(telemetry.Source)
	o := &outgoing{pod: p, loop: l, fd: fd, sockets: 1, src: remote, dst: dst, start: now, trace: connect.NewTrace()}
	if dst.Addr().IsLoopback() && route.Recursive(dst.Port()) {
		o.refuse(reason.Errorf(reason.RecursiveCall, "to %s", dst))
		return
	}
	o.begin()
}

// begin waits until it is known who the pod is.
func (o *outgoing) begin() {
	o.pod.known(o.loop, func(w *workload.Workload, err *reason.Error) {
		if err != nil {
			o.refuse(err)
			return
		}
		o.source = w
		o.policiesCome(func() {
			if o.socks != nil {
				o.lookUp()
				return
			}
			o.demand()
		})
	})
}

// demand asks the control plane about an address that is not known, when
// addresses come on demand. Without an answer nobody can say that plaintext is
// right.
func (o *outgoing) demand() {
	n := o.pod.node
	o.host = n.egress.Host(&o.pod.egress, o.source.Namespace, o.dst, o.first)
	o.pod.learn(o.loop, func(s *workload.Snapshot) []string {
		names := append(route.Unknown(s, n.Config.Network, o.dst.Addr(), o.source.Namespace, o.host), egress.Unknown(s, n.Config.Network, o.source, o.dst.Addr())...)
		return append(names, route.UnknownBackends(s, n.Config.Network, n.Traffic, o.dst, o.source.Namespace, o.first, o.host)...)
	}, func(err *reason.Error) {
		if err != nil {
			o.refuse(err)
			return
		}
		o.dispatch()
	})
}

// refuse ends a connection about which nothing was decided.
func (o *outgoing) refuse(err *reason.Error) {
	o.pod.node.Recorder.Failed(o.pod.logs, telemetry.Source, o.src, o.dst, err)
	o.hangUp(err)
}

// hangUp resets the program's socket, or sends it the reason by SOCKS5.
func (o *outgoing) hangUp(err *reason.Error) {
	switch {
	case o.fd < 0:
	case o.socks != nil:
		socks5.Refuse(o.fd, err, o.status)
	default:
		poll.ResetFD(o.fd)
	}
	o.fd = -1
	o.pod.node.Recorder.SocketClosed(telemetry.Source)
	o.pod.drop(o.sockets)
}

func (o *outgoing) excluded(uid string) bool { return slices.Contains(o.failed, uid) }

// dispatch decides and sets off.
func (o *outgoing) dispatch() {
	o.roll = random(1<<64 - 1)
	q := o.question()
	if err := o.egressPermits(q.Snapshot); err != nil {
		o.refuse(err)
		return
	}
	if plain, reads := route.Reads(q); reads {
		o.readFirst(plain)
		return
	}
	r, err := route.Outbound(q)
	if err != nil {
		o.refuse(err)
		return
	}
	o.route = r
	if r.Hostname != "" {
		o.resolve()
		return
	}
	o.connect()
}

// question is what the decision about the connection depends on.
func (o *outgoing) question() route.Out {
	n := o.pod.node
	return route.Out{
		Snapshot: n.Directory.Snapshot(), Network: n.Config.Network, Source: o.source, Src: o.src, Dst: o.dst,
		Load: n.loads.Of, Rand: random, Traffic: n.Traffic, Roll: o.roll, First: o.first, Host: o.host,
	}
}

// resolve finds an address for a workload that only has a name.
func (o *outgoing) resolve() {
	n, host := o.pod.node, o.route.Hostname
	n.Recorder.Resolved(o.source, o.route.Workload, host)
	if addrs, err, ok := n.names.Cached(host); ok {
		o.resolved(addrs, err)
		return
	}
	err := o.pod.off(o.loop, func() {
		ctx, cancel := context.WithTimeout(context.Background(), bounds.KnownTimeout)
		defer cancel()
		addrs, err := n.names.Lookup(ctx, host)
		o.loop.Post(func() { o.resolved(addrs, err) })
	})
	if err != nil {
		o.refuse(err)
	}
}

func (o *outgoing) resolved(addrs []netip.Addr, err error) {
	host := o.route.Hostname
	order := resolve.Order(addrs, o.dst.Addr().Is4(), random)
	switch {
	case err != nil:
		o.refuse(reason.Errorf(reason.NoHealthyUpstream, "resolving %s: %w", host, err))
	case len(order) == 0:
		o.refuse(reason.Errorf(reason.NoHealthyUpstream, "resolving %s: it has no address", host))
	default:
		if o.route = o.route.Resolved(order[0]); o.route.Protocol == connect.TCP {
			o.others = order[1:min(len(order), race.Most)]
		}
		o.connect()
	}
}

// connect makes one attempt along the route.
func (o *outgoing) connect() {
	o.attempts++
	o.enter()
	if o.pod.closed.Load() {
		// The pod went while this was under way, and saw no such connection.
		o.gaveUp(&reason.Error{Reason: reason.WorkloadRemoved})
		return
	}
	err := o.egressChanged()
	if err == nil {
		err = o.limit()
	}
	if err == nil {
		err = o.afford()
	}
	if err != nil {
		o.gaveUp(err)
		return
	}
	switch o.route.Protocol {
	case connect.HBONE:
		o.tunnel()
	case connect.DoubleHBONE:
		o.doubleTunnel()
	default:
		o.direct()
	}
}

// enter adds an attempt to the lists; leave takes it out.
func (o *outgoing) enter() {
	r := &o.route
	c := &conns.Conn{Protocol: r.Protocol, Asked: o.dst}
	c.Src, c.Dst, c.Target, c.Trace, c.Log, c.More = o.src, r.Next, r.Target, o.trace, o.pod.logs, o.pod.seen.Outbound(o.source, &o.trace, telemetry.RefTo(r.Service))
	o.pod.egress.Began(c, &o.host, o.first)
	if r.Workload != nil {
		c.Name = r.Workload.UID
		o.pod.node.loads.Add(c.Name, 1)
	}
	o.conn = c
	o.pod.set.Add(c)
}

// afford takes the descriptors that the route needs.
func (o *outgoing) afford() *reason.Error {
	need := o.route.Sockets()
	if !o.pod.share.Sockets.Take(need - o.sockets) {
		return o.pod.exhausted("descriptors")
	}
	o.pod.share.Sockets.Give(o.sockets - need)
	o.sockets, o.conn.Sockets = need, int32(need) //nolint:gosec // at most 3
	return nil
}

// leave takes an attempt out of the lists.
func (p *pod) leave(c *conns.Conn) {
	p.set.Remove(c)
	p.egress.Ended(c)
	if c.Name != "" {
		p.node.loads.Add(c.Name, -1)
	}
}

func (o *outgoing) key() telemetry.Key {
	k := telemetry.Key{
		Reporter: telemetry.Source, MTLS: o.route.Protocol != connect.TCP,
		Src: o.source, Dst: o.route.Workload, Service: telemetry.RefTo(o.route.Service),
	}
	if k.MTLS {
		k.SrcIdentity = o.source.Identity()
	}
	return k
}

// direct goes in plaintext.
func (o *outgoing) direct() {
	if len(o.others) > 0 && !egress.Watched(o.source) {
		o.race()
		return
	}
	fd, err := o.pod.socket(legs.Outside, o.route.Next.Addr(), netip.Addr{})
	if err != nil {
		o.failedAttempt(reason.As(reason.ConnectFailure, err), 0)
		return
	}
	relay.Connect(o.loop, fd, o.route.Next, cmp.Or(o.route.Group.ConnectTimeout(), bounds.ConnectTimeout), func(err error) {
		if err != nil {
			sockopt.Close(fd)
			o.failedAttempt(reason.As(reason.ConnectFailure, err), 0)
			return
		}
		o.join(fd)
	})
}

// join carries the connection to a socket that is connected.
func (o *outgoing) join(fd int) {
	if why, _ := o.pod.set.Aborted(o.conn); why != reason.OK {
		sockopt.Close(fd)
		o.gaveUp(&reason.Error{Reason: why})
		return
	}
	o.outcome(reason.OK, 0)
	down := o.give()
	o.pod.node.Recorder.Begin(&o.conn.Conn, o.key(), o.start)
	f := relay.Start(o.loop, relay.Pair{Down: down, Up: fd, Hold: o.hold, OnClose: o.done()})
	observed.Measure(&o.conn.Conn, f, true)
	o.pod.set.Carry(o.conn, f)
}

// race connects to the first address of the endpoint's name that answers. Each descriptor
// beyond the first is taken of the pod's share.
func (o *outgoing) race() {
	r := &race.Race{
		Loop: o.loop, To: []netip.AddrPort{o.route.Next}, Delay: race.Delay, Timeout: cmp.Or(o.route.Group.ConnectTimeout(), bounds.ConnectTimeout),
		Socket: func(a netip.Addr) (int, error) { return o.pod.socket(legs.Outside, a, netip.Addr{}) },
		Share:  o.pod.share.Sockets,
		Done: func(fd int, at netip.AddrPort, err error) {
			if err != nil {
				o.failedAttempt(reason.As(reason.ConnectFailure, err), 0)
				return
			}
			if why, _ := o.pod.set.Aborted(o.conn); why == reason.OK && at != o.route.Next {
				o.moveTo(at)
				o.enter()
				o.conn.Sockets = int32(o.sockets) //nolint:gosec // at most 3
			}
			o.join(fd)
		},
	}
	for _, a := range o.others {
		r.To = append(r.To, netip.AddrPortFrom(a, o.route.Next.Port()))
	}
	if o.others = nil; o.route.Service != nil && o.route.Service.Race {
		r.Delay = 0
	}
	r.Start()
}

// moveTo has the attempt go to another address of its endpoint.
func (o *outgoing) moveTo(at netip.AddrPort) {
	o.pod.leave(o.conn)
	o.route.Next = at
}

// tunnel goes through HBONE.
func (o *outgoing) tunnel() {
	o.pod.pool.Open(&hbone.Open{
		Key: o.tunnelKey(), Header: o.header(), App: o.fd,
		OnUp:    func(f *relay.Flow, _ hbone.ResponseHeader) { o.up(f, o.key()) },
		OnFail:  o.failedAttempt,
		OnClose: o.done(),
		Spare:   o.spare,
		Timeout: o.route.Group.ConnectTimeout(),
	})
}

// tunnelKey is that of the tunnel to the next hop.
func (o *outgoing) tunnelKey() hbone.Key {
	r := &o.route
	k := hbone.Key{
		SrcIdentity: o.source.Identity(), SrcIP: o.src.Addr(),
		Dst: r.Next, DstIdentities: hbone.Identities(r.Identities),
	}
	if r.Workload != nil {
		k.DstUID = r.Workload.UID
	}
	return k
}

func (o *outgoing) header() hbone.Header {
	host := ""
	if o.route.Service != nil {
		host = o.route.Service.Hostname
	}
	return hbone.Header{
		Authority:   o.route.Target.String(),
		Baggage:     connect.BaggageOf(o.source).String(),
		Forwarded:   connect.Forwarded(o.src, host),
		Traceparent: o.trace.String(),
	}
}

// up begins what the other side has accepted.
func (o *outgoing) up(f *relay.Flow, k telemetry.Key) {
	o.outcome(reason.OK, 0)
	o.give()
	o.pod.node.Recorder.Begin(&o.conn.Conn, k, o.start)
	observed.Measure(&o.conn.Conn, f, true)
	o.pod.set.Carry(o.conn, f)
}

// doubleTunnel goes to the gateway of another network, and in that tunnel to
// whoever the gateway chooses. The tunnel to the gateway is shared; the inner
// one is not, because its end is chosen anew for each.
func (o *outgoing) doubleTunnel() {
	outer := o.tunnelKey()
	via := &hbone.Via{Key: outer, Header: o.header()}
	k := hbone.Key{
		SrcIdentity: outer.SrcIdentity, SrcIP: outer.SrcIP, Dst: outer.Dst,
		DstIdentities: hbone.Identities(o.route.Inner), Via: via,
	}
	h := via.Header
	h.ForwardedNetwork, h.Crosses = o.pod.node.Config.Network, true
	o.pod.pool.Open(&hbone.Open{
		Key: k, Header: h, App: o.fd,
		OnUp: func(f *relay.Flow, resp hbone.ResponseHeader) {
			// Only the end itself can say who it is: the gateway chose it.
			key := o.key()
			key.Dst, key.DstIdentity = nil, resp.Peer
			key.Baggage, _ = connect.ParseBaggage(resp.Baggage)
			o.up(f, key)
		},
		OnFail: func(err *reason.Error, status int) {
			if via.Reached() {
				err = &reason.Error{Reason: err.Reason, Detail: "behind the gateway " + outer.Dst.String(), Err: err.Err}
			}
			o.failedAttempt(err, max(status, via.Status()))
		},
		OnClose: o.done(),
	})
}

// failedAttempt tries another endpoint if that can help, else gives up. The
// program has not been answered and its bytes have not been read.
func (o *outgoing) failedAttempt(err *reason.Error, status int) {
	o.status = status
	if err.Reason == reason.CertificateRevoked {
		o.pod.node.Recorder.Revoked(telemetry.Source)
	}
	why, _ := o.pod.set.Aborted(o.conn)
	if why == reason.OK {
		o.outcome(err.Reason, status)
	}
	if why == reason.OK && len(o.others) > 0 {
		o.moveTo(netip.AddrPortFrom(o.others[0], o.route.Next.Port()))
		o.others, o.attempts = o.others[1:], o.attempts-1 // it is the same endpoint
		o.loop.Post(o.connect)
		return
	}
	if why == reason.OK && o.tryFamily(err) {
		return
	}
	err = o.firstRefusal(err)
	if why == reason.OK && o.route.Balanced && o.attempts < bounds.MaxAttempts && route.Retryable(err.Reason, status) {
		o.failed = append(o.failed, o.conn.Name)
		next, ok := o.elsewhere()
		if !ok {
			// Nobody else: what was tried is what is reported.
			o.gaveUp(err)
			return
		}
		o.pod.leave(o.conn)
		o.pod.node.Recorder.Attempted(o.key(), err)
		o.pod.node.log.Debug("endpoint failed, the connection takes another one", "src", o.src, "dst", o.dst,
			"endpoint", o.conn.Name, "at", o.route.Next, "instead", next.Workload.UID, "reason", err.Reason, "error", err)
		o.route = next
		// The pool may have called from the tunnel's loop; the attempt needs one,
		// and it need not be the first. What follows happens there.
		o.loop.Post(o.connect)
		return
	}
	o.gaveUp(err)
}

// elsewhere finds another endpoint, if there is one.
func (o *outgoing) elsewhere() (route.Route, bool) {
	q := o.question()
	q.Excluded = o.excluded
	r, err := route.Outbound(q)
	return r, err == nil && r.Workload != nil && r.Hostname == "" && !o.excluded(r.Workload.UID)
}

// gaveUp counts and logs a connection that no next hop took.
func (o *outgoing) gaveUp(err *reason.Error) {
	if why, _ := o.pod.set.Aborted(o.conn); why != reason.OK {
		err = &reason.Error{Reason: why}
	}
	rec := o.pod.node.Recorder
	rec.Begin(&o.conn.Conn, o.key(), o.start)
	rec.End(&o.conn.Conn, relay.Result{Reason: err.Reason, Err: err}, "")
	o.pod.leave(o.conn)
	o.held.Leave()
	o.hangUp(err)
}

// outboundDone is the end of a connection that was carried. What it holds
// lives as long as the connection, so it is little.
func (p *pod) outboundDone(c *conns.Conn) func(*relay.Flow, relay.Result) {
	return func(_ *relay.Flow, res relay.Result) {
		p.node.Recorder.End(&c.Conn, res, "")
		p.leave(c)
		p.node.Recorder.SocketClosed(telemetry.Source)
		p.drop(int64(c.Sockets))
	}
}

// readFirst reads how the program begins, where that decides. A program that
// has asked by SOCKS5 begins once it has its reply, and is reset if no route is found.
func (o *outgoing) readFirst(plain bool) {
	if o.socks != nil {
		socks5.Accept(o.fd)
		o.socks = nil
	}
	o.pod.hellos.Read(&o.pod.node.hellos, o.loop, o.fd, o.source.Namespace, plain, func(first traffic.First, err *reason.Error) {
		if err != nil {
			o.refuse(err)
			return
		}
		o.first = first
		o.demand()
	})
}

// spare reports whether another endpoint can take the connection, should the
// one that is being tried not answer.
func (o *outgoing) spare() bool {
	if !o.route.Balanced || o.attempts >= bounds.MaxAttempts {
		return false
	}
	tried := o.failed
	o.failed = append(tried[:len(tried):len(tried)], o.conn.Name) //nolint:gocritic // for the question alone
	_, ok := o.elsewhere()
	o.failed = tried
	return ok
}

// limit counts the connection in the group of its route, or refuses it.
func (o *outgoing) limit() *reason.Error {
	g := o.route.Group
	if g == o.held {
		return nil
	}
	o.held.Leave()
	o.held = nil
	if err := g.Enter(); err != nil {
		return err
	}
	o.held = g
	return nil
}

// outcome has the rule of the route learn what came of an attempt.
func (o *outgoing) outcome(why reason.Reason, status int) {
	n := o.pod.node
	if o.route.Outcome(n.Directory.Snapshot(), why, status) {
		n.log.Info("endpoint ejected: connections to it have failed", "endpoint", o.route.Workload.UID, "service", o.route.Service.Key(),
			"rule", o.route.Group.Rule(), "reason", why)
	}
}

// done is the end of the connection, once it is carried. What it holds lives as long.
func (o *outgoing) done() func(*relay.Flow, relay.Result) {
	f, g := o.pod.outboundDone(o.conn), o.held
	if g == nil {
		return f
	}
	return func(flow *relay.Flow, res relay.Result) {
		g.Leave()
		f(flow, res)
	}
}
