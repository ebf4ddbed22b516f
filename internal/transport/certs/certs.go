// Package certs keeps the certificates of the identities on this node: it
// fetches them by priority, renews them in time, and never drops a valid one
// nor serves an expired one.
package certs

import (
	"context"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Priority orders fetches; a higher one goes first.
type Priority uint8

// The priorities.
const (
	Background Priority = iota // renewal of a certificate that is still valid
	Warmup                     // a workload is here and will need one
	RealTime                   // a connection waits
)

// Signer is a certificate authority.
type Signer interface {
	// Sign answers a certificate request (PEM) for id with the chain in PEM:
	// leaf first, one element per intermediate, last all roots in one element.
	// ttl is a wish. The context bounds the call.
	Sign(ctx context.Context, id identity.Identity, csrPEM []byte, ttl time.Duration) (chainPEM []string, err error)
}

// Config of a Manager.
type Config struct {
	Sign   Signer
	Logger *slog.Logger
	// TTL is the validity to ask for; 24 h when zero.
	TTL time.Duration
	// Parallel bounds concurrent fetches; 8 when zero. One of them is kept
	// free for RealTime when there are at least two.
	Parallel int
	// Timeout bounds one fetch; 10 s when zero.
	Timeout time.Duration
	// Retain is how long a certificate that nobody holds is remembered, so
	// that a pod that is replaced costs no new one; 1 minute when zero,
	// negative for not at all.
	Retain time.Duration
	// Fetched, when set, is told the result of each fetch, for metrics.
	Fetched func(id identity.Identity, took time.Duration, err error)
}
