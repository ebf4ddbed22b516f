package hbone

import (
	"context"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// Via is a connection through a tunnel for another tunnel to run inside of:
// how one reaches another network, through its gateway. The outer tunnel is a
// pool's like any other, the inner one is one connection's own.
//
// Between the two is a pair of local sockets. To the outer tunnel it is an
// application like any other, to the inner one a network like any other, so
// that each keeps to its own loop, and bounds, back-pressure, ends of stream
// and resets are those of sockets. A byte is copied twice more for it.
type Via struct {
	Key    Key
	Header Header

	status atomic.Int32
	ended  atomic.Bool
	flow   atomic.Pointer[relay.Flow]
}

// Status is what the outer tunnel's peer answered when it refused the
// connection; 0 when it did not.
func (v *Via) Status() int { return int(v.status.Load()) }

// Reached tells whether the outer tunnel's peer accepted the connection.
func (v *Via) Reached() bool { return v.flow.Load() != nil }

// end has the outer connection end with the inner tunnel, whatever its own
// peer does. After an orderly end there is nothing left to do.
func (v *Via) end() {
	if v == nil {
		return
	}
	v.ended.Store(true)
	if f := v.flow.Load(); f != nil {
		f.Abort(reason.TunnelClosed)
	}
}

func (v *Via) up(f *relay.Flow) {
	v.flow.Store(f)
	if v.ended.Load() {
		f.Abort(reason.TunnelClosed)
	}
}

// Dial opens v through the pool and returns the socket for the inner tunnel.
// It is for the Dialer of the pool of inner tunnels, which must be another
// one: a pool that waited for itself could run out of dials.
func (p *Pool) Dial(ctx context.Context, v *Via) (int, error) {
	inner, outer, err := sockopt.Pair()
	if err != nil {
		return -1, reason.Errorf(reason.ResourceExhausted, "%w", err)
	}
	// It may be the second try of the same connection.
	v.status.Store(0)
	v.ended.Store(false)
	v.flow.Store(nil)
	done := make(chan *reason.Error, 1)
	p.Open(&Open{
		Key: v.Key, Header: v.Header, App: outer,
		OnUp: func(f *relay.Flow, _ ResponseHeader) {
			v.up(f)
			done <- nil
		},
		OnFail: func(err *reason.Error, status int) {
			poll.CloseFD(outer)
			v.status.Store(int32(status))
			done <- err
		},
	})
	select {
	case err := <-done:
		if err == nil {
			return inner, nil
		}
		poll.CloseFD(inner)
		return -1, err
	case <-ctx.Done():
		// The pool sees that nobody is at the other end any more.
		v.end()
		poll.CloseFD(inner)
		return -1, reason.Errorf(reason.ConnectTimeout, "connection through %s: %w", v.Key.Dst, context.Cause(ctx))
	}
}
