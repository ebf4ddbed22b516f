// Package bounds has what bounds the waits and tries of a node proxy.
package bounds

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/ztunnel/demand"
)

const (
	// ConnectTimeout bounds one attempt to reach the next hop; upstream's.
	ConnectTimeout = 10 * time.Second
	// KnownTimeout is how long a connection waits for the pod's own workload.
	KnownTimeout = demand.Timeout
	// PolicyTimeout is how long a connection waits for a policy that its workload
	// names. The control plane sends both within milliseconds of each other; a
	// client that waited longer would be better off with an answer.
	PolicyTimeout = time.Second
	// MaxAttempts bounds the endpoints one connection tries before its first
	// byte. More would make a client wait longer than it does.
	MaxAttempts = 3
	// MaxStrange bounds the addresses that peers can have the proxy ask for by
	// naming them in tunnels: a subscription lasts as long as the stream.
	MaxStrange = 4096
	// RetryStart is after how long a pod that could not be served is tried
	// again by the proxy itself; it doubles up to RetryMax.
	RetryStart = time.Second
	// RetryMax is the longest time between two such tries.
	RetryMax = 15 * time.Second
)
