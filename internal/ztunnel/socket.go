package ztunnel

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// leg is a part of a connection's way, by the options that its sockets need.
type leg uint8

const (
	// wire is a tunnel between nodes.
	wire leg = iota
	// captured is between a program and the proxy. The kernel redirects such a
	// connection, or its answers, for as long as connection tracking has it.
	captured
	// outside is plaintext from the proxy to a destination without a tunnel.
	outside
)

// tune sets what makes a connection faster or safer, but works without.
func (p *pod) tune(fd int, g leg) {
	_ = sockopt.NoDelay(fd)
	if g != wire {
		_ = sockopt.UrgentInline(fd)
	}
	k := p.node.Config.KeepAlive
	if k.Enabled && k.UserTimeout {
		_ = sockopt.UserTimeout(fd, patience(k))
	}
	switch {
	case g == captured && k.CapturedIdle > 0:
		_ = sockopt.KeepAlive(fd, k.CapturedIdle.Std(), k.CapturedIdle.Std(), capturedRetries(k))
	case k.Enabled:
		_ = sockopt.KeepAlive(fd, k.Time.Std(), k.Interval.Std(), k.Retries)
	}
}

// pingEvery is how long a tunnel is silent before its peer is sent a PING:
// several times within the silence that is permitted.
func (p *pod) pingEvery() time.Duration {
	return min(hbone.DefaultKeepAlive, p.node.Config.TunnelSilence.Std()/3)
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

// bindAs gives a socket the address of a client, without a port. Ports are
// the client's then, and not the pod's: the kernel chooses at connect, by
// source and destination together.
func bindAs(fd int, src netip.Addr) error {
	if err := sockopt.Transparent(fd, !src.Is4()); err != nil {
		return err
	}
	_ = sockopt.SpreadPorts(fd) // older kernels take longer
	if err := sockopt.BindLate(fd); err != nil {
		return err
	}
	return sockopt.Bind(fd, netip.AddrPortFrom(src, 0))
}
