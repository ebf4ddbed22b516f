package codec

import (
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

// h2Stream is one exchange of an HTTP/2 connection, at either end.
type h2Stream struct {
	c   *h2Conn
	s   *h2.Stream // own; nil before the head has come or is sent
	own h2.Stream
	rcv Receiver

	queue    poll.Queue    // what the windows or the carrier have no room for
	trailers []h2.Field    // that end the message behind queue
	head     *message.Head // of an upgrade that waits for the peer's settings

	switching bool // CONNECT, or an upgrade
	upgrade   bool // an upgrade, by extended CONNECT
	raw       bool
	got       bool // something of the peer's message arrived
	finish    bool // the message ends behind queue
	sent      bool // its end was written
	ended     bool // the peer's message is complete
	stalled   bool // in c.stalled
	reused    bool
	over      bool
	released  bool // its user keeps no reference
}

// loop is the connection's.
func (s *h2Stream) loop() *poll.Loop { return s.c.hub.loop }

// response delivers a final response.
func (s *h2Stream) response(h *message.Head, end bool) {
	s.got = true
	body := bodyOf(h, end)
	if s.switching && h.Status/100 == 2 {
		s.raw = true
		body.Length = Raw
		if s.upgrade {
			h.Status = 101 // as HTTP/1 says it
		}
	}
	s.rcv.OnHead(h, body)
	if end && s.rcv != nil {
		s.peerEnded()
	}
}

// peerEnded notes that the peer's message is complete.
func (s *h2Stream) peerEnded() {
	s.check(false)
	s.ended = true
	rcv := s.rcv
	if rcv == nil {
		return
	}
	client := s.c.owner != nil
	if client && (!s.raw || s.finish) {
		s.rcv = nil
	}
	if s.raw && s.finish {
		s.rcv = nil
	}
	rcv.OnEnd()
	s.settle()
}

// settle notes the end of an exchange of which both messages are complete.
func (s *h2Stream) settle() {
	if s.over || !s.ended || !s.sent {
		return
	}
	s.done()
}

// done takes the stream out of its connection.
func (s *h2Stream) done() {
	if s.over {
		return
	}
	s.over = true
	c := s.c
	s.queue.Discard(s.loop(), s.queue.Len())
	if s.s != nil {
		c.h2.Release(s.s)
	}
	c.active--
	c.since = s.loop().Now()
	c.later()
	if c.owner != nil && !c.retired {
		c.owner.OnRoom((*h2Client)(c))
	}
	s.spend()
}

// Release implements Stream.
func (s *h2Stream) Release() {
	if !s.released {
		s.released = true
		s.spend()
	}
}

// spend has the memory of the stream used again, once neither its connection nor its user
// refers to it. That is decided at the end of the turn, when no method of it is under way.
func (s *h2Stream) spend() {
	if s.released && s.over && !s.upgrade {
		s.c.hub.spend(s)
	}
}

// referred reports whether something of the connection may still refer to the stream.
func (s *h2Stream) referred() bool { return s.stalled || s.s != nil && !s.s.Closed() }

// fault ends an exchange of which the peer has sent what is refused.
func (s *h2Stream) fault(f *message.Fault) {
	why := reason.MalformedRequest
	if s.c.owner != nil {
		why = reason.UpstreamProtocol
	}
	rcv := s.rcv
	s.rcv = nil
	if rcv != nil {
		rcv.OnAbort(Cut{Reason: why, Err: f})
	}
	s.close(h2.ProtocolError)
}

// close resets the stream.
func (s *h2Stream) close(code h2.ErrCode) {
	s.rcv = nil
	if s.s != nil {
		s.c.h2.Reset(s.s, code)
	}
	s.done()
}

// reset notes that the peer or the connection cut the stream.
func (s *h2Stream) reset(code h2.ErrCode) {
	s.check(false)
	c := s.c
	cut := Cut{Reason: c.gonePeer(), Unprocessed: code.Retriable(), Lost: !s.got && c.gone, Stale: s.reused && !s.got && c.gone}
	switch {
	case c.gone:
		cut.Reason, cut.Err = c.why, c.err
	case code == h2.ProtocolError && c.owner != nil:
		cut.Reason, cut.Err = reason.UpstreamProtocol, errReset(code)
	default:
		cut.Err = errReset(code)
	}
	rcv := s.rcv
	s.rcv = nil
	s.done()
	if rcv != nil {
		rcv.OnAbort(cut)
	}
}

// errReset is the code that a stream was reset with.
type errReset h2.ErrCode

// Error implements error.
func (e errReset) Error() string { return "stream was reset with " + h2.ErrCode(e).String() }

const methodConnect = "CONNECT"

// Send implements Request.
func (s *h2Stream) Send(h *message.Head, length int64, r Receiver) error {
	c := s.c
	if c.gone {
		return errGone
	}
	s.rcv, s.reused = r, c.served > 0
	c.served++
	if s.upgrade = len(h.Protocol) > 0; s.upgrade && !c.settled {
		s.head = &message.Head{}
		s.head.CopyFrom(h)
		c.early = append(c.early, s)
		return nil
	}
	return s.open(h, length)
}

// open sends the head.
func (s *h2Stream) open(h *message.Head, length int64) error {
	c := s.c
	out := c.hub.heads.request(h, announced(h, length))
	connect := out.Method == methodConnect && !s.upgrade
	if s.switching = connect || s.upgrade; s.upgrade {
		out.Method = methodConnect
	}
	if connect {
		out.Scheme, out.Path = "", ""
	} else if out.Scheme == "" {
		out.Scheme = "http"
	}
	end := length == 0 && !s.switching
	c.opening = s
	hs, err := c.h2.Open(&out, end)
	c.opening = nil
	if err != nil {
		return err
	}
	s.s, s.sent, s.finish = hs, end, end
	c.later()
	return nil
}

// sendEarly sends an upgrade that has waited for the peer's settings.
func (s *h2Stream) sendEarly() {
	h := s.head
	if s.head = nil; s.over {
		return
	}
	if err := s.open(h, 0); err != nil {
		rcv := s.rcv
		s.close(h2.Cancel)
		rcv.OnAbort(Cut{Reason: reason.UpstreamProtocol, Err: err})
	}
}

// Inform implements Response.
func (s *h2Stream) Inform(h *message.Head) {
	s.check(true)
	if s.over {
		return
	}
	if s.c.h2.Respond(s.s, &h2.Header{Status: h.Status, Fields: s.c.hub.heads.render(h, -1)}, false) == nil {
		s.c.later()
	}
}

// Respond implements Response.
func (s *h2Stream) Respond(h *message.Head, length int64) bool {
	s.check(true)
	if s.over {
		return true
	}
	out := h2.Header{Status: h.Status, Fields: s.c.hub.heads.render(h, announced(h, length))}
	if length == Raw {
		s.raw = true
		if out.Status == 101 {
			out.Status = 200
		}
	}
	end := length == 0
	if s.c.h2.Respond(s.s, &out, end) != nil {
		return false
	}
	s.sent = end
	s.c.later()
	return true
}

// Data implements Stream.
func (s *h2Stream) Data(p []byte) bool {
	s.check(true)
	if s.over || s.sent || s.s == nil {
		return true
	}
	if s.queue.Len() == 0 {
		p = p[s.push(p):]
	}
	if len(p) == 0 {
		return true
	}
	s.queue.Append(s.loop(), p)
	return false
}

// push sends as much of p as there is room for, and returns how much that is.
func (s *h2Stream) push(p []byte) int {
	c, n := s.c, 0
	for n < len(p) {
		if c.full {
			if !s.stalled {
				s.stalled = true
				c.stalled = append(c.stalled, s)
			}
			return n
		}
		quota := min(c.h2.SendQuota(s.s), len(p)-n)
		if quota == 0 || !c.h2.AppendData(s.s, p[n:n+quota], false) {
			return n
		}
		n += quota
		if len(c.h2.Output()) >= outFlush {
			c.flush()
		} else {
			c.later()
		}
	}
	return n
}

// drain sends what has waited for room.
func (s *h2Stream) drain() {
	s.check(false)
	if s.over {
		return
	}
	for s.queue.Len() > 0 {
		p := s.queue.Front()
		n := s.push(p)
		s.queue.Discard(s.loop(), n)
		if n < len(p) {
			return
		}
	}
	if s.finish {
		s.end()
		return
	}
	if s.rcv != nil {
		s.rcv.OnWritable()
	}
}

// Finish implements Stream.
func (s *h2Stream) Finish(trailers *message.Head) {
	s.check(true)
	if s.over || s.finish {
		return
	}
	s.finish = true
	if !s.raw && s.c.owner == nil {
		s.rcv = nil
	}
	if trailers != nil && len(trailers.Fields) > 0 && !s.sent && !s.raw {
		s.trailers = s.c.hub.heads.render(trailers, -1)
	}
	if s.queue.Len() == 0 {
		s.end()
		return
	}
	s.trailers = cloned(s.trailers)
}

// end writes the end of the message.
func (s *h2Stream) end() {
	c := s.c
	if !s.sent {
		s.sent = true
		if s.trailers == nil || c.h2.Trailers(s.s, s.trailers) != nil {
			c.h2.AppendData(s.s, nil, true)
		}
		s.trailers = nil
	}
	c.later()
	switch {
	case s.ended && (c.owner == nil || s.rcv == nil || s.raw):
		s.rcv = nil
		s.done()
	case c.owner == nil && !s.raw:
		s.close(h2.NoError) // answered before the request was complete
	}
}

// Abort implements Stream.
func (s *h2Stream) Abort(why reason.Reason) {
	s.check(true)
	if s.over {
		return
	}
	code := h2.Cancel
	if s.c.owner == nil {
		code = h2.InternalError
	}
	s.close(code)
	s.c.later()
}

// Consumed implements Stream.
func (s *h2Stream) Consumed(n int) {
	s.check(true)
	if s.s != nil {
		s.c.h2.Consumed(s.s, n)
		s.c.later()
	}
}
