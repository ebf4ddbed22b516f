// Package ratelimit has the limits of new connections that a RateLimit sets: which are for
// a connection, and whether there is room for one more at a time. It has no clock.
package ratelimit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Bounds of what a limit may say. Their product fits in 63 bits.
const (
	MaxCount  = 1_000_000
	MaxPer    = time.Hour
	MinPer    = time.Second
	maxRates  = 16
	maxHosts  = 256
	maxOnNode = 4096 // workloads of one node
)

// By is whose connections are counted together.
type By uint8

// The parties. Each is counted for each pod by itself.
const (
	Destination By = iota
	SourceNamespace
	SourceIdentity
	SourceAddress
)

var byNames = [...]string{"Destination", "SourceNamespace", "SourceIdentity", "SourceAddress"}

// String returns the name that users write.
func (b By) String() string {
	if int(b) < len(byNames) {
		return byNames[b]
	}
	return fmt.Sprintf("By(%d)", uint8(b))
}

// ParseBy reads what users write.
func ParseBy(s string) (By, error) {
	if i := slices.Index(byNames[:], s); i >= 0 {
		return By(i), nil //nolint:gosec // one of four
	}
	return 0, fmt.Errorf("%q is not one of %s", s, strings.Join(byNames[:], ", "))
}

// Rate is how many new connections there may be.
type Rate struct {
	Count uint32
	Per   time.Duration
	Burst uint32 // how many may come at once
	By    By
}

// String renders the rate, for people.
func (r *Rate) String() string {
	return fmt.Sprintf("%d per %v, burst %d, by %s", r.Count, r.Per, r.Burst, r.By)
}

// Check returns what is wrong with a rate.
func (r *Rate) Check() error {
	switch {
	case r.Count == 0 || r.Count > MaxCount:
		return fmt.Errorf("rate: %d is not from 1 to %d", r.Count, MaxCount)
	case r.Per < MinPer || r.Per > MaxPer || r.Per%time.Millisecond != 0:
		return fmt.Errorf("per: %v is not from %v to %v, in whole milliseconds", r.Per, MinPer, MaxPer)
	case r.Burst == 0 || r.Burst > MaxCount:
		return fmt.Errorf("burst: %d is not from 1 to %d", r.Burst, MaxCount)
	case int(r.By) >= len(byNames):
		return fmt.Errorf("by: %d is not known", r.By)
	}
	return nil
}

// Limit is a RateLimit as the node proxies of its destinations have it. It is immutable.
type Limit struct {
	Namespace, Name string
	Hosts           []string // of services whose endpoints it is for
	Workloads       []string // UIDs, in order, which it is for beside
	Rates           []Rate
	// Service is asked about what the rates permit; nil for none.
	Service *Service
	DryRun  bool
}

// String returns kind, namespace and name, for people.
func (l *Limit) String() string { return "RateLimit " + l.Namespace + "/" + l.Name }

// Text renders what it sets.
func (l *Limit) Text() string {
	parts := make([]string, 0, len(l.Rates)+1)
	for i := range l.Rates {
		parts = append(parts, l.Rates[i].String())
	}
	if l.Service != nil {
		parts = append(parts, l.Service.String())
	}
	if l.DryRun {
		parts = append(parts, "dry run")
	}
	return strings.Join(parts, "; ")
}

// Source is who makes a connection. The identity is one that was proven, or none.
type Source struct {
	Identity identity.Identity
	Addr     netip.Addr
}

// tenant returns the namespace of a source. All without an identity are one.
func (s *Source) tenant() identity.Identity {
	return identity.Identity{TrustDomain: s.Identity.TrustDomain, Namespace: s.Identity.Namespace}
}

// key returns which of the parties of its namespace a source is.
func (s *Source) key(by By) (k key, alone bool) {
	switch by {
	case SourceIdentity:
		return key{account: s.Identity.ServiceAccount}, s.Identity.IsZero()
	case SourceAddress:
		return key{addr: s.Addr}, false
	case Destination, SourceNamespace:
	}
	return key{}, true
}

// key names a party within a namespace.
type key struct {
	account string
	addr    netip.Addr
}
