// Package streamtest has streams for the tests of what runs on a stream.Conn: a pair
// of them in memory, which delivers in pieces as a test chooses, and a Sink that
// records.
package streamtest

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Options says how a Pair behaves. The zero value is a sensible pair.
type Options struct {
	// Window is how many bytes are delivered before Consumed (stream.Window), Bound
	// how many wait at the receiver before Write reports false (stream.WriteBound).
	Window, Bound int
	// Cut returns the length of the next piece to deliver of n bytes that may be
	// delivered: 1 to n. Nil delivers all of them at once.
	Cut func(n int) int
	// A, B are what Info returns at the two ends. A is the side that dialled: its
	// Dialed is set.
	A, B stream.Info
}

// Cuts returns a Cut that takes the sizes in turn, again and again.
func Cuts(sizes ...int) func(int) int {
	i := -1
	return func(n int) int {
		i = (i + 1) % len(sizes)
		return min(max(sizes[i], 1), n)
	}
}

// ErrReset is the detail of a stream that ends because the other end called Abort.
var ErrReset = errors.New("the other end of the pair was aborted")

// Pair returns the two ends of a connection in memory. Both belong to l, and are used
// on its goroutine. What one end writes reaches the Sink of the other in later turns,
// one piece a turn.
func Pair(l *poll.Loop, o Options) (a, b stream.Conn) {
	if o.Window == 0 {
		o.Window = stream.Window
	}
	if o.Bound == 0 {
		o.Bound = stream.WriteBound
	}
	if o.Cut == nil {
		o.Cut = func(n int) int { return n }
	}
	o.A.Dialed, o.B.Dialed = true, false
	x := &end{loop: l, opts: &o, info: o.A, credit: o.Window}
	y := &end{loop: l, opts: &o, info: o.B, credit: o.Window}
	x.peer, y.peer = y, x
	return x, y
}

// end is one end. It holds the bytes that it has not delivered yet.
type end struct {
	loop   *poll.Loop
	opts   *Options
	peer   *end
	sink   stream.Sink
	info   stream.Info
	in     []byte
	credit int

	paused, scheduled  bool
	blocked            bool // a Write reported false
	writeEnd           bool // CloseWrite was called
	inEnd, readEnd     bool // the other end called CloseWrite; and that was delivered
	reset, closed, out bool // the other end called Abort; OnClose is due or Abort was called; OnClose was called
}

func (e *end) Loop() *poll.Loop   { return e.loop }
func (e *end) Info() *stream.Info { return &e.info }

func (e *end) Bind(s stream.Sink) { e.sink = s; e.schedule() }
func (e *end) Pause()             { e.paused = true }
func (e *end) Resume()            { e.paused = false; e.schedule() }

func (e *end) Consumed(n int) {
	if n > e.opts.Window-e.credit {
		panic("streamtest: Consumed gives back more than OnData delivered")
	}
	e.credit += n
	e.schedule()
}

func (e *end) Write(p []byte) bool {
	if e.closed || e.writeEnd || e.reset {
		return !e.blocked
	}
	e.peer.in = append(e.peer.in, p...)
	e.peer.schedule()
	if len(e.peer.in) > e.opts.Bound {
		e.blocked = true
	}
	return !e.blocked
}

func (e *end) CloseWrite() {
	if e.closed || e.writeEnd {
		return
	}
	e.writeEnd = true
	e.peer.inEnd = true
	e.peer.schedule()
	e.schedule()
}

func (e *end) Abort(reason.Reason) {
	if e.closed {
		return
	}
	e.closed, e.out, e.sink, e.in = true, true, nil, nil
	e.peer.reset = true
	e.peer.schedule()
}

func (e *end) schedule() {
	if !e.scheduled && !e.out {
		e.scheduled = true
		e.loop.Post(e.step)
	}
}

// step makes one call of the Sink, and comes again while there are more.
func (e *end) step() {
	e.scheduled = false
	if e.sink == nil || e.out {
		return
	}
	if e.call() {
		e.schedule()
	}
}

// call reports whether it called the Sink.
func (e *end) call() bool {
	open := !e.paused && !e.readEnd
	switch {
	case open && len(e.in) > 0 && e.credit > 0:
		n := e.opts.Cut(min(len(e.in), e.credit))
		p := e.in[:n:n]
		e.in = e.in[n:]
		e.credit -= n
		e.peer.schedule() // it may have room again
		e.readEnd = e.inEnd && len(e.in) == 0
		e.sink.OnData(p, e.readEnd)
	case open && e.inEnd && len(e.in) == 0:
		e.readEnd = true
		e.sink.OnData(nil, true)
	case e.reset:
		e.finish(e.info.ResetReason(), ErrReset)
		return false
	case e.blocked && !e.writeEnd && len(e.peer.in) <= e.opts.Bound/2:
		e.blocked = false
		e.sink.OnWritable()
	case e.readEnd && e.writeEnd:
		e.finish(reason.OK, nil)
		return false
	default:
		return false
	}
	return true
}

func (e *end) finish(why reason.Reason, err error) {
	s := e.sink
	e.closed, e.out, e.sink, e.in = true, true, nil, nil
	s.OnClose(why, err)
}
