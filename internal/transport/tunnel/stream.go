package tunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

const (
	// largeData is the size from which DATA is sealed straight from the buffer
	// it was read into. Below, one copy is cheaper than a record of its own.
	largeData = 8 << 10
	// appTurn is how much one application may send in one turn before others
	// get theirs.
	appTurn = 2 * poll.BufferSize
)

// phase is how far a stream has come.
type phase uint8

const (
	opening phase = iota // no 200 yet: the application is not read
	running
	gone
)

// Stream joins one HTTP/2 stream with one application socket. It is the flow
// its owner sees.
type Stream struct {
	relay.Flow
	t  *Tunnel
	hs *h2.Stream
	// hooks are what differs between client and server, and between opening
	// and running.
	hooks Hooks
	sock  poll.Sock // the application's; its queue has what the application has no room for
	held  int64     // of the tunnel's budget, for that queue

	linger *poll.Timer

	phase   phase
	client  bool // the application initiated the connection
	appEnd  bool // the application's end of stream was sent on
	peerEnd bool // the stream's end was received
	shut    bool // and passed to the application
	broken  bool // the application reset the connection: nothing can be written
	cut     bool // the stream was reset: the queue is delivered, then the application is reset
	cutOK   bool // ... or not, because the peer only wanted to read no more
	stalled bool // in tunnel.stalled

	extra int32 // bytes at the front of the socket's queue that are not the stream's (prefix)
}

// Hooks get how a stream ends, on its loop.
type Hooks interface {
	// Failed is called for a stream that ended while opening. The socket is the hooks'
	// now. retry says that another tunnel may take the stream.
	Failed(s *Stream, r reason.Reason, err error, retry bool)
	// Ended is called for a stream that ended after running.
	Ended(s *Stream, r relay.Result)
}

// NewStream makes a stream of the tunnel that is opening. client says that the
// application has begun the connection.
func (t *Tunnel) NewStream(client bool, h Hooks) *Stream {
	s := &Stream{t: t, client: client, hooks: h}
	s.Init(t.hub.loop, s)
	s.sock.Init(t.hub.loop)
	return s
}

// Requested gives the stream the request that it is. end says that nothing follows it.
func (s *Stream) Requested(hs *h2.Stream, end bool) {
	hs.User, s.hs, s.peerEnd = s, hs, end
}

// Hooks returns the hooks of the stream.
func (s *Stream) Hooks() Hooks { return s.hooks }

// Tunnel returns the tunnel of the stream.
func (s *Stream) Tunnel() *Tunnel { return s.t }

// H2 returns the stream of the protocol engine.
func (s *Stream) H2() *h2.Stream { return s.hs }

// Opening reports whether the stream neither runs nor has ended.
func (s *Stream) Opening() bool { return s.phase == opening }

// Watch gives the stream its application's socket, which is read once Run is called.
func (s *Stream) Watch(fd int) error { return s.sock.Watch(s.Loop(), fd, s) }

// Detach gives the socket back to the caller.
func (s *Stream) Detach() { s.sock.Detach() }

// Prefix has the application get these bytes before those of the stream.
func (s *Stream) Prefix(p []byte) {
	s.sock.QueueFirst(p)
	s.extra = int32(len(p)) //nolint:gosec // a PROXY protocol header is short
}

// Refuse ends a stream that is opening, without its hooks: the caller answers.
func (s *Stream) Refuse() {
	s.phase = gone
	s.discard()
}

// Accepted is called when the stream is answered: its hooks are h from now on. end says
// that the peer sends nothing more.
func (s *Stream) Accepted(end bool, h Hooks) {
	s.hooks = h
	s.peerEnd = s.peerEnd || end
}

// Unconnected ends a stream that was accepted and whose socket cannot be watched. The
// socket is the caller's.
func (s *Stream) Unconnected(err error) {
	s.t.h2.Reset(s.hs, h2.InternalError)
	s.end(reason.ResourceExhausted, err, func(*Stream) {})
}

// Run begins to relay with the application, whose socket is watched already.
func (s *Stream) Run() {
	s.phase = running
	if s.sock.Queued() > 0 || s.peerEnd {
		s.deliver()
	}
	switch {
	case s.phase != running:
	case s.t.inEngine:
		s.t.resumed = append(s.t.resumed, s)
	default:
		s.sock.Again(poll.Readable)
	}
}

// Ready implements poll.Handler for the application's socket.
func (s *Stream) Ready(ev poll.Events) {
	s.sock.Note(ev)
	if s.phase == opening {
		// Half-closed is fine: it wants the answer. Gone altogether is not.
		if ev&(poll.Hangup|poll.Failed) != 0 {
			s.Abandon(s.appReset())
		}
		return
	}
	if ev&poll.Failed != 0 && s.linger == nil {
		// What it sent before it was reset may be stuck behind a peer that does
		// not read: not for ever.
		s.linger = s.Loop().AfterFunc(s.t.patience, func() { s.appGone(nil) })
	}
	if s.sock.Queued() > 0 {
		s.deliver()
	}
	s.pump()
}

// appReset is the reason when the application reset the connection, peerReset
// when the other side did.
func (s *Stream) appReset() reason.Reason {
	if s.client {
		return reason.DownstreamReset
	}
	return reason.UpstreamReset
}

func (s *Stream) peerReset() reason.Reason {
	if s.client {
		return reason.UpstreamReset
	}
	return reason.DownstreamReset
}

// pump reads the application and sends on the stream, until one of them would
// block.
func (s *Stream) pump() {
	for budget := appTurn; budget > 0; {
		if s.phase != running || !s.sock.Readable() || s.appEnd {
			return
		}
		if s.broken || s.cut {
			s.drop()
			return
		}
		if s.t.full() {
			s.stall()
			return
		}
		n, ok := s.readApp()
		if !ok {
			return
		}
		budget -= n
	}
	s.sock.Again(poll.Readable)
}

func (s *Stream) stall() {
	s.t.Touch()
	if !s.stalled {
		s.stalled = true
		s.t.stalled = append(s.t.stalled, s)
	}
}

// unstalled implements writer: in the next turn, and only once; others are served
// between.
func (s *Stream) unstalled() {
	s.stalled = false
	s.sock.Again(poll.Readable)
}

// readApp moves one piece. The second result is false when there is nothing
// more to do now.
func (s *Stream) readApp() (int, bool) {
	t := s.t
	quota := t.h2.SendQuota(s.hs)
	if quota <= 0 {
		return 0, false // OnWritable continues
	}
	if t.rec != nil {
		return s.readSlots(quota)
	}
	frame := t.hub.loop.Framed()[poll.HeaderRoom-h2.FrameHeaderLen:]
	n, err := s.sock.Read(frame[h2.FrameHeaderLen : h2.FrameHeaderLen+pieceSize(quota)])
	if !s.received(n, err) {
		return 0, false
	}
	if !s.send(frame, n) {
		return n, false
	}
	return n, s.sock.Readable()
}

// received takes the result of a read from the application. It reports whether there are
// bytes.
func (s *Stream) received(n int, err error) bool {
	switch {
	case poll.IsAgain(err):
		return false
	case err != nil:
		s.appGone(err)
		return false
	case n == 0:
		s.appEnd = true
		s.t.h2.AppendData(s.hs, nil, true)
		s.t.Touch()
		s.finishIfDone()
		return false
	case s.client:
		s.AddSent(n)
	default:
		s.AddReceived(n)
	}
	return true
}

// pieceSize is how much to read at once: what the quota permits, cut so that a
// large frame with its header fills whole TLS records.
func pieceSize(quota int) int {
	n := min(quota, poll.BufferSize)
	if whole := n + h2.FrameHeaderLen; whole > MaxRecord {
		n = whole/MaxRecord*MaxRecord - h2.FrameHeaderLen
	}
	return n
}

// send makes a DATA frame of the n bytes that follow the room for its header.
func (s *Stream) send(frame []byte, n int) bool {
	t := s.t
	if n < largeData {
		t.h2.AppendData(s.hs, frame[h2.FrameHeaderLen:h2.FrameHeaderLen+n], false)
	} else if !t.sealOutput() || !t.h2.DataHeader(frame, s.hs, n, false) || !t.seal(frame[:h2.FrameHeaderLen+n]) {
		return false
	}
	return s.sentFrame()
}

// sentFrame has what was sealed leave: at once when it is much. It reports whether the
// tunnel goes on.
func (s *Stream) sentFrame() bool {
	t := s.t
	t.Touch()
	if t.waiting() >= outFlush {
		t.flush()
	}
	return !t.closed
}

// data is DATA from the tunnel: straight to the application, and what it does
// not take into the queue, which the stream's window bounds.
func (s *Stream) data(p []byte, end bool) {
	s.peerEnd = s.peerEnd || end
	if len(p) > 0 && s.phase != gone {
		if s.client {
			s.AddReceived(len(p))
		} else {
			s.AddSent(len(p))
		}
	}
	switch {
	case s.phase == gone || s.broken:
		s.t.h2.Consumed(s.hs, len(p))
	case s.phase == opening || s.sock.Queued() > 0 || !s.sock.Writable():
		if !s.enqueue(p) {
			return
		}
	default:
		n, err := s.sock.Write(p)
		if err != nil && !poll.IsAgain(err) {
			s.t.h2.Consumed(s.hs, len(p))
			s.breakApp()
			return
		}
		s.t.h2.Consumed(s.hs, n)
		if n < len(p) && !s.enqueue(p[n:]) {
			return
		}
	}
	if end {
		s.finishIfDone()
	}
}

// deliver gives the application what was queued.
func (s *Stream) deliver() {
	if n := s.sock.Queued(); n > 0 {
		err := s.sock.Flush()
		s.consumed(n - s.sock.Queued())
		s.t.release(&s.held, units(s.sock.Queued()))
		if err != nil {
			s.breakApp()
			return
		}
	}
	s.finishIfDone()
}

// consumed returns credit for n bytes of the queue.
func (s *Stream) consumed(n int) {
	extra := int(s.extra)
	own := max(n-extra, 0)
	s.extra = int32(max(extra-n, 0)) //nolint:gosec // it only shrinks
	if own > 0 {
		s.t.h2.Consumed(s.hs, own)
		s.t.Touch()
	}
}

func (s *Stream) discard() {
	n := s.sock.Queued()
	s.sock.DropQueue()
	s.consumed(n)
	s.t.release(&s.held, 0)
}

// finishIfDone passes the end of the stream on once everything before it is
// delivered, and ends what has ended both ways.
func (s *Stream) finishIfDone() {
	if s.phase != running || s.sock.Queued() > 0 {
		return
	}
	if s.cut {
		s.finishCut()
		return
	}
	if s.peerEnd && !s.shut && !s.broken {
		s.shut = true
		s.sock.ShutdownWrite()
	}
	if s.shut && s.appEnd {
		s.end(reason.OK, nil, closeApp)
	}
}

func (s *Stream) finishCut() {
	if s.cutOK {
		s.end(reason.OK, nil, closeApp)
		return
	}
	r, err := s.peerReset(), error(nil)
	if s.t.h2.Err() != nil {
		r, err = s.t.why, s.t.err
	}
	s.end(r, err, passReset)
}

// breakApp notes that writing to the application failed: it has reset the
// connection. What it sent before that may still be in the kernel, and is sent
// on first.
func (s *Stream) breakApp() {
	s.broken = true
	s.discard()
	if s.appEnd || s.cut {
		s.appGone(nil)
		return
	}
	s.sock.Again(poll.Readable)
}

// drop is pump for a stream that was cut or an application that is broken.
func (s *Stream) drop() {
	if s.cut {
		return // what it sends is not wanted
	}
	for s.phase == running {
		if s.t.full() {
			s.stall()
			return
		}
		if s.t.h2.SendQuota(s.hs) <= 0 {
			if s.linger == nil {
				s.linger = s.Loop().AfterFunc(s.t.patience, func() { s.appGone(nil) })
			}
			return
		}
		if _, ok := s.readApp(); !ok {
			break
		}
	}
	if s.phase == running {
		s.appGone(nil)
	}
}

// appGone ends a stream whose application has reset the connection.
func (s *Stream) appGone(err error) {
	if s.phase != running {
		return
	}
	s.t.h2.Reset(s.hs, h2.ConnectError)
	s.t.Touch()
	s.end(s.appReset(), err, closeApp)
}

// Abandon ends a stream that is not wanted any more while it is opening.
func (s *Stream) Abandon(r reason.Reason) {
	if s.phase != opening {
		return
	}
	s.t.h2.Reset(s.hs, h2.Cancel)
	s.t.Touch()
	s.Fail(r, nil, false)
}

// reset is the end of the stream by the peer or with the tunnel.
func (s *Stream) reset(code h2.ErrCode) {
	switch s.phase {
	case opening:
		tunnelDied := s.t.h2.Err() != nil
		r, err := reason.DownstreamReset, error(resetError{code})
		if s.client {
			r = reason.TunnelRefused
		}
		if tunnelDied {
			r, err = s.t.why, s.t.err
		}
		s.Fail(r, err, tunnelDied || code.Retriable())
	case running:
		s.cut = true
		// A server may stop reading once its answer is complete (RFC 9113, 8.1).
		s.cutOK = code == h2.NoError && s.peerEnd && s.t.h2.Err() == nil
		s.t.unstall(s)
		s.finishIfDone()
		if s.phase == running && s.linger == nil {
			s.linger = s.Loop().AfterFunc(s.t.patience, func() { s.discard(); s.finishIfDone() })
		}
	case gone:
	}
}

type resetError struct{ code h2.ErrCode }

func (e resetError) Error() string { return "peer reset the stream with " + e.code.String() }

// Abort implements relay.Carrier.
func (s *Stream) Abort(r reason.Reason) {
	switch s.phase {
	case opening:
		s.Abandon(r)
	case running:
		s.t.h2.Reset(s.hs, h2.Cancel)
		s.t.Touch()
		s.end(r, nil, resetApp)
	case gone:
	}
}

// Fail gives the descriptor back and ends a stream that never ran.
func (s *Stream) Fail(r reason.Reason, err error, retry bool) {
	s.phase = gone
	s.discard()
	s.sock.Detach()
	s.hooks.Failed(s, r, err, retry)
	if !s.t.inEngine {
		s.t.Settle()
	}
}

// How a stream lets go of the application's socket.
func closeApp(s *Stream)  { s.sock.Close() }
func resetApp(s *Stream)  { s.sock.Reset() }
func passReset(s *Stream) { relay.Reset(s.Loop(), s.sock.Detach()) }

// end lets go of the application's socket by the given means.
func (s *Stream) end(r reason.Reason, err error, letGo func(*Stream)) {
	s.phase = gone
	s.discard()
	s.t.unstall(s)
	s.linger.Stop()
	if down, up := s.sock.FD(), s.t.sock.FD(); s.client {
		s.Ending(down, up)
	} else {
		s.Ending(up, down)
	}
	letGo(s)
	sent, received := s.Bytes()
	s.hooks.Ended(s, relay.Result{Sent: sent, Received: received, Reason: r, Err: err})
	if !s.t.inEngine {
		s.t.Settle()
	}
}
