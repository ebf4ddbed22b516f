package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/hello"
	"github.com/ambit-mesh/ambit/internal/ztunnel/legs"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/portguard"
	"github.com/ambit-mesh/ambit/internal/ztunnel/socks5"
	"github.com/ambit-mesh/ambit/internal/ztunnel/uncaptured"
	"github.com/ambit-mesh/ambit/internal/ztunnel/usedports"
	"github.com/ambit-mesh/ambit/internal/ztunnel/waiting"
)

// pod is one pod's proxy.
type pod struct {
	node *Node
	uid  string
	info bootstrap.Workload
	ns   *netns.NS // nil: the process's own
	// nsMu is held for reading while a thread is in ns, which must not be closed
	// then: the thread could not come back.
	nsMu sync.RWMutex
	set  conns.Set
	pool *hbone.Pool
	srv  *hbone.Server
	// self is the proxy's own pod: it can be reached through tunnels, and
	// nothing of it is captured.
	self bool
	// origSrc tells that connections to the application come from the
	// client's address.
	origSrc   bool
	share     budget.Pod
	logs      *accesslog.Limit
	listeners []*poll.Listener
	guard     portguard.Guard
	older     uncaptured.Set // only the reviewer uses it
	dns       *dnsproxy.Pod  // nil without one
	socks     *socks5.Pod    // nil without one
	usedUp    usedports.Set
	hellos    hello.Pod
	egress    egress.Pod
	seen      *observed.Pod
	closed    atomic.Bool
	// misdirected counts connections that were not redirected.
	misdirected atomic.Uint32

	// Guarded by the node's mu.
	up      bool
	retry   *time.Timer
	backoff time.Duration
	tries   uint // failed starts

	idMu    sync.Mutex // guards what follows
	id      identity.Identity
	release func()
}

func newPod(n *Node, uid string, info bootstrap.Workload, ns *netns.NS) *pod {
	p := &pod{
		node: n, uid: uid, info: info, ns: ns, backoff: bounds.RetryStart,
		share: n.budgets.Join(), logs: n.Recorder.Limit(info.Namespace + "/" + info.Name),
	}
	p.seen = n.Observed.Join(p.local)
	p.egress.Answers.Share = n.answers.Join()
	return p
}

// do runs fn in the pod's network namespace.
func (p *pod) do(fn func() error) error {
	if p.ns == nil {
		return fn()
	}
	p.nsMu.RLock()
	defer p.nsMu.RUnlock()
	if p.closed.Load() {
		return &reason.Error{Reason: reason.WorkloadRemoved}
	}
	return p.ns.Do(fn)
}

// start makes the listeners and serves. Nothing is left behind on error.
func (p *pod) start() error {
	cfg := p.node.Config
	fds, err := p.listen(cfg.IPv6)
	if err != nil && cfg.IPv6 && !errors.Is(err, syscall.EADDRINUSE) {
		// A namespace without IPv6 cannot bind the IPv6 wildcard. A port that is
		// taken is another matter: half a proxy would be worse than none yet.
		var err4 error
		if fds, err4 = p.listen(false); err4 == nil {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	windows := hbone.Windows{MaxStream: cfg.StreamWindow, Conn: cfg.ConnWindow, Frame: cfg.FrameSize}
	p.pool = hbone.NewPool(hbone.PoolConfig{
		Loops: p.node.Loops, Dial: p.dial,
		MaxStreams: int(cfg.PoolMaxStreams), IdleRelease: cfg.PoolIdleRelease.Std(), DialTimeout: bounds.ConnectTimeout,
		Windows: windows, KeepAlive: p.pingEvery(), Silence: cfg.TunnelSilence.Std(),
		Sockets: p.share.Sockets, Queues: p.share.Queues, LibraryRecords: cfg.LibraryRecords,
		OnTunnel: func(k hbone.Key, delta int) { p.node.tunnel(p.pool, k.DstUID, delta) },
	})
	p.srv = hbone.NewServer(hbone.ServerConfig{
		Loops: p.node.Loops, TLS: p.serverTLS, OnRequest: p.request,
		OnHandshakeError: p.handshakeFailed,
		OnTunnel:         func(delta int) { p.node.Recorder.Sockets(telemetry.Destination, delta) },
		OnArrival:        p.node.occupied,
		Windows:          windows, KeepAlive: p.pingEvery(), Silence: cfg.TunnelSilence.Std(),
		Sockets: p.share.Sockets, Tunnels: p.share.Tunnels, Queues: p.share.Queues, LibraryRecords: cfg.LibraryRecords,
	})
	p.identify()
	p.guard.Own(p.node.owner(), fds)
	for i, port := range p.ports() {
		ln, err := poll.Listen(p.node.Loops, fds[i], port.accept)
		if err != nil {
			for _, fd := range fds[i:] {
				sockopt.Close(fd)
			}
			p.shut()
			return fmt.Errorf("listening in the pod: %w", err)
		}
		p.listeners = append(p.listeners, ln)
	}
	if p.dns, err = p.serveDNS(); err == nil {
		p.socks, err = p.serveSOCKS()
	}
	if err != nil {
		p.shut()
	}
	return err
}

type port struct {
	number uint16
	leg    legs.Leg
	accept func(*poll.Loop, int, netip.AddrPort)
}

// ports are those the pod's proxy listens on.
func (p *pod) ports() []port {
	all := []port{{wellknown.PortHBONE, legs.Wire, p.acceptHBONE}}
	if p.self {
		return all
	}
	return append(all, port{wellknown.PortOutbound, legs.Captured, p.acceptOutbound}, port{wellknown.PortInbound, legs.Captured, p.acceptPlaintext})
}

// listen makes the sockets of ports, in their order.
func (p *pod) listen(v6 bool) (fds []int, err error) {
	cfg := p.node.Config
	opts := sockopt.ListenOptions{ReusePort: cfg.PortReuse, Mark: cfg.PacketMark, Owner: p.node.owner()}
	// The proxy's own servers are not told apart by address.
	p.origSrc = !p.self && (cfg.OrigSrc == nil || *cfg.OrigSrc)
	if p.origSrc {
		opts.Transparent = true
	}
	err = p.do(func() error {
		for _, port := range p.ports() {
			fd, err := sockopt.Listen(anyAddr(v6, port.number), opts)
			if errors.Is(err, sockopt.ErrOwner) {
				p.node.withoutOwner(err)
				opts.Owner = 0
				fd, err = sockopt.Listen(anyAddr(v6, port.number), opts)
			}
			if err != nil && opts.Transparent && cfg.OrigSrc == nil {
				// Not permitted: go on without keeping client addresses.
				opts.Transparent = false
				if fd, err = sockopt.Listen(anyAddr(v6, port.number), opts); err == nil {
					p.origSrc = false
				}
			}
			if err != nil {
				return err
			}
			port.leg.Tune(fd, cfg.KeepAlive) // accepted sockets inherit it, which saves calls for each
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		for _, fd := range fds {
			sockopt.Close(fd)
		}
		return nil, err
	}
	return fds, nil
}

// stopAccepting closes the listeners and asks the peers' tunnels to go.
func (p *pod) stopAccepting() {
	p.node.mu.Lock()
	lns, srv := p.listeners, p.srv
	p.node.mu.Unlock()
	restore := waiting.HandOver(p.node.Config.PortReuse, p.do, func(err error) {
		p.node.log.Debug("waiting connections cannot be handed over", "uid", p.uid, "error", err)
	})
	p.dns.Drain()
	p.socks.Drain()
	for _, ln := range lns {
		ln.Close()
	}
	if srv != nil {
		srv.Drain()
	}
	for _, ln := range lns {
		<-ln.Done()
	}
	restore()
}

// close ends the pod's proxy and all its connections now.
func (p *pod) close(why reason.Reason) {
	if !p.closed.CompareAndSwap(false, true) {
		return
	}
	p.shut()
	p.hellos.Close()
	if p.srv != nil {
		p.srv.Close(why)
		p.pool.Close(why)
	}
	for _, c := range p.set.All() {
		p.set.Abort(c, why, "")
	}
	p.share.Leave()
	p.seen.Leave()
	p.egress.Leave()
	p.nsMu.Lock()
	_ = p.ns.Close()
	p.nsMu.Unlock()
}

// shut closes the listeners and lets the certificate go. When it returns, the ports
// are free: the node agent reports then that the pod is out of the mesh.
func (p *pod) shut() {
	for _, ln := range p.listeners {
		ln.Close()
	}
	for _, ln := range p.listeners {
		<-ln.Done()
	}
	p.listeners = nil
	p.dns.Close()
	p.socks.Close()
	p.idMu.Lock()
	defer p.idMu.Unlock()
	if p.release != nil {
		p.release()
		p.release, p.id = nil, identity.Identity{}
	}
}

// local is the pod's workload, nil while the control plane has not named it.
func (p *pod) local(s *workload.Snapshot) *workload.Workload {
	return s.WorkloadByInfo(p.node.Config.NodeName, p.info.Namespace, p.info.Name, p.info.ServiceAccount)
}

// identity is who the pod is.
func (p *pod) identity() identity.Identity {
	if w := p.local(p.node.Directory.Snapshot()); w != nil {
		return w.Identity()
	}
	return identity.Identity{TrustDomain: p.node.Config.TrustDomain, Namespace: p.info.Namespace, ServiceAccount: p.info.ServiceAccount}
}

// identify keeps the certificate of the pod's identity at hand.
func (p *pod) identify() {
	if p.self && p.local(p.node.Directory.Snapshot()) == nil {
		return // not in the mesh
	}
	id := p.identity()
	p.idMu.Lock()
	defer p.idMu.Unlock()
	if id == p.id || p.closed.Load() {
		return
	}
	old := p.release
	p.id, p.release = id, nil
	if id.ServiceAccount != wellknown.NoServiceAccount {
		p.release = p.node.Certs.Hold(id, certs.Warmup)
	}
	if old != nil {
		old()
	}
}

// known calls then on the loop with the pod's workload, waiting off the loop
// for the control plane to name it.
func (p *pod) known(l *poll.Loop, then func(*workload.Workload, *reason.Error)) {
	if w := p.local(p.node.Directory.Snapshot()); w != nil {
		then(w, nil)
		return
	}
	err := p.off(l, func() {
		ctx, cancel := context.WithTimeout(context.Background(), bounds.KnownTimeout)
		defer cancel()
		w, err := workload.Wait(ctx, p.node.Directory, func(s *workload.Snapshot) (*workload.Workload, bool) {
			w := p.local(s)
			return w, w != nil
		})
		l.Post(func() {
			if err != nil {
				then(nil, p.unknown())
				return
			}
			then(w, nil)
		})
	})
	if err != nil {
		then(nil, err)
	}
}

func (p *pod) unknown() *reason.Error {
	return reason.Errorf(reason.UnknownSource, "%s/%s (service account %s)", p.info.Namespace, p.info.Name, p.info.ServiceAccount)
}

// socket makes a connecting socket of a leg in the pod's namespace. A valid
// src is what it is bound to, whether or not it is an address of this host.
func (p *pod) socket(g legs.Leg, to, src netip.Addr) (fd int, err error) {
	if p.closed.Load() {
		return -1, &reason.Error{Reason: reason.WorkloadRemoved}
	}
	err = p.do(func() error { fd, err = sockopt.Stream(to); return err })
	if err != nil {
		return -1, reason.As(reason.ResourceExhausted, err)
	}
	if err := p.setup(fd, g, src); err != nil {
		sockopt.Close(fd)
		return -1, reason.Errorf(reason.ConnectFailure, "%w", err)
	}
	return fd, nil
}

func (p *pod) setup(fd int, g legs.Leg, src netip.Addr) error {
	if m := p.node.Config.PacketMark; m != 0 {
		if err := sockopt.Mark(fd, m); err != nil {
			return err
		}
	}
	g.Tune(fd, p.node.Config.KeepAlive)
	// Programs may listen on a port that a connection of the proxy has.
	_ = sockopt.ReuseAddr(fd)
	if !src.IsValid() {
		return nil
	}
	return legs.BindAs(fd, src)
}

// dial makes the socket and TLS configuration of a tunnel; of one inside another
// tunnel, the configuration alone. It runs off the loops.
func (p *pod) dial(ctx context.Context, k hbone.Key) (int, *tls.Config, error) {
	conf, err := p.clientTLS(ctx, k)
	if err != nil || k.Via != nil {
		return -1, conf, err
	}
	fd, err := p.socket(legs.Wire, k.Dst.Addr(), netip.Addr{})
	if err != nil {
		return -1, nil, err
	}
	l := p.node.Loops.Pick(random(1 << 62))
	res := make(chan error, 1)
	if !l.Post(func() { relay.Connect(l, fd, k.Dst, bounds.ConnectTimeout, func(err error) { res <- err }) }) {
		sockopt.Close(fd)
		return -1, nil, &reason.Error{Reason: reason.Draining}
	}
	// relay.Connect has a deadline of its own.
	if err := <-res; err != nil {
		sockopt.Close(fd)
		return -1, nil, err
	}
	return fd, conf, nil
}

func (p *pod) clientTLS(ctx context.Context, k hbone.Key) (*tls.Config, error) {
	bundle, err := p.certificate(ctx, k.SrcIdentity)
	if err != nil {
		return nil, err
	}
	expect, err := k.Expected()
	if err != nil {
		return nil, reason.As(reason.Internal, err)
	}
	return p.node.TLS.Client(bundle, expect), nil
}

// certificate returns the certificate of an identity of this pod.
func (p *pod) certificate(ctx context.Context, id identity.Identity) (*mtls.Bundle, error) {
	if id.ServiceAccount == wellknown.NoServiceAccount {
		return nil, reason.Errorf(reason.CertificateUnavailable, "pod %s/%s has no service account, as static pods have none, and so no identity", p.info.Namespace, p.info.Name)
	}
	b, err := p.node.Certs.Get(ctx, id)
	if err != nil {
		return nil, reason.As(reason.CertificateUnavailable, err)
	}
	return b, nil
}

// serverTLS is asked at every handshake, off the loops.
func (p *pod) serverTLS(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	ctx, cancel := context.WithTimeout(hello.Context(), bounds.KnownTimeout)
	defer cancel()
	w, err := workload.Wait(ctx, p.node.Directory, func(s *workload.Snapshot) (*workload.Workload, bool) {
		w := p.local(s)
		return w, w != nil
	})
	if err != nil {
		return nil, p.unknown()
	}
	b, err := p.certificate(hello.Context(), w.Identity())
	if err != nil {
		return nil, err
	}
	return p.node.TLS.ServerConfig(b), nil
}

func (p *pod) handshakeFailed(remote, local netip.AddrPort, err error) {
	e := reason.As(reason.TLSFailure, err)
	if e.Reason == reason.CertificateRevoked {
		p.node.Recorder.Revoked(telemetry.Destination)
	}
	p.node.Recorder.Failed(p.logs, telemetry.Destination, remote, local, e)
}

// acceptHBONE takes a tunnel in.
func (p *pod) acceptHBONE(l *poll.Loop, fd int, remote netip.AddrPort) {
	local, err := sockopt.LocalAddr(fd)
	if err != nil {
		poll.ResetFD(fd)
		return
	}
	p.srv.Serve(l, fd, remote, local)
}

// pingEvery is how long a tunnel is silent before its peer is sent a PING:
// several times within the silence that is permitted.
func (p *pod) pingEvery() time.Duration {
	return min(tunnel.DefaultKeepAlive, p.node.Config.TunnelSilence.Std()/3)
}

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
