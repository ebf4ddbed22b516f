// Package hbone carries application connections through tunnels (package tunnel): each is one
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
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
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
	// Via is what the tunnel runs inside of; nil for one on the network. It
	// makes the key, and so the tunnel, one connection's own.
	Via *Via
}

// Dialer makes a tunnel's socket: in the pod's network namespace, marked,
// non-blocking and connected; and the TLS configuration to speak on it. It is
// called on a goroutine of its own and must honour ctx. fd belongs to the pool
// on success. Errors should be *reason.Error. For a key with Via only the
// configuration counts: the pool makes the way there itself.
type Dialer func(ctx context.Context, k Key) (fd int, conf *tls.Config, err error)

// Windows bounds what is in flight; zero fields take the defaults of package
// h2.
type Windows struct {
	Stream    uint32 // initial bytes per stream
	MaxStream uint32 // bytes to which a busy stream's window grows
	Conn      uint32 // bytes per tunnel
	Frame     uint32 // bytes of the largest frame accepted
}

// maxFrame is the largest DATA frame accepted by default: what a sender reads at once
// should fit one frame. It costs no memory, frames are delivered in parts.
const maxFrame = 1 << 20

// engine returns the configuration of a tunnel's protocol engine.
func (w Windows) engine(server bool, streams uint32) h2.Config {
	return h2.Config{
		Server: server, MaxStreams: streams, MaxFrame: or(w.Frame, maxFrame),
		StreamWindow: w.Stream, MaxStreamWindow: w.MaxStream, ConnWindow: w.Conn,
	}
}

// Header is what a CONNECT request says besides its method.
type Header struct {
	Authority   string // ip:port, or host:port
	Baggage     string
	Forwarded   string
	Traceparent string
	// ForwardedNetwork is x-forwarded-network: where the connection comes from
	// when it crosses networks. The name may be empty; Crosses tells that there
	// is one.
	ForwardedNetwork string
	Crosses          bool
	// Hops is x-ambit-hops: how many waypoints have sent the connection on.
	Hops string
}

// ResponseHeader is what its answer says.
type ResponseHeader struct {
	Status  int
	Baggage string
	// Peer is who answered at the end of a tunnel inside another one; zero
	// otherwise, because the key says who it can be.
	Peer identity.Identity
}

// PoolConfig has the settings and callbacks of a Pool. Zero fields take the defaults named.
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
	// AnswerTimeout bounds the wait for the answer to CONNECT (20 s: the other
	// side needs up to 10 s to reach its program).
	AnswerTimeout time.Duration
	// ProbeAfter is how long a connection waits for its answer, on a tunnel
	// from which nothing arrives, before the peer is sent a PING (1 s). A tunnel
	// that was silent for ProbeTimeout before is sent one at once.
	// ProbeTimeout is how long the peer may take to give a sign of life (1 s).
	// Then the tunnel takes no new connections, and those that wait for an
	// answer are opened elsewhere. A peer without network or power is found
	// before the program's patience ends.
	ProbeAfter, ProbeTimeout time.Duration
	// DialPatience is how long connections wait for a tunnel to be made when
	// their owner has a spare endpoint (2 s: longer than the first
	// retransmission of a SYN).
	DialPatience time.Duration
	// MaxDials is how many tunnels are being made at once on one loop (64);
	// MaxWaiting how many connections wait for them there (8,192). More fail
	// with reason ResourceExhausted.
	MaxDials, MaxWaiting int
	// LibraryRecords has crypto/tls protect the records of tunnels, instead of package
	// record.
	LibraryRecords bool
	// KeepAlive is how long a tunnel with connections may be silent before it
	// is sent a PING (tunnel.DefaultKeepAlive; less than 0 for never).
	KeepAlive time.Duration
	// Silence is how long a tunnel with connections may be silent before it is
	// closed (twelve times KeepAlive).
	Silence time.Duration
	// Linger is how long bytes that came before a reset wait for a receiver that takes
	// nothing (10 s).
	Linger  time.Duration
	Windows Windows
	// Sockets, if set, bounds the tunnels: one unit for each, from before it is
	// dialled. Queues bounds the bytes that wait for programs which do not read.
	Sockets, Queues tunnel.Quota
	// OnTunnel, if set, is called on a loop when a tunnel on the network begins to be made (+1)
	// and when it is gone or could not be made (-1). A workload that goes
	// between the two is thus known to have a tunnel: see CloseWorkload.
	OnTunnel func(k Key, delta int)
}

// Open asks for one connection through a tunnel. Its callbacks run on the loop
// that owns the tunnel, never inside Pool.Open.
type Open struct {
	Key    Key
	Header Header
	// Loop, if set, is where the tunnel lives: one of the pool's loops. Tunnels are
	// then shared only by connections of that loop. Without it, the pool chooses.
	Loop *poll.Loop
	// App is the accepted, non-blocking application socket. It must not be
	// watched by a loop. It is not used with OnStream.
	App int
	// OnStream, if set, is called instead of OnUp, and gets the stream itself
	// instead of a flow between it and App. OnClose is not used then.
	OnStream func(s bytestream.Conn, resp ResponseHeader)
	// OnUp is called when the other side has accepted. App belongs to the flow
	// from here on, and bytes run.
	OnUp func(f *relay.Flow, resp ResponseHeader)
	// OnFail is called instead of OnUp. App is untouched and still the
	// caller's, who may Open again elsewhere or close it. status is the
	// peer's answer, 0 when there was none.
	OnFail func(err *reason.Error, status int)
	// OnClose is called exactly once after OnUp.
	OnClose func(f *relay.Flow, r relay.Result)
	// Spare, if set, reports whether the owner can open the connection at another
	// endpoint. Then OnFail comes early where the pool would otherwise try the
	// same destination again, or wait for it.
	Spare func() bool
	// Timeout, if set, bounds the time until the other side has accepted. It comes beside
	// the times of the pool.
	Timeout time.Duration
}

func (o *Open) spare() bool { return o.Spare != nil && o.Spare() }

// ServerConfig has the settings and callbacks of a Server. Zero fields take the defaults named.
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
	// HelloTimeout bounds the wait for a whole ClientHello, AnswerTimeout the
	// waits for the client's other flights together (3 s each), HandshakeTimeout
	// the time from the hello to the end (10 s).
	HelloTimeout, AnswerTimeout, HandshakeTimeout time.Duration
	// MaxHandshakes is how many handshakes compute at once (64). What waits is
	// bounded by multiples of it (package arrivals).
	MaxHandshakes int
	// MaxPeerTunnels is how many tunnels one address may have (512).
	MaxPeerTunnels int
	// Sockets, if set, bounds the connections that the server holds: one unit for
	// each, tunnel or not yet. Tunnels bounds the tunnels, and Queues the bytes
	// that wait for programs which do not read.
	Sockets, Tunnels, Queues tunnel.Quota
	KeepAlive                time.Duration // as in PoolConfig
	Silence                  time.Duration // as in PoolConfig
	Linger                   time.Duration // as in PoolConfig
	LibraryRecords           bool          // as in PoolConfig
	Windows                  Windows
	// OnTunnel, if set, is told on the loop when a tunnel is up (+1) and gone
	// (-1).
	OnTunnel func(delta int)
	// OnArrival, if set, counts connections that are not a tunnel yet: +1 inside of
	// Serve, -1 once the tunnel is up or the connection has ended. -1 may come from
	// any goroutine.
	OnArrival func(delta int)
}

// Names of the fields beside the pseudo fields.
const (
	fieldBaggage     = "baggage"
	fieldForwarded   = "forwarded"
	fieldTraceparent = "traceparent"
	fieldNetwork     = "x-forwarded-network"
	fieldHops        = "x-ambit-hops"
)

// request renders the CONNECT request. What differs on every connection is
// marked sensitive: it would only evict what repeats from the compression
// table.
func (h *Header) request() *h2.Header {
	r := &h2.Header{Method: "CONNECT", Authority: h.Authority, Fields: make([]h2.Field, 0, 5)}
	add := func(name, value string, differs bool) {
		if value != "" || name == fieldNetwork && h.Crosses {
			r.Fields = append(r.Fields, h2.Field{Name: name, Value: value, Sensitive: differs})
		}
	}
	add(fieldBaggage, h.Baggage, false)
	add(fieldForwarded, h.Forwarded, true)
	add(fieldTraceparent, h.Traceparent, true)
	add(fieldNetwork, h.ForwardedNetwork, false)
	add(fieldHops, h.Hops, false)
	return r
}

func parseHeader(r *h2.Header) Header {
	h := Header{Authority: r.Authority}
	for i := range r.Fields {
		switch f := &r.Fields[i]; f.Name {
		case fieldBaggage:
			h.Baggage = f.Value
		case fieldForwarded:
			h.Forwarded = f.Value
		case fieldTraceparent:
			h.Traceparent = f.Value
		case fieldNetwork:
			h.ForwardedNetwork, h.Crosses = f.Value, true
		case fieldHops:
			if h.Hops != "" {
				h.Hops += "," // twice: no reader takes it
			}
			h.Hops += f.Value
		}
	}
	return h
}

func (h *ResponseHeader) response() *h2.Header {
	r := &h2.Header{Status: h.Status}
	if h.Baggage != "" {
		r.Fields = []h2.Field{{Name: fieldBaggage, Value: h.Baggage}}
	}
	return r
}
