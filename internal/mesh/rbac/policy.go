package rbac

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

type action uint8

const (
	allow action = iota
	deny
)

type scope uint8

const (
	global scope = iota
	namespace
	selector
)

// Policy is a compiled policy. It is immutable.
type Policy struct {
	key             string
	name, namespace string
	scope           scope
	action          action
	dryRun          bool
	rules           []group
	refusal         reason.Reason // of a DENY that matches
	// broken is why the policy could not be compiled. Then rules are not
	// looked at.
	broken error
}

// group holds when all of its clauses hold, a clause when one of its matches
// does or when it has none. Matches without any condition are left out when
// compiling, which may leave a clause that never holds.
type (
	group  []clause
	clause struct {
		always  bool
		matches []match
	}
)

// match holds when every condition holds.
type match struct {
	namespaces, notNamespaces             []Text
	accounts, notAccounts                 []account
	principals, notPrincipals             []Text
	sources, notSources                   []netip.Prefix
	destinations, notDestinations         []netip.Prefix
	destinationPorts, notDestinationPorts []uint16
}

// account is a service account in any trust domain.
type account struct{ namespace, name string }

// Compile compiles a policy. With an error the policy is still usable and
// fails closed: an ALLOW matches nothing, a DENY matches everything it is
// scoped to. An unknown action is a DENY, an unknown scope the namespace (the
// mesh when the policy has none).
func Compile(a *securitypb.Authorization) (*Policy, error) {
	p := &Policy{
		key:  a.GetNamespace() + "/" + a.GetName(),
		name: a.GetName(), namespace: a.GetNamespace(), dryRun: a.GetDryRun(), refusal: reason.PolicyDenied,
	}
	if strings.HasPrefix(p.name, wellknown.DerivedWaypointPolicy) {
		p.refusal = reason.WaypointRequired
	}
	var errs []error
	switch a.GetAction() {
	case securitypb.Action_ALLOW:
	case securitypb.Action_DENY:
		p.action = deny
	default:
		p.action = deny
		errs = append(errs, fmt.Errorf("action: unknown value %d", a.GetAction()))
	}
	switch a.GetScope() {
	case securitypb.Scope_GLOBAL:
	case securitypb.Scope_NAMESPACE:
		p.scope = namespace
	case securitypb.Scope_WORKLOAD_SELECTOR:
		p.scope = selector
	default:
		if p.namespace != "" {
			p.scope = namespace
		}
		errs = append(errs, fmt.Errorf("scope: unknown value %d", a.GetScope()))
	}
	for i, g := range a.GetGroups() {
		c, err := compileGroup(g, p.action)
		if err != nil {
			errs = append(errs, fmt.Errorf("groups[%d].%w", i, err))
		}
		p.rules = append(p.rules, c)
	}
	if len(errs) > 0 {
		p.rules = nil
		p.broken = fmt.Errorf("policy %s fails closed: %w", p.key, errors.Join(errs...))
	}
	return p, p.broken
}

func compileGroup(g *securitypb.Group, a action) (group, error) {
	if err := known(g); err != nil {
		return nil, err
	}
	out := make(group, 0, len(g.GetRules()))
	for i, r := range g.GetRules() {
		if err := known(r); err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		c := clause{always: len(r.GetMatches()) == 0}
		for j, m := range r.GetMatches() {
			compiled, err := compileMatch(m)
			if err != nil {
				return nil, fmt.Errorf("rules[%d].matches[%d].%w", i, j, err)
			}
			compiled.settleBlocks(a)
			if !compiled.empty() {
				c.matches = append(c.matches, compiled)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// known refuses a message with fields from the future: to ignore a condition
// would widen an ALLOW.
func known(m proto.Message) error {
	if n := len(m.ProtoReflect().GetUnknown()); n > 0 {
		return fmt.Errorf("%s: %d bytes of fields this version does not know", m.ProtoReflect().Descriptor().Name(), n)
	}
	return nil
}

func compileMatch(m *securitypb.Match) (match, error) {
	var out match
	if err := known(m); err != nil {
		return out, err
	}
	if x := m.GetExtensions(); len(x) > 0 {
		return out, fmt.Errorf("extensions: %q is not supported", x[0].GetName())
	}
	var errs []error
	errs = append(errs,
		compileList(&out.namespaces, "namespaces", m.GetNamespaces(), CompileText),
		compileList(&out.notNamespaces, "not_namespaces", m.GetNotNamespaces(), CompileText),
		compileList(&out.accounts, "service_accounts", m.GetServiceAccounts(), compileAccount),
		compileList(&out.notAccounts, "not_service_accounts", m.GetNotServiceAccounts(), compileAccount),
		compileList(&out.principals, "principals", m.GetPrincipals(), CompileText),
		compileList(&out.notPrincipals, "not_principals", m.GetNotPrincipals(), CompileText),
		compileList(&out.sources, "source_ips", m.GetSourceIps(), compilePrefix),
		compileList(&out.notSources, "not_source_ips", m.GetNotSourceIps(), compilePrefix),
		compileList(&out.destinations, "destination_ips", m.GetDestinationIps(), compilePrefix),
		compileList(&out.notDestinations, "not_destination_ips", m.GetNotDestinationIps(), compilePrefix),
		compileList(&out.destinationPorts, "destination_ports", m.GetDestinationPorts(), compilePort),
		compileList(&out.notDestinationPorts, "not_destination_ports", m.GetNotDestinationPorts(), compilePort),
	)
	return out, errors.Join(errs...)
}

// settleBlocks takes blocks that can be read in two ways as the stricter one.
func (m *match) settleBlocks(a action) {
	if a == deny {
		m.sources, m.destinations = strictBlocks(m.sources), strictBlocks(m.destinations)
	} else {
		m.notSources, m.notDestinations = strictBlocks(m.notSources), strictBlocks(m.notDestinations)
	}
}

func compileList[P, C any](to *[]C, field string, list []P, compile func(P) (C, error)) error {
	for i, p := range list {
		c, err := compile(p)
		if err != nil {
			return fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		*to = append(*to, c)
	}
	return nil
}

func compileAccount(m *securitypb.ServiceAccountMatch) (account, error) {
	return account{m.GetNamespace(), m.GetServiceAccount()}, known(m)
}

func compilePort(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("%d is not a port", p)
	}
	return uint16(p), nil
}

func compilePrefix(m *securitypb.Address) (netip.Prefix, error) {
	if err := known(m); err != nil {
		return netip.Prefix{}, err
	}
	a, ok := netip.AddrFromSlice(m.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("an address of %d bytes", len(m.GetAddress()))
	}
	n := m.GetLength()
	if n > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("a prefix of %d bits for %v", n, a)
	}
	if a.Is4In6() && n >= v4InV6 {
		a, n = a.Unmap(), n-v4InV6
	}
	return netip.PrefixFrom(a, int(n)).Masked(), nil
}

// undecodable is what stands for a resource that is no policy: it denies the
// namespace that its name begins with, else the mesh.
func undecodable(resource string) (*Policy, error) {
	p := &Policy{key: resource, name: resource, action: deny, refusal: reason.PolicyDenied, broken: errors.New("policy " + resource + " fails closed: it cannot be decoded")}
	if ns, name, ok := strings.Cut(resource, "/"); ok && ns != "" {
		p.namespace, p.name, p.scope = ns, name, namespace
	}
	return p, p.broken
}

// Key returns namespace/name.
func (p *Policy) Key() string { return p.key }

// Broken returns why the policy could not be compiled and fails closed, or nil.
func (p *Policy) Broken() error { return p.broken }

// Matches reports whether the policy's rules match a connection.
func (p *Policy) Matches(c *Conn) bool {
	var buf [principalSize]byte
	return p.matches(&View{c, principal(buf[:0], &c.Identity)})
}

func (p *Policy) matches(v *View) bool {
	if p.broken != nil {
		return p.action == deny
	}
	for _, g := range p.rules {
		if g.holds(v) {
			return true
		}
	}
	return false
}

func (g group) holds(v *View) bool {
	for i := range g {
		if !g[i].holds(v) {
			return false
		}
	}
	return true
}

func (c *clause) holds(v *View) bool {
	if c.always {
		return true
	}
	for i := range c.matches {
		if c.matches[i].holds(v) {
			return true
		}
	}
	return false
}

func (m *match) empty() bool {
	return len(m.namespaces)+len(m.notNamespaces)+len(m.accounts)+len(m.notAccounts)+
		len(m.principals)+len(m.notPrincipals)+len(m.sources)+len(m.notSources)+
		len(m.destinations)+len(m.notDestinations)+len(m.destinationPorts)+len(m.notDestinationPorts) == 0
}

func (m *match) holds(v *View) bool {
	return portsHold(m.destinationPorts, m.notDestinationPorts, v.c.Dst.Port()) &&
		addrHolds(m.destinations, m.notDestinations, v.c.Dst.Addr()) &&
		addrHolds(m.sources, m.notSources, v.c.Src.Addr()) &&
		m.namespaceHolds(v) && m.accountHolds(v) && m.principalHolds(v)
}

func portsHold(some, none []uint16, p uint16) bool {
	return (len(some) == 0 || slices.Contains(some, p)) && !slices.Contains(none, p)
}

func addrHolds(some, none []netip.Prefix, a netip.Addr) bool {
	if len(some) == 0 && len(none) == 0 {
		return true
	}
	a = a.Unmap().WithZone("")
	return (len(some) == 0 || within(some, a)) && !within(none, a)
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// namespaceHolds compares with the empty string when there is no identity.
func (m *match) namespaceHolds(v *View) bool {
	ns := v.c.Identity.Namespace
	return (len(m.namespaces) == 0 || anyText(m.namespaces, ns)) && !anyText(m.notNamespaces, ns)
}

func anyText(list []Text, s string) bool {
	for _, t := range list {
		if t.Matches(s) {
			return true
		}
	}
	return false
}

func (m *match) accountHolds(v *View) bool {
	id := v.c.Identity
	return (len(m.accounts) == 0 || anyAccount(m.accounts, id)) && !anyAccount(m.notAccounts, id)
}

func anyAccount(list []account, id identity.Identity) bool {
	if id.IsZero() {
		return false
	}
	for _, a := range list {
		if a.name == id.ServiceAccount && a.namespace == id.Namespace {
			return true
		}
	}
	return false
}

// principalHolds never matches a principal when there is no identity.
func (m *match) principalHolds(v *View) bool {
	return (len(m.principals) == 0 || anyPrincipal(m.principals, v.principal)) && !anyPrincipal(m.notPrincipals, v.principal)
}

func anyPrincipal(list []Text, principal []byte) bool {
	if principal == nil {
		return false
	}
	for _, t := range list {
		if t.MatchesBytes(principal) {
			return true
		}
	}
	return false
}
