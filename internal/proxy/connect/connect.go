// Package connect reads and writes what stands in the CONNECT request of an
// HBONE tunnel: the authority and the headers that tell the other side whose
// connection it is. Readers are strict and bounded: the bytes come from peers.
package connect

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Header names beside the pseudo headers.
const (
	HeaderBaggage          = "baggage"
	HeaderForwarded        = "forwarded"
	HeaderTraceparent      = "traceparent"
	HeaderForwardedNetwork = "x-forwarded-network"
	HeaderHops             = "x-ambit-hops"
)

// Bounds of what is read. Peers send much less: a host name has at most 253
// bytes, and a label of Kubernetes 63.
const (
	maxAuthority = 300
	maxBaggage   = 8 << 10 // W3C Baggage, section 3.3.2
	maxForwarded = 4 << 10
	maxHost      = 253
	maxValue     = 512
)

// ErrMalformed is matched by the errors of every parser of this package.
var ErrMalformed = errors.New("malformed")

// Target is what a tunnel was asked for: an address, or the name of a service.
// Comparable.
type Target struct {
	Addr netip.AddrPort // valid unless Host is set
	Host string         // lower case
	Port uint16         // with Host
}

// AddrTarget is the target of an address.
func AddrTarget(a netip.AddrPort) Target { return Target{Addr: a} }

// IsHost reports whether the target is a name.
func (t Target) IsHost() bool { return t.Host != "" }

// TargetPort is the port asked for.
func (t Target) TargetPort() uint16 {
	if t.IsHost() {
		return t.Port
	}
	return t.Addr.Port()
}

// String renders the :authority, and "" for the zero target.
func (t Target) String() string {
	switch {
	case t.IsHost():
		return t.Host + ":" + strconv.Itoa(int(t.Port))
	case t.Addr.IsValid():
		return t.Addr.String()
	}
	return ""
}

// ParseTarget reads an :authority: ip:port, [ip6]:port or hostname:port.
// A port is mandatory and not 0. IPv4 addresses inside IPv6 are unmapped; an
// address with a zone is refused.
func ParseTarget(s string) (Target, error) {
	if len(s) > maxAuthority {
		return Target{}, fmt.Errorf("%w: authority has more than %d bytes", ErrMalformed, maxAuthority)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Target{}, fmt.Errorf("%w: authority %q has no port", ErrMalformed, s)
	}
	host := s[:i]
	port, ok := parsePort(s[i+1:])
	if !ok {
		return Target{}, fmt.Errorf("%w: authority %q has no valid port", ErrMalformed, s)
	}
	if strings.HasPrefix(host, "[") {
		a, err := netip.ParseAddr(strings.TrimSuffix(host[1:], "]"))
		if err != nil || !strings.HasSuffix(host, "]") || !a.Is6() || a.Zone() != "" {
			return Target{}, fmt.Errorf("%w: authority %q is not an IPv6 address and a port", ErrMalformed, s)
		}
		return Target{Addr: netip.AddrPortFrom(a.Unmap(), port)}, nil
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		return Target{Addr: netip.AddrPortFrom(a, port)}, nil
	}
	if !validHost(host) {
		return Target{}, fmt.Errorf("%w: authority %q is neither an address nor a host name", ErrMalformed, s)
	}
	return Target{Host: strings.ToLower(host), Port: port}, nil
}

// parsePort refuses 0, leading zeros and signs.
func parsePort(s string) (uint16, bool) {
	if s == "" || s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

// validHost accepts DNS names with underscores, which services are allowed,
// but nothing that looks like an address: its last label must not be numeric.
func validHost(h string) bool {
	if h == "" || len(h) > maxHost {
		return false
	}
	label, numeric := 0, true
	for i := range len(h) {
		c := h[i]
		switch {
		case c == '.':
			if label == 0 || h[i-1] == '-' {
				return false
			}
			label, numeric = 0, true
			continue
		case c == '-' && label == 0:
			return false
		case '0' <= c && c <= '9':
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
			numeric = false
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0 && !numeric && h[len(h)-1] != '-'
}
