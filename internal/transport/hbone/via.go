package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	// innerRelease is how long an inner tunnel may be without its connection: it is
	// opened at once, and no other connection comes after it.
	innerRelease = time.Millisecond
	// innerWrite is how many bytes of an inner tunnel are given to the stream below at
	// once: it takes all of them, whatever its bound.
	innerWrite = 64 << 10
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

// abort ends a stream, from any goroutine.
func abort(c bytestream.Conn) {
	c.Loop().Post(func() { c.Abort(reason.TunnelClosed) })
}

// connectInside opens the stream below and shakes hands there, on the dial's
// goroutine.
func (p *Pool) connectInside(k Key) (link, *reason.Error) {
	// Twice the time of a tunnel on the network: what keeps the outer tunnel from being
	// made is to be heard of.
	ctx, cancel := context.WithTimeout(p.ctx, 2*p.cfg.DialTimeout)
	defer cancel()
	_, conf, err := p.cfg.Dial(ctx, k)
	if err != nil {
		return link{}, asReason(err, reason.ConnectFailure, k)
	}
	b, under, rerr := p.open(ctx, k.Via)
	if rerr != nil {
		return link{}, rerr
	}
	w := &wire{block: b}
	conn := tls.Client(w, tuned(conf))
	if err := conn.HandshakeContext(ctx); err != nil {
		abort(under)
		if cause := context.Cause(p.ctx); cause != nil {
			err = cause
		} else if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return link{}, p.handshakeError(k, below(err))
	}
	return link{fd: -1, under: under, conn: conn, wire: w}, nil
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

// inner is the Sink of the stream that carries a tunnel.
type inner struct{ t *tunnel }

// startInside is start for a tunnel on a stream.
func (t *tunnel) startInside() {
	w := t.wire
	rest, end, err := w.block.Release()
	w.block, w.in, w.end = nil, rest, end
	t.under.Consumed(len(rest))
	t.under.Bind(&inner{t})
	// crypto/tls may hold bytes too. Not now: the tunnel's owner is not ready.
	t.hub.loop.Post(func() {
		if t.closed {
			return
		}
		t.decrypt()
		w.in = nil
		if err != nil {
			t.fail(reason.TunnelClosed, err)
		}
	})
}

// OnData implements stream.Sink.
func (i *inner) OnData(p []byte, end bool) {
	t := i.t
	n := len(p)
	if len(t.wire.in) > 0 { // since the handshake
		p = append(t.wire.in, p...)
	}
	t.wire.in, t.wire.end = p, end
	t.heard = t.hub.loop.Now()
	t.decrypt()
	t.wire.in = nil
	if !t.closed {
		t.under.Consumed(n)
	}
}

// OnWritable implements stream.Sink.
func (i *inner) OnWritable() {
	i.t.blocked = false
	i.t.touch()
}

// OnClose implements stream.Sink.
func (i *inner) OnClose(_ reason.Reason, err error) { i.t.fail(reason.TunnelClosed, err) }

// writeInside gives the stream below what it takes; false means it takes no more now.
func (t *tunnel) writeInside() bool {
	for t.waiting() > 0 {
		p := t.wire.out[t.sent:]
		p = p[:min(len(p), innerWrite)]
		t.sent += len(p)
		if !t.under.Write(p) {
			t.blocked = true
			return false
		}
	}
	return true
}
