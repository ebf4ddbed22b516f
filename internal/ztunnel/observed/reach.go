package observed

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	// connectTimeout bounds one attempt to reach a collector.
	connectTimeout = 10 * time.Second
	// maxConnections bounds the connections of one loop to one endpoint of a collector.
	maxConnections = 2
)

// self returns the proxy's own workload, nil when the control plane does not know it.
func (n *Node) self(s *workload.Snapshot) *workload.Workload {
	w := n.cfg.Self
	if w == nil {
		return nil
	}
	return s.WorkloadByInfo(n.cfg.NodeName, w.Namespace, w.Name, w.ServiceAccount)
}

// reach chooses an endpoint of a collector. One in the mesh is reached by mutual TLS, with
// the proxy's own identity, if the control plane knows the proxy's pod: without a pod the
// proxy has no identity.
func (n *Node) reach(c *observe.Collector, _ func()) (t pool.Target, wait bool, err *reason.Error) {
	t, err = n.Reach(c.Service.Namespace, c.Service.Hostname, c.Port)
	return t, false, err
}

// NewPool returns a pool of the proxy's own connections, on a loop.
func (n *Node) NewPool(l *poll.Loop) *pool.Pool {
	return pool.New(l, pool.Config{Dial: n.dial, MaxConnections: maxConnections})
}

// Demand requests a service, in on-demand mode, and reports whether that is the mode.
func (n *Node) Demand(ctx context.Context, namespace, hostname string) (asked bool, err error) {
	if n.cfg.Demand == nil {
		return false, nil
	}
	return true, n.cfg.Demand(ctx, namespace+"/"+hostname)
}

// Known reports whether a service is in the directory.
func (n *Node) Known(namespace, hostname string) bool {
	return n.cfg.Directory.Snapshot().ServiceByName(namespace, hostname) != nil
}

// Reach chooses an endpoint of a service that the proxy itself calls.
func (n *Node) Reach(namespace, hostname string, port uint16) (t pool.Target, err *reason.Error) {
	snap := n.cfg.Directory.Snapshot()
	svc := snap.ServiceByName(namespace, hostname)
	if svc == nil {
		return t, reason.Errorf(reason.NoHealthyUpstream, "service %s/%s is not known", namespace, hostname)
	}
	self := n.self(snap)
	client := self
	if client == nil {
		client = &workload.Workload{Node: n.cfg.NodeName, Traits: &workload.Traits{Network: n.cfg.Network, ClusterID: n.cfg.Cluster}}
	}
	up, err := hop.Near(snap, workload.Query{Service: svc, Client: client, Port: port, Rand: rand.Uint64N})
	if err != nil {
		return t, err
	}
	t, _, err = target(up, svc, client, self != nil)
	return t, err
}

// target returns how an endpoint is reached.
func target(up workload.Upstream, svc *workload.Service, client *workload.Workload, tunnels bool) (t pool.Target, wait bool, err *reason.Error) {
	w := up.Workload
	switch {
	case up.Direct || w == nil:
		return t, false, reason.Errorf(reason.NoHealthyUpstream, "service %s sends each connection to the address that was called", svc.Key())
	case w.Network != client.Network:
		return t, false, reason.Errorf(reason.UnknownGateway, "workload %s is in network %q", w.UID, w.Network)
	case !up.Addr.IsValid():
		return t, false, reason.Errorf(reason.NoHealthyUpstream, "workload %s has no address", w.UID)
	}
	t = pool.Target{App: netip.AddrPortFrom(up.Addr, up.Port), UID: w.UID}
	if w.Protocol == workload.HBONE && tunnels {
		t.Tunnel = netip.AddrPortFrom(up.Addr, wellknown.PortHBONE)
		t.Identities = hop.Identities(w, svc)
	}
	return t, false, nil
}

// dial connects to an endpoint of a collector. It never blocks the loop.
func (n *Node) dial(l *poll.Loop, to *pool.Target, done func(stream.Conn, *reason.Error)) (cancel func()) {
	over := false
	took := func(c stream.Conn, err *reason.Error) {
		switch {
		case !over:
			done(c, err)
		case c != nil:
			c.Abort(reason.DownstreamReset)
		}
	}
	cancel = func() { over = true }
	if to.Tunnel.IsValid() {
		n.tunnels.Open(&hbone.Open{
			Key:  hbone.Key{SrcIdentity: n.identity(), Dst: to.Tunnel, DstIdentities: to.Identities, DstUID: to.UID},
			Loop: l, Header: hbone.Header{Authority: to.Authority()},
			OnStream: func(c stream.Conn, _ hbone.ResponseHeader) { took(c, nil) },
			OnFail:   func(err *reason.Error, _ int) { took(nil, err) },
		})
		return cancel
	}
	app := to.App
	fail := func(r reason.Reason, err error) {
		l.Post(func() { took(nil, reason.Errorf(r, "connecting to %s: %w", app, err)) })
	}
	fd, err := n.socket(app.Addr())
	if err != nil {
		fail(reason.ResourceExhausted, err)
		return cancel
	}
	relay.Connect(l, fd, app, connectTimeout, func(err error) {
		if err != nil {
			sockopt.Close(fd)
			fail(reason.ConnectFailure, err)
			return
		}
		c, err := stream.Plain(l, fd, stream.Info{Remote: app, Dialed: true})
		if err != nil {
			sockopt.Close(fd)
			fail(reason.ResourceExhausted, err)
			return
		}
		took(c, nil)
	})
	return cancel
}

// socket makes a socket in the proxy's own network.
func (n *Node) socket(to netip.Addr) (int, error) {
	fd, err := sockopt.Stream(to)
	if err != nil || n.cfg.Mark == 0 {
		return fd, err
	}
	if err := sockopt.Mark(fd, n.cfg.Mark); err != nil {
		sockopt.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (n *Node) identity() identity.Identity {
	if w := n.self(n.cfg.Directory.Snapshot()); w != nil {
		return w.Identity()
	}
	return identity.Identity{}
}

// dialTunnel makes the socket of a tunnel. It runs off the loops.
func (n *Node) dialTunnel(ctx context.Context, k hbone.Key) (int, *tls.Config, error) {
	b, err := n.cfg.Certs.Get(ctx, k.SrcIdentity)
	if err != nil {
		return -1, nil, &reason.Error{Reason: reason.CertificateUnavailable, Err: err}
	}
	expect, err := k.Expected()
	if err != nil {
		return -1, nil, &reason.Error{Reason: reason.Internal, Err: err}
	}
	fd, err := n.socket(k.Dst.Addr())
	if err != nil {
		return -1, nil, &reason.Error{Reason: reason.ResourceExhausted, Err: err}
	}
	res := make(chan error, 1)
	l := n.cfg.Loops.Pick(rand.Uint64N(1 << 62))
	if !l.Post(func() { relay.Connect(l, fd, k.Dst, connectTimeout, func(err error) { res <- err }) }) {
		sockopt.Close(fd)
		return -1, nil, &reason.Error{Reason: reason.Draining}
	}
	// relay.Connect has a deadline of its own.
	if err := <-res; err != nil {
		sockopt.Close(fd)
		return -1, nil, err
	}
	return fd, n.cfg.TLS.Client(b, expect), nil
}
