package gateway

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// connectTimeout bounds a connection without a tunnel (MeshConfig.connectTimeout).
const connectTimeout = 10 * time.Second

// dial connects to an endpoint: through a tunnel that proves this gateway's
// identity, or plainly to one outside the mesh.
func (s *shard) dial(l *poll.Loop, to *pool.Target, done func(stream.Conn, *reason.Error)) (cancel func()) {
	o := &s.g.opts
	if o.dial != nil {
		return o.dial(l, to, done)
	}
	cancelled := false
	took := func(c stream.Conn, err *reason.Error) {
		switch {
		case !cancelled:
			done(c, err)
		case c != nil:
			c.Abort(reason.DownstreamReset)
		}
	}
	if !to.Tunnel.IsValid() {
		s.dialPlain(l, to, took)
		return func() { cancelled = true }
	}
	o.Tunnels.Open(&hbone.Open{
		Key: hbone.Key{
			SrcIdentity: o.Identity, SrcIP: o.Source, Dst: to.Tunnel, DstIdentities: to.Identities, DstUID: to.UID,
		},
		Header: hbone.Header{
			Authority: to.Authority(), Forwarded: to.Client.Forwarded, Baggage: to.Client.Baggage, Traceparent: to.Client.Trace, Hops: to.Client.Hops,
		},
		Loop:     l,
		OnStream: func(c stream.Conn, _ hbone.ResponseHeader) { took(c, nil) },
		OnFail:   func(err *reason.Error, _ int) { took(nil, err) },
	})
	return func() { cancelled = true }
}

func (s *shard) dialPlain(l *poll.Loop, to *pool.Target, took func(stream.Conn, *reason.Error)) {
	addr, dial := to.App, s.g.opts.Dial
	if dial == nil {
		l.Post(func() { took(nil, reason.Errorf(reason.UnsupportedProtocol, "endpoint %s has no tunnel", addr)) })
		return
	}
	l.Go(func() {
		fd, err := dial(addr, connectTimeout)
		if !l.Post(func() {
			if err != nil {
				took(nil, reason.Errorf(reason.ConnectFailure, "connecting to %s: %w", addr, err))
				return
			}
			c, err := stream.Plain(l, fd, stream.Info{Remote: addr, Dialed: true})
			if err != nil {
				poll.CloseFD(fd)
				took(nil, reason.Errorf(reason.ResourceExhausted, "connecting to %s: %w", addr, err))
				return
			}
			took(c, nil)
		}) && err == nil {
			poll.CloseFD(fd)
		}
	})
}
