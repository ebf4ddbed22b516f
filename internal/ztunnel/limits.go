package ztunnel

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/ztunnel/demand"
)

const (
	// connectTimeout bounds one attempt to reach the next hop; upstream's.
	connectTimeout = 10 * time.Second
	// knownTimeout is how long a connection waits for the pod's own workload.
	knownTimeout = demand.Timeout
	// policyTimeout is how long a connection waits for a policy that its workload
	// names. The control plane sends both within milliseconds of each other; a
	// client that waited longer would be better off with an answer.
	policyTimeout = time.Second
	// maxAttempts bounds the endpoints one connection tries before its first
	// byte. More would make a client wait longer than it does.
	maxAttempts = 3
	// maxStrange bounds the addresses that peers can have the proxy ask for by
	// naming them in tunnels: a subscription lasts as long as the stream.
	maxStrange = 4096
	// retryStart is after how long a pod that could not be served is tried
	// again by the proxy itself; it doubles up to retryMax.
	retryStart = time.Second
	retryMax   = 15 * time.Second
)
