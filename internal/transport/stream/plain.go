package stream

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

const (
	// Window is how many bytes a Sink may hold that it has not given back by
	// Consumed. Then the carrier reads no more.
	Window = 64 << 10
	// WriteBound is how many written bytes wait before Write reports false. Half of
	// it is left when OnWritable is called.
	WriteBound = 64 << 10
	// gather is how many written bytes wait for the end of the turn: there is little
	// to gain from gathering more.
	gather = 32 << 10
	// plainTurn is how many bytes one socket may deliver in one turn before others
	// get theirs.
	plainTurn = 8 * Window
)

// lingerBlocked is how long what a peer sent before it reset the connection waits for
// a Sink that takes nothing. Only tests change it.
var lingerBlocked = relay.LingerBlocked

// Plain takes over fd, a connected and non-blocking socket that no loop watches. On
// error fd stays the caller's. It is called on the goroutine of l.
func Plain(l *poll.Loop, fd int, info Info) (Conn, error) {
	p := &plain{loop: l, info: info, credit: Window}
	if err := p.sock.Watch(l, fd, p); err != nil {
		return nil, err
	}
	return p, nil
}

// plain is a Conn on a socket.
type plain struct {
	sock   poll.Sock
	loop   *poll.Loop
	sink   Sink
	credit int // bytes that may be delivered before Consumed
	linger poll.Deadline
	info   Info

	paused   bool
	dirty    bool // TurnEnd is going to be called
	blocked  bool // a Write reported false: OnWritable is owed
	wantEnd  bool // CloseWrite was called
	writeEnd bool // and its end sent
	readEnd  bool // the end of the peer was delivered
	closed   bool
	untold   bool // closed before there was a Sink
	why      reason.Reason
	err      error
}

func (p *plain) Loop() *poll.Loop { return p.loop }
func (p *plain) Info() *Info      { return &p.info }

func (p *plain) Bind(s Sink) {
	p.sink = s
	if p.untold {
		p.loop.Post(p.tell)
		return
	}
	p.wake()
	if p.blocked && p.room() {
		p.sock.Again(poll.Writable)
	}
}

// tell reports the end of a stream that ended before it had a Sink.
func (p *plain) tell() {
	if s := p.sink; s != nil && p.untold {
		p.sink, p.untold = nil, false
		s.OnClose(p.why, p.err)
	}
}

func (p *plain) Pause() { p.paused = true }

func (p *plain) Resume() {
	p.paused = false
	p.wake()
}

func (p *plain) Consumed(n int) {
	if p.credit <= 0 && n > 0 {
		p.wake()
	}
	p.credit = min(p.credit+n, Window)
}

// wake has the socket read again, in the next turn at the latest.
func (p *plain) wake() {
	if p.sock.Readable() || p.sock.Err() != nil {
		p.sock.Again(poll.Readable)
	}
}

func (p *plain) Write(b []byte) bool {
	if p.closed || p.wantEnd || len(b) == 0 {
		return !p.blocked
	}
	if p.sock.Queued()+len(b) < gather {
		p.sock.Queue(b)
	} else {
		_ = p.sock.Send(b) // what broke the socket is reported by ready
	}
	p.touch()
	if p.sock.Queued() > WriteBound {
		p.blocked = true
	}
	return !p.blocked
}

func (p *plain) CloseWrite() {
	if !p.closed {
		p.wantEnd = true
		p.touch()
	}
}

// touch has the socket flushed at the end of this turn.
func (p *plain) touch() {
	if !p.dirty {
		p.dirty = true
		p.loop.FlushTurnOf(p)
	}
}

// TurnEnd implements poll.TurnEnder: what gathered in the turn leaves together.
func (p *plain) TurnEnd() {
	p.dirty = false
	if p.closed {
		return
	}
	if p.flush(); p.blocked && p.room() {
		p.sock.Again(poll.Writable) // in the next turn: others are served between
	}
	p.lingerIfBroken()
}

// room reports whether a Sink that was told to wait may write again.
func (p *plain) room() bool {
	return !p.wantEnd && p.sock.Err() == nil && p.sock.Queued() <= WriteBound/2
}

// flush sends what waits, and the end behind it.
func (p *plain) flush() {
	broken := p.sock.Flush() != nil
	if broken {
		p.sock.DropQueue()
		p.wake()
	}
	if p.wantEnd && !p.writeEnd && p.sock.Queued() == 0 {
		p.writeEnd = true
		if !broken {
			p.sock.ShutdownWrite()
		}
	}
	p.finish()
}

// finish ends a stream that has ended both ways, or of which nothing is left to be
// read.
func (p *plain) finish() {
	switch {
	case p.closed || !p.readEnd:
	case p.sock.Failed():
		err := p.sock.Err()
		if err == nil {
			err = sockopt.SocketError(p.sock.FD())
		}
		p.end(p.info.ResetReason(), err)
	case p.writeEnd:
		p.end(reason.OK, nil)
	}
}

// Ready implements poll.Handler.
func (p *plain) Ready(ev poll.Events) {
	p.sock.Note(ev)
	if ev&poll.Writable != 0 && (p.sock.Queued() > 0 || p.blocked) {
		p.flush()
		if p.blocked && !p.closed && p.room() && p.sink != nil {
			p.blocked = false
			p.sink.OnWritable()
		}
	}
	p.read()
	p.finish()
	p.lingerIfBroken()
}

// lingerIfBroken bounds the time that the Sink has for what the peer sent before it
// reset the connection.
func (p *plain) lingerIfBroken() {
	if !p.closed && p.sock.Failed() && !p.linger.Armed() {
		p.linger.Arm(p.loop, lingerBlocked, p.abandon)
	}
}

var errLinger = errors.New("the peer has reset the connection; the rest of its bytes was not taken in time")

func (p *plain) abandon() {
	err := p.sock.Err()
	if err == nil {
		err = errLinger
	}
	p.end(p.info.ResetReason(), err)
}

// read delivers what the socket has.
func (p *plain) read() {
	for budget := plainTurn; budget > 0; {
		if p.closed || p.sink == nil || p.paused || p.credit <= 0 || p.readEnd || !p.sock.Readable() {
			return
		}
		b := p.loop.Buffer()[:min(p.credit, Window)]
		n, err := p.sock.Read(b)
		switch {
		case poll.IsAgain(err):
			return
		case err != nil:
			p.end(p.info.ResetReason(), err)
			return
		case n == 0:
			p.readEnd = true
			p.sink.OnData(nil, true)
			p.finish()
			return
		}
		budget -= n
		p.credit -= n
		p.sink.OnData(b[:n], false)
	}
	p.sock.Again(poll.Readable)
}

// end closes the socket and tells the Sink.
func (p *plain) end(why reason.Reason, err error) {
	if p.closed {
		return
	}
	p.closed = true
	p.linger.Stop()
	if why == reason.OK {
		p.sock.Close()
	} else {
		p.sock.Reset()
	}
	p.untold, p.why, p.err = true, why, err
	p.tell()
}

// Abort sends what was written, as far as the peer takes it, before the reset of a
// connection whose other side was reset: what came before must not be lost by
// passing the reset on.
func (p *plain) Abort(why reason.Reason) {
	if p.closed {
		return
	}
	p.closed, p.sink = true, nil
	p.linger.Stop()
	if passedOn(why) && p.sock.Flush() == nil {
		relay.Reset(p.loop, p.sock.Detach())
		return
	}
	p.sock.Reset()
}

// passedOn reports whether why says that another connection was reset.
func passedOn(why reason.Reason) bool {
	return why == reason.UpstreamReset || why == reason.DownstreamReset
}
