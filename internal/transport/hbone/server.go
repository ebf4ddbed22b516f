package hbone

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/arrivals"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

const (
	defaultServerStreams = 1000
	// defaultMaxPeerTunnels bounds the tunnels of one address. A proxy opens one for
	// each 100 connections.
	defaultMaxPeerTunnels = 512
	// leaveAfter is how long a tunnel lives without streams at an end that is
	// leaving: a client that has just made one must get to use it.
	leaveAfter = 200 * time.Millisecond
)

var (
	errTunnels = errors.New("the pod's budget of tunnels is used up")
	errPeer    = errors.New("this peer has too many tunnels")
)

// Server accepts tunnels. Its methods may be called from any goroutine, but
// Serve.
type Server struct {
	cfg      ServerConfig
	arrivals *arrivals.Arrivals

	mu    sync.Mutex
	peers map[netip.Addr]int // tunnels by address, those being started included; guarded by mu

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
	cfg.MaxPeerTunnels = or(cfg.MaxPeerTunnels, defaultMaxPeerTunnels)
	s := &Server{cfg: cfg, shards: make([]serverShard, cfg.Loops.Len()), peers: map[netip.Addr]int{}}
	s.arrivals = arrivals.New(arrivals.Config{
		Loops: cfg.Loops, TLS: cfg.TLS, Take: s.take, OnError: cfg.OnHandshakeError, Sockets: cfg.Sockets,
		HelloTimeout: cfg.HelloTimeout, AnswerTimeout: cfg.AnswerTimeout, HandshakeTimeout: cfg.HandshakeTimeout,
		MaxHandshakes: cfg.MaxHandshakes, LibraryRecords: cfg.LibraryRecords, OnArrival: cfg.OnArrival,
	})
	return s
}

// Serve takes over a non-blocking socket that was accepted on l, on l's
// goroutine. It returns at once.
func (s *Server) Serve(l *poll.Loop, fd int, remote, local netip.AddrPort) {
	s.arrivals.Serve(l, fd, remote, local)
}

// Drain tells the client of every tunnel to open no more streams (GOAWAY);
// tunnels end when their streams have. Tunnels whose handshake ends later are
// drained as well.
func (s *Server) Drain() {
	s.each(func(sh *serverShard) {
		sh.draining = true
		for _, t := range slices.Clone(sh.tunnels) {
			t.t.Drain()
		}
	})
}

// Leave sets whether clients are about to do without tunnels, because the workload ends
// or leaves the mesh. While they are, every tunnel is asked to end with its streams (GOAWAY),
// those that are there at once and new ones after a moment. Connections that still come are carried,
// on tunnels made for them.
func (s *Server) Leave(yes bool) {
	s.each(func(sh *serverShard) {
		if sh.leaving = yes; !yes {
			return
		}
		for _, t := range slices.Clone(sh.tunnels) {
			t.t.Drain()
		}
	})
}

// Close ends everything now; flows get r.
func (s *Server) Close(r reason.Reason) {
	why := reason.Errorf(r, "the server was closed")
	s.arrivals.Close(why)
	s.each(func(sh *serverShard) {
		sh.killed, sh.why = true, r
		for _, t := range slices.Clone(sh.tunnels) {
			t.t.Fail(r, nil)
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
	t             tunnel.Tunnel
	server        *Server
	loop          *poll.Loop
	remote, local netip.AddrPort
	state         *tls.ConnectionState
	identity      identity.Identity
}

func (t *serverTunnel) shard() *serverShard { return &t.server.shards[t.loop.Index()] }

// take makes a tunnel of a connection whose handshake is over, on any goroutine.
func (s *Server) take(l *poll.Loop, c arrivals.Conn) *reason.Error {
	state := c.Link.State()
	t := &serverTunnel{server: s, loop: l, remote: c.Remote, local: c.Local, state: &state}
	if id, err := mtls.PeerIdentity(&state); err == nil {
		t.identity = id
	}
	if err := s.enlist(c.Remote.Addr()); err != nil {
		return err
	}
	if !l.Post(func() { t.start(c.Link) }) {
		s.delist(c.Remote.Addr())
		return exhausted(poll.ErrClosed)
	}
	return nil
}

func exhausted(err error) *reason.Error { return reason.Errorf(reason.ResourceExhausted, "%w", err) }

// enlist counts a tunnel of an address, if it may have one more.
func (s *Server) enlist(from netip.Addr) *reason.Error {
	if s.cfg.Tunnels != nil && !s.cfg.Tunnels.Take(1) {
		return exhausted(errTunnels)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[from] >= s.cfg.MaxPeerTunnels {
		if s.cfg.Tunnels != nil {
			s.cfg.Tunnels.Give(1)
		}
		return exhausted(errPeer)
	}
	s.peers[from]++
	return nil
}

// delist is the end of one enlist.
func (s *Server) delist(from netip.Addr) {
	s.mu.Lock()
	if s.peers[from]--; s.peers[from] <= 0 {
		delete(s.peers, from)
	}
	s.mu.Unlock()
	if s.cfg.Tunnels != nil {
		s.cfg.Tunnels.Give(1)
	}
}

// forget is the end of a tunnel: its descriptor is closed.
func (s *Server) forget(from netip.Addr) {
	s.delist(from)
	if s.cfg.Sockets != nil {
		s.cfg.Sockets.Give(1)
	}
}

func (t *serverTunnel) start(link tunnel.Link) {
	defer t.server.arrivals.Done()
	sh, cfg := t.shard(), &t.server.cfg
	err := t.t.Start(t.loop, link, tunnel.Config{
		H2: cfg.Windows.engine(true, cfg.MaxStreams), KeepAlive: cfg.KeepAlive, Silence: cfg.Silence, Linger: cfg.Linger, Queues: cfg.Queues,
	}, t)
	if err != nil {
		link.Reset()
		t.server.forget(t.remote.Addr())
		return
	}
	sh.tunnels = append(sh.tunnels, t)
	if cfg.OnTunnel != nil {
		cfg.OnTunnel(1)
	}
	switch {
	case sh.killed:
		t.t.Fail(sh.why, nil)
	case sh.draining:
		t.t.Drain()
	case sh.leaving:
		t.loop.AfterFunc(leaveAfter, t.t.Drain)
	}
}

// Headers implements tunnel.Role: a request.
func (t *serverTunnel) Headers(hs *h2.Stream, h *h2.Header, end bool) {
	if h.Trailer {
		return
	}
	r := &Request{
		Method: h.Method, Header: parseHeader(h), Peer: t.state, PeerIdentity: t.identity,
		Remote: t.remote, Local: t.local, Loop: t.loop,
	}
	r.s = t.t.NewStream(false, r)
	r.s.Requested(hs, end)
	t.server.cfg.OnRequest(r)
}

// GoingAway implements tunnel.Role: a client that goes away opens no more streams; it
// closes the connection itself.
func (t *serverTunnel) GoingAway(uint32, h2.ErrCode) {}

// Settings implements tunnel.Role.
func (t *serverTunnel) Settings() {}

// Ended implements tunnel.Role.
func (t *serverTunnel) Ended(reason.Reason, error) {
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

	s *tunnel.Stream
}

// Gone tells that the client gave up already, or that the request was
// answered.
func (r *Request) Gone() bool { return !r.s.Opening() }

// Refuse answers with an error status and ends the stream. h.Status is not
// used.
func (r *Request) Refuse(status int, h ResponseHeader) {
	s := r.s
	if !s.Opening() {
		return
	}
	h.Status = status
	s.Refuse()
	t, hs := s.Tunnel(), s.H2()
	if err := t.H2().Respond(hs, h.response(), true); err != nil {
		t.H2().Reset(hs, h2.InternalError)
	} else if !hs.Closed() {
		// The answer is complete; the rest of the request is not wanted.
		t.H2().Reset(hs, h2.NoError)
	}
	t.Touch()
}

// Accept answers 200 and relays between the stream and up, a connected,
// non-blocking socket which belongs to the flow from here on; prefix is sent
// to it first. When the client has gone meanwhile, up is closed and onClose
// still called. onClose, which may be nil, is never called inline.
func (r *Request) Accept(up int, prefix []byte, h ResponseHeader, onClose func(*relay.Flow, relay.Result)) *relay.Flow {
	s, hooks := r.s, serverFlow(onClose)
	if !s.Opening() {
		poll.ResetFD(up)
		hooks.Ended(s, relay.Result{Reason: reason.DownstreamReset, Err: tunnel.ErrGone})
		return &s.Flow
	}
	s.Accepted(false, hooks)
	if len(prefix) > 0 {
		s.Prefix(prefix)
	}
	h.Status = 200
	err := s.Tunnel().H2().Respond(s.H2(), h.response(), false)
	if err == nil {
		err = s.Watch(up)
	}
	s.Tunnel().Touch()
	if err != nil {
		poll.ResetFD(up)
		s.Unconnected(err)
		return &s.Flow
	}
	s.Run()
	return &s.Flow
}

// Stream answers 200 and returns the stream to the caller, instead of joining it with
// a socket. When the client has gone meanwhile, the stream ends as soon as it has a
// Sink. What the client has sent already waits for the Sink.
func (r *Request) Stream(h ResponseHeader) bytestream.Conn {
	h.Status = 200
	return r.s.Answer(h.response(), bytestream.Info{Local: r.Local, Remote: r.Remote, Peer: r.PeerIdentity, TLS: r.Peer})
}

// Failed implements tunnel.Hooks: the client gave up.
func (r *Request) Failed(_ *tunnel.Stream, why reason.Reason, _ error, _ bool) {
	if r.OnGone != nil {
		r.OnGone(why)
	}
}

// Ended implements tunnel.Hooks: Accept sets others.
func (r *Request) Ended(*tunnel.Stream, relay.Result) {}

// serverFlow are the hooks of a stream that was accepted.
type serverFlow func(*relay.Flow, relay.Result)

// Failed implements tunnel.Hooks.
func (f serverFlow) Failed(*tunnel.Stream, reason.Reason, error, bool) {}

// Ended implements tunnel.Hooks.
func (f serverFlow) Ended(s *tunnel.Stream, r relay.Result) {
	if f != nil {
		s.Loop().Post(func() { f(&s.Flow, r) })
	}
}
