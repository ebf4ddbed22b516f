package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

// TypeConfig is a type that a Client follows.
type TypeConfig struct {
	TypeURL string
	// OnDemand subscribes to nothing but what Demand asks for.
	OnDemand bool
	// Optional is a type that other servers than Ambit's do not have. It is asked for once
	// the server has shown that it is one, and Synced does not wait for it.
	Optional bool
	// Apply takes a response in. It is called on the Client's goroutine, one
	// response at a time, and must not call Demand. The rejected resources are
	// reported to the server, the rest counts as applied.
	Apply func(Delta) []Rejection
}

// ControlPlane is what Ambit's server calls itself in each response.
const ControlPlane = "ambitd"

// Termination says how a connection to the server ended.
type Termination string

// The terminations; the names are label values of a metric.
const (
	ConnectionError Termination = "ConnectionError" // it could not be made
	StreamError     Termination = "Error"           // the server refused or broke the stream
	Reconnect       Termination = "Reconnect"       // it was cut, or moved by the server
	Complete        Termination = "Complete"        // the server ended it in good order
)

// ClientMetrics are called by a Client; nil members are skipped.
type ClientMetrics struct {
	Terminated func(Termination)
	Message    func(typeURL string, bytes int)
}

// ClientConfig configures a Client.
type ClientConfig struct {
	Server  controlplane.Server
	Node    *core.Node
	Types   []TypeConfig
	Logger  *slog.Logger
	Metrics ClientMetrics
}

// Client keeps the types of its configuration up to date.
type Client struct {
	cfg ClientConfig
	f   *follower
	// connect opens a stream; release frees what it holds.
	connect func(context.Context) (s stream, release func(), err error)
}

// stream is the client's side of a connection.
type stream interface {
	Send(*discovery.DeltaDiscoveryRequest) error
	Recv() (*discovery.DeltaDiscoveryResponse, error)
}

// NewClient checks the configuration.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Types) == 0 {
		return nil, errors.New("xds: no types to follow")
	}
	for _, t := range cfg.Types {
		if t.TypeURL == "" || t.Apply == nil {
			return nil, errors.New("xds: a type without a URL or a function to apply it")
		}
	}
	if err := cfg.Server.Check(); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	node := &core.Node{}
	if cfg.Node != nil {
		node = proto.CloneOf(cfg.Node)
	}
	if !slices.Contains(node.ClientFeatures, featurePartial) {
		node.ClientFeatures = append(node.ClientFeatures, featurePartial)
	}
	return &Client{cfg: cfg, f: newFollower(node, cfg.Types), connect: cfg.connect}, nil
}

const (
	// connectTimeout bounds TCP, TLS and HTTP/2 together.
	connectTimeout = 10 * time.Second
	// pingInterval finds a control plane that vanished without a word. Servers
	// usually take one ping in 15 s or more.
	pingInterval = time.Minute
	pingTimeout  = 20 * time.Second
)

// connect opens a stream on a connection of its own; release closes that.
func (cfg ClientConfig) connect(ctx context.Context) (stream, func(), error) {
	conn, err := cfg.Server.Connect(
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("xds: %w", err)
	}
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return s, func() { _ = conn.Close() }, nil
}

// Synced is closed when every type that is neither OnDemand nor Optional has its whole
// state applied once.
func (c *Client) Synced() <-chan struct{} { return c.f.synced }

// Demand subscribes to a resource of an OnDemand type, by name or alias, and
// waits until the server answered: with the resource or with its absence.
// The subscription stays.
func (c *Client) Demand(ctx context.Context, typeURL, name string) error {
	return c.demand(ctx, typeURL, name, false)
}

// DemandBriefly is Demand for names that clients choose, such as the addresses that they
// call. When many of these have no resource, the oldest subscriptions without one end.
func (c *Client) DemandBriefly(ctx context.Context, typeURL, name string) error {
	return c.demand(ctx, typeURL, name, true)
}

// Answered reports whether the client follows a name or alias of an OnDemand type, and has
// what the server has of it: a resource, or that there is none.
func (c *Client) Answered(typeURL, name string) bool { return c.f.answered(typeURL, name) }

func (c *Client) demand(ctx context.Context, typeURL, name string, briefly bool) error {
	done, err := c.f.demand(typeURL, name, briefly)
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// The back-off between connections that fail.
const (
	minBackoff = 10 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// Run connects, and connects again, until ctx ends; it returns the cause.
func (c *Client) Run(ctx context.Context) error {
	backoff := minBackoff
	for ctx.Err() == nil {
		end := c.session(ctx)
		if ctx.Err() != nil {
			break
		}
		delay := time.Duration(0)
		// A server that served and left is expected back, or elsewhere, at
		// once. One that ends connections before it serves is given time.
		if end.served && (end.how == Complete || end.how == Reconnect) {
			backoff = minBackoff
		} else {
			delay = jitter(backoff)
			backoff = min(2*backoff, maxBackoff)
		}
		if m := c.cfg.Metrics.Terminated; m != nil {
			m(end.how)
		}
		c.log(end, delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

func (c *Client) log(end ending, delay time.Duration) {
	level := slog.LevelWarn
	if delay == 0 {
		level = slog.LevelInfo
	}
	c.cfg.Logger.Log(context.Background(), level, "xds connection ended", "address", c.cfg.Server.Address, "how", string(end.how),
		"error", explain(end.err), "retry_in", delay.Round(time.Millisecond).String())
}

// jitter spreads clients that lost one server together: between half and all
// of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// ending is how one connection ended.
type ending struct {
	how    Termination
	err    error
	served bool // at least one response came
}

// session is one connection from beginning to end.
func (c *Client) session(ctx context.Context) ending {
	ctx, cancel := context.WithCancel(ctx)
	s, release, err := c.connect(ctx)
	if err != nil {
		cancel()
		return ending{how: ConnectionError, err: err}
	}
	defer release()
	defer cancel()
	in := make(chan received)
	go receive(ctx, s, in)
	served := false
	for _, req := range c.f.hello() {
		if err := s.Send(req); err != nil {
			return ended(ctx, in, served)
		}
	}
	for {
		select {
		case r := <-in:
			if r.err != nil {
				return classify(r.err, served)
			}
			if !served {
				c.cfg.Logger.Info("xds connected", "address", c.cfg.Server.Address)
				served = true
			}
			if m := c.cfg.Metrics.Message; m != nil {
				m(r.resp.GetTypeUrl(), bodyBytes(r.resp))
			}
			answer := c.f.respond(r.resp)
			if e := answer.GetErrorDetail(); e != nil {
				c.cfg.Logger.Error("xds resources rejected", "type", answer.GetTypeUrl(), "error", e.GetMessage())
			}
			if err := s.Send(answer); err != nil {
				return ended(ctx, in, served)
			}
		case <-c.f.wake:
			for _, req := range c.f.demands() {
				if err := s.Send(req); err != nil {
					return ended(ctx, in, served)
				}
			}
		case <-ctx.Done():
			return ending{how: Complete, err: ctx.Err(), served: served}
		}
	}
}

// received is what one Recv returned.
type received struct {
	resp *discovery.DeltaDiscoveryResponse
	err  error
}

// receive reads until the stream fails or ctx ends. It waits for each response
// to be taken, which holds a server back that is faster than Apply.
func receive(ctx context.Context, s stream, in chan<- received) {
	for {
		resp, err := s.Recv()
		select {
		case in <- received{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// ended classifies a stream that cannot be sent to: receiving says why, after
// what came before.
func ended(ctx context.Context, in <-chan received, served bool) ending {
	for {
		select {
		case r := <-in:
			if r.err != nil {
				return classify(r.err, served)
			}
		case <-ctx.Done():
			return ending{how: Complete, err: ctx.Err(), served: served}
		}
	}
}

// classify tells an orderly end, a cut and a refusal apart.
func classify(err error, served bool) ending {
	e := ending{how: StreamError, err: err, served: served}
	if errors.Is(err, io.EOF) {
		e.how = Complete
		return e
	}
	switch status.Code(err) {
	case codes.Unavailable:
		e.how = Reconnect
		if !served {
			e.how = ConnectionError
		}
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		e.how = Reconnect
	default: // the server refuses: StreamError
	}
	return e
}

// explain adds what to do about errors that operators meet.
func explain(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	switch {
	case status.Code(err) == codes.Unauthenticated || strings.Contains(s, "authentication failure"):
		s += " (the control plane did not accept the token: check the token file, and the control plane's log)"
	case strings.Contains(s, "certificate signed by unknown authority"):
		s += " (the root certificate file does not belong to this control plane)"
	}
	return s
}

func bodyBytes(resp *discovery.DeltaDiscoveryResponse) int {
	n := 0
	for _, r := range resp.GetResources() {
		n += len(r.GetResource().GetValue())
	}
	return n
}
