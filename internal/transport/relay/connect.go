package relay

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// Connect connects the non-blocking socket fd to an address. It is called on
// the loop's goroutine; done is called there, never inline, with nil or a
// *reason.Error (ConnectTimeout, ConnectFailure). The socket stays the
// caller's in every case and must not be closed before done.
func Connect(l *poll.Loop, fd int, to netip.AddrPort, timeout time.Duration, done func(error)) {
	c := &connecting{fd: fd, to: to, done: done}
	connected, err := sockopt.ConnectNow(fd, to)
	if connected {
		l.Post(func() { c.end(nil) })
		return
	}
	if err == nil {
		err = l.AddTo(&c.reg, fd, c)
	}
	if err != nil {
		l.Post(func() { c.end(reason.Errorf(reason.ConnectFailure, "connecting to %s: %w", to, err)) })
		return
	}
	c.limit.Arm(l, timeout, func() {
		c.end(reason.Errorf(reason.ConnectTimeout, "no answer from %s in %s", to, timeout))
	})
}

type connecting struct {
	reg   poll.Registration
	fd    int
	to    netip.AddrPort
	limit poll.Deadline
	done  func(error)
}

func (c *connecting) Ready(ev poll.Events) {
	if ev&(poll.Writable|poll.Failed|poll.Hangup) == 0 {
		return
	}
	if err := sockopt.SocketError(c.fd); err != nil {
		c.end(reason.Errorf(reason.ConnectFailure, "connecting to %s: %w", c.to, err))
		return
	}
	c.end(nil)
}

func (c *connecting) end(err *reason.Error) {
	c.limit.Stop()
	c.reg.Remove()
	if err != nil {
		c.done(err) // not a nil *Error in an error
		return
	}
	c.done(nil)
}
