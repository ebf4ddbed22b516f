// Package legs sets the options of sockets by the part of a connection's way that they
// are for.
package legs

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// Leg is a part of a connection's way, by the options that its sockets need.
type Leg uint8

// The legs.
const (
	// Wire is a tunnel between nodes.
	Wire Leg = iota
	// Captured is between a program and the proxy. The kernel redirects such a
	// connection, or its answers, for as long as connection tracking has it.
	Captured
	// Outside is plaintext from the proxy to a destination without a tunnel.
	Outside
)

// Tune sets what makes a connection faster or safer, but works without.
func (g Leg) Tune(fd int, k config.KeepAlive) {
	_ = sockopt.NoDelay(fd)
	if g != Wire {
		_ = sockopt.UrgentInline(fd)
	}
	if k.Enabled && k.UserTimeout {
		_ = sockopt.UserTimeout(fd, patience(k))
	}
	switch {
	case g == Captured && k.CapturedIdle > 0:
		_ = sockopt.KeepAlive(fd, k.CapturedIdle.Std(), k.CapturedIdle.Std(), capturedRetries(k))
	case k.Enabled:
		_ = sockopt.KeepAlive(fd, k.Time.Std(), k.Interval.Std(), k.Retries)
	}
}

// patience is how long a peer may be silent before the kernel ends the
// connection.
func patience(k config.KeepAlive) time.Duration {
	return k.Time.Std() + k.Interval.Std()*time.Duration(k.Retries)
}

// mostRetries is the kernel's bound of TCP_KEEPCNT.
const mostRetries = 127

// capturedRetries is how many probes of a captured connection may stay
// unanswered. Probing more often must not end a connection sooner: a plaintext
// client of a pod can be on another node.
func capturedRetries(k config.KeepAlive) int {
	if !k.Enabled {
		return mostRetries
	}
	idle := k.CapturedIdle.Std()
	n := (patience(k) - idle + idle - 1) / idle
	return int(min(max(n, 1), mostRetries))
}

// BindAs gives a socket the address of a client, without a port. Ports are
// the client's then, and not the pod's: the kernel chooses at connect, by
// source and destination together.
func BindAs(fd int, src netip.Addr) error {
	if err := sockopt.Transparent(fd, !src.Is4()); err != nil {
		return err
	}
	_ = sockopt.SpreadPorts(fd) // older kernels take longer
	if err := sockopt.BindLate(fd); err != nil {
		return err
	}
	return sockopt.Bind(fd, netip.AddrPortFrom(src, 0))
}
