package exchange_test

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// fake is a stream.Conn without IO: the test delivers, and counts what is written.
type fake struct {
	loop    *poll.Loop
	sink    stream.Sink
	info    stream.Info
	written int
	onWrite func()
}

func (f *fake) Loop() *poll.Loop    { return f.loop }
func (f *fake) Bind(s stream.Sink)  { f.sink = s }
func (f *fake) CloseWrite()         {}
func (f *fake) Abort(reason.Reason) {}
func (f *fake) Pause()              {}
func (f *fake) Resume()             {}
func (f *fake) Consumed(int)        {}
func (f *fake) Info() *stream.Info  { return &f.info }
func (f *fake) Write(p []byte) bool {
	f.written += len(p)
	if f.onWrite != nil {
		f.onWrite()
	}
	return true
}

// steady is a proxy without IO that has one client and one backend.
type steady struct {
	loop     *poll.Loop
	engine   *exchange.Engine
	table    *route.Table
	down, up *fake
	done     int
	request  []byte
	response []byte
}

func (s *steady) Route(x *exchange.Exchange) *reason.Error {
	x.Rule = s.table.Lookup(x.Request)
	return nil
}

func (s *steady) Pick(x *exchange.Exchange) (bool, *reason.Error) {
	x.Target = pool.Target{UID: "uid"}
	return false, nil
}

func (s *steady) Mirror(*exchange.Exchange, *route.Backend, *pool.Target) bool { return false }
func (s *steady) Client() *filter.Client                                       { return &nobody }
func (s *steady) Outcome(*exchange.Exchange, reason.Reason)                    {}
func (s *steady) Held(*exchange.Exchange)                                      {}
func (s *steady) Hold(*exchange.Exchange, *message.Head)                       {}
func (s *steady) Progress(*exchange.Exchange)                                  {}
func (s *steady) Done(x *exchange.Exchange)                                    { s.done += x.Status / 200 }

const browser = "GET /api/v1/items/12345?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
	"Accept-Encoding: gzip, deflate\r\nX-Request-Id: 6f1f8c36-7c43-4f0a-a3f1-0f6c4a3c2f11\r\nCookie: session=abcdef; theme=dark\r\nConnection: keep-alive\r\n\r\n"

// newSteady is called on the loop.
func newSteady(t testing.TB, l *poll.Loop) *steady {
	s := &steady{loop: l, down: &fake{loop: l}, up: &fake{loop: l}, request: []byte(browser)}
	s.response = []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
	var problems []route.Problem
	s.table, problems = route.Compile([]route.Rule{
		{Origin: "other", Matches: []route.Match{{Path: route.Path{Kind: route.Exact, Value: "/"}}}},
		{
			Origin: "api", Matches: []route.Match{{Path: route.Path{Kind: route.Segments, Value: "/api"}}},
			Backends: []route.Backend{{Name: "a", Weight: 1}, {Name: "b", Weight: 2}}, Timeouts: route.Timeouts{Request: 1 << 40},
			Filters: route.Filters{
				Request:  &route.HeaderEdit{Set: []route.Field{{Name: "X-Route", Value: "a value that is longer than thirty-two bytes"}}, Remove: []string{"accept-encoding"}},
				Response: &route.HeaderEdit{Add: []route.Field{{Name: "X-Via", Value: "1"}}},
				Rewrite:  &route.Rewrite{Host: "inner.example.com", Path: &route.PathEdit{Prefix: true, Value: "/v2"}},
			},
		},
	}, route.BySpecificity)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := pool.New(l, pool.Config{Dial: func(_ *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
		l.Post(func() { done(s.up, nil) })
		return func() {}
	}})
	s.engine = exchange.NewEngine(l, exchange.Config{Pool: p})
	codec.NewHTTP1Server(s.down, &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver { return s.engine.Accept(s, r) }})
	return s
}

// TestSteadyAllocatesNothing: a request on connections that exist costs no memory,
// with routes, filters and a timeout.
func TestSteadyAllocatesNothing(t *testing.T) {
	g, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	var s *steady
	turn := make(chan struct{})
	signal := func() { turn <- struct{}{} }
	on := func(f func()) {
		l.Post(func() { f(); l.Post(signal) })
		<-turn
	}
	on(func() { s = newSteady(t, l) })
	first := func() { s.down.sink.OnData(s.request, false) }
	second := func() { s.up.sink.OnData(s.response, false) }
	on(first)
	on(func() {})
	on(second)
	one := func() {
		l.Post(first)
		l.Post(second)
		l.Post(signal)
		<-turn
	}
	for range 50 {
		one()
	}
	before := s.done
	if n := testing.AllocsPerRun(200, one); n != 0 && !race {
		t.Errorf("%v allocations a request", n)
	}
	on(func() {
		if n := s.done - before; n != 201 {
			t.Errorf("%d requests were served", n)
		}
	})
}

func BenchmarkSteady(b *testing.B) {
	g, err := poll.NewGroup(1)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	done := make(chan struct{})
	var s *steady
	l.Post(func() {
		s = newSteady(b, l)
		s.down.sink.OnData(s.request, false)
		l.Post(func() {
			s.up.sink.OnData(s.response, false)
			close(done)
		})
	})
	<-done
	b.ReportAllocs()
	b.ResetTimer()
	for n := b.N; n > 0; n -= 100 {
		done = make(chan struct{})
		l.Post(func() {
			for range min(n, 100) {
				s.down.sink.OnData(s.request, false)
				s.up.sink.OnData(s.response, false)
			}
			close(done)
		})
		<-done
	}
}
