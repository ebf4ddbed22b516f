package codec

import (
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	// lingerTime is how long a connection is read after its last response, so that
	// the peer gets that response instead of a reset. lingerBytes bounds what is
	// read and dropped meanwhile, and of a request that was answered early.
	lingerTime  = 5 * time.Second
	lingerBytes = 1 << 20
)

// h1Server is an HTTP/1 connection that gets requests, one at a time.
type h1Server struct {
	out   output
	h1    *http1.Conn
	cfg   *ServerConfig
	rcv   Receiver // of the request under way; nil between requests
	held  []byte   // what follows the request under way
	timer poll.Deadline
	fire  func()
	since time.Time // when the connection fell idle, or its head began

	handed    int  // bytes that Receive handed to the handler
	dropped   int  // bytes that were read and dropped
	queued    bool // turnEnd is due
	asked     bool // the request is complete
	answered  bool // the response is complete
	raw       bool
	inHead    bool // a head has begun
	peerEnd   bool // the peer sends no more
	draining  bool // the response under way is the last one
	lingering bool // CloseWrite was called: what comes is dropped
	gone      bool
}

// NewHTTP1Server returns an HTTP/1 connection over conn, to which it binds itself.
func NewHTTP1Server(conn stream.Conn, cfg *ServerConfig) Server {
	s := &h1Server{cfg: cfg, out: output{conn: conn, hub: hubOf(conn.Loop())}}
	s.h1 = http1.NewServer((*h1ServerHandler)(s))
	s.since = conn.Loop().Now()
	s.fire = s.expire
	if cfg.Timeouts.Idle > 0 {
		s.arm(cfg.Timeouts.Idle)
	}
	conn.Bind(s)
	return s
}

// later has TurnEnd run: to read on where a response has made room.
func (s *h1Server) later() {
	if !s.queued && !s.gone {
		s.queued = true
		s.out.hub.loop.EndTurnOf(s)
	}
}

// TurnEnd implements poll.TurnEnder.
func (s *h1Server) TurnEnd() {
	s.queued = false
	if s.gone || s.lingering || !s.ready() {
		return
	}
	if len(s.held) > 0 {
		b := s.held
		s.held = nil
		s.feed(b)
		if s.gone || s.lingering {
			return
		}
		if len(s.held) > 0 && s.ready() {
			s.later()
			return
		}
	}
	if s.peerEnd && len(s.held) == 0 {
		s.inputEnded()
	}
}

// ready reports whether more of the input can be used.
func (s *h1Server) ready() bool { return s.rcv == nil || s.raw || !s.asked }

// OnData implements stream.Sink.
func (s *h1Server) OnData(p []byte, end bool) {
	s.peerEnd = s.peerEnd || end
	switch {
	case s.lingering:
		s.out.conn.Consumed(len(p))
		s.drop(len(p))
		return
	case len(s.held) > 0 || !s.ready():
		// The carrier's credit bounds it.
		s.held = append(s.held, p...)
		if end && len(s.held) == 0 {
			s.inputEnded()
		}
		return
	}
	if len(p) > 0 {
		s.feed(p)
	}
	if s.peerEnd && len(s.held) == 0 && !s.gone && !s.lingering {
		s.inputEnded()
	}
}

// feed reads bytes, and keeps those that have to wait.
func (s *h1Server) feed(p []byte) {
	s.handed = 0
	n, fault := s.h1.Receive(p)
	if s.gone {
		return
	}
	if used := n - s.handed; used > 0 {
		s.out.conn.Consumed(used)
	}
	switch {
	case fault != nil:
		s.out.conn.Consumed(len(p) - n)
		s.refuse(fault, reason.MalformedRequest)
		return
	case s.lingering:
		s.out.conn.Consumed(len(p) - n)
		return
	case n < len(p):
		s.held = append(s.held, p[n:]...)
	}
	if !s.inHead && s.h1.Partial() {
		s.inHead, s.since = true, s.out.hub.loop.Now()
		if d := s.cfg.Timeouts.Head; d > 0 {
			s.arm(d)
		}
	}
}

func (s *h1Server) arm(d time.Duration) { s.timer.Arm(s.out.hub.loop, d, s.fire) }

// expire looks which bound the connection has reached. The timer is not moved by
// each request: it comes back for what is left.
func (s *h1Server) expire() {
	l, t := s.out.hub.loop, &s.cfg.Timeouts
	switch {
	case s.gone:
	case s.lingering:
		s.end(reason.OK)
	case s.inHead && t.Head > 0:
		if left, over := since(l, s.since, t.Head); !over {
			s.arm(left)
			return
		}
		s.h1.Fail(errHeadTime)
		s.refuse(errHeadTime, reason.HeadTimeout)
	case t.Idle <= 0:
	case s.rcv != nil || s.inHead:
		s.arm(t.Idle)
	default:
		if left, over := since(l, s.since, t.Idle); !over {
			s.arm(left)
			return
		}
		s.close()
	}
}

var errHeadTime = message.NewFault(408, "head of the request not complete in time")

// refuse answers what cannot be read, and ends the connection.
func (s *h1Server) refuse(f *message.Fault, why reason.Reason) {
	rcv := s.rcv
	s.rcv = nil
	if rcv != nil {
		rcv.OnAbort(Cut{Reason: why, Err: f})
	}
	if s.gone {
		return
	}
	if b := s.h1.Refuse(s.out.room()); len(b) > 0 {
		s.out.send(b)
		if rcv == nil && s.cfg.Refused != nil {
			s.cfg.Refused(f.Status(), f)
		}
		s.close()
		return
	}
	s.end(reason.MalformedRequest) // a response has begun: it can only be cut
}

// inputEnded notes that the client sends no more.
func (s *h1Server) inputEnded() {
	fault := s.h1.End()
	switch {
	case s.gone || s.lingering:
	case fault != nil && s.rcv != nil:
		s.cut(Cut{Reason: reason.DownstreamReset, Err: fault})
		s.end(reason.DownstreamReset)
	case s.rcv == nil:
		s.close()
	}
}

func (s *h1Server) cut(c Cut) {
	rcv := s.rcv
	s.rcv = nil
	if rcv != nil {
		rcv.OnAbort(c)
	}
}

// close ends the connection behind what was written, and reads on for a while so
// that the last response is not lost by a reset.
func (s *h1Server) close() {
	s.lingering, s.dropped = true, 0
	s.out.conn.Consumed(len(s.held))
	s.held = nil
	s.arm(lingerTime)
	s.out.conn.CloseWrite()
}

// drop counts bytes that are read and dropped.
func (s *h1Server) drop(n int) {
	if s.dropped += n; s.dropped > lingerBytes {
		s.end(reason.OK)
	}
}

// end ends the connection now.
func (s *h1Server) end(why reason.Reason) {
	if s.gone {
		return
	}
	s.out.conn.Abort(why)
	s.over(why)
}

func (s *h1Server) over(why reason.Reason) {
	s.gone = true
	s.timer.Stop()
	s.held = nil
	if s.cfg.Closed != nil {
		s.cfg.Closed(why)
	}
}

// OnWritable implements stream.Sink.
func (s *h1Server) OnWritable() {
	s.out.full = false
	if s.rcv != nil {
		s.rcv.OnWritable()
	}
}

// OnClose implements stream.Sink.
func (s *h1Server) OnClose(why reason.Reason, err error) {
	if s.gone {
		return
	}
	s.gone = true
	cut := why
	if cut == reason.OK {
		cut = reason.DownstreamReset
	}
	s.cut(Cut{Reason: cut, Err: err})
	s.over(why)
}

// Last implements Server.
func (s *h1Server) Last() { s.h1.Drain() }

// Drain implements Server.
func (s *h1Server) Drain() {
	s.draining = true
	s.h1.Drain()
	if !s.gone && !s.lingering && s.rcv == nil && s.h1.Waiting() && len(s.held) == 0 {
		s.close()
	}
}

// Close implements Server.
func (s *h1Server) Close(why reason.Reason) {
	if !s.gone {
		s.cut(Cut{Reason: why})
		s.end(why)
	}
}

// h1ServerHandler is what the state machine calls.
type h1ServerHandler h1Server

// OnHead implements http1.Handler.
func (s *h1ServerHandler) OnHead(h *message.Head, body http1.Body) {
	s.inHead, s.answered, s.raw = false, false, false
	s.asked = body.Length == http1.Raw || len(h.Protocol) > 0
	s.rcv = s.cfg.Accept((*h1Server)(s))
	s.rcv.OnHead(h, body)
}

// OnData implements http1.Handler.
func (s *h1ServerHandler) OnData(p []byte) {
	s.handed += len(p)
	if s.rcv == nil {
		(*h1Server)(s).Consumed(len(p))
		(*h1Server)(s).drop(len(p))
		return
	}
	s.rcv.OnData(p)
}

// OnTrailers implements http1.Handler.
func (s *h1ServerHandler) OnTrailers(h *message.Head) {
	if s.rcv != nil {
		s.rcv.OnTrailers(h)
	}
}

// OnEnd implements http1.Handler.
func (s *h1ServerHandler) OnEnd() {
	s.asked = true
	rcv := s.rcv
	if rcv == nil { // answered early
		s.since = s.out.hub.loop.Now()
		return
	}
	if s.raw && s.answered {
		s.rcv = nil
	}
	rcv.OnEnd()
}

// Inform implements Response.
func (s *h1Server) Inform(h *message.Head) {
	if b, err := s.h1.Inform(s.out.room(), h); err == nil {
		s.out.send(b)
	}
}

// Respond implements Response.
func (s *h1Server) Respond(h *message.Head, length int64) bool {
	if length == Raw {
		length = 0
	}
	b, err := s.h1.Respond(s.out.room(), h, length)
	if err != nil {
		return false
	}
	s.out.send(b)
	if s.raw = s.h1.Raw(); s.raw {
		s.later()
	}
	return true
}

// Data implements Stream.
func (s *h1Server) Data(p []byte) bool {
	if s.gone || s.lingering {
		return true
	}
	if len(p) < direct {
		b, err := s.h1.Data(s.out.room(), p)
		if err != nil {
			s.broken(err)
			return true
		}
		s.out.send(b)
		return !s.out.full
	}
	b, after, err := s.h1.Frame(s.out.room(), len(p))
	if err != nil {
		s.broken(err)
		return true
	}
	s.out.send(b)
	s.out.write(p)
	s.out.send(append(s.out.room(), after...))
	return !s.out.full
}

// broken ends a response that is longer than its head has said.
func (s *h1Server) broken(error) {
	s.cut(Cut{Reason: reason.UpstreamProtocol, Err: errLength})
	s.end(reason.UpstreamProtocol)
}

var errLength = errors.New("body is not as long as its head says")

// Finish implements Stream.
func (s *h1Server) Finish(trailers *message.Head) {
	if s.gone || s.answered {
		return
	}
	if s.raw {
		s.answered = true
		if s.asked && s.peerEnd {
			s.rcv = nil
		}
		s.out.conn.CloseWrite()
		return
	}
	b, err := s.h1.Finish(s.out.room(), trailers)
	if err != nil { // trailers that must not be sent
		b, err = s.h1.Finish(s.out.room(), nil)
	}
	if err != nil {
		s.rcv = nil
		s.end(reason.UpstreamProtocol)
		return
	}
	s.out.send(b)
	s.rcv, s.answered, s.since, s.dropped = nil, true, s.out.hub.loop.Now(), 0
	switch {
	case s.h1.Closing() || s.draining && s.asked && len(s.held) == 0:
		s.close()
	case len(s.held) > 0 || s.peerEnd:
		s.later()
	}
}

// Abort implements Stream.
func (s *h1Server) Abort(why reason.Reason) {
	s.rcv = nil
	s.end(why)
}

// Consumed implements Stream.
func (s *h1Server) Consumed(n int) {
	if !s.gone {
		s.out.conn.Consumed(n)
	}
}

// Release implements Stream: all exchanges of a connection are one object.
func (s *h1Server) Release() {}
