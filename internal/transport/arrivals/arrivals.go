// Package arrivals makes tunnels' connections of accepted sockets: it waits for the hello
// of TLS without a goroutine, lets a bounded number of handshakes compute at once, and
// evicts those whose source has the most when there is no room.
//
//	accepted ──► silent ──► ready ──► computes ◄──► asked ──► Config.Take
//	             (hello)    (slot)                  (peer's flight)
package arrivals

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/lobby"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

const (
	defaultHandshakeTimeout = 10 * time.Second
	// defaultPeerTimeout is how long a peer may be silent: a lost SYN-ACK or first
	// segment is sent again after 1 s, the second time after 2 s more.
	defaultPeerTimeout = 3 * time.Second
	// defaultMaxHandshakes is how many handshakes compute at once. More than a few
	// per processor gain nothing; the rest is for those that wait for a certificate.
	defaultMaxHandshakes = 64

	// silentPerSlot, readyPerSlot and askedPerSlot bound, in units of MaxHandshakes,
	// the connections whose hello has not come (a descriptor and 300 bytes each),
	// those that wait for a slot (the same: a restarted node brings all its peers
	// back at once), and those whose peer has to send its next flight (a goroutine
	// with the state of a handshake, some 40 KiB each).
	silentPerSlot = 32
	readyPerSlot  = 32
	askedPerSlot  = 4

	// maxPeeks is how often an incomplete hello is looked at. A whole one comes in
	// one or two segments.
	maxPeeks = 64
)

// Errors of connections that did not become a tunnel; each is inside of a
// *reason.Error.
var (
	// ErrTooManyHandshakes is reported for a connection that was reset because too
	// many others are shaking hands.
	ErrTooManyHandshakes = errors.New("too many TLS handshakes at once")
	// ErrTooManySilent is reported for a connection that was reset because too many
	// wait for a peer that sends nothing.
	ErrTooManySilent = errors.New("too many connections without a TLS handshake, most of them from this source")
	// ErrSilent is reported for a peer that did not send its part of the handshake.
	ErrSilent = errors.New("the peer did not send its part of the TLS handshake in time")
	// ErrForeign is reported for a peer that sends something else than TLS.
	ErrForeign = errors.New("the peer does not speak TLS")
	// ErrEnded is reported for a peer that closed the connection in the handshake.
	ErrEnded = errors.New("the peer closed the connection before its TLS handshake")

	errDribbles = errors.New("the peer sends its TLS handshake in too many pieces")
	errSockets  = errors.New("the pod's budget of descriptors is used up")
)

// Config has the settings and callbacks of Arrivals. Zero fields take the defaults named.
type Config struct {
	Loops *poll.Group
	// TLS returns the configuration of one handshake. It runs on a goroutine
	// of its own and may block within HandshakeTimeout.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// Take gets a connection whose handshake is over, on the handshake's goroutine, and
	// the loop where it is to live. Done is to be called for it. On error the connection
	// is reset, and the error reported.
	Take func(l *poll.Loop, c Conn) *reason.Error
	// OnError, if set, gets why a connection was not handed to Take, on any goroutine.
	OnError func(remote, local netip.AddrPort, err error)
	// HelloTimeout bounds the wait for a whole ClientHello, AnswerTimeout the
	// waits for the client's other flights together (3 s each), HandshakeTimeout
	// the time from the hello to the end (10 s).
	HelloTimeout, AnswerTimeout, HandshakeTimeout time.Duration
	// MaxHandshakes is how many handshakes compute at once (64). What waits is
	// bounded by multiples of it.
	MaxHandshakes int
	// LibraryRecords is tunnel.Security's.
	LibraryRecords bool
	// Sockets, if set, bounds the connections: one unit for each, which goes with the
	// connection to Take.
	Sockets tunnel.Quota
	// OnArrival, if set, counts connections: +1 inside of Serve, -1 once Done is called or
	// the connection has ended. -1 may come from any goroutine.
	OnArrival func(delta int)
}

// Conn is a connection whose handshake is over.
type Conn struct {
	Link          tunnel.Link
	Remote, Local netip.AddrPort
}

// Arrivals are the connections of one server that are not a tunnel yet. Methods may be
// called from any goroutine, but Serve.
type Arrivals struct {
	cfg    Config
	ctx    context.Context // of handshakes
	cancel context.CancelCauseFunc
	spread atomic.Uint64
	waking atomic.Bool // a timer of wakeAfter runs

	mu     sync.Mutex // guards what follows
	lobby  *lobby.Lobby
	closed *reason.Error
}

// New makes Arrivals without connections.
func New(cfg Config) *Arrivals {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&cfg.HelloTimeout, defaultPeerTimeout)
	set(&cfg.AnswerTimeout, defaultPeerTimeout)
	set(&cfg.HandshakeTimeout, defaultHandshakeTimeout)
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = defaultMaxHandshakes
	}
	n := cfg.MaxHandshakes
	s := &Arrivals{cfg: cfg, lobby: lobby.New(n, silentPerSlot*n, readyPerSlot*n, askedPerSlot*n)}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Done is to be called once a connection of Take has become a tunnel, or has ended.
func (s *Arrivals) Done() { s.count(-1) }

// arrival is a connection that is not a tunnel yet. Until its hello is there it
// is watched by its loop; then a goroutine of its own shakes hands.
type arrival struct {
	lobby.Guest
	server        *Arrivals
	loop          *poll.Loop // where it was accepted
	fd            int
	remote, local netip.AddrPort

	// Of the loop.
	reg     poll.Registration
	timer   *poll.Timer
	peeks   int
	waiting bool // for the hello
	since   time.Time

	// Of the goroutine, and read by who evicts it.
	running bool
	ctx     context.Context
	cancel  context.CancelCauseFunc
	turn    chan *reason.Error // brings a slot (nil), or the end
	asked   bool               // has waited for the peer: the deadline is set
}

// Serve takes over a non-blocking socket that was accepted on l, on l's
// goroutine. It returns at once. What becomes of them is spread over all loops of the
// group, because one listener accepts on one loop, and everything of a tunnel happens on
// its own.
func (s *Arrivals) Serve(l *poll.Loop, fd int, remote, local netip.AddrPort) {
	a := &arrival{server: s, loop: l, fd: fd, remote: remote, local: local}
	a.Start, a.Evict = a.begin, a.evicted
	if !s.admit() {
		poll.ResetFD(fd)
		l.RestAccepting()
		s.report(a, exhausted(errSockets))
		return
	}
	s.count(1)
	s.mu.Lock()
	closed := s.closed
	var v lobby.Verdict
	if closed == nil {
		v = s.lobby.Arrive(&a.Guest, remote.Addr())
	} else {
		a.Refuse()
	}
	s.mu.Unlock()
	if closed != nil {
		a.end(closed)
		return
	}
	a.waiting = true
	if err := l.AddTo(&a.reg, fd, a); err != nil {
		a.giveUp(exhausted(err))
	} else {
		a.timer = l.AfterFunc(s.cfg.HelloTimeout, func() { a.giveUp(unfinished(ErrSilent)) })
	}
	s.act(v, l, ErrTooManySilent)
}

func exhausted(err error) *reason.Error  { return reason.Errorf(reason.ResourceExhausted, "%w", err) }
func unfinished(err error) *reason.Error { return reason.Errorf(reason.TunnelHandshake, "%w", err) }

// admit takes a unit of Sockets. When there is none, the silent connection that
// has to go first passes its unit on, or else one that waits for a slot.
func (s *Arrivals) admit() bool {
	if s.cfg.Sockets == nil || s.cfg.Sockets.Take(1) {
		return true
	}
	s.mu.Lock()
	g, why := s.lobby.Spare(lobby.Silent), ErrTooManySilent
	if g == nil {
		g, why = s.lobby.Spare(lobby.Ready), ErrTooManyHandshakes
	}
	if g != nil {
		g.Lent = true
	}
	s.mu.Unlock()
	if g == nil {
		return false
	}
	g.Evict(exhausted(why))
	return true
}

// act carries out what the lobby decided. l is the calling loop; nil on another
// goroutine.
func (s *Arrivals) act(v lobby.Verdict, l *poll.Loop, full error) {
	if v.Evict != nil {
		v.Evict.Evict(exhausted(full))
	}
	switch {
	case v.Start == nil:
		s.wakeAfter(v.Again)
	case l != nil:
		l.Go(v.Start.Start)
	default:
		go v.Start.Start()
	}
}

// wakeAfter has the lobby give a slot later. One timer is enough: each verdict asks
// for what is earliest.
func (s *Arrivals) wakeAfter(d time.Duration) {
	if d <= 0 || !s.waking.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(d, func() {
		s.waking.Store(false)
		s.mu.Lock()
		v := s.lobby.Wake(time.Now())
		s.mu.Unlock()
		s.act(v, nil, nil)
	})
}

// Close ends every connection; no other one comes.
func (s *Arrivals) Close(why *reason.Error) {
	s.cancel(why)
	s.mu.Lock()
	s.closed = why
	var out []*lobby.Guest
	for _, p := range []lobby.Phase{lobby.Silent, lobby.Ready} {
		for g := s.lobby.Spare(p); g != nil; g = s.lobby.Spare(p) {
			out = append(out, g)
		}
	}
	s.mu.Unlock()
	for _, g := range out {
		g.Evict(why)
	}
}

// Ready implements poll.Handler: bytes of the hello have come.
func (a *arrival) Ready(ev poll.Events) {
	if !a.waiting {
		return
	}
	p := a.loop.Buffer()[:maxHello]
	n, err := poll.Peek(a.fd, p)
	switch {
	case poll.IsAgain(err):
		return
	case err != nil:
		a.giveUp(unfinished(err))
		return
	case n == 0:
		a.giveUp(unfinished(ErrEnded))
		return
	}
	a.peeks++
	switch state := lookAtHello(p[:n]); {
	case state == helloComplete:
		a.heard()
	case state == helloForeign:
		a.giveUp(unfinished(ErrForeign))
	case ev&(poll.ReadHup|poll.Hangup|poll.Failed) != 0:
		a.giveUp(unfinished(ErrEnded))
	case a.peeks > maxPeeks:
		a.giveUp(unfinished(errDribbles))
	}
}

// heard goes on with a connection whose hello is there. The hello stays in the
// socket, for crypto/tls.
func (a *arrival) heard() {
	a.quiet()
	a.since = time.Now()
	s := a.server
	s.mu.Lock()
	v := s.lobby.Heard(&a.Guest, time.Now())
	waits := a.Phase() == lobby.Ready
	s.mu.Unlock()
	s.act(v, a.loop, ErrTooManyHandshakes)
	if waits {
		a.loop.AfterFunc(s.cfg.HandshakeTimeout, a.tire)
	}
}

// tire ends a connection that has waited for its first slot for too long.
func (a *arrival) tire() {
	s := a.server
	s.mu.Lock()
	waits := s.lobby.Tire(&a.Guest)
	s.mu.Unlock()
	if waits {
		a.end(exhausted(ErrTooManyHandshakes))
	}
}

// quiet has the loop forget the connection.
func (a *arrival) quiet() {
	a.waiting = false
	a.timer.Stop()
	a.reg.Remove()
}

// giveUp ends a connection whose hello is awaited, on its loop.
func (a *arrival) giveUp(err *reason.Error) {
	if a.waiting {
		a.quiet()
		a.end(err)
	}
}

// evicted implements Guest.Evict; the lobby has forgotten the connection.
func (a *arrival) evicted(err *reason.Error) {
	switch {
	case a.Was() == lobby.Silent:
		if !a.loop.Post(func() { a.giveUp(err) }) {
			a.end(err)
		}
	case a.Was() == lobby.Ready && !a.running:
		a.end(err)
	case a.Was() == lobby.Ready:
		a.turn <- err
	default:
		a.cancel(err)
	}
}

// end closes a connection that does not become a tunnel.
func (a *arrival) end(err *reason.Error) {
	poll.ResetFD(a.fd)
	s := a.server
	s.mu.Lock()
	v, lent := s.lobby.Leave(&a.Guest, time.Now()), a.Lent
	s.mu.Unlock()
	if s.cfg.Sockets != nil && !lent {
		s.cfg.Sockets.Give(1)
	}
	s.act(v, nil, nil)
	s.report(a, err)
	s.count(-1)
}

// count reports arrivals to their owner.
func (s *Arrivals) count(delta int) {
	if s.cfg.OnArrival != nil {
		s.cfg.OnArrival(delta)
	}
}

func (s *Arrivals) report(a *arrival, err *reason.Error) {
	if s.cfg.OnError != nil {
		s.cfg.OnError(a.remote, a.local, err)
	}
}

// begin implements Guest.Start, on a goroutine of its own: there is a slot.
func (a *arrival) begin() {
	if a.running {
		a.turn <- nil
		return
	}
	s := a.server
	a.running, a.turn = true, make(chan *reason.Error, 1)
	left := s.cfg.HandshakeTimeout - time.Since(a.since)
	if left <= 0 {
		a.end(exhausted(ErrTooManyHandshakes))
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, left)
	defer cancel()
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	defer a.cancel(nil)
	if err := a.shake(); err != nil {
		a.end(err)
	}
}

// Asks implements tunnel.Gate: the slot is free while the peer computes, or is silent.
func (a *arrival) Asks(f *os.File) error {
	s := a.server
	if !a.asked {
		a.asked = true
		if err := f.SetReadDeadline(time.Now().Add(s.cfg.AnswerTimeout)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	v := s.lobby.Asks(&a.Guest, time.Now())
	s.mu.Unlock()
	s.act(v, nil, ErrTooManySilent)
	return context.Cause(a.ctx) // whose deadline the one above may have replaced
}

// Answered implements tunnel.Gate: it waits for a slot.
func (a *arrival) Answered() error {
	s := a.server
	s.mu.Lock()
	gone := a.Phase() == lobby.Outside
	v := s.lobby.Answered(&a.Guest, time.Now())
	s.mu.Unlock()
	if gone {
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
		return exhausted(ErrTooManySilent) // it was evicted a moment ago
	}
	s.act(v, nil, ErrTooManyHandshakes)
	select {
	case err := <-a.turn:
		if err != nil {
			return err
		}
		return nil
	case <-a.ctx.Done():
		return context.Cause(a.ctx)
	}
}

// shake shakes hands and hands the connection on, on the handshake's goroutine. On error
// fd is still the caller's.
func (a *arrival) shake() *reason.Error {
	s := a.server
	link, err := tunnel.Handshake(a.ctx, a.fd, a, tunnel.Security{Config: s.tlsConfig(), Server: true, LibraryRecords: s.cfg.LibraryRecords})
	if err != nil {
		return a.why(err)
	}
	l := s.cfg.Loops.Pick(uint64(a.loop.Index()) + s.spread.Add(1) - 1)
	if err := s.cfg.Take(l, Conn{Link: link, Remote: a.remote, Local: a.local}); err != nil {
		return err
	}
	s.mu.Lock()
	v := s.lobby.Finished(&a.Guest, time.Now())
	s.mu.Unlock()
	s.act(v, nil, nil)
	return nil
}

// why returns the reason of a handshake that failed with err.
func (a *arrival) why(err error) *reason.Error {
	if cause := context.Cause(a.ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		err = cause
	}
	var re *reason.Error
	switch {
	case errors.As(err, &re):
		return re
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return unfinished(ErrSilent)
	case errors.Is(err, io.EOF):
		return unfinished(ErrEnded)
	}
	if err = mtls.Error(err); errors.As(err, &re) {
		return re
	}
	return reason.Errorf(reason.TLSFailure, "tunnel to %s: %w", a.local, err)
}

func (s *Arrivals) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // what the real configuration says counts
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := s.cfg.TLS(hello)
			// One level of indirection is all crypto/tls follows.
			if err == nil && c != nil && c.GetConfigForClient != nil {
				inner, err := c.GetConfigForClient(hello)
				if err != nil {
					return nil, err
				}
				if inner != nil {
					c = inner
				}
			}
			if err != nil || c == nil {
				return nil, errors.Join(err, errNoConfig(c))
			}
			return tunnel.Tuned(c, hello.Conn), nil
		},
	}
}

func errNoConfig(c *tls.Config) error {
	if c == nil {
		return errors.New("no TLS configuration for this connection")
	}
	return nil
}
