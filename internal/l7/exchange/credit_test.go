package exchange_test

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// full is a careful conn whose writes ask to wait while it is set.
type full struct {
	careful
	full bool
}

func (f *full) Write([]byte) bool { return !f.full }

// TestCreditComesBack: bytes that waited on the other side when an exchange ended are
// given back, for both connections carry other requests.
func TestCreditComesBack(t *testing.T) {
	g, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	table, _ := route.Compile(toB(), route.BySpecificity)
	done := make(chan struct{})
	request := []byte("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("q", 9000))
	response := []byte("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("r", 9000))
	down := &full{careful: careful{fake: fake{loop: l}, t: t}}
	up := &full{careful: careful{fake: fake{loop: l}, t: t}}
	check := func(when string) {
		if down.owed != 0 || up.owed != 0 {
			t.Errorf("%s: %d bytes of the client and %d of the backend are kept", when, down.owed, up.owed)
		}
	}
	l.Post(func() {
		p := pool.New(l, pool.Config{Dial: func(_ *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
			l.Post(func() { done(up, nil) })
			return func() {}
		}})
		e := exchange.NewEngine(l, exchange.Config{Pool: p, MaxReplay: 10})
		o := &fuzzOwner{steady: steady{table: table, loop: l}}
		codec.NewHTTP1Server(down, &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver { return e.Accept(o, r) }})
		down.deliver(request, false)
		l.Post(func() {
			up.deliver(response, false)
			check("nobody waited")
			up.full, down.full = true, true
			for range 3 {
				down.deliver(request, false)
				up.deliver(response, false)
				check("both were full")
			}
			if o.done != 4 || e.Active() != 0 {
				t.Errorf("%d answers, %d exchanges are left", o.done, e.Active())
			}
			close(done)
		})
	})
	<-done
}
