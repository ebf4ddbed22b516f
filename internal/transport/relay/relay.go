package relay

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// readChunk is read at once into the loop's buffer. A socket that fills it
	// is a bulk transfer and goes on by splice, which copies nothing but costs
	// two calls and a pipe.
	readChunk = 64 << 10
	// smallFill is a splice so short that copying is cheaper.
	smallFill = 8 << 10
	// turnBytes is what one direction may move in one turn before others get
	// theirs.
	turnBytes = 1 << 20
)

// Pair is two connected, non-blocking TCP sockets and what to do with them.
type Pair struct {
	// Down is the socket of the side that initiated the connection, Up the
	// other. Both belong to the flow from Start on.
	Down, Up int
	// Prefix is sent to Up first (a PROXY protocol header). It is not counted.
	Prefix []byte
	// Hold, when set, keeps the bytes of Down back until it has decided about the first of
	// them. Those of Up go on.
	Hold *Hold
	// OnClose is called on the loop exactly once, when the flow has let go of
	// both sockets. It may be nil.
	OnClose func(*Flow, Result)
}

// pair is a plain flow: bytes go from each side to the other. What a side
// cannot take yet stops the reading of its source, so a flow holds at most one
// chunk or one pipe per direction, and nothing when it is idle.
type pair struct {
	Flow
	down, up side
	onClose  func(*Flow, Result)
	linger   *poll.Timer
	hold     *Hold
	ended    bool
}

// side is one socket, and what is on its way to it: in the socket's queue, or in pipe.
type side struct {
	sock poll.Sock
	pair *pair
	pipe poll.Pipe

	eof  bool // its end of stream was read
	shut bool // it was sent the end of stream
	bulk bool // its bytes are spliced
}

// Start relays bytes both ways until both sides have ended, carrying end of
// stream and reset from each to the other. It is called on the loop's
// goroutine. OnClose is never called inline.
func Start(l *poll.Loop, p Pair) *Flow {
	f := &pair{onClose: p.OnClose, hold: p.Hold}
	f.Init(l, f)
	f.down.pair, f.up.pair = f, f
	err := f.down.sock.Watch(l, p.Down, &f.down)
	if err != nil {
		poll.ResetFD(p.Down)
	}
	if uerr := f.up.sock.Watch(l, p.Up, &f.up); uerr != nil {
		poll.ResetFD(p.Up)
		err = uerr
	}
	if len(p.Prefix) > 0 {
		f.up.sock.Queue(p.Prefix)
	}
	if err != nil {
		l.Post(func() { f.end(reason.ResourceExhausted, err) })
	}
	return &f.Flow
}

// Ready remembers what happened and moves what can be moved.
func (s *side) Ready(ev poll.Events) {
	s.sock.Note(ev)
	if s.sock.Urgent() {
		s.bulk = false // splices do not pass the urgent byte
	}
	if ev&poll.Failed != 0 {
		// The bytes before the reset may be stuck behind a peer that does not
		// read: not for ever.
		s.pair.lingerBlocked(s)
	}
	other := s.pair.other(s)
	s.pair.move(s, other)
	if !s.pair.ended {
		s.pair.move(other, s)
	}
}

func (f *pair) other(s *side) *side {
	if s == &f.down {
		return &f.up
	}
	return &f.down
}

// resetReason says who reset the connection when s did.
func (f *pair) resetReason(s *side) reason.Reason {
	if s == &f.down {
		return reason.DownstreamReset
	}
	return reason.UpstreamReset
}

func (f *pair) lingerBlocked(s *side) {
	if f.linger == nil && !f.ended {
		f.linger = f.Loop().AfterFunc(LingerBlocked, func() { f.end(f.resetReason(s), nil) })
	}
}

func (f *pair) count(from *side, n int) {
	if from == &f.down {
		f.AddSent(n)
	} else {
		f.AddReceived(n)
	}
}

// move carries bytes from one side to the other until one of them would block.
func (f *pair) move(from, to *side) {
	for budget := turnBytes; budget > 0; {
		if !f.flush(to) {
			return
		}
		if to.sock.Broken() {
			return // the other direction ends the flow when it is drained
		}
		if f.hold != nil && from == &f.down && !f.release() {
			return
		}
		if from.eof {
			f.shutdown(to)
			return
		}
		if !from.sock.Readable() {
			return
		}
		n, err := f.read(from, to)
		switch {
		case poll.IsAgain(err):
		case err != nil:
			f.end(f.resetReason(from), err)
			return
		case n == 0:
			from.eof = true
		default:
			budget -= n
			f.count(from, n)
		}
		if f.ended {
			return
		}
	}
	from.sock.Again(poll.Readable)
}

// read takes bytes from one side and gives them to the other or its queue,
// which is empty. It returns like poll.Read.
func (f *pair) read(from, to *side) (int, error) {
	if from.bulk {
		p, err := f.Loop().Pipe()
		if err == nil {
			return f.splice(p, from, to)
		}
		from.bulk = false // out of descriptors: copying needs none
	}
	p := f.Loop().Buffer()[:readChunk]
	n, err := from.sock.Read(p)
	if err != nil || n == 0 {
		return n, err
	}
	from.bulk = n == len(p) && !from.sock.Urgent()
	if to.sock.Send(p[:n]) != nil {
		f.breakSide(to)
	}
	return n, nil
}

// splice is read through a pipe. A pipe that is not empty afterwards stays
// with the side it is for.
func (f *pair) splice(p poll.Pipe, from, to *side) (int, error) {
	n, err := from.sock.Fill(&p)
	if n > 0 {
		to.pipe = p
		f.flush(to)
	} else {
		f.Loop().PutPipe(p)
	}
	if n > 0 && n < smallFill {
		from.bulk = false
	}
	return n, err
}

// flush sends what waits for s; it reports whether nothing does any more.
func (f *pair) flush(s *side) bool {
	if s.sock.Broken() {
		return true // nothing waits any more
	}
	if s.sock.Flush() != nil {
		f.breakSide(s)
		return true
	}
	if s.sock.Queued() > 0 {
		return false
	}
	for s.pipe.Len > 0 {
		if _, err := s.sock.Drain(&s.pipe); poll.IsAgain(err) {
			return false
		} else if err != nil {
			f.breakSide(s)
			return true
		}
	}
	f.Loop().PutPipe(s.pipe)
	s.pipe = poll.Pipe{}
	return true
}

// breakSide lets go of what was for s, which was reset. What s sent before may still
// wait in the kernel: it is delivered, and then the flow ends.
func (f *pair) breakSide(s *side) {
	s.sock.DropQueue()
	f.Loop().PutPipe(s.pipe)
	s.pipe = poll.Pipe{}
	if s.eof {
		f.end(f.resetReason(s), nil)
		return
	}
	s.sock.Again(poll.Readable)
}

func (f *pair) shutdown(s *side) {
	if !s.shut {
		s.shut = true
		s.sock.ShutdownWrite()
	}
	if f.down.shut && f.up.shut {
		f.end(reason.OK, nil)
	}
}

// Abort implements Carrier.
func (f *pair) Abort(r reason.Reason) {
	f.end(r, nil)
}

// end lets both sockets go. Unless all went well both see a reset.
func (f *pair) end(r reason.Reason, err error) {
	if f.ended {
		return
	}
	f.ended = true
	f.linger.Stop()
	if f.hold != nil {
		f.hold.timer.Stop()
	}
	f.Ending(f.down.sock.FD(), f.up.sock.FD())
	l := f.Loop()
	for _, s := range [...]*side{&f.down, &f.up} {
		l.PutPipe(s.pipe)
		s.pipe = poll.Pipe{}
		switch {
		case !s.sock.Active():
		case r == reason.OK || s.sock.Broken():
			s.sock.Close()
		case r == reason.DownstreamReset || r == reason.UpstreamReset:
			Reset(l, s.sock.Detach())
		default:
			s.sock.Reset()
		}
	}
	if f.onClose != nil {
		sent, received := f.Bytes()
		l.Post(func() { f.onClose(&f.Flow, Result{Sent: sent, Received: received, Reason: r, Err: err}) })
	}
}
