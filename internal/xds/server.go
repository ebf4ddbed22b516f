package xds

import (
	"log/slog"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// ServerMetrics are called by a Server; nil members are skipped.
type ServerMetrics struct {
	Clients  func(delta int)
	Pushed   func(typeURL string, resources, removed, bytes int)
	Rejected func(typeURL string)
}

// ServerOptions configures a Server.
type ServerOptions struct {
	Logger  *slog.Logger
	Metrics ServerMetrics
}

// ClientStatus describes a connected client.
type ClientStatus struct {
	Node      string // id the client gave
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
}

// NewServer returns a Server; register it with
// discovery.RegisterAggregatedDiscoveryServiceServer.
func NewServer(c *Cache, opts ServerOptions) *Server { return &Server{} }

// Clients lists the connected clients.
func (s *Server) Clients() []ClientStatus { return nil }
