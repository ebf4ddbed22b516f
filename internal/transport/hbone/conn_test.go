package hbone

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

// soon has tests wait less for receivers that take nothing.
func soon(_ *world, p *PoolConfig, s *ServerConfig) {
	p.Linger, s.Linger = 200*time.Millisecond, 200*time.Millisecond
}

// openStream opens a connection through the pool that both ends handle as streams.
func openStream(w *world) streamtest.Ends {
	w.tb.Helper()
	far := make(chan bytestream.Conn, 1)
	w.handle(func(r *Request) { far <- r.Stream(ResponseHeader{Baggage: "b"}) })
	near := make(chan bytestream.Conn, 1)
	o := w.streamOpen(near)
	w.pool.Open(o)
	return streamtest.Ends{A: get(w.tb, near, "the stream is open"), B: get(w.tb, far, "the request")}
}

func (w *world) streamOpen(up chan<- bytestream.Conn) *Open {
	return &Open{
		Key: w.key(), App: -1, Header: Header{Authority: "10.0.0.1:80"},
		OnStream: func(s bytestream.Conn, _ ResponseHeader) { up <- s },
		OnFail:   func(err *reason.Error, status int) { w.failures <- failure{err, status} },
		OnUp:     func(*relay.Flow, ResponseHeader) { w.tb.Error("OnUp of a stream") },
	}
}

func TestStreams(t *testing.T) {
	streamtest.Suite(t, streamtest.Carrier{
		New: func(tb testing.TB) streamtest.Ends { return openStream(newWorld(tb, echo, soon)) },
		// Two windows that may have grown, and the buffers of two sockets and two
		// tunnels.
		Bound: 24 << 20, Allocs: 10,
	})
}

// TLS over a stream of a tunnel: what a program or another network says in private.
func TestTLSOverStreams(t *testing.T) {
	streamtest.Suite(t, streamtest.Carrier{
		New: func(tb testing.TB) streamtest.Ends {
			w := newWorld(tb, echo, soon)
			e := openStream(w)
			type result struct {
				c   bytestream.Conn
				err error
			}
			res := [2]chan result{make(chan result, 1), make(chan result, 1)}
			for i, c := range []bytestream.Conn{e.A, e.B} {
				conf := w.clientConf()
				if i == 1 {
					conf = &tls.Config{GetConfigForClient: w.server.cfg.TLS}
				}
				streamtest.On(tb, c.Loop(), func() {
					bytestream.TLS(tb.Context(), c, conf, i == 1, func(c bytestream.Conn, err error) { res[i] <- result{c, err} })
				})
			}
			a, b := get(tb, res[0], "the client's handshake"), get(tb, res[1], "the server's handshake")
			if a.err != nil || b.err != nil {
				tb.Fatal(a.err, b.err)
			}
			return streamtest.Ends{A: a.c, B: b.c}
		},
		Bound: 24 << 20, Allocs: 30,
	})
}

// The same with windows of 20 kB, frames of 16 KiB and nothing that grows.
func TestStreamsWithSmallWindows(t *testing.T) {
	small := func(_ *world, p *PoolConfig, s *ServerConfig) {
		p.Windows = Windows{Stream: 20_000, MaxStream: 20_000, Conn: 70_000, Frame: 16 << 10}
		s.Windows = p.Windows
	}
	e := openStream(newWorld(t, echo, soon, small))
	p := bytes.Repeat([]byte("0123456789abcdef-"), 100_000)
	sinks := map[bytestream.Conn]*streamtest.Sink{}
	for _, c := range []bytestream.Conn{e.A, e.B} {
		s := &streamtest.Sink{Conn: c}
		sinks[c] = s
		streamtest.On(t, c.Loop(), func() {
			c.Bind(s)
			c.Write(p) // far over the bound: it waits
			c.CloseWrite()
		})
	}
	for c, s := range sinks {
		streamtest.Until(t, c.Loop(), "the stream is closed", func() bool { return s.Closed })
		if !bytes.Equal(s.Data, p) || s.Why != reason.OK {
			t.Errorf("%d bytes of %d, closed with %s, %v", len(s.Data), len(p), s.Why, s.Err)
		}
	}
}

// What is written in one turn is one frame, the end included.
func TestWritesOfATurnAreOneFrame(t *testing.T) {
	e := openStream(newWorld(t, echo, soon))
	b := &streamtest.Sink{Conn: e.B}
	streamtest.On(t, e.B.Loop(), func() { e.B.Bind(b) })
	streamtest.On(t, e.A.Loop(), func() {
		for _, p := range []string{"HTTP/1.1 200 OK\r\n", "Content-Length: 4\r\n\r\n", "body"} {
			e.A.Write([]byte(p))
		}
		e.A.CloseWrite()
	})
	streamtest.Until(t, e.B.Loop(), "the end arrives", func() bool { return b.End })
	if len(b.Pieces) != 1 || b.Pieces[0] != 42 {
		t.Errorf("pieces %v", b.Pieces)
	}
}

func TestStreamInfo(t *testing.T) {
	w := newWorld(t, echo, soon)
	e := openStream(w)
	a, b := e.A.Info(), e.B.Info()
	if !a.Dialed || b.Dialed || a.Peer != bob || b.Peer != alice || a.TLS == nil || b.TLS == nil {
		t.Errorf("client %+v, server %+v", a, b)
	}
	if a.Remote != w.tunnelAddr || b.Local != w.tunnelAddr || a.Local != b.Remote {
		t.Errorf("client %s to %s, server %s to %s", a.Local, a.Remote, b.Remote, b.Local)
	}
}

// A stream at one end and a socket at the other.
func TestStreamToSocket(t *testing.T) {
	w := newWorld(t, echo, soon)
	near := make(chan bytestream.Conn, 1)
	w.pool.Open(w.streamOpen(near))
	c := get(t, near, "the stream is open")
	s := &streamtest.Sink{Conn: c}
	p := bytes.Repeat([]byte("abcdefghijk"), 100_000)
	streamtest.On(t, c.Loop(), func() { c.Bind(s); c.Write(p); c.CloseWrite() })
	streamtest.Until(t, c.Loop(), "everything comes back", func() bool { return s.Closed })
	if !bytes.Equal(s.Data, p) || s.Why != reason.OK {
		t.Errorf("%d bytes of %d, closed with %s, %v", len(s.Data), len(p), s.Why, s.Err)
	}
	if r := get(t, w.closedServer, "the server's flow ends"); r.Reason != reason.OK {
		t.Errorf("the server's flow ended with %s", r.Reason)
	}
}

// A socket at one end and a stream at the other, which has to get what came with the
// request.
func TestSocketToStream(t *testing.T) {
	w := newWorld(t, echo, soon)
	got := make(chan string, 1)
	w.handle(func(r *Request) {
		c := r.Stream(ResponseHeader{})
		s := &streamtest.Sink{Conn: c}
		s.On = func() {
			if s.End {
				got <- string(s.Data)
				c.Write([]byte("answer"))
				c.CloseWrite()
				s.On = nil
			}
		}
		r.Loop.AfterFunc(20*time.Millisecond, func() { c.Bind(s) })
	})
	c := w.connect()
	_, _ = c.Write([]byte("question"))
	_ = c.CloseWrite()
	if q := get(t, got, "the question"); q != "question" {
		t.Errorf("got %q", q)
	}
	if a, err := io.ReadAll(c); string(a) != "answer" || err != nil {
		t.Errorf("answer %q, %v", a, err)
	}
	if r := get(t, w.closed, "the flow ends"); r.Reason != reason.OK {
		t.Errorf("the flow ended with %s", r.Reason)
	}
	_ = c.Close()
}

// The tunnel's end is the end of its streams, with its reason.
func TestTunnelEndsUnderStreams(t *testing.T) {
	w := newWorld(t, echo, soon)
	e := openStream(w)
	a, b := &streamtest.Sink{Conn: e.A}, &streamtest.Sink{Conn: e.B}
	streamtest.On(t, e.A.Loop(), func() { e.A.Bind(a); e.A.Write([]byte("last")) })
	streamtest.On(t, e.B.Loop(), func() { e.B.Bind(b) })
	streamtest.Until(t, e.B.Loop(), "bytes arrive", func() bool { return len(b.Data) == 4 })
	w.pool.Close(reason.WorkloadRemoved)
	streamtest.Until(t, e.A.Loop(), "the client's end is closed", func() bool { return a.Closed })
	streamtest.Until(t, e.B.Loop(), "the server's end is closed", func() bool { return b.Closed })
	if a.Why != reason.WorkloadRemoved || b.Why != reason.TunnelClosed {
		t.Errorf("closed with %s and %s", a.Why, b.Why)
	}
}

// A client that gives up before the answer, and a server that refuses.
func TestStreamsThatDoNotOpen(t *testing.T) {
	w := newWorld(t, echo, soon, func(_ *world, p *PoolConfig, _ *ServerConfig) { p.AnswerTimeout = 50 * time.Millisecond })
	requests := make(chan *Request, 10)
	w.handle(func(r *Request) { requests <- r })
	near := make(chan bytestream.Conn, 1)
	w.pool.Open(w.streamOpen(near))
	r := get(t, requests, "the request")
	if f := get(t, w.failures, "the client gives up"); f.err.Reason != reason.ConnectTimeout {
		t.Errorf("failed with %v", f.err)
	}
	var s streamtest.Sink
	streamtest.Until(t, r.Loop, "the server sees it", r.Gone)
	streamtest.On(t, r.Loop, func() { r.Stream(ResponseHeader{}).Bind(&s) })
	streamtest.Until(t, r.Loop, "the stream is closed", func() bool { return s.Closed })
	if s.Why != reason.DownstreamReset || !errors.Is(s.Err, tunnel.ErrGone) {
		t.Errorf("closed with %s, %v", s.Why, s.Err)
	}
	w.handle(func(r *Request) { r.Refuse(503, ResponseHeader{}) })
	w.pool.Open(w.streamOpen(near))
	if f := get(t, w.failures, "the refusal"); f.status != 503 || f.err.Reason != reason.TunnelRefused {
		t.Errorf("failed with %v, %d", f.err, f.status)
	}
}

// The peer sees the code of the table.
func TestResetCodes(t *testing.T) {
	for why, code := range map[reason.Reason]h2.ErrCode{
		reason.OK: h2.NoError, reason.DownstreamReset: h2.ConnectError, reason.PolicyChanged: h2.Cancel,
		reason.ResourceExhausted: h2.EnhanceYourCalm, reason.Internal: h2.InternalError,
	} {
		t.Run(why.String(), func(t *testing.T) {
			e := openStream(newWorld(t, echo, soon))
			var b streamtest.Sink
			streamtest.On(t, e.B.Loop(), func() { e.B.Bind(&b) })
			streamtest.On(t, e.A.Loop(), func() { e.A.Abort(why) })
			streamtest.Until(t, e.B.Loop(), "the stream is closed", func() bool { return b.Closed })
			if b.Err == nil || !strings.HasSuffix(b.Err.Error(), " with "+code.String()) || b.Why != reason.DownstreamReset {
				t.Errorf("closed with %s, %v, want %s", b.Why, b.Err, code)
			}
		})
	}
}

// Streams that ask for a loop have a tunnel there, whatever the pool would choose;
// connections of that loop share it.
func TestTunnelPerLoop(t *testing.T) {
	w := newWorld(t, echo, soon, loops(2))
	up := make(chan bytestream.Conn, 10)
	var all []bytestream.Conn
	for i := range 6 {
		o := w.streamOpen(up)
		o.Loop = w.near.Loop(i % 2)
		w.pool.Open(o)
		c := get(t, up, "the stream is open")
		if c.Loop() != o.Loop {
			t.Errorf("stream %d is on loop %d", i, c.Loop().Index())
		}
		all = append(all, c)
	}
	if n := w.dials.Load(); n != 2 {
		t.Errorf("%d tunnels for two loops", n)
	}
	for _, c := range all {
		s := &streamtest.Sink{Conn: c}
		streamtest.On(t, c.Loop(), func() { c.Bind(s); c.Write([]byte("x")); c.CloseWrite() })
		streamtest.Until(t, c.Loop(), "the echo", func() bool { return s.Closed })
	}
	if n := w.pool.streams(t); n != 0 {
		t.Errorf("%d streams are counted after their end", n)
	}
}

// streams is how many streams the homes of all keys count.
func (p *Pool) streams(t *testing.T) int {
	n := 0
	for _, s := range p.shards {
		streamtest.On(t, s.loop, func() {
			for _, e := range s.entries {
				for _, r := range e.refs {
					n += r.active
				}
			}
		})
	}
	return n
}

// What a Sink does not take counts against the budget of queued bytes. The stream for
// which there is no room ends, and the budget comes back.
func TestStreamsAndTheBudgetOfQueues(t *testing.T) {
	q := &ample{of: 1 << 20}
	w := newWorld(t, echo, soon, func(_ *world, _ *PoolConfig, s *ServerConfig) {
		s.Queues = q
		s.Windows = Windows{Stream: 4 << 20}
	})
	e := openStream(w)
	b := &streamtest.Sink{Conn: e.B}
	streamtest.On(t, e.B.Loop(), func() { e.B.Bind(b); e.B.Pause() })
	a := &streamtest.Sink{Conn: e.A}
	streamtest.On(t, e.A.Loop(), func() { e.A.Bind(a); e.A.Write(make([]byte, 3<<20)) })
	streamtest.Until(t, e.B.Loop(), "the stream is closed", func() bool { return b.Closed })
	if b.Why != reason.ResourceExhausted {
		t.Errorf("closed with %s, %v", b.Why, b.Err)
	}
	streamtest.Until(t, e.A.Loop(), "the client sees it", func() bool { return a.Closed })
	if n := q.used.Load(); n != 0 {
		t.Errorf("%d bytes of the budget are missing", n)
	}
}

// Streams and flows share a tunnel, and a stream that takes nothing harms no other.
func TestStreamsAndFlowsShareATunnel(t *testing.T) {
	w := newWorld(t, echo, soon)
	e := openStream(w)
	a, b := &streamtest.Sink{Conn: e.A}, &streamtest.Sink{}
	streamtest.On(t, e.B.Loop(), func() { e.B.Bind(b) })
	streamtest.On(t, e.A.Loop(), func() { e.A.Bind(a); e.A.Write(make([]byte, 10<<20)) })
	w.handle(w.connectApp)
	c := w.connect()
	buf := make([]byte, 100_000)
	for range 20 {
		if !pingPong(c, buf) {
			t.Fatal("no echo")
		}
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
	_ = c.Close()
}

// openStreams opens two streams of one tunnel.
func openStreams(w *world) (a, b [2]bytestream.Conn) {
	for i := range 2 {
		e := openStream(w)
		a[i], b[i] = e.A, e.B
	}
	if n := w.dials.Load(); n != 1 {
		w.tb.Fatalf("%d tunnels", n)
	}
	return a, b
}

// While a tunnel delivers what one read has brought, a Sink ends another stream for
// which there is more in it, its own one, or the tunnel.
func TestStreamsThatEndWhileTheTunnelDelivers(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(w *world, b [2]bytestream.Conn)
		// open is how many of the two streams of the server are left.
		open int
	}{
		{"the other stream", func(_ *world, b [2]bytestream.Conn) { b[1].Abort(reason.PolicyChanged) }, 1},
		{"both streams", func(_ *world, b [2]bytestream.Conn) {
			b[0].Abort(reason.PolicyChanged)
			b[1].Abort(reason.Internal)
		}, 0},
		{"the tunnel", func(w *world, _ [2]bytestream.Conn) {
			w.server.shards[0].tunnels[0].t.Fail(reason.WorkloadRemoved, nil)
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, echo, soon)
			a, b := openStreams(w)
			s := [2]*streamtest.Sink{{Conn: b[0]}, {Conn: b[1]}}
			var sinks [2]*streamtest.Sink
			streamtest.On(t, b[0].Loop(), func() {
				b[0].Bind(s[0])
				b[1].Bind(s[1])
				s[0].On = func() {
					s[0].On = nil
					test.end(w, b)
				}
			})
			streamtest.On(t, a[0].Loop(), func() {
				for i := range 2 {
					sinks[i] = &streamtest.Sink{Conn: a[i]}
					a[i].Bind(sinks[i])
					a[i].Write([]byte("one turn")) // both leave together
				}
			})
			streamtest.Until(t, b[0].Loop(), "the first Sink ends it", func() bool { return s[0].On == nil && len(s[0].Data) > 0 })
			streamtest.Until(t, a[0].Loop(), "the client sees it", func() bool {
				n := 0
				for _, x := range sinks {
					if !x.Closed {
						n++
					}
				}
				return n == test.open
			})
			streamtest.On(t, b[0].Loop(), func() {
				if len(s[1].Data) > 0 && test.name != "the tunnel" {
					t.Errorf("%q was delivered after Abort", s[1].Data)
				}
				if test.name == "the tunnel" && (s[1].Why != reason.WorkloadRemoved || s[0].Why != reason.WorkloadRemoved) {
					t.Errorf("closed with %s and %s", s[0].Why, s[1].Why)
				}
			})
		})
	}
}

// A tunnel that is drained goes on for its streams, and ends with the last one.
func TestDrainWaitsForStreams(t *testing.T) {
	w := newWorld(t, echo, soon)
	e := openStream(w)
	a, b := &streamtest.Sink{Conn: e.A}, &streamtest.Sink{Conn: e.B}
	streamtest.On(t, e.A.Loop(), func() { e.A.Bind(a) })
	streamtest.On(t, e.B.Loop(), func() { e.B.Bind(b) })
	w.server.Drain()
	w.pool.Drain()
	near := make(chan bytestream.Conn, 1)
	w.pool.Open(w.streamOpen(near))
	if f := get(t, w.failures, "a new stream fails"); f.err.Reason != reason.Draining {
		t.Errorf("failed with %v", f.err)
	}
	streamtest.On(t, e.A.Loop(), func() { e.A.Write([]byte("still there")); e.A.CloseWrite() })
	streamtest.Until(t, e.B.Loop(), "bytes arrive", func() bool { return b.End })
	if n := w.tunnels.Load(); n != 1 {
		t.Errorf("%d tunnels while one has a stream", n)
	}
	streamtest.On(t, e.B.Loop(), func() { e.B.CloseWrite() })
	streamtest.Until(t, e.A.Loop(), "the stream ends", func() bool { return a.Closed })
	if a.Why != reason.OK || string(b.Data) != "still there" {
		t.Errorf("closed with %s, %q arrived", a.Why, b.Data)
	}
	eventually(t, "the tunnel ends", func() bool { return w.tunnels.Load() == 0 })
}

func BenchmarkStreamEcho(b *testing.B) {
	w := newWorld(b, func(net.Conn) {}, func(w *world, _ *PoolConfig, _ *ServerConfig) { w.quiet = true })
	e := openStream(w)
	streamtest.On(b, e.B.Loop(), func() { e.B.Bind(&bouncer{Conn: e.B}) })
	done := make(chan struct{})
	a := &bouncer{Conn: e.A, left: 1024, done: done}
	streamtest.On(b, e.A.Loop(), func() { e.A.Bind(a) })
	p := make([]byte, 1024)
	write := func() { a.left = len(p); e.A.Write(p) }
	b.ReportAllocs()
	for b.Loop() {
		e.A.Loop().Post(write)
		<-done
	}
}

// bouncer sends everything back, or counts what has come back.
type bouncer struct {
	streamtest.Sink
	Conn bytestream.Conn
	left int
	done chan struct{}
}

func (s *bouncer) OnData(p []byte, _ bool) {
	s.Conn.Consumed(len(p))
	if s.done == nil {
		s.Conn.Write(p)
		return
	}
	if s.left -= len(p); s.left == 0 {
		s.done <- struct{}{}
	}
}

// Bulk over one stream: bytes per second.
func BenchmarkStreamBulk(b *testing.B) {
	const piece = 256 << 10
	w := newWorld(b, func(net.Conn) {}, func(w *world, _ *PoolConfig, _ *ServerConfig) { w.quiet = true })
	e := openStream(w)
	done := make(chan struct{})
	sink := &bouncer{Conn: e.B, left: piece * b.N, done: done}
	streamtest.On(b, e.B.Loop(), func() { e.B.Bind(sink) })
	src := &source{conn: e.A, left: b.N, piece: make([]byte, piece)}
	b.SetBytes(piece)
	b.ReportAllocs()
	cpu := processorTime()
	b.ResetTimer()
	e.A.Loop().Post(func() { e.A.Bind(src); src.OnWritable() })
	<-done
	b.StopTimer()
	b.ReportMetric((processorTime()-cpu).Seconds()/(float64(b.N)*piece/1e9), "cpu-s/GB")
}

type source struct {
	streamtest.Sink
	conn  bytestream.Conn
	left  int
	piece []byte
}

func (s *source) OnWritable() {
	for s.left > 0 {
		s.left--
		if !s.conn.Write(s.piece) {
			return
		}
	}
}
