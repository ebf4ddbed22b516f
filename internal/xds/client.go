package xds

import (
	"context"
	"log/slog"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
)

// TypeConfig is a type that a Client follows.
type TypeConfig struct {
	TypeURL string
	// OnDemand subscribes to nothing but what Demand asks for.
	OnDemand bool
	// Apply takes a response in. It is called on the Client's goroutine, one
	// response at a time. The rejected resources are reported to the server,
	// the rest counts as applied.
	Apply func(Delta) []Rejection
}

// Termination says how a connection to the server ended.
type Termination string

// The terminations; the names are label values of a metric.
const (
	ConnectionError Termination = "ConnectionError"
	StreamError     Termination = "Error"
	Reconnect       Termination = "Reconnect"
	Complete        Termination = "Complete"
)

// ClientMetrics are called by a Client; nil members are skipped.
type ClientMetrics struct {
	Terminated func(Termination)
	Message    func(typeURL string, bytes int)
}

// ClientConfig configures a Client.
type ClientConfig struct {
	// Address of the server: https://host:port, or http:// for plaintext.
	Address string
	// RootCAFile holds the server's roots; read again for every connection.
	// Empty means the system's.
	RootCAFile string
	// TokenFile holds the bearer token; read again for every connection.
	// Empty sends none.
	TokenFile string
	// AltHostname is accepted in the server's certificate beside the address.
	AltHostname string
	ClusterID   string
	// Headers are sent with the stream.
	Headers map[string]string
	Node    *core.Node
	Types   []TypeConfig
	Logger  *slog.Logger
	Metrics ClientMetrics
	// DialOptions are added to those the Client makes (tests).
	DialOptions []grpc.DialOption
}

// Client keeps the types of its configuration up to date.
type Client struct{}

// NewClient checks the configuration.
func NewClient(cfg ClientConfig) (*Client, error) { return &Client{}, nil }

// Run connects, and connects again, until ctx ends.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Synced is closed when every type that is not OnDemand has its first
// response applied.
func (c *Client) Synced() <-chan struct{} { return nil }

// Demand subscribes to a resource of an OnDemand type, by name or alias, and
// waits until the server answered: with the resource or with its absence.
func (c *Client) Demand(ctx context.Context, typeURL, name string) error { return nil }
