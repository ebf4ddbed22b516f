// Package pooltest gives tests a pool whose connections are plain.
package pooltest

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Plain returns a pool of a loop that connects to the applications of targets, without a
// tunnel.
func Plain(t testing.TB, l *poll.Loop) *pool.Pool {
	return pool.New(l, pool.Config{Dial: func(l *poll.Loop, to *pool.Target, take func(stream.Conn, *reason.Error)) func() {
		fd, err := sockopt.Stream(to.App.Addr())
		if err != nil {
			t.Error(err)
			return func() {}
		}
		relay.Connect(l, fd, to.App, time.Minute, func(err error) {
			if err != nil {
				sockopt.Close(fd)
				take(nil, reason.Errorf(reason.ConnectFailure, "%w", err))
				return
			}
			c, err := stream.Plain(l, fd, stream.Info{Remote: to.App, Dialed: true})
			if err != nil {
				t.Error(err)
				return
			}
			take(c, nil)
		})
		return func() {}
	}})
}
