// Package tunnel drives one mutually authenticated HTTP/2 connection on its event loop:
// bytes of a socket, or of a stream of another tunnel, through TLS into the protocol
// engine and back. Each stream is joined with an application's socket (Stream) or handed
// to the caller (Stream.Take). What requests mean is the business of the Role.
package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
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
	// New connections do not wait for a silent tunnel: see package hbone.
	silentIntervals = 12
)

// ErrSilent is why a tunnel has ended whose peer gave no sign of life.
var ErrSilent = errors.New("peer does not answer")

// Role is what a tunnel's client or server side adds. Its methods are called on the
// tunnel's loop.
type Role interface {
	// Headers gets each request, response and trailer.
	Headers(s *h2.Stream, h *h2.Header, end bool)
	// GoingAway is called when the peer takes no new streams.
	GoingAway(last uint32, code h2.ErrCode)
	// Settings is called when the peer may have changed its limits.
	Settings()
	// Ended is called once, after the descriptor is closed and every stream has ended.
	Ended(r reason.Reason, err error)
}

// Quota is a bound that others share. Its methods may be called from any
// goroutine and do not block.
type Quota interface {
	// Take takes n units, all or none, and reports whether it did.
	Take(n int64) bool
	// Give returns units.
	Give(n int64)
	// Room is how many units Take would grant now.
	Room() int64
}

// Config has the settings of a tunnel.
type Config struct {
	H2 h2.Config
	// KeepAlive is how long a tunnel with streams may be silent before it is sent a
	// PING (DefaultKeepAlive when 0; less than 0 for never).
	KeepAlive time.Duration
	// Silence is how long such a tunnel may be silent before it is closed (twelve times
	// KeepAlive when 0).
	Silence time.Duration
	// Queues, if set, bounds the bytes that wait for programs which do not read.
	Queues Quota
	// Linger is how long bytes that came before a reset wait for a receiver that takes
	// nothing (relay.LingerBlocked when 0).
	Linger time.Duration
}

// writer is a stream that has something to send.
type writer interface {
	// unstalled has it go on in the next turn.
	unstalled()
}

// Tunnel is one connection on its loop. Its methods are called there.
type Tunnel struct {
	hub  *hub
	sock poll.Sock
	// under, if set, carries the tunnel instead of sock.
	under bytestream.Conn
	wire  *wire
	rec   *record.Conn // protects the records, or tls does
	tls   *tls.Conn
	state *tls.ConnectionState // it does not change
	h2    *h2.Conn
	role  Role

	part []byte // the start of a record, with rec

	sent     int  // of wire.out
	blocked  bool // under has asked to wait
	dirty    bool // in hub.dirty
	closing  bool // said goodbye: nothing more is sent
	closed   bool
	inEngine bool // inside h2.Receive: streams must not be pumped

	heard time.Time // when bytes last arrived

	queues Quota // of the bytes that wait for programs; nil: no bound
	held   int64 // units of it

	patience time.Duration // Config.Linger

	stalled []writer  // would send, but too much ciphertext waits
	resumed []*Stream // got credit while inEngine

	why       reason.Reason // for streams, when the tunnel ends
	err       error
	keepAlive *poll.Timer
	silent    int // intervals of keepAlive since bytes last arrived
	linger    *poll.Timer
}

// Link is what a tunnel runs on: a socket or a stream, and the TLS on it whose
// handshake is over.
type Link struct {
	fd    int
	under bytestream.Conn
	rec   *record.Conn // or
	conn  *tls.Conn
	state *tls.ConnectionState
	wire  *wire
}

// Close lets go of a Link that no tunnel has. It may be called from any goroutine.
func (k *Link) Close() {
	k.forget()
	if k.under != nil {
		abort(k.under)
		return
	}
	poll.CloseFD(k.fd)
}

// Reset is Close, but the peer gets a reset instead of an end.
func (k *Link) Reset() {
	k.forget()
	if k.under != nil {
		abort(k.under)
		return
	}
	poll.ResetFD(k.fd)
}

func (k *Link) forget() {
	if k.rec != nil {
		k.rec.Forget()
	}
}

// Under returns the stream that carries the Link, nil when a socket does.
func (k *Link) Under() bytestream.Conn { return k.under }

// State returns what the TLS handshake has agreed on.
func (k *Link) State() tls.ConnectionState { return *k.state }

// abort ends a stream, from any goroutine.
func abort(c bytestream.Conn) {
	c.Loop().Post(func() { c.Abort(reason.TunnelClosed) })
}

// Start puts a tunnel on the loop it was made for. On error the Link is still the
// caller's, and Ended is not called.
func (t *Tunnel) Start(l *poll.Loop, k Link, cfg Config, r Role) error {
	t.hub, t.under, t.wire, t.role = hubOf(l), k.under, k.wire, r
	t.rec, t.tls, t.state = k.rec, k.conn, k.state
	t.why = reason.TunnelClosed
	t.heard = l.Now()
	t.queues, t.patience = cfg.Queues, cfg.Linger
	if t.patience == 0 {
		t.patience = relay.LingerBlocked
	}
	t.h2 = h2.New(cfg.H2, t)
	if t.under == nil {
		if err := t.sock.Watch(l, k.fd, t); err != nil {
			t.closed, t.err = true, err
			return err
		}
	}
	keep, silence := cfg.KeepAlive, cfg.Silence
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
	t.Touch()
	if t.under != nil {
		t.startInside()
		return nil
	}
	// Bytes may have come with the handshake's last flight, for which there will be no
	// event.
	t.sock.Again(poll.Readable)
	return nil
}

// Loop returns the loop of the tunnel.
func (t *Tunnel) Loop() *poll.Loop { return t.hub.loop }

// H2 returns the protocol engine. What its methods send leaves at the next Touch.
func (t *Tunnel) H2() *h2.Conn { return t.h2 }

// TLS returns what the TLS handshake has agreed on. It may be called from any goroutine.
func (t *Tunnel) TLS() tls.ConnectionState { return *t.state }

// Closed reports whether the tunnel has ended.
func (t *Tunnel) Closed() bool { return t.closed }

// Heard returns when bytes last arrived.
func (t *Tunnel) Heard() time.Time { return t.heard }

// Local returns this side's address; it is zero when the tunnel has ended.
func (t *Tunnel) Local() netip.AddrPort {
	if t.under != nil {
		return t.under.Info().Local
	}
	local, _ := sockopt.LocalAddr(t.sock.FD())
	return local
}

// Drain asks the peer to open no more streams; the tunnel ends with its last one.
func (t *Tunnel) Drain() {
	if !t.closed {
		t.h2.Shutdown()
		t.Touch()
		t.Settle()
	}
}

// alive asks for a sign of life, and ends a tunnel that gave none for most
// intervals. Intervals are counted, and not time: a process that was stopped
// itself must not take its own pause for the peer's. A tunnel without streams
// is left in peace.
func (t *Tunnel) alive(every time.Duration, most int) {
	switch {
	case t.h2.Streams() == 0 || t.hub.loop.Now().Sub(t.heard) < every:
		t.silent = 0
	case t.silent+1 >= most:
		t.Fail(reason.TunnelClosed, ErrSilent)
		return
	default:
		t.silent++
		t.h2.KeepAlive() // its own count is shorter
	}
	t.Touch()
	t.keepAlive.Reset(every)
}

// Ready implements poll.Handler.
func (t *Tunnel) Ready(ev poll.Events) {
	if ev&poll.Writable != 0 && !t.sock.Writable() {
		t.Touch()
	}
	t.sock.Note(ev)
	t.receive()
}

// Touch has the tunnel flushed at the end of this turn.
func (t *Tunnel) Touch() {
	if !t.dirty && !t.closed {
		t.dirty = true
		t.hub.add(t)
	}
}

// receive takes what the socket has.
func (t *Tunnel) receive() {
	if p := t.wire.in; len(p) > 0 { // since the handshake
		t.wire.in = nil
		t.opened(p, false)
	}
	for budget := readTurn; budget > 0; {
		if t.closed || !t.sock.Readable() {
			return
		}
		buf := t.hub.ciphertext()
		k := copy(buf, t.part)
		n, err := t.sock.Read(buf[k : k+poll.BufferSize])
		switch {
		case poll.IsAgain(err):
			return
		case err != nil:
			t.Fail(reason.TunnelClosed, err)
			return
		}
		t.heard = t.hub.loop.Now()
		budget -= n
		t.opened(buf[:k+n], n == 0)
	}
	t.sock.Again(poll.Readable)
}

// opened opens what has arrived, where it is, and gives it to the engine. end says that
// nothing comes behind it.
func (t *Tunnel) opened(p []byte, end bool) {
	if t.rec != nil {
		t.open(p, end)
		return
	}
	t.wire.in, t.wire.end = p, end
	t.decrypt()
	t.wire.in = nil
}

// decrypt opens every whole record and gives the plaintext to the engine in
// pieces as large as possible: what arrives in one piece is delivered by one
// system call.
func (t *Tunnel) decrypt() {
	plain := t.hub.plaintext(t.under != nil)
	k := 0
	for {
		n, err := t.tls.Read(plain[k:])
		k += n
		if err == nil && len(plain)-k >= MaxRecord {
			continue
		}
		if k > 0 && !t.deliver(plain[:k]) {
			return
		}
		k = 0
		switch {
		case err == nil:
		case err == bytestream.ErrDry: //nolint:errorlint // crypto/tls hands it back as it is
			return
		case errors.Is(err, io.EOF):
			t.Fail(reason.TunnelClosed, nil)
			return
		default:
			t.Fail(reason.TunnelClosed, err)
			return
		}
	}
}

// deliver runs the engine on plaintext. It reports whether the tunnel goes on.
func (t *Tunnel) deliver(p []byte) bool {
	if t.closing {
		return true // only its end is awaited
	}
	t.inEngine = true
	err := t.h2.Receive(t.hub.loop.Now(), p)
	t.inEngine = false
	t.Touch()
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
	t.Settle()
	return !t.closed
}

// Settle ends a tunnel that was asked to end and has no streams any more.
func (t *Tunnel) Settle() {
	if !t.closed && !t.closing && t.h2.Drained() {
		t.goodbye()
	}
}

// waiting is how many bytes wait to be written to the socket.
func (t *Tunnel) waiting() int { return len(t.wire.out) - t.sent }

// full reports whether applications must not be read for now.
func (t *Tunnel) full() bool { return t.waiting()+len(t.h2.Output()) >= outBound }

// seal encrypts p behind what waits. It returns false when that ended the
// tunnel.
func (t *Tunnel) seal(p []byte) bool {
	if t.rec != nil {
		return t.sealRecords(p)
	}
	if t.wire.out == nil {
		t.wire.out = t.hub.takeOut()
	}
	if _, err := t.tls.Write(p); err != nil {
		t.Fail(reason.TunnelClosed, err)
		return false
	}
	return true
}

// sealOutput encrypts what the engine has to say. While too much waits already
// it stays in the engine, which bounds it.
func (t *Tunnel) sealOutput() bool {
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
func (t *Tunnel) flush() {
	for !t.closed {
		if !t.sealOutput() {
			return
		}
		if t.waiting() == 0 {
			t.releaseOut()
			break
		}
		if !t.writable() || !t.write() {
			break
		}
	}
	if t.closed {
		return
	}
	if t.closing && t.waiting() == 0 {
		t.shutdownWrite()
	}
	if len(t.stalled) > 0 && !t.full() {
		for i, s := range t.stalled {
			t.stalled[i] = nil
			s.unstalled()
		}
		t.stalled = t.stalled[:0]
	}
}

// write gives the socket what it takes; false means it takes no more now, or
// the tunnel has ended.
func (t *Tunnel) write() bool {
	if t.under != nil {
		return t.writeInside()
	}
	p := t.wire.out[t.sent:]
	n, err := t.sock.Write(p)
	if err != nil && !poll.IsAgain(err) {
		// What the peer said before it went away is still to be read, and its
		// end or error with it.
		t.sent = len(t.wire.out)
		t.Fail(reason.TunnelClosed, err)
		return false
	}
	t.sent += n
	return n == len(p)
}

// writable reports whether what carries the tunnel may take something.
func (t *Tunnel) writable() bool {
	if t.under != nil {
		return !t.blocked
	}
	return t.sock.Writable()
}

func (t *Tunnel) shutdownWrite() {
	if t.under != nil {
		t.under.CloseWrite()
		return
	}
	t.sock.ShutdownWrite()
}

func (t *Tunnel) releaseOut() {
	if t.wire.out != nil {
		t.hub.putOut(t.wire.out)
		t.wire.out, t.sent = nil, 0
	}
}

// goodbye ends the tunnel from our side: the last frames, TLS's close_notify
// and the end of the stream are sent, and the peer's end is awaited for a
// while. The streams have ended already, or end now.
func (t *Tunnel) goodbye() {
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
	if t.rec != nil {
		t.wire.out = t.rec.Close(t.wire.out)
	} else {
		_ = t.tls.CloseWrite()
	}
	t.closing = true
	t.linger = t.hub.loop.AfterFunc(closeLinger, func() { t.Fail(t.why, t.err) })
	t.Touch()
}

// Fail ends the tunnel now; its streams get r.
func (t *Tunnel) Fail(r reason.Reason, err error) {
	if t.closed {
		return
	}
	if err == nil {
		err = t.err
	}
	t.closed, t.why, t.err = true, r, err
	t.keepAlive.Stop()
	t.linger.Stop()
	t.sock.Close()
	if t.under != nil {
		t.under.Abort(reason.TunnelClosed)
	}
	t.releaseOut()
	t.forgetRecords()
	clear(t.stalled)
	t.stalled = nil
	t.h2.Close(h2.InternalError)
	t.role.Ended(r, err)
}

// The rest implements h2.Handler.

// OnHeaders passes requests, responses and trailers to the role.
func (t *Tunnel) OnHeaders(s *h2.Stream, h *h2.Header, end bool) { t.role.Headers(s, h, end) }

// OnData delivers.
func (t *Tunnel) OnData(s *h2.Stream, p []byte, end bool) {
	switch st := s.User.(type) {
	case *Stream:
		st.data(p, end)
	case *conn:
		st.data(p, end)
	default:
		t.h2.Consumed(s, len(p))
	}
}

// OnReset ends a stream.
func (t *Tunnel) OnReset(s *h2.Stream, code h2.ErrCode) {
	switch st := s.User.(type) {
	case *Stream:
		st.reset(code)
	case *conn:
		st.reset(code)
	}
}

// OnWritable lets a stream read its application again.
func (t *Tunnel) OnWritable(s *h2.Stream) {
	switch st := s.User.(type) {
	case *Stream:
		if t.inEngine {
			t.resumed = append(t.resumed, st)
			return
		}
		st.sock.Again(poll.Readable)
	case *conn:
		st.schedule()
	}
}

// OnGoAway stops new streams.
func (t *Tunnel) OnGoAway(last uint32, code h2.ErrCode, _ []byte) { t.role.GoingAway(last, code) }

// OnSettings calls the role: limits may have changed.
func (t *Tunnel) OnSettings() { t.role.Settings() }

// OnPong is not used: the engine keeps its own pings.
func (t *Tunnel) OnPong([8]byte) {}

func (t *Tunnel) unstall(s *Stream) {
	if s.stalled {
		s.stalled = false
		t.stalled = slices.DeleteFunc(t.stalled, func(o writer) bool { return o == s })
	}
}
