// Package gateway is the data path of a waypoint: from a CONNECT stream that a
// client's node proxy opened, over the routes of the service that it called, to an
// endpoint.
//
//	hbone.Request → destination → HTTP: exchange → route → backend ─┐
//	                           └→ TCP: backend ──────────────────────┴→ endpoint → hbone.Pool
//
// What decides is pure. Everything of one connection happens on the loop of its
// tunnel.
package gateway

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/spans"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
)

// Options are what a Gateway is made of. All but Telemetry, Resolve and Log are
// required.
type Options struct {
	Loops *poll.Group
	// Network is the network of this gateway.
	Network string
	// Self returns the gateway's own workload, and nil while it is not known. Its
	// locality decides between endpoints, and its identity is that of the tunnels.
	Self func() *workload.Workload
	// Source is the address that tunnels are made from.
	Source netip.Addr
	// Directory returns the current directory. It is called for every request.
	Directory func() *workload.Snapshot
	// Learn, if set, requests resources by name that a directory filled on demand
	// lacks, and calls done on the loop once they have come or never will. It
	// reports false when there is nothing to wait for; done is not called then.
	Learn func(l *poll.Loop, names []string, done func()) bool
	// Answered reports whether such a directory has what there is of a name; nil where it
	// has everything.
	Answered func(name string) bool
	// Names returns the addresses of a host outside, if known: else Learn gets the name, which has no slash.
	Names func(host string) (addrs []netip.Addr, err error, known bool) //nolint:revive // the answer is a pair
	Hosts *hosts.Table                                                  // services that are found by names; nil: none
	// Config returns the current routes, and nil before the first have come:
	// requests are refused until then.
	Config func() *route.Config
	// Policies returns the policies in force, and nil before they have come: requests
	// are refused until then.
	Policies func() *authz.Set
	// Authentications returns which tokens are accepted, and nil before that has come:
	// requests are refused until then.
	Authentications func() *authn.Set
	// Tunnels opens connections to endpoints.
	Tunnels *hbone.Pool
	// Dial connects to an endpoint without a tunnel, on a goroutine of its own. The
	// socket is non-blocking.
	Dial func(to netip.AddrPort, timeout time.Duration) (fd int, err error)
	// Identity of this gateway.
	Identity identity.Identity
	// ClientCertificate has programs get the client's identity, in
	// X-Forwarded-Client-Cert.
	ClientCertificate bool
	Telemetry         Telemetry
	// Observed returns which requests have spans, and nil before that has come: none do.
	// Spans are counted by Spans, and lines that are sent by Records. All may be nil.
	Observed       func() *observe.Set
	Spans, Records *otlp.Counters
	Log            *slog.Logger

	dial      pool.Dial     // of tests, in place of all others
	maxChecks int           // the same, of exchange.Config
	silence   time.Duration // the same, for the constant
}

// Telemetry are hooks, each of which may be nil. They run on loops and must not
// block. NewTelemetry makes those of a program.
type Telemetry struct {
	// Request is called at the end of each HTTP request. The record is valid
	// during the call.
	Request func(*Record)
	// Progress is called now and then for a call of gRPC that goes on: of the record,
	// Messages are new since the last time.
	Progress func(*Record)
	// ConnectionOpened and ConnectionClosed frame each connection that carries no
	// HTTP. A connection that got no endpoint is closed without being opened.
	ConnectionOpened func(*Record)
	ConnectionClosed func(*Record)
	// Policy is called for verdicts of policies that decide nothing.
	Policy func(authz.Note)
	// Asked is called with what came of asking an external authorizer.
	Asked func(authorizer string, o extauthz.Outcome)
	// Decided is called with what has decided about a connection at a port that declares
	// no protocol.
	Decided func(telemetry.Kind)
	LeftOut func() // LeftOut is called when an endpoint is left out.
}

// Record is what happened to one request or one connection.
type Record struct {
	Start    time.Time
	Duration time.Duration
	Reason   reason.Reason
	Err      error // may be nil

	// The client, as its tunnel says.
	Client         *workload.Workload // nil when unknown
	Baggage        connect.Baggage    // what a client that is not in the directory says of itself
	ClientIdentity identity.Identity
	ClientAddr     netip.AddrPort

	// The destination: what was called, and what was chosen.
	Service  *workload.Service // that the client called; nil for a workload
	Port     uint16            // that the client called
	Called   netip.AddrPort    // what the client called; invalid for a name
	Route    string            // Rule.Origin of the rule; "" without one
	SNI      string            // the name that a client of TLS wants, if routes asked
	Backend  *workload.Service // that the route chose; nil when none was
	Endpoint *workload.Workload
	Upstream netip.AddrPort // the endpoint's application
	// BackendPort is that of Backend.
	BackendPort uint16
	// Identities are those that the endpoint may have proven; "" without a tunnel.
	Identities string

	// Of HTTP. The byte slices are valid during the call.
	HTTP                    bool
	Version                 string // HTTP/1.1 or HTTP/2
	Method, Authority, Path []byte
	UserAgent, RequestID    []byte
	ForwardedFor            []byte
	Traceparent             []byte // of the request
	Answered, Direct        bool   // by an endpoint, or by a filter
	GRPC                    bool
	Messages                exchange.Messages // of GRPC, that no Progress has reported
	GRPCStatus              int               // -1 without one
	Status                  int               // 0 when the client went before it got one
	Tries                   int
	FirstByte               time.Duration // from Start to the head of the response; 0 without one

	Received, Sent int64 // bytes of bodies, from and to the client
	Heads          exchange.Heads

	shard    *shard
	head     *message.Head // of a request
	metadata *extauthz.Metadata
	span     *spans.Span     // of a request that is sampled
	from     *session        // nil of a CONNECT that was refused
	conn     *telemetry.Conn // of a connection that was opened
	flow     telemetry.Flow
}
