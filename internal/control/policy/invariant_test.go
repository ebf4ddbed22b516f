package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	apisecurity "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"pgregory.net/rapid"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// request is a connection and everything about what runs inside it that a
// node proxy cannot see.
type request struct {
	conn   rbac.Conn
	hidden map[string]string // by attribute
	tokens []*jwt.Claims     // that say the same, for gateways
	// coin answers what is undefined: what a value that means nothing matches,
	// and what an external authorizer says.
	coin func(string) bool
}

// The evaluator below is the policy as its users read it: naive, and written
// against the API, not against the translation.

func asWritten(policies []*securityv1.AuthorizationPolicy, r *request) bool {
	allows, allowed := false, false
	for _, p := range policies {
		if p.Annotations[wellknown.AnnotationDryRun] == "true" {
			continue
		}
		hit := false
		for _, rule := range p.Spec.Rules {
			hit = ruleMatches(p.Namespace, rule, r) || hit
		}
		switch p.Spec.Action {
		case apisecurity.AuthorizationPolicy_DENY:
			if hit {
				return false
			}
		case apisecurity.AuthorizationPolicy_CUSTOM:
			if hit && r.coin("authorizer") {
				return false
			}
		case apisecurity.AuthorizationPolicy_ALLOW:
			allows = true
			allowed = allowed || hit
		}
	}
	return !allows || allowed
}

func ruleMatches(ns string, rule *apisecurity.Rule, r *request) bool {
	from := len(rule.From) == 0
	for _, f := range rule.From {
		from = sourceMatches(ns, f.Source, r) || from
	}
	to := len(rule.To) == 0
	for _, t := range rule.To {
		to = operationMatches(t.Operation, r) || to
	}
	when := true
	for _, w := range rule.When {
		if matches, empty := part(r, "condition", w.Values, w.NotValues); empty {
			when = when && matches
			continue
		}
		when = when && attribute(ns, w.Key, w.Values, w.NotValues, r)
	}
	return from && to && when
}

// part answers for a part of a rule: what an empty one matches is undefined.
func part(r *request, what string, fields ...[]string) (matches, empty bool) {
	if slices.ContainsFunc(fields, func(f []string) bool { return len(f) > 0 }) {
		return false, false
	}
	return r.coin("empty " + what), true
}

func sourceMatches(ns string, s *apisecurity.Source, r *request) bool {
	matches, empty := part(r, "source", s.GetPrincipals(), s.GetNotPrincipals(), s.GetNamespaces(), s.GetNotNamespaces(),
		s.GetServiceAccounts(), s.GetNotServiceAccounts(), s.GetIpBlocks(), s.GetNotIpBlocks(), s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks(),
		s.GetTrustDomains(), s.GetNotTrustDomains(), s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
	if empty {
		return matches
	}
	return attribute(ns, "source.principal", s.Principals, s.NotPrincipals, r) &&
		attribute(ns, "source.namespace", s.Namespaces, s.NotNamespaces, r) &&
		attribute(ns, "source.serviceAccount", s.ServiceAccounts, s.NotServiceAccounts, r) &&
		attribute(ns, "source.ip", s.IpBlocks, s.NotIpBlocks, r) &&
		attribute(ns, "remote.ip", s.RemoteIpBlocks, s.NotRemoteIpBlocks, r) &&
		attribute(ns, "source.trustDomain", s.TrustDomains, s.NotTrustDomains, r) &&
		attribute(ns, "request.principal", s.RequestPrincipals, s.NotRequestPrincipals, r)
}

func operationMatches(o *apisecurity.Operation, r *request) bool {
	matches, empty := part(r, "operation", o.GetPorts(), o.GetNotPorts(), o.GetHosts(), o.GetNotHosts(),
		o.GetMethods(), o.GetNotMethods(), o.GetPaths(), o.GetNotPaths())
	if empty {
		return matches
	}
	return attribute("", "destination.port", o.Ports, o.NotPorts, r) &&
		attribute("", "host", o.Hosts, o.NotHosts, r) &&
		attribute("", "method", o.Methods, o.NotMethods, r) &&
		attribute("", "path", o.Paths, o.NotPaths, r)
}

func attribute(ns, key string, values, notValues []string, r *request) bool {
	hits := func(list []string) bool {
		hit := false
		for _, v := range list {
			hit = valueMatches(ns, key, v, r) || hit
		}
		return hit
	}
	return (len(values) == 0 || hits(values)) && !hits(notValues)
}

func valueMatches(ns, key, v string, r *request) bool {
	id := r.conn.Identity
	switch key {
	case "source.ip":
		return ipMatches(v, r.conn.Src.Addr(), r)
	case "destination.ip":
		return ipMatches(v, r.conn.Dst.Addr(), r)
	case "destination.port":
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 65535 {
			return r.coin(key + v)
		}
		return int(r.conn.Dst.Port()) == n
	case "source.principal":
		if strings.HasPrefix(v, "spiffe:") {
			return r.coin(key + v)
		}
		return textMatches(key, v, id.Principal(), r)
	case "source.namespace":
		return textMatches(key, v, id.Namespace, r)
	case "source.serviceAccount":
		if v == "" || strings.Contains(v, "*") || strings.Count(v, "/") > 1 || strings.HasPrefix(v, "/") || strings.HasSuffix(v, "/") {
			return r.coin(key + v)
		}
		if !strings.Contains(v, "/") {
			v = ns + "/" + v
		}
		return !id.IsZero() && v == id.Namespace+"/"+id.ServiceAccount
	}
	return textMatches(key, v, r.hidden[key], r)
}

func ipMatches(v string, a netip.Addr, r *request) bool {
	if p, err := netip.ParsePrefix(v); err == nil {
		if straddles(p) {
			return r.coin("ip " + v)
		}
		if m := p.Addr(); m.Is4In6() && p.Bits() >= 96 { // the IPv4 block, written long
			p = netip.PrefixFrom(m.Unmap(), p.Bits()-96)
		}
		return p.Contains(a)
	}
	if b, err := netip.ParseAddr(v); err == nil {
		return a == b
	}
	return r.coin("ip" + v)
}

// straddles compares bit by bit.
func straddles(p netip.Prefix) bool {
	if p.Addr().Is4() || p.Bits() == 0 || p.Bits() >= 96 {
		return false
	}
	a, v4 := p.Addr().As16(), netip.MustParseAddr("::ffff:0:0").As16()
	for i := range p.Bits() {
		if (a[i/8]^v4[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func textMatches(key, v, s string, r *request) bool {
	switch {
	case v == "" || strings.Count(v, "*") > 1 || strings.Contains(strings.Trim(v, "*"), "*"):
		return r.coin(key + v)
	case v == "*":
		return s != ""
	case strings.HasPrefix(v, "*"):
		return s != "" && strings.HasSuffix(s, v[1:])
	case strings.HasSuffix(v, "*"):
		return s != "" && strings.HasPrefix(s, v[:len(v)-1])
	}
	return s == v
}

// Generators: few values, so that things meet.

func some(t *rapid.T, name string, pool ...string) []string {
	if rapid.IntRange(0, 2).Draw(t, name+"?") > 0 {
		return nil
	}
	return rapid.SliceOfN(rapid.SampledFrom(pool), 1, 2).Draw(t, name)
}

var (
	textPool    = []string{"a", "b", "a*", "*b", "*", "", "*a*"}
	namePool    = []string{"shop", "web", "sh*", "*", "", "*x*"}
	accountPool = []string{"shop/cart", "cart", "web/front", "", "*", "a/b/c", "web/"}
	princPool   = []string{"td/ns/shop/sa/cart", "td/*", "*/sa/front", "*", "spiffe://td/ns/shop/sa/cart", ""}
	ipPool      = []string{"10.0.0.1", "10.0.0.0/24", "0.0.0.0/0", "fd00::/8", "::ffff:10.0.0.0/120", "10.0.0.0/33", "x", "", "::ffff:0:0/95", "::/1", "::/0"}
	portPool    = []string{"80", "8080", "0", "70000", "http", "0080", ""}
)

func genSource(t *rapid.T) *apisecurity.Source {
	return &apisecurity.Source{
		Principals: some(t, "p", princPool...), NotPrincipals: some(t, "np", princPool...),
		Namespaces: some(t, "n", namePool...), NotNamespaces: some(t, "nn", namePool...),
		ServiceAccounts: some(t, "sa", accountPool...), NotServiceAccounts: some(t, "nsa", accountPool...),
		IpBlocks: some(t, "ip", ipPool...), NotIpBlocks: some(t, "nip", ipPool...),
		RemoteIpBlocks: some(t, "rip", textPool...), NotRemoteIpBlocks: some(t, "nrip", textPool...),
		RequestPrincipals: some(t, "rp", textPool...), NotRequestPrincipals: some(t, "nrp", textPool...),
		TrustDomains: some(t, "td", textPool...), NotTrustDomains: some(t, "ntd", textPool...),
	}
}

func genOperation(t *rapid.T) *apisecurity.Operation {
	return &apisecurity.Operation{
		Ports: some(t, "port", portPool...), NotPorts: some(t, "nport", portPool...),
		Hosts: some(t, "h", textPool...), NotHosts: some(t, "nh", textPool...),
		Methods: some(t, "m", textPool...), NotMethods: some(t, "nm", textPool...),
		Paths: some(t, "pa", textPool...), NotPaths: some(t, "npa", textPool...),
	}
}

func genCondition(t *rapid.T) *apisecurity.Condition {
	k := rapid.SampledFrom([]string{"source.ip", "source.namespace", "source.principal", "source.serviceAccount", "destination.ip", "destination.port", "request.headers[x]", "connection.sni"}).Draw(t, "key")
	pool := map[string][]string{"source.ip": ipPool, "destination.ip": ipPool, "destination.port": portPool, "source.namespace": namePool, "source.principal": princPool, "source.serviceAccount": accountPool}[k]
	if pool == nil {
		pool = textPool
	}
	return &apisecurity.Condition{Key: k, Values: some(t, "v", pool...), NotValues: some(t, "nv", pool...)}
}

// orEmpty returns v, or now and then none, or an empty one.
func orEmpty[T any](t *rapid.T, v, empty *T) *T {
	switch rapid.IntRange(0, 9).Draw(t, "part") {
	case 0:
		return nil
	case 1:
		return empty
	}
	return v
}

func genPolicy(t *rapid.T, name string) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{}
	p.Name, p.Namespace = name, rapid.SampledFrom([]string{"shop", "istio-system"}).Draw(t, "namespace")
	p.Spec.Action = rapid.SampledFrom([]apisecurity.AuthorizationPolicy_Action{
		apisecurity.AuthorizationPolicy_ALLOW, apisecurity.AuthorizationPolicy_ALLOW,
		apisecurity.AuthorizationPolicy_DENY, apisecurity.AuthorizationPolicy_DENY,
		apisecurity.AuthorizationPolicy_CUSTOM, apisecurity.AuthorizationPolicy_AUDIT,
	}).Draw(t, "action")
	if rapid.IntRange(0, 7).Draw(t, "dry") == 0 {
		p.Annotations = map[string]string{wellknown.AnnotationDryRun: "true"}
	}
	if rapid.Bool().Draw(t, "selector") {
		p.Spec.Selector = &apitype.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}}
	}
	for range rapid.IntRange(0, 2).Draw(t, "rules") {
		r := &apisecurity.Rule{}
		for range rapid.IntRange(0, 2).Draw(t, "from") {
			r.From = append(r.From, &apisecurity.Rule_From{Source: orEmpty(t, genSource(t), &apisecurity.Source{})})
		}
		for range rapid.IntRange(0, 2).Draw(t, "to") {
			r.To = append(r.To, &apisecurity.Rule_To{Operation: orEmpty(t, genOperation(t), &apisecurity.Operation{})})
		}
		for range rapid.IntRange(0, 1).Draw(t, "when") {
			r.When = append(r.When, genCondition(t))
		}
		p.Spec.Rules = append(p.Spec.Rules, r)
	}
	return p
}

func genRequest(t *rapid.T) *request {
	r := &request{hidden: map[string]string{}}
	if rapid.IntRange(0, 3).Draw(t, "identified") > 0 {
		r.conn.Identity = identity.Identity{
			TrustDomain:    rapid.SampledFrom([]string{"td", "other"}).Draw(t, "trust"),
			Namespace:      rapid.SampledFrom([]string{"shop", "web"}).Draw(t, "source namespace"),
			ServiceAccount: rapid.SampledFrom([]string{"cart", "front"}).Draw(t, "source account"),
		}
	}
	r.conn.Src = netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "10.0.1.9", "fd00::1"}).Draw(t, "src")), 4000)
	r.conn.Dst = netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.2", "fd00::2"}).Draw(t, "dst")), rapid.SampledFrom([]uint16{80, 8080}).Draw(t, "port"))
	for _, k := range []string{"remote.ip", "request.principal", "host", "method", "path", "request.headers[x]", "connection.sni"} {
		r.hidden[k] = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, k)
	}
	r.hidden["source.trustDomain"] = r.conn.Identity.TrustDomain
	flips := map[string]bool{}
	r.coin = func(about string) bool {
		if _, known := flips[about]; !known {
			flips[about] = rapid.Bool().Draw(t, "coin")
		}
		return flips[about]
	}
	return r
}

// enforced is what node proxies decide with the translation.
func enforced(t *rapid.T, policies []*securityv1.AuthorizationPolicy, c *rbac.Conn) (allowed, exact bool) {
	exact = true
	store := rbac.NewStore()
	target := rbac.Target{Namespace: "shop"}
	var updates []rbac.Update
	for _, p := range policies {
		a := Translate(p, "istio-system")
		for _, cond := range a.Conditions {
			exact = exact && cond.Status == status.True
		}
		if a.Policy == nil {
			continue
		}
		name := a.Policy.Namespace + "/" + a.Policy.Name
		updates = append(updates, rbac.Update{Name: name, Policy: a.Policy})
		if a.Policy.Scope == securitypb.Scope_WORKLOAD_SELECTOR {
			target.Policies = append(target.Policies, name)
		}
	}
	if rejected := store.Apply(updates, nil); len(rejected) > 0 {
		t.Fatalf("the proxy rejects a translation: %v", rejected)
	}
	return store.Set().Evaluate(target, c).Allowed, exact
}

// show renders policies for a failure.
func show(policies []*securityv1.AuthorizationPolicy) string {
	var b strings.Builder
	for _, p := range policies {
		fmt.Fprintf(&b, "%s/%s %v %s\n", p.Namespace, p.Name, p.Annotations, &p.Spec)
		fmt.Fprintf(&b, "  as %v\n", Translate(p, "istio-system").Policy)
	}
	return b.String()
}

func TestNothingIsAllowedThatThePolicyAsWrittenDenies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var policies []*securityv1.AuthorizationPolicy
		for i := range rapid.IntRange(1, 3).Draw(t, "policies") {
			policies = append(policies, genPolicy(t, fmt.Sprintf("p%d", i)))
		}
		for range 4 {
			r := genRequest(t)
			allowed, exact := enforced(t, policies, &r.conn)
			written := asWritten(policies, r)
			if allowed && !written {
				t.Fatalf("allowed on the wire, denied as written:\n%s\n%+v", show(policies), r)
			}
			if exact && allowed != written {
				t.Fatalf("accepted without reservation, and yet allowed=%v where %v is written:\n%s\n%+v", allowed, written, show(policies), r)
			}
		}
	})
}
