package exchange_test

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// careful is a stream.Conn that finds breaches of its contract.
type careful struct {
	fake
	t       *testing.T
	owed    int
	ended   bool
	aborted bool
}

func (c *careful) Consumed(n int) {
	if c.owed -= n; c.owed < 0 && !c.aborted {
		c.t.Error("credit for bytes that were not delivered")
	}
}

func (c *careful) Abort(reason.Reason) { c.aborted = true; c.sink = nil }

func (c *careful) deliver(p []byte, end bool) {
	if c.sink == nil || c.ended || len(p) == 0 && !end {
		return
	}
	c.owed += len(p)
	c.ended = end
	c.sink.OnData(p, end)
}

func (c *careful) close(why reason.Reason) {
	if s := c.sink; s != nil {
		c.sink = nil
		s.OnClose(why, nil)
	}
}

// FuzzExchange feeds arbitrary bytes to both sides of a proxy. Whatever they are,
// nothing is left of the exchanges once both are gone.
func FuzzExchange(f *testing.F) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	f.Add([]byte(browser), []byte(ok), uint8(0), uint8(7), false)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"+browser), []byte(ok+ok), uint8(0), uint8(1), true)
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw"), []byte("HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw"), uint8(0), uint8(20), true)
	f.Add([]byte("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\nraw"), []byte("HTTP/1.1 200 OK\r\n\r\nraw"), uint8(0), uint8(5), false)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"), []byte("HTTP/1.1 100 C\r\n\r\n"+ok), uint8(0), uint8(9), false)
	hc := h2.New(h2.Config{}, nil)
	s, _ := hc.Open(&h2.Header{Method: "POST", Scheme: "http", Authority: "h", Path: "/", Fields: []h2.Field{{Name: "content-type", Value: "application/grpc"}}}, false)
	hc.AppendData(s, []byte("hello"), true)
	f.Add(append([]byte(nil), hc.Output()...), []byte(ok), uint8(1), uint8(30), false)
	f.Add(append([]byte(nil), hc.Output()...), []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88"), uint8(3), uint8(30), false)
	g, err := poll.NewGroup(1)
	if err != nil {
		f.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	table, _ := route.Compile(toB(), route.BySpecificity)
	f.Fuzz(func(t *testing.T, down, up []byte, versions, piece uint8, first bool) {
		if len(down) > 4096 || len(up) > 4096 {
			return
		}
		done := make(chan struct{})
		next := func(step func()) { l.Post(step) } // a turn of its own for each step
		o := &fuzzOwner{steady{table: table, loop: l}, versions&2 != 0}
		client := &careful{fake: fake{loop: l}, t: t}
		var backends []*careful
		var e *exchange.Engine
		n := max(int(piece), 1)
		var p *pool.Pool
		var step func()
		step = func() {
			switch {
			case len(down) > 0 && (first || len(up) == 0 || len(backends) == 0):
				k := min(n, len(down))
				client.deliver(down[:k:k], false)
				down = down[k:]
			case len(up) > 0 && len(backends) > 0:
				k := min(n, len(up))
				backends[len(backends)-1].deliver(up[:k:k], false)
				up = up[k:]
			case !client.ended && piece%2 == 0:
				client.deliver(nil, true)
				client.ended = true
			default:
				client.close(reason.DownstreamReset)
				for _, b := range backends {
					b.close(reason.UpstreamReset)
				}
				p.Drain()
				l.Post(func() {
					if k := e.Active(); k != 0 {
						t.Errorf("%d exchanges are left", k)
					}
					close(done)
				})
				return
			}
			next(step)
		}
		l.Post(func() {
			p = pool.New(l, pool.Config{Dial: func(_ *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
				l.Post(func() {
					b := &careful{fake: fake{loop: l}, t: t}
					b.info.Dialed = true
					backends = append(backends, b)
					done(b, nil)
				})
				return func() {}
			}})
			e = exchange.NewEngine(l, exchange.Config{Pool: p, Random: func() uint64 { return 0 }})
			cfg := &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver { return e.Accept(o, r) }}
			if versions&1 != 0 {
				codec.NewHTTP2Server(client, cfg)
			} else {
				codec.NewHTTP1Server(client, cfg)
			}
			next(step)
		})
		<-done
	})
}

type fuzzOwner struct {
	steady
	h2 bool
}

func (o *fuzzOwner) Pick(x *exchange.Exchange) (bool, *reason.Error) {
	x.Target = pool.Target{UID: "uid", HTTP2: o.h2}
	return false, nil
}
