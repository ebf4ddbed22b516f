package app

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

const (
	// connectTimeout bounds one attempt to reach an endpoint; upstream's.
	connectTimeout = 10 * time.Second
	// certificateTimeout bounds how long a handshake waits for the gateway's own
	// certificate.
	certificateTimeout = 5 * time.Second
	// maxTunnels bounds the tunnels of clients; one costs about 30 KiB.
	maxTunnels = 16384
	// maxQueued bounds the bytes that wait for peers which do not read.
	maxQueued = 256 << 20
)

// quota is a tunnel.Quota with one owner.
type quota struct{ used, total atomic.Int64 }

func newQuota(total int) *quota {
	q := &quota{}
	q.total.Store(int64(total))
	return q
}

// Take implements tunnel.Quota.
func (q *quota) Take(n int64) bool {
	if q.used.Add(n) <= q.total.Load() {
		return true
	}
	q.used.Add(-n)
	return false
}

// Give implements tunnel.Quota.
func (q *quota) Give(n int64) { q.used.Add(-n) }

// Room implements tunnel.Quota.
func (q *quota) Room() int64 { return max(0, q.total.Load()-q.used.Load()) }

// tunnels makes both ends of tunnels: the server of clients, and the pool to
// endpoints.
func (a *App) tunnels() {
	c := a.cfg
	// Half of the descriptors at most are for either side, less what the rest of the
	// program needs.
	side := (process.Descriptors() - reservedDescriptors) / 2
	a.down, a.up, a.queues = newQuota(side), newQuota(side), newQuota(maxQueued)
	windows := hbone.Windows{MaxStream: c.StreamWindow, Conn: c.ConnWindow, Frame: c.FrameSize}
	ping := min(tunnel.DefaultKeepAlive, c.TunnelSilence.Std()/3)
	a.pool = hbone.NewPool(hbone.PoolConfig{
		Loops: a.loops, Dial: a.dialTunnel, MaxStreams: int(c.PoolMaxStreams), IdleRelease: c.PoolIdleRelease.Std(),
		DialTimeout: connectTimeout, Windows: windows, KeepAlive: ping, Silence: c.TunnelSilence.Std(),
		Sockets: a.up, Queues: a.queues, LibraryRecords: c.LibraryRecords,
	})
	a.server = hbone.NewServer(hbone.ServerConfig{
		Loops: a.loops, TLS: a.serverTLS, OnRequest: func(r *hbone.Request) { a.gateway.Serve(r) },
		OnHandshakeError: a.handshakeFailed, Windows: windows, KeepAlive: ping, Silence: c.TunnelSilence.Std(),
		Sockets: a.down, Tunnels: newQuota(maxTunnels), Queues: a.queues, LibraryRecords: c.LibraryRecords,
	})
}

// reservedDescriptors are for the control plane, the CA, the program's servers, and
// the pipes of loops.
const reservedDescriptors = 256

// listen accepts tunnels. A pod without IPv6 cannot bind the IPv6 wildcard.
func (a *App) listen() error {
	at := a.cfg.Listen
	fd, err := sockopt.Listen(at, sockopt.ListenOptions{ReusePort: true})
	if err != nil && at.Addr() == netip.IPv6Unspecified() && !errors.Is(err, syscall.EADDRINUSE) {
		fd, err = sockopt.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), sockopt.ListenOptions{ReusePort: true})
	}
	if err != nil {
		return reason.Errorf(reason.Internal, "listening for tunnels on %s: %w", at, err)
	}
	a.tune(fd) // accepted sockets inherit it
	if a.listener, err = poll.Listen(a.loops, fd, a.accept); err != nil {
		sockopt.Close(fd)
		return err
	}
	return nil
}

func (a *App) accept(l *poll.Loop, fd int, remote netip.AddrPort) {
	local, err := sockopt.LocalAddr(fd)
	if err != nil {
		poll.ResetFD(fd)
		return
	}
	a.server.Serve(l, fd, remote, local)
}

// tune sets what makes a connection faster or safer, but works without.
func (a *App) tune(fd int) {
	_ = sockopt.NoDelay(fd)
	if k := a.cfg.KeepAlive; k.Enabled {
		_ = sockopt.KeepAlive(fd, k.Time.Std(), k.Interval.Std(), k.Retries)
	}
}

// serverTLS is called for every handshake, off the loops.
func (a *App) serverTLS(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	ctx, cancel := context.WithTimeout(hello.Context(), certificateTimeout)
	defer cancel()
	b, err := a.certs.Get(ctx, a.cfg.Identity())
	if err != nil {
		return nil, err
	}
	return a.tls.ServerConfig(b), nil
}

func (a *App) handshakeFailed(remote, local netip.AddrPort, err error) {
	a.log.Warn("a connection did not become a tunnel", "src", remote, "dst", local, "error", mtls.Error(err))
}

// dialTunnel makes the socket and TLS configuration of a tunnel to an endpoint. It
// runs off the loops.
func (a *App) dialTunnel(ctx context.Context, k hbone.Key) (int, *tls.Config, error) {
	b, err := a.certs.Get(ctx, k.SrcIdentity)
	if err != nil {
		return -1, nil, err
	}
	expect, err := k.Expected()
	if err != nil {
		return -1, nil, &reason.Error{Reason: reason.Internal, Err: err}
	}
	fd, err := a.dial(k.Dst, connectTimeout)
	if err != nil {
		return -1, nil, err
	}
	return fd, a.tls.Client(b, expect), nil
}

// dial connects. It runs off the loops.
func (a *App) dial(to netip.AddrPort, timeout time.Duration) (int, error) {
	fd, err := sockopt.Stream(to.Addr())
	if err != nil {
		return -1, &reason.Error{Reason: reason.ResourceExhausted, Err: err}
	}
	a.tune(fd)
	res := make(chan error, 1)
	l := a.loops.Pick(rand.Uint64N(1 << 62))
	if !l.Post(func() { relay.Connect(l, fd, to, timeout, func(err error) { res <- err }) }) {
		sockopt.Close(fd)
		return -1, &reason.Error{Reason: reason.Draining}
	}
	// relay.Connect has a deadline of its own.
	if err := <-res; err != nil {
		sockopt.Close(fd)
		return -1, err
	}
	return fd, nil
}

// revoked ends tunnels whose peers have been revoked. A handshake under way may have
// been judged by the list of before.
func (a *App) revoked() {
	a.recheck()
	time.AfterFunc(connectTimeout, a.recheck)
}

func (a *App) recheck() {
	ctx, cancel := context.WithTimeout(context.Background(), certificateTimeout)
	defer cancel()
	b, err := a.certs.Get(ctx, a.cfg.Identity())
	if err != nil {
		return // a new tunnel would be refused
	}
	judge := func(peer *tls.ConnectionState) *reason.Error {
		err := a.crl.Recheck(peer, b)
		if err == nil {
			return nil
		}
		var e *reason.Error
		if errors.As(err, &e) {
			return e
		}
		return &reason.Error{Reason: reason.CertificateRevoked, Err: err}
	}
	a.server.Recheck(judge)
	a.pool.Recheck(func(_ hbone.Key, peer *tls.ConnectionState) *reason.Error { return judge(peer) })
}
