package exchange_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// steady2 is steady in HTTP/2 on both sides. What the peers send is the same bytes each
// time, but for the numbers of streams.
type steady2 struct {
	steady
	requests, responses [2]steadyMessage // the first, and all others
	number              uint32
}

func (s *steady2) Pick(x *exchange.Exchange) (bool, *reason.Error) {
	x.Target = pool.Target{UID: "uid", HTTP2: true}
	return false, nil
}

// steadyMessage is the frames of a message, and where the numbers of streams are in it.
type steadyMessage struct {
	bytes []byte
	ids   []int
}

func (m *steadyMessage) on(stream uint32) []byte {
	for _, at := range m.ids {
		binary.BigEndian.PutUint32(m.bytes[at:], stream)
	}
	return m.bytes
}

// steadyFrames renders sections of headers, and of data where a section is empty: as the
// first message of a connection, and as a later one, whose fields the table has.
func steadyFrames(t testing.TB, body int, sections ...[]string) (all [2]steadyMessage) {
	t.Helper()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for i := range all {
		all[i] = steadyOne(t, body, &head, enc, sections)
	}
	return all
}

func steadyOne(t testing.TB, body int, head *bytes.Buffer, enc *hpack.Encoder, sections [][]string) (m steadyMessage) {
	t.Helper()
	var out bytes.Buffer
	f := http2.NewFramer(&out, nil)
	for i, s := range sections {
		last := i == len(sections)-1
		m.ids = append(m.ids, out.Len()+5)
		var err error
		if len(s) == 0 {
			err = f.WriteData(1, last, make([]byte, body))
		} else {
			head.Reset()
			for i := 0; i < len(s); i += 2 {
				_ = enc.WriteField(hpack.HeaderField{Name: s[i], Value: s[i+1], Sensitive: s[i] == ":path" || s[i] == "x-request-id"})
			}
			err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: last})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Credit for what this message is answered with.
	if err := f.WriteWindowUpdate(0, 4096); err != nil {
		t.Fatal(err)
	}
	m.bytes = out.Bytes()
	return m
}

// newSteady2 is called on the loop.
func newSteady2(t testing.TB, l *poll.Loop, grpc bool) *steady2 {
	s := &steady2{steady: *newSteady(t, l)}
	common := []string{
		":method", "GET", ":scheme", "http", ":authority", "shop.example.com", ":path", "/api/v1/items/12345?page=2", "user-agent", "curl/8.5.0",
		"x-request-id", "6f1f8c36-7c43-4f0a-a3f1-0f6c4a3c2f11", "cookie", "session=abcdef; theme=dark",
	}
	reply := []string{":status", "200", "server", "x", "content-type", "text/plain", "content-length", "1024"}
	if grpc {
		common[1] = "POST"
		s.requests = steadyFrames(t, 69, append(common, "content-type", "application/grpc", "te", "trailers"), nil)
		reply = []string{":status", "200", "content-type", "application/grpc"}
		s.responses = steadyFrames(t, 1024, reply, nil, []string{"grpc-status", "0"})
	} else {
		s.requests, s.responses = steadyFrames(t, 0, common), steadyFrames(t, 1024, reply, nil)
	}
	p := pool.New(l, pool.Config{Dial: func(_ *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
		l.Post(func() { done(s.up, nil) })
		return func() {}
	}})
	s.engine = exchange.NewEngine(l, exchange.Config{Pool: p})
	s.down, s.up = &fake{loop: l}, &fake{loop: l}
	codec.NewHTTP2Server(s.down, &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver { return s.engine.Accept(s, r) }})
	var settings bytes.Buffer
	if err := http2.NewFramer(&settings, nil).WriteSettings(); err != nil {
		t.Fatal(err)
	}
	s.down.sink.OnData(append([]byte(http2.ClientPreface), settings.Bytes()...), false)
	s.number = 1
	s.ask() // the first
	l.Post(func() { s.up.sink.OnData(settings.Bytes(), false) })
	return s
}

func (s *steady2) ask() {
	s.down.sink.OnData(s.requests[min(s.number/2, 1)].on(s.number), false)
}

func (s *steady2) answer() {
	s.up.sink.OnData(s.responses[min(s.number/2, 1)].on(s.number), false)
	s.number += 2
}

// TestSteadyHTTP2Allocations: a request of HTTP/2 or a call of gRPC on connections that exist
// costs no memory. AllocsPerRun rounds down what happens once in many requests.
func TestSteadyHTTP2Allocations(t *testing.T) {
	for _, grpc := range []bool{false, true} {
		g, err := poll.NewGroup(1)
		if err != nil {
			t.Fatal(err)
		}
		l := g.Loop(0)
		var s *steady2
		turn := make(chan struct{})
		signal := func() { turn <- struct{}{} }
		on := func(f func()) {
			l.Post(func() { f(); l.Post(signal) })
			<-turn
		}
		on(func() { s = newSteady2(t, l, grpc) })
		on(func() {})
		on(s.answer)
		ask, answer := s.ask, s.answer
		one := func() {
			l.Post(ask)
			l.Post(answer)
			l.Post(signal)
			<-turn
		}
		for range 50 {
			one()
		}
		n := testing.AllocsPerRun(200, one)
		if n > 0 && !race {
			t.Errorf("gRPC %v: %v allocations a request", grpc, n)
		}
		on(func() {
			if s.done != 252 {
				t.Errorf("gRPC %v: %d requests were served", grpc, s.done)
			}
		})
		g.Close()
	}
}

func BenchmarkSteadyHTTP2(b *testing.B) { benchmarkSteady2(b, false) }
func BenchmarkSteadyGRPC(b *testing.B)  { benchmarkSteady2(b, true) }

func benchmarkSteady2(b *testing.B, grpc bool) {
	g, err := poll.NewGroup(1)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	done := make(chan struct{})
	var s *steady2
	l.Post(func() {
		s = newSteady2(b, l, grpc)
		l.Post(func() { l.Post(func() { s.answer(); close(done) }) })
	})
	<-done
	b.ReportAllocs()
	b.ResetTimer()
	for n := b.N; n > 0; n -= 50 {
		done = make(chan struct{})
		l.Post(func() {
			for range min(n, 50) {
				s.ask()
				s.answer()
			}
			close(done)
		})
		<-done
	}
	if s.done < b.N {
		b.Fatalf("%d requests of %d", s.done, b.N)
	}
}
