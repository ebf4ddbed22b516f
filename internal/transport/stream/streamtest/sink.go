package streamtest

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Sink records what happens on a Conn. Its fields are read on the loop.
type Sink struct {
	// Conn, if set, gets credit back for every byte at once.
	Conn stream.Conn
	// Data is what was delivered, Pieces the length of each piece.
	Data   []byte
	Pieces []int
	// End is set with the peer's end of stream, Closed with the last call.
	End, Closed bool
	Why         reason.Reason
	Err         error
	// Writable counts the calls of OnWritable.
	Writable int
	// On, if set, is called after each of the calls was recorded.
	On func()
}

// OnData implements stream.Sink.
func (s *Sink) OnData(p []byte, end bool) {
	s.check("OnData")
	if s.End || len(p) == 0 && !end {
		panic("streamtest: OnData after the end, or with nothing")
	}
	s.Data = append(s.Data, p...)
	s.Pieces = append(s.Pieces, len(p))
	s.End = end
	if s.Conn != nil && len(p) > 0 {
		s.Conn.Consumed(len(p))
	}
	s.on()
}

// OnWritable implements stream.Sink.
func (s *Sink) OnWritable() {
	s.check("OnWritable")
	s.Writable++
	s.on()
}

// OnClose implements stream.Sink.
func (s *Sink) OnClose(why reason.Reason, err error) {
	s.check("OnClose")
	s.Closed, s.Why, s.Err = true, why, err
	s.on()
}

func (s *Sink) check(call string) {
	if s.Closed {
		panic("streamtest: " + call + " after OnClose")
	}
}

func (s *Sink) on() {
	if s.On != nil {
		s.On()
	}
}

// patience bounds waits that only a fault makes long.
const patience = 60 * time.Second

// Loop returns a running loop, which is closed with the test.
func Loop(tb testing.TB) *poll.Loop {
	tb.Helper()
	g, err := poll.NewGroup(1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Close)
	return g.Loop(0)
}

// On runs f on the loop and waits for it.
func On(tb testing.TB, l *poll.Loop, f func()) {
	tb.Helper()
	done := make(chan struct{})
	if !l.Post(func() { defer close(done); f() }) {
		tb.Fatal("the loop was closed")
	}
	select {
	case <-done:
	case <-time.After(patience):
		tb.Fatalf("a posted function did not run in %s", patience)
	}
}

// Until waits until ok, called on the loop, reports true.
func Until(tb testing.TB, l *poll.Loop, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		done := false
		On(tb, l, func() { done = ok() })
		if done {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("not in %s: %s", patience, what)
		}
	}
}
