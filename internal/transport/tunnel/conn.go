package tunnel

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
)

// ErrGone is why a stream has ended that was answered after its client gave up.
var ErrGone = errors.New("the client gave up before it was answered")

// gather is how many written bytes wait for the end of the turn: with their frame's
// header they fit one record. What is written in one turn should be one frame, because
// the peer may write each frame to its program by a call of its own.
const gather = MaxRecord - h2.FrameHeaderLen

// conn is one stream of a tunnel as a stream.Conn.
//
// DATA reaches the Sink inline. Everything else that it gets is called at the end of
// the turn: there no method of a Conn and no callback of the engine is under way.
type conn struct {
	t    *Tunnel
	hs   *h2.Stream
	sink bytestream.Sink
	info bytestream.Info
	// ended, if set, is told once that the stream does not count any more.
	ended Owner

	in     poll.Queue // for the Sink, which does not take it now
	out    poll.Queue // for the peer, or for room in the tunnel
	held   int64      // of the tunnel's budget, for both
	linger poll.Deadline

	why reason.Reason // of OnClose
	err error

	scheduled bool // TurnEnd is going to be called
	inside    bool // the Sink has the front of in
	paused    bool
	stalled   bool // in tunnel.stalled
	blocked   bool // a Write reported false: OnWritable is owed
	wantEnd   bool // CloseWrite was called
	writeEnd  bool // and its end sent
	peerEnd   bool // the peer's end was received
	readEnd   bool // and delivered
	cut       bool // reset by the peer or with the tunnel: in is delivered, then OnClose
	leaving   bool // aborted: out is sent, then the reset
	done      bool // aborted, or OnClose was called
	over      bool // ended was told
}

// Owner counts streams that were handed out.
type Owner interface {
	// StreamEnded is called once for each.
	StreamEnded()
}

// Take makes of a stream that was opening one of the caller's. end says that the peer
// sends nothing more. o may be nil.
func (s *Stream) Take(info bytestream.Info, end bool, o Owner) bytestream.Conn {
	s.peerEnd = s.peerEnd || end
	return s.take(info, o)
}

func (s *Stream) take(info bytestream.Info, o Owner) *conn {
	c := &conn{t: s.t, hs: s.hs, info: info, ended: o, in: s.sock.TakeQueue(), held: s.held, peerEnd: s.peerEnd}
	s.held, s.phase = 0, gone
	s.hs.User = c
	return c
}

// Answer answers the request that the stream is, and makes it one of the caller's. When
// the client has gone meanwhile, the result ends as soon as it has a Sink.
func (s *Stream) Answer(h *h2.Header, info bytestream.Info) bytestream.Conn {
	if s.phase != opening {
		return &conn{t: s.t, hs: s.hs, info: info, cut: true, over: true, why: reason.DownstreamReset, err: ErrGone}
	}
	c := s.take(info, nil)
	if err := s.t.h2.Respond(s.hs, h, false); err != nil {
		s.t.h2.Reset(s.hs, h2.InternalError)
		c.cut, c.why, c.err = true, reason.Internal, err
	}
	s.t.Touch()
	return c
}

func (c *conn) Loop() *poll.Loop       { return c.t.hub.loop }
func (c *conn) Info() *bytestream.Info { return &c.info }

func (c *conn) Bind(s bytestream.Sink) {
	c.sink = s
	c.schedule()
}

func (c *conn) Pause() { c.paused = true }

func (c *conn) Resume() {
	c.paused = false
	c.schedule()
}

func (c *conn) Consumed(n int) {
	c.t.h2.Consumed(c.hs, n)
	c.t.Touch()
}

func (c *conn) Write(p []byte) bool {
	if c.done || c.cut || c.wantEnd || len(p) == 0 {
		return !c.blocked
	}
	if c.out.Len()+len(p) >= gather {
		// Enough for a frame of its own; what has gathered goes first.
		if c.pump(); c.out.Len() == 0 && !c.cut {
			p = p[c.send(p, false):]
		}
		if len(p) == 0 || c.cut {
			return !c.blocked
		}
	}
	c.out.Append(c.Loop(), p)
	c.schedule()
	c.blocked = c.blocked || c.out.Len() > bytestream.WriteBound
	return !c.blocked
}

func (c *conn) CloseWrite() {
	if !c.done && !c.wantEnd {
		c.wantEnd = true
		c.schedule()
	}
}

func (c *conn) Abort(why reason.Reason) {
	if c.done {
		return
	}
	c.done, c.sink, c.why = true, nil, why
	// What was written before must not be lost by passing a reset on.
	if passedOn(why) && c.out.Len() > 0 && !c.cut {
		c.leaving = true
		c.schedule()
		c.linger.Arm(c.Loop(), c.t.patience, c.expire)
		c.discardIn()
		return
	}
	c.reject()
}

// reject resets the stream, if it has not ended, and lets go of everything.
func (c *conn) reject() {
	c.leaving = false
	if !c.hs.Closed() {
		c.t.h2.Reset(c.hs, resetCode(c.why))
	}
	c.free()
	c.schedule()
}

// passedOn reports whether why says that another connection was reset.
func passedOn(why reason.Reason) bool {
	return why == reason.UpstreamReset || why == reason.DownstreamReset
}

// resetCodes are the codes by which a peer sees that a stream was aborted. For every
// other reason it is CANCEL: the stream is not wanted any more.
var resetCodes = map[reason.Reason]h2.ErrCode{
	reason.OK:                h2.NoError,
	reason.UpstreamReset:     h2.ConnectError,
	reason.DownstreamReset:   h2.ConnectError,
	reason.ConnectFailure:    h2.ConnectError,
	reason.ConnectTimeout:    h2.ConnectError,
	reason.BadRequest:        h2.ProtocolError,
	reason.ResourceExhausted: h2.EnhanceYourCalm,
	reason.Internal:          h2.InternalError,
}

func resetCode(why reason.Reason) h2.ErrCode {
	if code, ok := resetCodes[why]; ok {
		return code
	}
	return h2.Cancel
}

// schedule has TurnEnd called in this turn.
func (c *conn) schedule() {
	if !c.scheduled {
		c.scheduled = true
		c.Loop().EndTurnOf(c)
	}
}

// unstalled implements writer: others are served before.
func (c *conn) unstalled() {
	c.stalled = false
	if !c.scheduled {
		c.scheduled = true
		c.Loop().EndNextTurnOf(c)
	}
}

// TurnEnd implements poll.TurnEnder.
func (c *conn) TurnEnd() {
	c.scheduled = false
	c.deliver()
	c.pump()
	if c.blocked && !c.done && !c.cut && !c.wantEnd && c.sink != nil && c.out.Len() <= bytestream.WriteBound/2 {
		c.blocked = false
		c.sink.OnWritable()
	}
	c.finish()
}

// data is DATA from the tunnel.
func (c *conn) data(p []byte, end bool) {
	c.peerEnd = c.peerEnd || end
	switch {
	case c.done:
		c.t.h2.Consumed(c.hs, len(p))
	case c.sink == nil || c.paused || c.in.Len() > 0:
		if !c.t.hold(&c.held, units(c.in.Len()+len(p))+units(c.out.Len())) {
			c.overflow()
			return
		}
		c.in.Append(c.Loop(), p)
	case len(p) > 0 || end:
		c.readEnd = end
		c.sink.OnData(p, end)
	}
	if end {
		c.schedule()
	}
}

// deliver gives the Sink what waits for it.
func (c *conn) deliver() {
	for c.ready() && c.in.Len() > 0 {
		p := c.in.Front()
		c.readEnd = c.peerEnd && len(p) == c.in.Len()
		c.inside = true
		c.sink.OnData(p, c.readEnd)
		c.inside = false
		if c.done {
			c.discardIn()
			return
		}
		c.in.Discard(c.Loop(), len(p))
		c.account()
	}
	if c.ready() && c.peerEnd && !c.readEnd {
		c.readEnd = true
		c.sink.OnData(nil, true)
	}
}

func (c *conn) ready() bool { return !c.done && c.sink != nil && !c.paused }

// pump sends what waits for the peer, and the end or the reset behind it.
func (c *conn) pump() {
	for c.out.Len() > 0 && !c.cut {
		p := c.out.Front()
		n := c.send(p, c.wantEnd && !c.done && len(p) == c.out.Len())
		if c.cut {
			return
		}
		c.out.Discard(c.Loop(), n)
		if n < len(p) {
			break
		}
	}
	c.account()
	switch {
	case c.cut:
	case c.out.Len() > 0:
		// It waits longer than this turn.
		if !c.t.hold(&c.held, units(c.in.Len())+units(c.out.Len())) {
			c.overflow()
		}
	case c.leaving:
		c.reject()
	case c.wantEnd && !c.writeEnd && !c.done:
		c.writeEnd = true
		c.t.h2.AppendData(c.hs, nil, true)
		c.t.Touch()
	}
}

// send makes DATA frames of p, as far as the peer's windows and the tunnel permit,
// and returns how much that was. end has the last one end the direction.
func (c *conn) send(p []byte, end bool) int {
	t, n := c.t, 0
	for n < len(p) && !c.cut && !t.closed {
		if t.full() {
			c.stall()
			break
		}
		quota := t.h2.SendQuota(c.hs)
		if quota <= 0 {
			break // OnWritable continues
		}
		m := min(len(p)-n, pieceSize(quota))
		last := end && n+m == len(p)
		if !c.frame(p[n:n+m], last) {
			break
		}
		n += m
		c.writeEnd = last
	}
	t.Touch()
	return n
}

func (c *conn) stall() {
	if !c.stalled {
		c.stalled = true
		c.t.stalled = append(c.t.stalled, c)
	}
}

// frame makes one DATA frame. A large one is sealed where it is, except for what
// fills the first record behind the frame's header.
func (c *conn) frame(p []byte, end bool) bool {
	t := c.t
	if len(p) < largeData {
		return t.h2.AppendData(c.hs, p, end)
	}
	if t.rec != nil {
		if !c.frameSlots(p, end) {
			return false
		}
	} else if !c.frameLibrary(p, end) {
		return false
	}
	if t.waiting() >= outFlush && !t.inEngine {
		t.flush()
	}
	return true
}

func (c *conn) frameLibrary(p []byte, end bool) bool {
	t := c.t
	first := t.hub.plainHead[:]
	if !t.sealOutput() || !t.h2.DataHeader(first, c.hs, len(p), end) {
		return false
	}
	k := copy(first[h2.FrameHeaderLen:], p)
	return t.seal(first[:h2.FrameHeaderLen+k]) && (k == len(p) || t.seal(p[k:]))
}

// reset is the end of the stream by the peer or with the tunnel.
func (c *conn) reset(code h2.ErrCode) {
	if c.cut {
		return
	}
	c.cut = true
	if !c.done {
		switch {
		case c.t.h2.Err() != nil:
			c.why, c.err = c.t.why, c.t.err
		case code == h2.NoError && c.peerEnd:
			// A server may stop reading once its answer is complete (RFC 9113, 8.1).
		default:
			c.why, c.err = c.info.ResetReason(), resetError{code}
		}
	}
	c.discardOut()
	c.schedule()
}

// overflow ends a stream for which there is no room.
func (c *conn) overflow() {
	c.cut, c.why, c.err = true, reason.ResourceExhausted, ErrQueues
	c.t.h2.Reset(c.hs, resetCode(c.why))
	c.t.Touch()
	c.discardOut()
	c.discardIn()
	c.readEnd = true // the Sink gets OnClose alone
	c.schedule()
}

// finish tells the owner of the stream when it does not count any more, and the Sink
// once it has everything that came before.
func (c *conn) finish() {
	ended := c.cut || c.peerEnd && c.writeEnd
	if !c.over && (ended || c.done && !c.leaving) {
		c.over = true
		if c.ended != nil {
			c.ended.StreamEnded()
		}
		c.t.Settle()
	}
	switch {
	case !ended || c.done:
	case c.in.Len() > 0 || c.peerEnd && !c.readEnd:
		if !c.linger.Armed() && c.cut {
			c.linger.Arm(c.Loop(), c.t.patience, c.expire)
		}
	case c.sink != nil:
		s := c.sink
		c.done, c.sink = true, nil
		c.free()
		s.OnClose(c.why, c.err)
	}
}

// expire ends the wait for a peer or a Sink that takes nothing.
func (c *conn) expire() {
	if c.leaving {
		c.reject()
		return
	}
	c.discardIn()
	c.readEnd = true
	c.finish()
}

// free lets go of what the stream holds.
func (c *conn) free() {
	c.linger.Stop()
	c.discardIn()
	c.discardOut()
	c.t.h2.Release(c.hs)
	c.t.Touch()
}

func (c *conn) discardIn() {
	if !c.inside { // otherwise deliver does it: the Sink has its front
		c.in.Discard(c.Loop(), c.in.Len())
		c.account()
	}
}

func (c *conn) discardOut() {
	c.out.Discard(c.Loop(), c.out.Len())
	c.account()
}

// account gives back what the queues do not need any more.
func (c *conn) account() {
	if c.held > 0 {
		c.t.release(&c.held, units(c.in.Len())+units(c.out.Len()))
	}
}
