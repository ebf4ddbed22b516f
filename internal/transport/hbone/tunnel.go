package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

const (
	// readTurn is how much one tunnel may receive in one turn before others
	// get theirs.
	readTurn = 2 * poll.BufferSize
	// closeLinger bounds how long a tunnel that said goodbye waits for the
	// peer to do so: closing earlier could destroy our last frames.
	closeLinger = time.Second

	// DefaultKeepAlive is how long a tunnel with streams may be silent before
	// it is asked for a sign of life.
	DefaultKeepAlive = 15 * time.Second
	// silentIntervals is after how many of these a silent tunnel is closed. The
	// product is 3 minutes by default: a minute without network ends no TCP
	// connection, and TCP's next retransmission may come 51 s after that minute.
	// New connections do not wait for a silent tunnel (see suspect.go).
	silentIntervals = 12

	// maxFrame is the largest DATA frame accepted by default: what a sender reads at once
	// should fit one frame. It costs no memory, frames are delivered in parts.
	maxFrame = 1 << 20
)

// role is what a tunnel's client or server side adds.
type role interface {
	headers(s *h2.Stream, h *h2.Header, end bool)
	goingAway(last uint32, code h2.ErrCode)
	settings()
	// ended is called once, when the descriptor is closed and every stream
	// has been told.
	ended(r reason.Reason, err error)
}

// tunnel is one mutually authenticated HTTP/2 connection on its loop: bytes
// from the socket through TLS into the protocol engine, and back.
type tunnel struct {
	hub  *hub
	reg  poll.Registration
	fd   int
	wire *wire
	tls  *tls.Conn
	h2   *h2.Conn
	role role

	sent     int // of wire.out
	readable bool
	writable bool
	hup      bool
	dirty    bool // in hub.dirty
	closing  bool // said goodbye: nothing more is sent
	closed   bool
	inEngine bool // inside h2.Receive: streams must not be pumped

	heard time.Time // when bytes last arrived

	queues Quota // of the bytes that wait for programs; nil: no bound
	held   int64 // units of it

	stalled []*stream // would read, but too much ciphertext waits
	resumed []*stream // got credit while inEngine

	why       reason.Reason // for streams, when the tunnel ends
	err       error
	keepAlive *poll.Timer
	silent    int // intervals of keepAlive since bytes last arrived
	linger    *poll.Timer
}

// start puts a tunnel whose handshake is over on the loop it was made for.
func (t *tunnel) start(l *poll.Loop, fd int, conn *tls.Conn, w *wire, cfg h2.Config, r role, keep, silence time.Duration) error {
	t.hub, t.fd, t.tls, t.wire, t.role = hubOf(l), fd, conn, w, r
	t.writable, t.readable, t.why = true, true, reason.TunnelClosed
	t.heard = l.Now()
	t.h2 = h2.New(cfg, t)
	if err := l.AddTo(&t.reg, fd, t); err != nil {
		t.closed = true
		return err
	}
	if keep == 0 {
		keep = DefaultKeepAlive
	}
	if keep > 0 {
		most := silentIntervals
		if silence > 0 {
			most = int(max((silence+keep-1)/keep, 1))
		}
		t.keepAlive = l.AfterFunc(keep, func() { t.alive(keep, most) })
	}
	t.touch()
	// crypto/tls may hold bytes that came with the handshake's last flight, for
	// which there will be no event.
	t.reg.Again(poll.Readable)
	return nil
}

func engineConfig(server bool, streams uint32, w Windows) h2.Config {
	return h2.Config{
		Server: server, MaxStreams: streams, MaxFrame: or(w.Frame, maxFrame),
		StreamWindow: w.Stream, MaxStreamWindow: w.MaxStream, ConnWindow: w.Conn,
	}
}

// alive asks for a sign of life, and ends a tunnel that gave none for most
// intervals. Intervals are counted, and not time: a process that was stopped
// itself must not take its own pause for the peer's. A tunnel without streams
// is left in peace.
func (t *tunnel) alive(every time.Duration, most int) {
	switch {
	case t.h2.Streams() == 0 || t.hub.loop.Now().Sub(t.heard) < every:
		t.silent = 0
	case t.silent+1 >= most:
		t.fail(reason.TunnelClosed, errSilent)
		return
	default:
		t.silent++
		t.h2.KeepAlive() // its own count is shorter
	}
	t.touch()
	t.keepAlive.Reset(every)
}

// Ready implements poll.Handler.
func (t *tunnel) Ready(ev poll.Events) {
	if ev&(poll.ReadHup|poll.Hangup|poll.Failed) != 0 {
		t.hup = true
	}
	if ev&poll.Writable != 0 && !t.writable {
		t.writable = true
		t.touch()
	}
	if ev&(poll.Readable|poll.ReadHup|poll.Hangup|poll.Failed) != 0 {
		t.readable = true
		t.receive()
	}
}

// touch has the tunnel flushed at the end of this turn.
func (t *tunnel) touch() {
	if !t.dirty && !t.closed {
		t.dirty = true
		t.hub.add(t)
	}
}

// receive takes what the socket has.
func (t *tunnel) receive() {
	for budget := readTurn; budget > 0; {
		if t.closed || !t.readable {
			return
		}
		n, err := poll.Read(t.fd, t.hub.cipher)
		switch {
		case poll.IsAgain(err):
			t.readable = false
			t.wire.in = nil
		case err != nil:
			t.fail(reason.TunnelClosed, err)
			return
		default:
			if n < len(t.hub.cipher) && !t.hup {
				t.readable = false // a short read of a stream socket: dry
			}
			t.wire.in, t.wire.end = t.hub.cipher[:n], n == 0
			t.heard = t.hub.loop.Now()
		}
		budget -= n
		t.decrypt()
	}
	t.reg.Again(poll.Readable)
}

// decrypt opens every whole record and gives the plaintext to the engine in
// pieces as large as possible: what arrives in one piece is delivered by one
// system call.
func (t *tunnel) decrypt() {
	plain := t.hub.plain
	k := 0
	for {
		n, err := t.tls.Read(plain[k:])
		k += n
		if err == nil && len(plain)-k >= maxRecord {
			continue
		}
		if k > 0 && !t.deliver(plain[:k]) {
			return
		}
		k = 0
		switch {
		case err == nil:
		case err == errDry: //nolint:errorlint // crypto/tls hands it back as it is
			return
		case errors.Is(err, io.EOF):
			t.fail(reason.TunnelClosed, nil)
			return
		default:
			t.fail(reason.TunnelClosed, err)
			return
		}
	}
}

// deliver runs the engine on plaintext. It reports whether the tunnel goes on.
func (t *tunnel) deliver(p []byte) bool {
	if t.closing {
		return true // only its end is awaited
	}
	t.inEngine = true
	err := t.h2.Receive(t.hub.loop.Now(), p)
	t.inEngine = false
	t.touch()
	if err != nil {
		t.err = err
		t.goodbye()
		return !t.closed
	}
	for i := 0; i < len(t.resumed); i++ {
		t.resumed[i].pump()
	}
	clear(t.resumed)
	t.resumed = t.resumed[:0]
	t.settle()
	return !t.closed
}

// settle ends a tunnel that was asked to end and has no streams any more.
func (t *tunnel) settle() {
	if !t.closed && !t.closing && t.h2.Drained() {
		t.goodbye()
	}
}

// waiting is how many bytes wait to be written to the socket.
func (t *tunnel) waiting() int { return len(t.wire.out) - t.sent }

// full tells whether applications must not be read for now.
func (t *tunnel) full() bool { return t.waiting()+len(t.h2.Output()) >= outBound }

// seal encrypts p behind what waits. It returns false when that ended the
// tunnel.
func (t *tunnel) seal(p []byte) bool {
	if t.wire.out == nil {
		t.wire.out = t.hub.takeOut()
	}
	if _, err := t.tls.Write(p); err != nil {
		t.fail(reason.TunnelClosed, err)
		return false
	}
	return true
}

// sealOutput encrypts what the engine has to say. While too much waits already
// it stays in the engine, which bounds it.
func (t *tunnel) sealOutput() bool {
	if t.waiting() >= outBound || t.closing {
		return true
	}
	if o := t.h2.Output(); len(o) > 0 {
		if !t.seal(o) {
			return false
		}
		t.h2.Wrote(len(o))
	}
	return true
}

// flush writes what waits, as far as the socket takes it.
func (t *tunnel) flush() {
	for !t.closed {
		if !t.sealOutput() {
			return
		}
		if t.waiting() == 0 {
			t.releaseOut()
			break
		}
		if !t.writable || !t.write() {
			break
		}
	}
	if t.closed {
		return
	}
	if t.closing && t.waiting() == 0 {
		_ = poll.ShutdownWrite(t.fd)
	}
	if len(t.stalled) > 0 && !t.full() {
		// In the next turn, and only once each: others are served between.
		for i, s := range t.stalled {
			t.stalled[i] = nil
			s.stalled = false
			s.reg.Again(poll.Readable)
		}
		t.stalled = t.stalled[:0]
	}
}

// write gives the socket what it takes; false means it takes no more now, or
// the tunnel has ended.
func (t *tunnel) write() bool {
	p := t.wire.out[t.sent:]
	n, err := poll.Write(t.fd, p)
	if err != nil && !poll.IsAgain(err) {
		// What the peer said before it went away is still to be read, and its
		// end or error with it.
		t.sent = len(t.wire.out)
		t.fail(reason.TunnelClosed, err)
		return false
	}
	t.sent += n
	if n < len(p) {
		t.writable = false
		return false
	}
	return true
}

func (t *tunnel) releaseOut() {
	if t.wire.out != nil {
		t.hub.putOut(t.wire.out)
		t.wire.out, t.sent = nil, 0
	}
}

// goodbye ends the tunnel from our side: the last frames, TLS's close_notify
// and the end of the stream are sent, and the peer's end is awaited for a
// while. The streams have ended already, or end now.
func (t *tunnel) goodbye() {
	if t.closing || t.closed {
		return
	}
	t.h2.Shutdown()
	if !t.sealOutput() {
		return
	}
	t.h2.GoAway(h2.NoError, "")
	if t.wire.out == nil {
		t.wire.out = t.hub.takeOut()
	}
	_ = t.tls.CloseWrite()
	t.closing = true
	t.linger = t.hub.loop.AfterFunc(closeLinger, func() { t.fail(t.why, t.err) })
	t.touch()
}

// fail ends the tunnel now; its streams get r.
func (t *tunnel) fail(r reason.Reason, err error) {
	if t.closed {
		return
	}
	if err == nil {
		err = t.err
	}
	t.closed, t.why, t.err = true, r, err
	t.keepAlive.Stop()
	t.linger.Stop()
	t.reg.Close()
	t.releaseOut()
	clear(t.stalled)
	t.stalled = nil
	t.h2.Close(h2.InternalError)
	t.role.ended(r, err)
}

// The rest implements h2.Handler.

// OnHeaders passes requests, responses and trailers to the role.
func (t *tunnel) OnHeaders(s *h2.Stream, h *h2.Header, end bool) { t.role.headers(s, h, end) }

// OnData delivers.
func (t *tunnel) OnData(s *h2.Stream, p []byte, end bool) {
	if st, _ := s.User.(*stream); st != nil {
		st.data(p, end)
		return
	}
	t.h2.Consumed(s, len(p))
}

// OnReset ends a stream.
func (t *tunnel) OnReset(s *h2.Stream, code h2.ErrCode) {
	if st, _ := s.User.(*stream); st != nil {
		st.reset(code)
	}
}

// OnWritable lets a stream read its application again.
func (t *tunnel) OnWritable(s *h2.Stream) {
	st, _ := s.User.(*stream)
	switch {
	case st == nil:
	case t.inEngine:
		t.resumed = append(t.resumed, st)
	default:
		st.reg.Again(poll.Readable)
	}
}

// OnGoAway stops new streams.
func (t *tunnel) OnGoAway(last uint32, code h2.ErrCode, _ []byte) { t.role.goingAway(last, code) }

// OnSettings tells the role that limits may have changed.
func (t *tunnel) OnSettings() { t.role.settings() }

// OnPong is not used: the engine keeps its own pings.
func (t *tunnel) OnPong([8]byte) {}

func (t *tunnel) unstall(s *stream) {
	if s.stalled {
		s.stalled = false
		t.stalled = slices.DeleteFunc(t.stalled, func(o *stream) bool { return o == s })
	}
}
