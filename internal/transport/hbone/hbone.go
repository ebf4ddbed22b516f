// Package hbone carries application connections through tunnels: each is one
// stream of HTTP/2 CONNECT inside mutual TLS. A tunnel and all its
// application sockets live on one event loop.
package hbone

import (
	"context"
	"crypto/tls"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// Key says which connections may share a tunnel: the same client identity and
// address, the same destination address, the same acceptable server
// identities, and the same destination workload, so that an address that is
// used again never meets its predecessor's tunnel.
type Key struct {
	SrcIdentity identity.Identity
	SrcIP       netip.Addr
	Dst         netip.AddrPort
	// DstIdentities is canonical: sorted, joined by commas.
	DstIdentities string
	DstUID        string
}

// Dialer makes a tunnel's socket: in the pod's network namespace, marked,
// non-blocking and connected; and the TLS configuration to speak on it. It is
// called on a goroutine of its own and must honour ctx. fd belongs to the pool
// on success. Errors should be *reason.Error.
type Dialer func(ctx context.Context, k Key) (fd int, conf *tls.Config, err error)

// KeepAlive is how a tunnel finds out that its peer is gone.
type KeepAlive struct {
	// Interval is how long a tunnel with streams may be silent before it is
	// sent a PING; 0 means DefaultKeepAlive, less than 0 never.
	Interval time.Duration
	// Timeout is how long the answer may take.
	Timeout time.Duration
}

// Windows bounds what is in flight; zero fields take the defaults of package
// h2.
type Windows struct {
	Stream    uint32 // initial bytes per stream
	MaxStream uint32 // bytes to which a busy stream's window grows
	Conn      uint32 // bytes per tunnel
}

// Header is what a CONNECT request says besides its method.
type Header struct {
	Authority        string // ip:port, or host:port
	Baggage          string
	Forwarded        string
	Traceparent      string
	ForwardedNetwork string // x-forwarded-network
}

// ResponseHeader is what its answer says.
type ResponseHeader struct {
	Status  int
	Baggage string
}

// PoolConfig says how a Pool works. Zero fields take the defaults named.
type PoolConfig struct {
	Loops *poll.Group
	Dial  Dialer
	// MaxStreams is how many connections share a tunnel (100), or fewer when
	// the peer says so.
	MaxStreams int
	// IdleRelease is how long a tunnel without connections is kept (5 min).
	IdleRelease time.Duration
	// DialTimeout bounds Dial and the TLS handshake together (10 s).
	DialTimeout time.Duration
	KeepAlive   KeepAlive
	Windows     Windows
	// OnTunnel, if set, is told on the loop when a tunnel is up (+1) and gone
	// (-1).
	OnTunnel func(k Key, delta int)
}

// Pool holds the tunnels of one pod's outgoing connections. Its methods may be
// called from any goroutine.
type Pool struct{ cfg PoolConfig }

// Open asks for one connection through a tunnel. Its callbacks run on the loop
// that owns the tunnel, never inside Pool.Open.
type Open struct {
	Key    Key
	Header Header
	// App is the accepted, non-blocking application socket. It must not be
	// watched by a loop.
	App int
	// OnUp is called when the other side has accepted. App belongs to the flow
	// from here on, and bytes run.
	OnUp func(f *relay.Flow, resp ResponseHeader)
	// OnFail is called instead of OnUp. App is untouched and still the
	// caller's, who may Open again elsewhere or close it. status is the
	// peer's answer, 0 when there was none.
	OnFail func(err *reason.Error, status int)
	// OnClose is called exactly once after OnUp.
	OnClose func(f *relay.Flow, r relay.Result)
}

// NewPool makes an empty pool.
func NewPool(cfg PoolConfig) *Pool { return &Pool{cfg: cfg} }

// Open opens a connection; it returns at once. The pool takes o over.
func (p *Pool) Open(o *Open) { panic("not yet") }

// CloseWorkload says that the workload with this UID is gone: its tunnels take
// no new connections and end when their connections have.
func (p *Pool) CloseWorkload(uid string) { panic("not yet") }

// Drain has every tunnel take no new connections and end with its last one.
// Further Opens fail with reason Draining.
func (p *Pool) Drain() { panic("not yet") }

// Close ends everything now; flows get r.
func (p *Pool) Close(r reason.Reason) { panic("not yet") }

// ServerConfig says how a Server works. Zero fields take the defaults named.
type ServerConfig struct {
	Loops *poll.Group
	// TLS returns the configuration of one handshake. It runs on a goroutine
	// of its own and may block within HandshakeTimeout.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// OnRequest is called on the tunnel's loop for every stream and must not
	// block. Sooner or later it calls Accept or Refuse.
	OnRequest func(*Request)
	// OnHandshakeError is told, on any goroutine, why a connection did not
	// become a tunnel.
	OnHandshakeError func(remote, local netip.AddrPort, err error)
	// MaxStreams is how many connections one tunnel may carry (1,000).
	MaxStreams uint32
	// HandshakeTimeout bounds the TLS handshake (10 s).
	HandshakeTimeout time.Duration
	// MaxHandshakes is how many handshakes run at once (64); four times as many
	// wait, the rest are reset.
	MaxHandshakes int
	KeepAlive     KeepAlive
	Windows       Windows
}

// Server accepts tunnels. Its methods may be called from any goroutine.
type Server struct{ cfg ServerConfig }

// NewServer makes a server without tunnels.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg} }

// Serve takes over an accepted, non-blocking socket, whose tunnel will live on
// l. It returns at once.
func (s *Server) Serve(l *poll.Loop, fd int, remote, local netip.AddrPort) { panic("not yet") }

// Drain tells the client of every tunnel to open no more streams (GOAWAY);
// tunnels end when their streams have. Tunnels whose handshake ends later are
// drained as well.
func (s *Server) Drain() { panic("not yet") }

// Close ends everything now; flows get r.
func (s *Server) Close(r reason.Reason) { panic("not yet") }

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
}

// Refuse answers with an error status and ends the stream.
func (r *Request) Refuse(status int, h ResponseHeader) { panic("not yet") }

// Accept answers 200 and relays between the stream and up, a connected,
// non-blocking socket which belongs to the flow from here on; prefix is sent
// to it first. When the client has gone meanwhile, up is closed and onClose
// called all the same. onClose is never called inline.
func (r *Request) Accept(up int, prefix []byte, h ResponseHeader, onClose func(*relay.Flow, relay.Result)) *relay.Flow {
	panic("not yet")
}
