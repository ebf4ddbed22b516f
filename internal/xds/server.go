package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/mesh/fair"
)

// ServerMetrics are called by a Server; nil members are skipped.
type ServerMetrics struct {
	Clients  func(delta int)
	Pushed   func(typeURL string, resources, removed, bytes int)
	Rejected func(typeURL string)
	// Converged gets how long a change took until a client has accepted it.
	Converged func(typeURL string, took time.Duration)
}

// ServerOptions configures a Server.
type ServerOptions struct {
	Logger  *slog.Logger
	Metrics ServerMetrics
	// First are types that go to a client before others when both changed:
	// policies before the workloads that name them.
	First []string
	// Scope returns what the client of a stream may have of a type. It is asked
	// once per stream and type, with the stream's context and the node of the
	// client's first request. An error ends the stream; neither the client nor the
	// log gets it. Nil permits everything.
	Scope func(ctx context.Context, node *core.Node, typeURL string) (Scope, error)
	// Caller returns the client for which the stream of a context counts; nil makes every
	// stream that of a node proxy of its own.
	Caller func(context.Context) Caller
	// Heard returns a channel that is closed when the first bytes of the
	// stream's client have come; nil, and a nil channel, is not waited for.
	Heard func(context.Context) <-chan struct{}
	// Settled, when set, is called when a client that is no node proxy has said
	// what it has: it has no reason to send large requests any more.
	Settled func(context.Context)
}

// ClientStatus describes a connected client.
type ClientStatus struct {
	Node      string // id the client gave
	Version   string // of its program, as it says; empty when it does not
	Peer      string // its address
	Connected time.Time
	Types     []TypeStatus
}

// TypeStatus is what a client knows of a type.
type TypeStatus struct {
	TypeURL   string
	Wildcard  bool
	Resources int // sent and not removed
	Pending   int // changed and not sent yet
	Acked     string
	Sent      string // nonces
	Error     string // detail of the last rejection, empty when accepted since
}

// Server serves a Cache to any number of clients.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cache *Cache
	opts  ServerOptions

	mu      sync.Mutex
	clients map[*client]struct{}
	closing chan struct{}
	closed  bool
	streams streams
	// Who may say at a time what it has: node proxies, and all others.
	joining, joiningOthers *fair.Queue
}

// client is one stream.
type client struct {
	*session
	caller    Caller
	spoke     atomic.Bool // has sent a request
	stop      func(error) // ends the stream; the first error counts
	peer      string
	connected time.Time
	mu        sync.Mutex
	node      string
	version   string
}

// NewServer returns a Server; register it with
// discovery.RegisterAggregatedDiscoveryServiceServer at a grpc.Server that was
// made with GRPCOptions.
func NewServer(c *Cache, opts ServerOptions) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cache: c, opts: opts, clients: make(map[*client]struct{}), closing: make(chan struct{}),
		streams:       streams{owners: map[string][]*client{}},
		joining:       fair.New(fair.Limits{Places: joiners}),
		joiningOthers: fair.New(fair.Limits{Places: otherJoiners, PlacesEach: otherAccount})}
}

// errNotPermitted is all that a client learns whose Scope is an error.
var errNotPermitted = status.Error(codes.PermissionDenied, "the caller may have no resources of this type")

var errClosing = status.Error(codes.Unavailable, "the control plane is shutting down; connect again")

// GRPCOptions are what a grpc.Server must have to serve this protocol: the
// codec of a Server's responses, room for the versions that a reconnecting
// client lists, and pings in both directions so that half-open connections end.
func GRPCOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(MaxRequest),
		// Clients say little but when they connect again.
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
}

// readBuffer is what every connection has, in bytes.
const readBuffer = 4 << 10

// Clients lists the connected clients, in the order of their nodes.
func (s *Server) Clients() []ClientStatus {
	s.mu.Lock()
	list := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		list = append(list, c)
	}
	s.mu.Unlock()
	out := make([]ClientStatus, len(list))
	for i, c := range list {
		out[i] = ClientStatus{Node: c.nodeID(), Version: c.programVersion(), Peer: c.peer, Connected: c.connected, Types: c.status()}
	}
	slices.SortFunc(out, func(a, b ClientStatus) int {
		return strings.Compare(a.Node+" "+a.Peer, b.Node+" "+b.Peer)
	})
	return out
}

// Close ends all streams, and new ones at once; clients connect again.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
}

// DeltaAggregatedResources serves one client until it leaves.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := &client{session: newSession(s.cache, s.opts.First), connected: time.Now()}
	c.converged = s.opts.Metrics.Converged
	if p, ok := peer.FromContext(stream.Context()); ok && p.Addr != nil {
		c.peer = p.Addr.String()
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	c.stop = cancel
	if s.opts.Scope != nil {
		c.scope = func(n *core.Node, typeURL string) (Scope, error) { return s.opts.Scope(ctx, n, typeURL) }
	}
	if s.opts.Caller != nil {
		c.caller = s.opts.Caller(ctx)
		if !c.caller.NodeProxy {
			c.mostNames = otherNames
		}
	} else {
		c.caller = Caller{Owner: fmt.Sprintf("%p", c), NodeProxy: true}
	}
	if err := s.enter(c); err != nil {
		return err
	}
	defer s.exit(c)
	failed := make(chan error, 1)
	go func() { failed <- s.receive(ctx, c, stream) }()
	for {
		select {
		case <-c.wake:
			if err := s.send(c, stream); err != nil {
				return err
			}
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-s.closing:
			return errClosing
		case <-ctx.Done():
			if err := context.Cause(ctx); status.Code(err) != codes.Unknown {
				return err
			}
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *Server) enter(c *client) error {
	s.mu.Lock()
	victim, ok := s.streams.add(c)
	if ok {
		s.clients[c] = struct{}{}
	}
	s.mu.Unlock()
	if !ok {
		return errStreams
	}
	if victim != nil {
		victim.stop(errReplaced)
	}
	s.cache.join(c.session)
	if m := s.opts.Metrics.Clients; m != nil {
		m(1)
	}
	return nil
}

func (s *Server) exit(c *client) {
	s.cache.leave(c.session)
	s.mu.Lock()
	delete(s.clients, c)
	s.streams.remove(c)
	s.mu.Unlock()
	if m := s.opts.Metrics.Clients; m != nil {
		m(-1)
	}
	if c.nodeID() != "" { // as joined
		s.opts.Logger.Info("xds client left", "node", c.nodeID(), "peer", c.peer)
	}
}

// receive reads until the stream ends; it returns why.
func (s *Server) receive(ctx context.Context, c *client, stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	turn, err := s.admit(ctx, c)
	if err != nil {
		return err
	}
	defer turn.timer.Stop()
	defer turn.end()
	for {
		req := new(request)
		if err := stream.RecvMsg(req); err != nil {
			return err
		}
		c.spoke.Store(true)
		if c.named(req.GetNode()) {
			s.opts.Logger.Info("xds client joined", "node", c.nodeID(), "peer", c.peer)
		}
		rejected, err := c.request(req)
		if req.GetResponseNonce() != "" {
			s.cache.advanced()
		}
		req.free()
		turn.took(req)
		switch {
		case errors.Is(err, errScope):
			return errNotPermitted
		case err != nil:
			return status.Error(codes.ResourceExhausted, err.Error())
		case rejected == "":
			continue
		}
		s.opts.Logger.Warn("xds client rejected resources", "node", c.nodeID(), "type", req.GetTypeUrl(), "error", rejected)
		if m := s.opts.Metrics.Rejected; m != nil {
			m(req.GetTypeUrl())
		}
	}
}

// send sends whatever is due. A client that does not read blocks only this
// goroutine; meanwhile its changes coalesce.
func (s *Server) send(c *client, stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		resp := c.next()
		if resp == nil {
			return nil
		}
		if err := stream.SendMsg(resp); err != nil {
			return err
		}
		if s.opts.Logger.Enabled(stream.Context(), slog.LevelDebug) {
			s.opts.Logger.Debug("xds push", "node", c.nodeID(), "type", resp.typeURL,
				"resources", resp.resources(), "removed", len(resp.removed), "bytes", resp.bytes)
		}
		if m := s.opts.Metrics.Pushed; m != nil {
			m(resp.typeURL, resp.resources(), len(resp.removed), resp.bytes)
		}
	}
}

func (c *client) nodeID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

func (c *client) programVersion() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// versionKey is where a proxy tells its version in its node's metadata.
const versionKey = "ISTIO_VERSION"

// named keeps the first node that has an id; true when this was it.
func (c *client) named(n *core.Node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node != "" || n.GetId() == "" {
		return false
	}
	c.node = n.GetId()
	c.version = cmp.Or(n.GetMetadata().GetFields()[versionKey].GetStringValue(), n.GetUserAgentVersion())
	return true
}
