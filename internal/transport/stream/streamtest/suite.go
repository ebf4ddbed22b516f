package streamtest

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Ends are the two ends of one connection: what A writes reaches B, and the other
// way. They may belong to different loops.
type Ends struct {
	A, B stream.Conn
}

// Carrier makes connections for Suite.
type Carrier struct {
	// New returns a connection that is open, and whose ends have no Sink.
	New func(tb testing.TB) Ends
	// Bound is how many bytes may be on the way from a Sink that writes until it is
	// told to stop to a Sink that gives no credit.
	Bound int
	// AnyReset is set for a carrier that does not deliver what was written just
	// before Abort.
	AnyReset bool
	// Allocs is how many allocations a round trip of 20,000 bytes may cost; less than
	// 0 for any number. crypto/tls makes one for each read of a record.
	Allocs float64
}

// Suite tests what every stream.Conn promises, on connections of one carrier.
func Suite(t *testing.T, c Carrier) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Carrier, Ends)
	}{
		{"both ways", bothWays},
		{"half close", halfClose},
		{"half close of the side that accepted", func(t *testing.T, c Carrier, e Ends) { halfClose(t, c, Ends{e.B, e.A}) }},
		{"the end follows bytes that wait", endBehindBytes},
		{"back-pressure", backPressure},
		{"back-pressure of the side that accepted", func(t *testing.T, c Carrier, e Ends) { backPressure(t, c, Ends{e.B, e.A}) }},
		{"pause", pause},
		{"pause in the middle of data", pauseInside},
		{"reset in the middle of data", abortInside},
		{"hand-over in the middle of data", bindInside},
		{"bytes before a reset", lastBytes},
		{"bytes and a reset before a Sink", beforeBind},
		{"reset while nothing is taken", resetBlocked},
		{"write after the end", writeAfterEnd},
		{"close in the middle of data", closeInside},
		{"room before there is a Sink", roomBeforeBind},
		{"no allocations", noAllocations},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c, c.New(t)) })
	}
}

// pattern returns n bytes in which a loss or a swap shows.
func pattern(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// bind gives both ends a Sink that returns credit.
func bind(t *testing.T, e Ends) (a, b *Sink) {
	t.Helper()
	a, b = &Sink{Conn: e.A}, &Sink{Conn: e.B}
	On(t, e.A.Loop(), func() { e.A.Bind(a) })
	On(t, e.B.Loop(), func() { e.B.Bind(b) })
	return a, b
}

// feed writes p to c piece by piece, and waits whenever Write asks for it. The Sink
// of c is s. close ends the direction behind p.
func feed(t *testing.T, c stream.Conn, s *Sink, p []byte, piece int, end bool) {
	t.Helper()
	On(t, c.Loop(), func() {
		more := func() {
			for len(p) > 0 {
				n := min(piece, len(p))
				q := p[:n]
				if p = p[n:]; !c.Write(q) {
					return
				}
			}
			if end {
				end = false
				c.CloseWrite()
			}
		}
		before, seen := s.On, s.Writable
		s.On = func() {
			if before != nil {
				before()
			}
			if s.Writable > seen {
				seen = s.Writable
				more()
			}
		}
		more()
	})
}

// expect waits until s has the bytes p.
func expect(t *testing.T, c stream.Conn, s *Sink, p []byte) {
	t.Helper()
	Until(t, c.Loop(), "the bytes arrive", func() bool { return len(s.Data) >= len(p) || s.Closed })
	On(t, c.Loop(), func() {
		if !bytes.Equal(s.Data, p) {
			t.Errorf("%d bytes arrived, %d were sent, or they differ", len(s.Data), len(p))
		}
	})
}

// closed waits for the last call of s.
func closed(t *testing.T, c stream.Conn, s *Sink, why reason.Reason) {
	t.Helper()
	Until(t, c.Loop(), "the stream is closed", func() bool { return s.Closed })
	On(t, c.Loop(), func() {
		if s.Why != why {
			t.Errorf("%s closed with %s (%v), want %s", side(c), s.Why, s.Err, why)
		}
	})
}

func side(c stream.Conn) string {
	if c.Info().Dialed {
		return "the side that dialled"
	}
	return "the side that accepted"
}

func bothWays(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	there, back := pattern(3<<20), pattern(2<<20+1)
	feed(t, e.A, a, there, 777, true)
	feed(t, e.B, b, back, 100_000, true)
	expect(t, e.B, b, there)
	expect(t, e.A, a, back)
	closed(t, e.A, a, reason.OK)
	closed(t, e.B, b, reason.OK)
}

func halfClose(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	feed(t, e.A, a, []byte("question"), 3, true)
	Until(t, e.B.Loop(), "the end arrives", func() bool { return b.End })
	expect(t, e.B, b, []byte("question"))
	feed(t, e.B, b, []byte("answer"), 100, false)
	expect(t, e.A, a, []byte("answer"))
	On(t, e.A.Loop(), func() {
		if a.End || a.Closed {
			t.Error("the end of one direction ended the other one")
		}
	})
	On(t, e.B.Loop(), func() { e.B.CloseWrite(); e.B.CloseWrite() })
	closed(t, e.A, a, reason.OK)
	closed(t, e.B, b, reason.OK)
	On(t, e.A.Loop(), func() {
		if !a.End {
			t.Error("closed without the end of the peer")
		}
		e.A.Abort(reason.Internal) // nothing is left to abort
	})
}

func endBehindBytes(t *testing.T, _ Carrier, e Ends) {
	b := &Sink{}
	On(t, e.B.Loop(), func() { e.B.Bind(b) }) // gives no credit
	a := &Sink{Conn: e.A}
	p := pattern(stream.Window + stream.WriteBound/2)
	On(t, e.A.Loop(), func() {
		e.A.Bind(a)
		e.A.Write(p)
		e.A.CloseWrite()
	})
	Until(t, e.B.Loop(), "as much arrives as a Sink may hold", func() bool { return len(b.Data) > stream.Window/2 })
	On(t, e.B.Loop(), func() {
		if b.End {
			t.Error("the end came before the bytes")
		}
		b.Conn = e.B
		e.B.Consumed(len(b.Data))
	})
	Until(t, e.B.Loop(), "the end arrives", func() bool { return b.End })
	expect(t, e.B, b, p)
}

func backPressure(t *testing.T, c Carrier, e Ends) {
	a, b := &Sink{Conn: e.A}, &Sink{}
	On(t, e.B.Loop(), func() { e.B.Bind(b) })
	sent := 0
	piece := pattern(10_000)
	On(t, e.A.Loop(), func() { e.A.Bind(a) })
	// A turn of the writer's loop a time, until the carrier has asked to wait and
	// nothing moves any more.
	write := func() {
		for sent < 100<<20 {
			sent += len(piece)
			if !e.A.Write(piece) {
				return
			}
		}
		t.Error("the carrier took 100 MiB for a Sink that takes nothing")
	}
	seen := 0
	On(t, e.A.Loop(), func() {
		a.On = func() {
			if a.Writable > seen {
				seen = a.Writable
				write()
			}
		}
		write()
	})
	still, last := 0, -1
	Until(t, e.A.Loop(), "the carrier is full", func() bool {
		if still++; sent != last {
			still, last = 0, sent
		}
		return still > 50
	})
	var got int
	On(t, e.B.Loop(), func() { got = len(b.Data) })
	if sent > c.Bound {
		t.Errorf("%d bytes were taken for a Sink that gives no credit, the bound is %d", sent, c.Bound)
	}
	if got < stream.Window/2 {
		t.Errorf("%d bytes were delivered, the window is %d", got, stream.Window)
	}
	done := seen
	On(t, e.A.Loop(), func() { a.On = nil })
	On(t, e.B.Loop(), func() {
		b.Conn = e.B
		e.B.Consumed(len(b.Data))
	})
	Until(t, e.B.Loop(), "the rest arrives", func() bool { return len(b.Data) == sent })
	Until(t, e.A.Loop(), "there is room", func() bool { return a.Writable > done })
	On(t, e.B.Loop(), func() {
		for i := 0; i < len(b.Data); i += len(piece) {
			if !bytes.Equal(b.Data[i:i+len(piece)], piece) {
				t.Fatalf("the bytes from %d on differ", i)
			}
		}
	})
}

func pause(t *testing.T, _ Carrier, e Ends) {
	a, b := &Sink{Conn: e.A}, &Sink{Conn: e.B}
	On(t, e.B.Loop(), func() { e.B.Bind(b); e.B.Pause() })
	On(t, e.A.Loop(), func() { e.A.Bind(a); e.A.Write([]byte("later")); e.A.CloseWrite() })
	// The other direction shows that bytes have had their time.
	for range 3 {
		On(t, e.B.Loop(), func() { e.B.Write([]byte("x")) })
	}
	expect(t, e.A, a, []byte("xxx"))
	On(t, e.B.Loop(), func() {
		if len(b.Pieces) != 0 {
			t.Errorf("%q was delivered in a pause", b.Data)
		}
		e.B.Resume()
	})
	expect(t, e.B, b, []byte("later"))
	Until(t, e.B.Loop(), "the end arrives", func() bool { return b.End })
}

func pauseInside(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	pieces := 0
	On(t, e.B.Loop(), func() {
		b.On = func() { pieces++; e.B.Pause() }
	})
	p := pattern(stream.Window)
	feed(t, e.A, a, p, 5000, true)
	// Each Resume permits one call.
	for {
		var n int
		Until(t, e.B.Loop(), "a piece arrives", func() bool { n = pieces; return n > 0 })
		if n > 1 {
			t.Fatalf("%d pieces were delivered, the first one had asked for a pause", n)
		}
		end := false
		On(t, e.B.Loop(), func() {
			if end = b.End; !end {
				pieces = 0
				e.B.Resume()
			}
		})
		if end {
			break
		}
	}
	expect(t, e.B, b, p)
}

func abortInside(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	On(t, e.B.Loop(), func() {
		b.On = func() {
			b.On = nil
			e.B.Abort(reason.PolicyChanged)
			e.B.Abort(reason.PolicyChanged)
			b.Closed = true // every further call is a fault
		}
	})
	feed(t, e.A, a, pattern(stream.Window/2), 1000, false)
	closed(t, e.A, a, e.A.Info().ResetReason())
	On(t, e.B.Loop(), func() {
		if e.B.Write([]byte("x")); len(b.Pieces) != 1 {
			t.Errorf("%d calls", len(b.Pieces))
		}
		e.B.CloseWrite()
	})
}

func bindInside(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	second := &Sink{Conn: e.B}
	On(t, e.B.Loop(), func() {
		b.On = func() {
			e.B.Bind(second)
			b.Closed = true // every further call is a fault
		}
	})
	p := pattern(300_000)
	feed(t, e.A, a, p[:1000], 1000, false)
	Until(t, e.B.Loop(), "the first bytes arrive", func() bool { return len(b.Data) > 0 })
	feed(t, e.A, a, p[1000:], 7000, true)
	Until(t, e.B.Loop(), "the end arrives", func() bool { return second.End })
	On(t, e.B.Loop(), func() {
		if got := slices.Concat(b.Data, second.Data); !bytes.Equal(got, p) {
			t.Errorf("%d bytes arrived, %d were sent, or they differ", len(got), len(p))
		}
		e.B.CloseWrite()
	})
	closed(t, e.B, second, reason.OK)
}

func lastBytes(t *testing.T, c Carrier, e Ends) {
	a, b := bind(t, e)
	p := pattern(stream.Window / 2)
	On(t, e.A.Loop(), func() {
		e.A.Write(p)
		if !c.AnyReset {
			e.A.Abort(reason.UpstreamReset) // passes a reset on
			a.Closed = true
		}
	})
	if c.AnyReset {
		expect(t, e.B, b, p)
		On(t, e.A.Loop(), func() { e.A.Abort(reason.UpstreamReset); a.Closed = true })
	}
	closed(t, e.B, b, e.B.Info().ResetReason())
	expect(t, e.B, b, p)
	On(t, e.B.Loop(), func() {
		if b.End || b.Err == nil {
			t.Errorf("end of stream %t, error %v", b.End, b.Err)
		}
	})
}

func beforeBind(t *testing.T, c Carrier, e Ends) {
	a := &Sink{Conn: e.A}
	p := pattern(1000)
	On(t, e.A.Loop(), func() {
		e.A.Bind(a)
		e.A.Write(p)
	})
	On(t, e.A.Loop(), func() { e.A.Abort(reason.UpstreamReset); a.Closed = true })
	b := &Sink{Conn: e.B}
	On(t, e.B.Loop(), func() {
		e.B.Bind(b)
		if len(b.Pieces) > 0 || b.Closed {
			t.Error("Bind calls the Sink")
		}
	})
	closed(t, e.B, b, e.B.Info().ResetReason())
	if !c.AnyReset {
		expect(t, e.B, b, p)
	}
}

// A Sink that takes nothing has to hear of a reset too. It may be given time first.
func resetBlocked(t *testing.T, _ Carrier, e Ends) {
	b := &Sink{}
	On(t, e.B.Loop(), func() { e.B.Bind(b); e.B.Pause() })
	a := &Sink{Conn: e.A}
	On(t, e.A.Loop(), func() {
		e.A.Bind(a)
		e.A.Write(pattern(1000))
	})
	On(t, e.A.Loop(), func() { e.A.Abort(reason.Internal); a.Closed = true })
	closed(t, e.B, b, e.B.Info().ResetReason())
}

func writeAfterEnd(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	On(t, e.A.Loop(), func() {
		e.A.Write([]byte("all"))
		e.A.CloseWrite()
		e.A.Write([]byte("dropped"))
		e.A.CloseWrite()
	})
	Until(t, e.B.Loop(), "the end arrives", func() bool { return b.End })
	On(t, e.B.Loop(), func() { e.B.CloseWrite() })
	closed(t, e.A, a, reason.OK)
	closed(t, e.B, b, reason.OK)
	expect(t, e.B, b, []byte("all"))
	for _, c := range []stream.Conn{e.A, e.B} {
		On(t, c.Loop(), func() {
			c.Write([]byte("dropped"))
			c.CloseWrite()
			c.Pause()
			c.Resume()
			c.Abort(reason.OK)
		})
	}
}

// The last call may come while a Sink is in the middle of its data.
func closeInside(t *testing.T, _ Carrier, e Ends) {
	a, b := bind(t, e)
	On(t, e.B.Loop(), func() {
		b.On = func() {
			if !b.Closed && b.End {
				e.B.Write([]byte("bye"))
				e.B.CloseWrite()
				if b.Closed {
					t.Error("CloseWrite calls the Sink")
				}
			}
		}
	})
	feed(t, e.A, a, pattern(1000), 100, true)
	closed(t, e.B, b, reason.OK)
	closed(t, e.A, a, reason.OK)
	expect(t, e.A, a, []byte("bye"))
}

// A writer that was asked to wait before it had a Sink is told of the room.
func roomBeforeBind(t *testing.T, c Carrier, e Ends) {
	b := &Sink{Conn: e.B}
	sent := 0
	On(t, e.A.Loop(), func() {
		p := pattern(10_000)
		for e.A.Write(p) {
			sent += len(p)
		}
		sent += len(p)
	})
	On(t, e.B.Loop(), func() { e.B.Bind(b) })
	Until(t, e.B.Loop(), "everything arrives", func() bool { return len(b.Data) == sent })
	a := &Sink{Conn: e.A}
	On(t, e.A.Loop(), func() { e.A.Bind(a) })
	Until(t, e.A.Loop(), "there is room", func() bool { return a.Writable > 0 })
}

// echoSink sends everything back, and counter waits for it.
type echoSink struct {
	Sink
	conn stream.Conn
}

func (s *echoSink) OnData(p []byte, _ bool) {
	s.conn.Write(p)
	s.conn.Consumed(len(p))
}

type counter struct {
	Sink
	conn stream.Conn
	left int
	done chan struct{}
}

func (s *counter) OnData(p []byte, _ bool) {
	s.conn.Consumed(len(p))
	if s.left -= len(p); s.left == 0 {
		s.done <- struct{}{}
	}
}

func noAllocations(t *testing.T, c Carrier, e Ends) {
	if c.Allocs < 0 || race {
		return
	}
	p := pattern(20_000)
	a := &counter{conn: e.A, done: make(chan struct{})}
	On(t, e.A.Loop(), func() { e.A.Bind(a) })
	On(t, e.B.Loop(), func() { e.B.Bind(&echoSink{conn: e.B}) })
	write := func() { a.left = len(p); e.A.Write(p) }
	l := e.A.Loop()
	round := func() {
		l.Post(write)
		<-a.done
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(200, round); n > c.Allocs {
		t.Errorf("%.1f allocations for one round trip", n)
	}
}
