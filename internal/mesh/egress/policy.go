package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of what a policy may list.
const (
	MaxEntries = 256
	MaxList    = 256 // of one field of an entry
	maxHost    = 253
)

// Policy is an EgressPolicy as node proxies have it. It is immutable.
type Policy struct {
	Namespace, Name string
	// Root is set for a policy of the root namespace, which is RootNamespace.
	Root          bool
	RootNamespace string
	DryRun        bool
	To            []Entry
	RefuseUDP     bool
	// Invalid is what is wrong with the object; empty for nothing. Such a policy refuses.
	Invalid string
}

// Entry is one line of an allow-list. A field without values matches all.
type Entry struct {
	Hosts []string
	CIDRs []netip.Prefix
	Ports []uint16
}

// String returns kind, namespace and name, for people.
func (p *Policy) String() string { return "EgressPolicy " + p.Namespace + "/" + p.Name }

// Key returns namespace/name.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// HasHosts reports whether an entry has hosts.
func (p *Policy) HasHosts() bool {
	return slices.ContainsFunc(p.To, func(e Entry) bool { return len(e.Hosts) > 0 })
}

// ParseHost reads a host of an entry: a name, or "*." and a suffix. It returns it in lower
// case.
func ParseHost(text string) (string, error) {
	host := strings.ToLower(strings.TrimSuffix(text, "."))
	name := strings.TrimPrefix(host, "*.")
	if name == "" || len(host) > maxHost {
		return "", fmt.Errorf("%q is no name of a host: write a name, or *. and a domain", text)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", fmt.Errorf("%q is an address: write it into cidrs", text)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return "", fmt.Errorf("%q is no name of a host: write a name, or *. and a domain", text)
		}
	}
	return host, nil
}

// ParseCIDR reads a range of an entry, or a single address.
func ParseCIDR(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is no range of addresses: write one such as 192.0.2.0/24 or 2001:db8::/32", text)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits behind its length: write %s, or %s/%d", text, p.Masked(), p.Addr(), p.Addr().BitLen())
	}
	return p, nil
}

// MatchHost reports whether a host of an entry stands for a name. The name is in lower
// case, without a final dot.
func MatchHost(host, name string) bool {
	if suffix, wild := strings.CutPrefix(host, "*"); wild {
		return len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	return host == name
}

// Origin is where the address of a name comes from.
type Origin struct {
	// Entry is the namespace of the ServiceEntry that has made it up; empty: a name server
	// that is trusted has given the answer, or the proxy has looked the name up itself.
	Entry string
}

// Name is a name for which the called address was an answer.
type Name struct {
	Host   string
	Origin Origin
}

// Opening is what the first bytes of a connection are.
type Opening uint8

// The openings.
const (
	// NotSeen: the bytes have not come.
	NotSeen Opening = iota
	// NoTLS: they are no TLS, or the end came without any.
	NoTLS
	// TLS: they are a ClientHello, whose name of a server is known.
	TLS
)

// Call is one connection to what is outside of the mesh.
type Call struct {
	// Addr is where the connection goes; invalid for a host that the proxy leaves to a
	// waypoint.
	Addr netip.Addr
	Port uint16
	// Names are those that the pod may have found the address by.
	Names   []Name
	Opening Opening
	SNI     string // of TLS; empty for none
	// Unsniffed is set where the first bytes do not choose the destination: a waypoint
	// carries the connection to a host of its own configuration.
	Unsniffed bool
}

// Outcome is what a policy, or all of them, makes of a call. A higher one is more.
type Outcome uint8

// The outcomes.
const (
	Refused Outcome = iota
	// Undecided: the first bytes of the connection decide.
	Undecided
	Allowed
)

// Decision is what the policies of a pod make of a call.
type Decision struct {
	Outcome Outcome
	// Listed is set when an entry with hosts or ranges allows it, or may do so: the
	// destination then counts as registered.
	Listed bool
	// Policies are those that refuse: of the namespace, or of the mesh. Cause is why, for
	// people.
	Policies []*Policy
	Cause    string
}

// Decide returns what policies make of a call: those that select the pod, and have all
// come. dry has the policies decide that are only tried as well; a policy that is tried
// never allows what the others refuse.
//
// The policies of the root namespace form one list, those of the pod's namespace another.
// A call must be allowed by both, where they exist.
func Decide(policies []*Policy, c *Call, dry bool) Decision {
	out := Decision{Outcome: Allowed}
	for _, root := range [...]bool{true, false} {
		d, exist := level(policies, root, c, dry)
		if !exist {
			continue
		}
		switch {
		case d.Outcome < out.Outcome:
			listed := out.Listed
			out = d
			out.Listed = d.Listed || listed
		default:
			out.Listed = out.Listed || d.Listed
		}
	}
	if out.Outcome == Refused {
		out.Listed = false
	}
	return out
}

// level decides for the policies of the root namespace, or for all others.
func level(policies []*Policy, root bool, c *Call, dry bool) (d Decision, exist bool) {
	for _, p := range policies {
		if p.Root != root || p.DryRun && !dry {
			continue
		}
		exist = true
		if p.Invalid != "" {
			continue
		}
		for i := range p.To {
			e := &p.To[i]
			o := e.match(p, c)
			d.Outcome = max(d.Outcome, o)
			d.Listed = d.Listed || o > Refused && (len(e.Hosts) > 0 || len(e.CIDRs) > 0)
		}
	}
	if exist && d.Outcome == Refused {
		for _, p := range policies {
			if p.Root == root && (dry || !p.DryRun) {
				d.Policies = append(d.Policies, p)
			}
		}
		d.Cause = cause(d.Policies, c)
	}
	return d, exist
}

// match returns what one entry makes of a call.
func (e *Entry) match(p *Policy, c *Call) Outcome {
	if len(e.Ports) > 0 && !slices.Contains(e.Ports, c.Port) {
		return Refused
	}
	if len(e.CIDRs) > 0 && !slices.ContainsFunc(e.CIDRs, func(r netip.Prefix) bool { return c.Addr.IsValid() && r.Contains(c.Addr.Unmap()) }) {
		return Refused
	}
	if len(e.Hosts) == 0 {
		return Allowed
	}
	known, agrees := false, false
	for i := range c.Names {
		n := &c.Names[i]
		if !p.accepts(n.Origin) || !e.hasHost(n.Host) {
			continue
		}
		known, agrees = true, agrees || n.Host == c.SNI
	}
	switch {
	case !known:
		return Refused
	case c.Unsniffed || c.Opening == NoTLS:
		return Allowed
	case c.Opening == NotSeen:
		return Undecided
	case agrees:
		return Allowed
	}
	return Refused
}

func (e *Entry) hasHost(name string) bool {
	return slices.ContainsFunc(e.Hosts, func(h string) bool { return MatchHost(h, name) })
}

// accepts reports whether a policy takes a name from there. Who writes ServiceEntries in a
// namespace gives names to addresses: that is no reason for a policy of the mesh.
func (p *Policy) accepts(o Origin) bool {
	return o.Entry == "" || o.Entry == p.Namespace || o.Entry == p.RootNamespace
}

// cause returns why none of some policies allows a call.
func cause(policies []*Policy, c *Call) string {
	for _, p := range policies {
		if p.Invalid != "" {
			return fmt.Sprintf("%s cannot be used, and so refuses: %s", p, p.Invalid)
		}
	}
	names := make([]string, 0, len(policies))
	hosts, known, foreign := false, false, ""
	for _, p := range policies {
		names = append(names, p.Key())
		for i := range p.To {
			e := &p.To[i]
			hosts = hosts || len(e.Hosts) > 0
			for _, n := range c.Names {
				switch {
				case !e.hasHost(n.Host):
				case p.accepts(n.Origin):
					known = true
				default:
					foreign = n.Origin.Entry
				}
			}
		}
	}
	list := "EgressPolicy " + strings.Join(names, ", ")
	switch {
	case hosts && known && c.Opening == TLS && c.SNI == "":
		return "the TLS connection names no server, and " + list + " allows hosts"
	case hosts && known && c.Opening == TLS:
		return fmt.Sprintf("the TLS connection is for %s: no answer for this name led here, or %s does not list it", c.SNI, list)
	case foreign != "":
		return fmt.Sprintf("a ServiceEntry of namespace %s has given the name: %s takes those of its own namespace and of the root namespace", foreign, list)
	case hosts && len(c.Names) == 0:
		return "no entry of " + list + " has this address and port, and no look-up of the pod has led there"
	case len(c.Names) > 0:
		return fmt.Sprintf("no entry of %s has this address and port, or the name %s", list, c.Names[0].Host)
	}
	return "no entry of " + list + " has this address and port"
}

// RefusesUDP reports whether policies refuse the pod's UDP, and which one does.
func RefusesUDP(policies []*Policy) (*Policy, bool) {
	for _, p := range policies {
		if p.RefuseUDP && !p.DryRun {
			return p, true
		}
	}
	return nil, false
}
