// Package traffic has the rules that node proxies balance, limit and eject connections by:
// what a DestinationRule says of them, and which one is for a client and a service.
package traffic

import (
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/outlier"
)

// Bounds of what a rule may say.
const (
	// MaxConnectTimeout is what a proxy waits for at most, whatever a rule says.
	MaxConnectTimeout = 10 * time.Second
	// MaxEjection is how long an endpoint is ejected at most, unless the base time is
	// longer; Envoy's.
	MaxEjection = 300 * time.Second
	maxPorts    = 256
	maxList     = 256
)

// Balance is how one of several endpoints is chosen.
type Balance uint8

// The ways. Default is the proxy's own, which is LeastRequest.
const (
	Default Balance = iota
	Random
	RoundRobin
	LeastRequest
)

// String returns the name that users write.
func (b Balance) String() string {
	switch b {
	case Random:
		return "RANDOM"
	case RoundRobin:
		return "ROUND_ROBIN"
	case LeastRequest:
		return "LEAST_REQUEST"
	case Default:
	}
	return "default"
}

// Outlier is when endpoints are ejected.
type Outlier struct {
	Consecutive      int // failures to connect in a row; 0 ejects nothing
	Interval, Base   time.Duration
	MaxPercent       int
	MinHealthPercent int
}

// Settings returns the settings of the state machine.
func (o *Outlier) Settings() outlier.Settings {
	return outlier.Settings{
		Consecutive: o.Consecutive, Base: o.Base, Max: MaxEjection, MaxPercent: o.MaxPercent, Interval: o.Interval, First: true,
	}
}

// Scope is a level of locality in which client and endpoint may agree.
type Scope uint8

// The scopes.
const (
	Region Scope = iota
	Zone
	Subzone
	NodeScope
	Cluster
	Network
)

// Failover is where clients of a region go when their own has no endpoint.
type Failover struct{ From, To string }

// Locality is which endpoints come before others.
type Locality struct {
	Disabled bool // none, also when the Service has a preference
	Scopes   []Scope
	Failover []Failover
}

// Settings are those of one port, or of all. Zero is the proxy's default.
type Settings struct {
	MaxConnections uint32
	ConnectTimeout time.Duration
	Outlier        *Outlier
	Balance        Balance
	Locality       *Locality
}

// Rule is a DestinationRule as node proxies have it. It is immutable.
type Rule struct {
	Namespace, Name string
	Created         int64
	// Host is fully qualified, "*", or "*." with a suffix.
	Host string
	// VisibleTo are the namespaces whose clients see the rule, beside its own; nil is all.
	VisibleTo []string
	Own       bool // only clients of its own namespace see it
	Root      bool // it is of the root namespace
	Settings  Settings
	Ports     map[uint16]Settings
}

// String returns kind, namespace and name, for people.
func (r *Rule) String() string { return "DestinationRule " + r.Namespace + "/" + r.Name }

// For returns the settings of a port.
func (r *Rule) For(port uint16) *Settings {
	if s, ok := r.Ports[port]; ok {
		return &s
	}
	return &r.Settings
}

// visible reports whether clients of another namespace than the rule's see it.
func (r *Rule) visible(client string) bool {
	return !r.Own && (r.VisibleTo == nil || slices.Contains(r.VisibleTo, client))
}

// Matches reports whether the rule's host is a host name, or a pattern that has it.
func (r *Rule) Matches(host string) bool {
	switch {
	case r.Host == "*":
		return true
	case strings.HasPrefix(r.Host, "*"):
		return len(host) > len(r.Host)-1 && strings.HasSuffix(host, r.Host[1:])
	}
	return r.Host == host
}

// before reports whether a rule comes before another one of its namespace for the same
// host: an exact host before patterns, longer ones first, then the older one.
func (r *Rule) before(o *Rule) bool {
	a, b := strings.HasPrefix(r.Host, "*"), strings.HasPrefix(o.Host, "*")
	switch {
	case a != b:
		return b
	case len(r.Host) != len(o.Host):
		return len(r.Host) > len(o.Host)
	case r.Created != o.Created:
		return r.Created < o.Created
	}
	return r.Name < o.Name
}

// Set is the rules of a node proxy. It is immutable.
type Set struct {
	byNamespace map[string][]*Rule // in the order of before
	roots       []*Rule
	n           int
}

// NewSet returns the set of rules.
func NewSet(rules []*Rule) *Set {
	s := &Set{byNamespace: map[string][]*Rule{}, n: len(rules)}
	order := func(a, b *Rule) int {
		if a.before(b) {
			return -1
		}
		return 1
	}
	for _, r := range rules {
		s.byNamespace[r.Namespace] = append(s.byNamespace[r.Namespace], r)
		if r.Root {
			s.roots = append(s.roots, r)
		}
	}
	for _, list := range s.byNamespace {
		slices.SortFunc(list, order)
	}
	slices.SortFunc(s.roots, order)
	return s
}

// Len counts the rules.
func (s *Set) Len() int { return s.n }

// All returns the rules, by namespace and then in their order.
func (s *Set) All() (out []*Rule) {
	names := make([]string, 0, len(s.byNamespace))
	for n := range s.byNamespace {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		out = append(out, s.byNamespace[n]...)
	}
	return out
}

// Find returns the rule for clients of a namespace that call a host of another one; nil
// without one. As in Istio, the client's namespace is asked first, then that of the
// service, then the root namespace. Clients of the root namespace do not come first with
// what the root namespace has for all.
func (s *Set) Find(client, service, host string) *Rule {
	host = strings.ToLower(host)
	own := func(r *Rule) bool { return !r.Root || r.Own }
	if r := first(s.byNamespace[client], host, own); r != nil {
		return r
	}
	seen := func(r *Rule) bool {
		return r.Namespace == client && !r.Own || r.Namespace != client && r.visible(client)
	}
	if r := first(s.byNamespace[service], host, seen); r != nil {
		return r
	}
	return first(s.roots, host, seen)
}

// first returns the first of some rules that is for a host and passes.
func first(list []*Rule, host string, passes func(*Rule) bool) *Rule {
	for _, r := range list {
		if r.Matches(host) && passes(r) {
			return r
		}
	}
	return nil
}
