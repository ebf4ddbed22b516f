package hbone

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

const (
	// innerRelease is how long an inner tunnel may be without its connection: it is
	// opened at once, and no other connection comes after it.
	innerRelease = time.Millisecond
)

// Via is a connection through a tunnel for another tunnel to run inside of:
// how one reaches another network, through its gateway. The outer tunnel is shared
// like any other, the inner one is one connection's own. The inner one is TLS over a
// stream of the outer one, on the same loop.
type Via struct {
	Key    Key
	Header Header

	status  atomic.Int32
	reached atomic.Bool
}

// Status is what the outer tunnel's peer answered when it refused the
// connection; 0 when it did not.
func (v *Via) Status() int { return int(v.status.Load()) }

// Reached reports whether the outer tunnel's peer accepted the connection.
func (v *Via) Reached() bool { return v.reached.Load() }

// open opens v, and waits for it on a dial's goroutine.
func (p *Pool) open(ctx context.Context, v *Via) (*bytestream.Blocking, bytestream.Conn, *reason.Error) {
	type opened struct {
		b    *bytestream.Blocking
		conn bytestream.Conn
		err  *reason.Error
	}
	// It may be the second try of the same connection.
	v.status.Store(0)
	v.reached.Store(false)
	res := make(chan opened, 1)
	var settled atomic.Bool // by the result, or by the end of the patience
	p.Open(&Open{
		Key: v.Key, Header: v.Header,
		OnStream: func(c bytestream.Conn, _ ResponseHeader) {
			if !settled.CompareAndSwap(false, true) {
				c.Abort(reason.TunnelClosed)
				return
			}
			v.reached.Store(true)
			res <- opened{bytestream.Block(c), c, nil}
		},
		OnFail: func(err *reason.Error, status int) {
			if settled.CompareAndSwap(false, true) {
				v.status.Store(int32(status))
				res <- opened{err: err}
			}
		},
	})
	select {
	case o := <-res:
		return o.b, o.conn, o.err
	case <-ctx.Done():
	}
	if !settled.CompareAndSwap(false, true) {
		o := <-res
		return o.b, o.conn, o.err
	}
	return nil, nil, reason.Errorf(reason.ConnectTimeout, "connection through %s: %w", v.Key.Dst, context.Cause(ctx))
}

// connectInside opens the stream below and shakes hands there, on the dial's
// goroutine.
func (p *Pool) connectInside(k Key) (tunnel.Link, *reason.Error) {
	// Twice the time of a tunnel on the network: what keeps the outer tunnel from being
	// made is to be heard of.
	ctx, cancel := context.WithTimeout(p.ctx, 2*p.cfg.DialTimeout)
	defer cancel()
	_, conf, err := p.cfg.Dial(ctx, k)
	if err != nil {
		return tunnel.Link{}, asReason(err, reason.ConnectFailure, k)
	}
	b, under, rerr := p.open(ctx, k.Via)
	if rerr != nil {
		return tunnel.Link{}, rerr
	}
	link, err := tunnel.HandshakeInside(ctx, b, under, tunnel.Security{Config: conf, LibraryRecords: p.cfg.LibraryRecords})
	if err != nil {
		under.Loop().Post(func() { under.Abort(reason.TunnelClosed) })
		if cause := context.Cause(p.ctx); cause != nil {
			err = cause
		} else if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return tunnel.Link{}, p.handshakeError(k, below(err))
	}
	return link, nil
}

// below returns the detail of an error of the stream below: its reason is not that of
// the handshake.
func below(err error) error {
	var re *reason.Error
	if errors.As(err, &re) && (re.Reason == reason.UpstreamReset || re.Reason == reason.TunnelClosed) && re.Err != nil {
		return re.Err
	}
	return err
}

// handshakeError gives the failure of a client's handshake its reason.
func (p *Pool) handshakeError(k Key, err error) *reason.Error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return reason.Errorf(reason.TunnelHandshake, "TLS handshake with %s: %w", k.Dst, err)
	}
	return asReason(mtls.Error(err), reason.TLSFailure, k)
}
