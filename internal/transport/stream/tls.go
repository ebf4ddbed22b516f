package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// maxRecord is the most plaintext one TLS record carries (RFC 8446, 5.1).
	maxRecord = 16 << 10
	// plainSize is how much plaintext is delivered at once.
	plainSize = Window + maxRecord
	// closeLinger is how long a stream that has nothing more to say waits for the
	// end of its peer: a reset could destroy what was sent last.
	closeLinger = time.Second
)

// errTruncated is the end of a stream below TLS without TLS's own: the bytes that are
// missing may have been cut off by anyone.
var errTruncated = errors.New("the stream below TLS ended without close_notify: the peer's last bytes may be missing")

// TLS shakes hands over under, which belongs to it from here on, and calls done on the
// loop of under, exactly once, never inline: with the stream inside, or an error. (A
// loop that is closed meanwhile calls nothing.) The handshake runs on a goroutine of
// its own; afterwards crypto/tls lives on the loop. conf decides about everything, such
// as protocols and session tickets. ctx bounds the handshake. TLS is called on the loop
// of under.
//
// The Info of the stream is that of under with the state of TLS. Its Peer is zero:
// only the caller can say which identity conf verifies, and may set it in done.
func TLS(ctx context.Context, under Conn, conf *tls.Config, server bool, done func(Conn, error)) {
	b := Block(under)
	w := &tlsWire{shake: b, under: under}
	conn := tls.Client(w, conf)
	if server {
		conn = tls.Server(w, conf)
	}
	l := under.Loop()
	l.Go(func() {
		err := conn.HandshakeContext(ctx)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		l.Post(func() {
			rest, end, cerr := b.Release()
			if err != nil {
				closeSoon(under) // an alert may be on its way
				done(nil, err)
				return
			}
			t := newTLS(under, conn, w, rest, end)
			if cerr != nil {
				t.OnClose(reasonOf(cerr, under.Info().ResetReason()), cerr)
			}
			done(t, nil)
		})
	})
}

func reasonOf(err error, fallback reason.Reason) reason.Reason {
	var re *reason.Error
	if errors.As(err, &re) && re.Reason != reason.OK {
		return re.Reason
	}
	return fallback
}

// dryError says that the stream below has no more bytes now. Because it is Temporary,
// crypto/tls keeps the half of a record that it has and goes on where it stopped;
// every other error would be final.
type dryError struct{}

func (dryError) Error() string   { return "no more bytes now" }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

// ErrDry is what the net.Conn below a tls.Conn on a loop returns when nothing has
// arrived.
var ErrDry net.Error = dryError{}

// tlsWire is the net.Conn below crypto/tls. After the handshake it hands out what the
// loop has received, and passes on what crypto/tls writes.
type tlsWire struct {
	shake *Blocking // during the handshake
	under Conn
	full  bool   // under has asked to wait
	in    []byte // received, not taken yet
	end   bool   // nothing comes after in
}

// Read implements net.Conn.
func (w *tlsWire) Read(p []byte) (int, error) {
	switch {
	case w.shake != nil:
		return w.shake.Read(p)
	case len(w.in) > 0:
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	case w.end:
		return 0, errTruncated // crypto/tls would take io.EOF for an orderly end
	}
	return 0, ErrDry
}

// Write implements net.Conn.
func (w *tlsWire) Write(p []byte) (int, error) {
	if w.shake != nil {
		return w.shake.Write(p)
	}
	if !w.under.Write(p) {
		w.full = true
	}
	return len(p), nil
}

// Close implements net.Conn: it ends a handshake.
func (w *tlsWire) Close() error {
	if w.shake != nil {
		return w.shake.Close()
	}
	return nil
}

// LocalAddr implements net.Conn.
func (w *tlsWire) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(w.under.Info().Local) }

// RemoteAddr implements net.Conn.
func (w *tlsWire) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(w.under.Info().Remote) }

// SetDeadline implements net.Conn: on a loop nothing waits.
func (w *tlsWire) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (w *tlsWire) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (w *tlsWire) SetWriteDeadline(time.Time) error { return nil }

// tlsConn is a Conn inside TLS. It is the Sink of the stream below.
//
// Ciphertext is opened as soon as it arrives. The stream below gets its credit back
// when the plaintext was consumed, and at once for what TLS adds.
type tlsConn struct {
	under Conn
	conn  *tls.Conn
	wire  *tlsWire
	sink  Sink
	info  Info
	depth int

	in     poll.Queue // plaintext that the Sink does not take now
	unread int        // bytes of plaintext, in in or with the Sink, that were not consumed
	held   int        // credit of under that was not given back
	linger poll.Deadline

	why reason.Reason // of OnClose
	err error

	scheduled bool // TurnEnd is going to be called
	inside    bool // the Sink has the front of in
	fresh     bool // what crypto/tls holds since the handshake was not opened yet
	paused    bool
	blocked   bool // a Write reported false: OnWritable is owed
	wantEnd   bool // CloseWrite was called
	peerEnd   bool // the peer's close_notify was received
	readEnd   bool // and delivered
	cut       bool // nothing more can be sent or received: in is delivered, then OnClose
	done      bool // aborted, or OnClose was called
}

func newTLS(under Conn, conn *tls.Conn, w *tlsWire, rest []byte, end bool) *tlsConn {
	t := &tlsConn{under: under, conn: conn, wire: w, info: *under.Info(), held: len(rest), fresh: true}
	w.shake, w.in, w.end = nil, rest, end
	state := conn.ConnectionState()
	t.info.TLS, t.info.Peer = &state, identity.Identity{}
	if outer, ok := under.(*tlsConn); ok {
		t.depth = outer.depth + 1
	}
	under.Pause() // until there is a Sink
	under.Bind(t)
	return t
}

func (t *tlsConn) Loop() *poll.Loop { return t.under.Loop() }
func (t *tlsConn) Info() *Info      { return &t.info }

func (t *tlsConn) Bind(s Sink) {
	t.sink = s
	if !t.paused && !t.done && !t.cut {
		t.under.Resume()
	}
	t.schedule()
}

func (t *tlsConn) Pause() {
	t.paused = true
	if !t.done && !t.cut {
		t.under.Pause()
	}
}

func (t *tlsConn) Resume() {
	t.paused = false
	if t.sink != nil && !t.done && !t.cut {
		t.under.Resume()
	}
	t.schedule()
}

func (t *tlsConn) Consumed(n int) {
	t.unread = max(t.unread-n, 0)
	t.credit()
}

// credit gives back what is neither waiting nor with the Sink.
func (t *tlsConn) credit() {
	if t.held > t.unread && !t.done && !t.cut {
		t.under.Consumed(t.held - t.unread)
		t.held = t.unread
	}
}

func (t *tlsConn) Write(p []byte) bool {
	if t.done || t.cut || t.wantEnd || len(p) == 0 {
		return !t.blocked
	}
	if _, err := t.conn.Write(p); err != nil {
		t.fail(reason.TLSFailure, err)
		return false
	}
	t.blocked = t.blocked || t.wire.full
	return !t.blocked
}

func (t *tlsConn) CloseWrite() {
	if t.done || t.wantEnd {
		return
	}
	t.wantEnd = true
	if !t.cut {
		_ = t.conn.CloseWrite() // it can only fail by a stream that has ended, which is reported
		t.under.CloseWrite()
	}
	t.schedule()
}

func (t *tlsConn) Abort(why reason.Reason) {
	if t.done {
		return
	}
	t.done, t.sink = true, nil
	t.free()
	if !t.cut {
		t.under.Abort(why)
	}
}

// OnData implements Sink, for ciphertext.
func (t *tlsConn) OnData(p []byte, end bool) {
	t.held += len(p)
	if len(t.wire.in) > 0 { // since the handshake
		p = append(t.wire.in, p...)
	}
	t.wire.in, t.wire.end = p, end
	t.decrypt()
	t.wire.in = nil
	t.credit()
}

// OnWritable implements Sink.
func (t *tlsConn) OnWritable() {
	t.wire.full = false
	t.schedule()
}

// OnClose implements Sink.
func (t *tlsConn) OnClose(why reason.Reason, err error) {
	if t.done || t.cut {
		return
	}
	t.cut, t.why, t.err = true, why, err
	t.schedule()
}

// fail ends a stream because of what crypto/tls says. An alert may be on its way.
func (t *tlsConn) fail(why reason.Reason, err error) {
	if t.done || t.cut {
		return
	}
	t.cut, t.why, t.err = true, why, err
	closeSoon(t.under)
	t.schedule()
}

// plainKey is for the buffer of plaintext of one depth of TLS inside of TLS: while one
// stream delivers, the stream inside opens what it gets.
type plainKey struct{ depth int }

// opened is that buffer.
type opened struct{ b []byte }

// Trim implements poll.Trimmer.
func (p *opened) Trim() { p.b = nil }

func (t *tlsConn) buffer() []byte {
	p := t.Loop().Value(plainKey{t.depth}, func() any { return &opened{} }).(*opened)
	if p.b == nil {
		p.b = make([]byte, plainSize)
	}
	return p.b
}

// decrypt opens every whole record and delivers the plaintext in large pieces.
func (t *tlsConn) decrypt() {
	fresh := t.fresh
	t.fresh = false
	plain, k := t.buffer(), 0
	for !t.done && !t.peerEnd && (fresh || !t.cut) {
		n, err := t.conn.Read(plain[k:])
		if k += n; err == nil && len(plain)-k >= maxRecord {
			continue
		}
		if k > 0 {
			t.deliver(plain[:k])
			k = 0
		}
		switch {
		case err == nil:
		case err == ErrDry: //nolint:errorlint // crypto/tls hands it back as it is
			return
		case err == io.EOF: //nolint:errorlint // close_notify
			t.peerEnd = true
			t.schedule()
		case errors.Is(err, errTruncated):
			t.fail(t.info.ResetReason(), errTruncated)
			return
		default:
			t.fail(reason.TLSFailure, err)
			return
		}
	}
}

func (t *tlsConn) deliver(p []byte) {
	if t.done {
		return
	}
	t.unread += len(p)
	if t.sink == nil || t.paused || t.in.Len() > 0 {
		t.in.Append(t.Loop(), p)
		t.schedule()
		return
	}
	t.sink.OnData(p, false)
}

func (t *tlsConn) schedule() {
	if !t.scheduled {
		t.scheduled = true
		t.Loop().EndTurnOf(t)
	}
}

func (t *tlsConn) ready() bool { return !t.done && t.sink != nil && !t.paused }

// TurnEnd implements poll.TurnEnder: what waits is delivered, and the end behind it.
func (t *tlsConn) TurnEnd() {
	t.scheduled = false
	if t.fresh && t.ready() {
		t.decrypt()
		t.wire.in = nil
		t.credit()
	}
	for t.ready() && t.in.Len() > 0 {
		p := t.in.Front()
		t.inside = true
		t.sink.OnData(p, false)
		t.inside = false
		if t.done {
			t.free()
			return
		}
		t.in.Discard(t.Loop(), len(p))
	}
	if t.ready() && t.peerEnd && !t.readEnd {
		t.readEnd = true
		t.sink.OnData(nil, true)
	}
	if t.blocked && !t.wire.full && !t.done && !t.cut && !t.wantEnd && t.sink != nil {
		t.blocked = false
		t.sink.OnWritable()
	}
	t.finish()
}

// finish calls OnClose once everything that came before was delivered.
func (t *tlsConn) finish() {
	ended := t.readEnd && t.wantEnd
	switch {
	case t.done || !t.cut && !ended:
	case t.in.Len() > 0 || t.fresh || t.peerEnd && !t.readEnd:
		if t.cut && t.why != reason.OK && !t.linger.Armed() {
			t.linger.Arm(t.Loop(), lingerBlocked, t.expire)
		}
	case t.sink != nil:
		why, err := t.why, t.err
		if ended {
			why, err = reason.OK, nil
		}
		if !t.cut {
			closeSoon(t.under)
		}
		s := t.sink
		t.done, t.sink = true, nil
		t.free()
		s.OnClose(why, err)
	}
}

// expire ends the wait for a Sink that takes nothing.
func (t *tlsConn) expire() {
	t.in.Discard(t.Loop(), t.in.Len())
	t.fresh, t.readEnd = false, true
	t.finish()
}

func (t *tlsConn) free() {
	t.linger.Stop()
	if !t.inside { // otherwise TurnEnd does it: the Sink has its front
		t.in.Discard(t.Loop(), t.in.Len())
	}
}

// closeSoon ends a stream whose owner has nothing more to say: what was written and
// the end are sent, and the end of the peer is awaited for closeLinger.
func closeSoon(c Conn) {
	s := &farewell{conn: c}
	c.Bind(s)
	c.Resume()
	c.CloseWrite()
	s.limit.Arm(c.Loop(), closeLinger, func() { c.Abort(reason.OK) })
}

// farewell is a Sink that drops what it gets.
type farewell struct {
	conn  Conn
	limit poll.Deadline
}

// OnData implements Sink.
func (s *farewell) OnData(p []byte, _ bool) { s.conn.Consumed(len(p)) }

// OnWritable implements Sink.
func (s *farewell) OnWritable() {}

// OnClose implements Sink.
func (s *farewell) OnClose(reason.Reason, error) { s.limit.Stop() }
