package hbone

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/lobby"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	defaultServerStreams = 1000
	// leaveAfter is how long a tunnel lives without streams at an end that is
	// leaving: a client that has just made one must get to use it.
	leaveAfter = 200 * time.Millisecond
)

// Server accepts tunnels. Its methods may be called from any goroutine, but
// Serve.
type Server struct {
	cfg    ServerConfig
	ctx    context.Context // of handshakes
	cancel context.CancelCauseFunc
	spread atomic.Uint64
	waking atomic.Bool // a timer of wakeAfter runs

	mu     sync.Mutex // guards what follows
	lobby  *lobby.Lobby
	closed *reason.Error
	peers  map[netip.Addr]int // tunnels by address, those being started included

	shards []serverShard
}

// serverShard is the part of a server that one loop owns.
type serverShard struct {
	tunnels  []*serverTunnel
	draining bool
	leaving  bool
	killed   bool
	why      reason.Reason
}

// NewServer makes a server without tunnels.
func NewServer(cfg ServerConfig) *Server {
	cfg.MaxStreams = or(cfg.MaxStreams, defaultServerStreams)
	cfg.HelloTimeout = or(cfg.HelloTimeout, defaultPeerTimeout)
	cfg.AnswerTimeout = or(cfg.AnswerTimeout, defaultPeerTimeout)
	cfg.HandshakeTimeout = or(cfg.HandshakeTimeout, defaultHandshakeTimeout)
	cfg.MaxHandshakes = or(cfg.MaxHandshakes, defaultMaxHandshakes)
	cfg.MaxPeerTunnels = or(cfg.MaxPeerTunnels, defaultMaxPeerTunnels)
	s := &Server{
		cfg: cfg, shards: make([]serverShard, cfg.Loops.Len()), peers: map[netip.Addr]int{},
		lobby: lobby.New(cfg.MaxHandshakes, silentPerSlot*cfg.MaxHandshakes, readyPerSlot*cfg.MaxHandshakes, askedPerSlot*cfg.MaxHandshakes),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Drain tells the client of every tunnel to open no more streams (GOAWAY);
// tunnels end when their streams have. Tunnels whose handshake ends later are
// drained as well.
func (s *Server) Drain() {
	s.each(func(sh *serverShard) {
		sh.draining = true
		for _, t := range slices.Clone(sh.tunnels) {
			t.drain()
		}
	})
}

// Leave says whether clients are about to do without tunnels. While they are,
// every tunnel is asked to end with its streams (GOAWAY), those that are there
// at once and new ones after a moment. Connections that still come are carried,
// on tunnels made for them.
func (s *Server) Leave(yes bool) {
	s.each(func(sh *serverShard) {
		if sh.leaving = yes; !yes {
			return
		}
		for _, t := range slices.Clone(sh.tunnels) {
			t.drain()
		}
	})
}

// Close ends everything now; flows get r.
func (s *Server) Close(r reason.Reason) {
	why := reason.Errorf(r, "the server was closed")
	s.cancel(why)
	s.empty(why)
	s.each(func(sh *serverShard) {
		sh.killed, sh.why = true, r
		for _, t := range slices.Clone(sh.tunnels) {
			t.t.fail(r, nil)
		}
	})
}

func (s *Server) each(f func(*serverShard)) {
	for i := range s.shards {
		s.cfg.Loops.Loop(i).Post(func() { f(&s.shards[i]) })
	}
}

// serverTunnel is a tunnel that a client made, on its loop.
type serverTunnel struct {
	t             tunnel
	server        *Server
	loop          *poll.Loop
	remote, local netip.AddrPort
	state         *tls.ConnectionState
	identity      identity.Identity
}

func (t *serverTunnel) shard() *serverShard { return &t.server.shards[t.loop.Index()] }

func (t *serverTunnel) start(fd int, conn *tls.Conn, w *wire) {
	defer t.server.count(-1)
	sh, cfg := t.shard(), &t.server.cfg
	t.t.queues = cfg.Queues
	err := t.t.start(t.loop, link{fd: fd, conn: conn, wire: w}, engineConfig(true, cfg.MaxStreams, cfg.Windows), t, cfg.KeepAlive, cfg.Silence)
	if err != nil {
		poll.ResetFD(fd)
		t.server.forget(t.remote.Addr())
		return
	}
	sh.tunnels = append(sh.tunnels, t)
	if cfg.OnTunnel != nil {
		cfg.OnTunnel(1)
	}
	switch {
	case sh.killed:
		t.t.fail(sh.why, nil)
	case sh.draining:
		t.drain()
	case sh.leaving:
		t.loop.AfterFunc(leaveAfter, t.drain)
	}
}

func (t *serverTunnel) drain() {
	if !t.t.closed {
		t.t.h2.Shutdown()
		t.t.touch()
		t.t.settle()
	}
}

// headers implements role: a request.
func (t *serverTunnel) headers(hs *h2.Stream, h *h2.Header, end bool) {
	if h.Trailer {
		return
	}
	s := &stream{t: &t.t, hs: hs, peerEnd: end}
	s.Init(t.loop, s)
	s.sock.Init(t.loop)
	r := &Request{
		Method: h.Method, Header: parseHeader(h), Peer: t.state, PeerIdentity: t.identity,
		Remote: t.remote, Local: t.local, Loop: t.loop, s: s,
	}
	s.hooks = r
	hs.User = s
	t.server.cfg.OnRequest(r)
}

// goingAway implements role: a client that goes away opens no more streams; it
// closes the connection itself.
func (t *serverTunnel) goingAway(uint32, h2.ErrCode) {}

// settings implements role.
func (t *serverTunnel) settings() {}

// ended implements role.
func (t *serverTunnel) ended(reason.Reason, error) {
	sh := t.shard()
	sh.tunnels = slices.DeleteFunc(sh.tunnels, func(o *serverTunnel) bool { return o == t })
	if f := t.server.cfg.OnTunnel; f != nil {
		f(-1)
	}
	t.server.forget(t.remote.Addr())
}

// Request is one stream that a client opened. Its methods are called on Loop's
// goroutine.
type Request struct {
	Method string
	Header Header
	// Peer is the state of the tunnel's TLS, shared by all its requests.
	Peer *tls.ConnectionState
	// PeerIdentity is the client's, from its certificate's URI; zero when it
	// has none that can be parsed.
	PeerIdentity  identity.Identity
	Remote, Local netip.AddrPort
	Loop          *poll.Loop
	// OnGone may be set inside OnRequest: it is called when the client gave up
	// before Accept or Refuse.
	OnGone func(reason.Reason)

	s *stream
}

// Gone tells that the client gave up already, or that the request was
// answered.
func (r *Request) Gone() bool { return r.s.phase != opening }

// Refuse answers with an error status and ends the stream. h.Status is not
// used.
func (r *Request) Refuse(status int, h ResponseHeader) {
	s := r.s
	if s.phase != opening {
		return
	}
	h.Status = status
	s.phase = gone
	s.discard()
	if err := s.t.h2.Respond(s.hs, h.response(), true); err != nil {
		s.t.h2.Reset(s.hs, h2.InternalError)
	} else if !s.hs.Closed() {
		// The answer is complete; the rest of the request is not wanted.
		s.t.h2.Reset(s.hs, h2.NoError)
	}
	s.t.touch()
}

// Accept answers 200 and relays between the stream and up, a connected,
// non-blocking socket which belongs to the flow from here on; prefix is sent
// to it first. When the client has gone meanwhile, up is closed and onClose
// still called. onClose, which may be nil, is never called inline.
func (r *Request) Accept(up int, prefix []byte, h ResponseHeader, onClose func(*relay.Flow, relay.Result)) *relay.Flow {
	s := r.s
	s.hooks = serverFlow(onClose)
	if s.phase != opening {
		poll.ResetFD(up)
		s.hooks.ended(s, relay.Result{Reason: reason.DownstreamReset, Err: errGone})
		return &s.Flow
	}
	if len(prefix) > 0 {
		s.sock.QueueFirst(prefix)
		s.extra = int32(len(prefix)) //nolint:gosec // a PROXY protocol header is short
	}
	h.Status = 200
	err := s.t.h2.Respond(s.hs, h.response(), false)
	if err == nil {
		err = s.sock.Watch(r.Loop, up, s)
	}
	s.phase = running
	s.t.touch()
	if err != nil {
		s.t.h2.Reset(s.hs, h2.InternalError)
		s.end(reason.ResourceExhausted, err, func(*stream) { poll.ResetFD(up) })
		return &s.Flow
	}
	s.run()
	return &s.Flow
}

// Stream answers 200 and returns the stream to the caller, instead of joining it with
// a socket. When the client has gone meanwhile, the stream ends as soon as it has a
// Sink. What the client has sent already waits for the Sink.
func (r *Request) Stream(h ResponseHeader) bytestream.Conn {
	s := r.s
	info := bytestream.Info{Local: r.Local, Remote: r.Remote, Peer: r.PeerIdentity, TLS: r.Peer}
	if s.phase != opening {
		return &conn{t: s.t, hs: s.hs, info: info, cut: true, over: true, why: reason.DownstreamReset, err: errGone}
	}
	c := s.take(info, nil)
	h.Status = 200
	if err := s.t.h2.Respond(s.hs, h.response(), false); err != nil {
		s.t.h2.Reset(s.hs, h2.InternalError)
		c.cut, c.why, c.err = true, reason.Internal, err
	}
	s.t.touch()
	return c
}

// failed implements hooks: the client gave up.
func (r *Request) failed(_ *stream, why reason.Reason, _ error, _ bool) {
	if r.OnGone != nil {
		r.OnGone(why)
	}
}

func (r *Request) ended(*stream, relay.Result) {}

// serverFlow are the hooks of a stream that was accepted.
type serverFlow func(*relay.Flow, relay.Result)

func (f serverFlow) failed(*stream, reason.Reason, error, bool) {}

func (f serverFlow) ended(s *stream, r relay.Result) {
	if f != nil {
		s.Loop().Post(func() { f(&s.Flow, r) })
	}
}
