package rbac

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// The oracle reads policies word by word from the protobuf, for clarity, not
// for speed.

func oracleMatches(p *securitypb.Authorization, c *Conn) bool {
	for _, g := range p.GetGroups() {
		ok := true
		for _, r := range g.GetRules() {
			holds := len(r.GetMatches()) == 0
			for _, m := range r.GetMatches() {
				if proto.Size(m) > 0 && oracleMatch(m, c) {
					holds = true
				}
			}
			ok = ok && holds
		}
		if ok {
			return true
		}
	}
	return false
}

func oracleMatch(m *securitypb.Match, c *Conn) bool {
	principal := strings.TrimPrefix(c.Identity.String(), "spiffe://")
	field := func(n, not int, is, isNot func(int) bool) bool {
		some := n == 0
		for i := range n {
			some = some || is(i)
		}
		for i := range not {
			if isNot(i) {
				return false
			}
		}
		return some
	}
	text := func(l []*securitypb.StringMatch, s string) func(int) bool {
		return func(i int) bool { return oracleText(l[i], s) }
	}
	named := func(l []*securitypb.StringMatch) func(int) bool {
		return func(i int) bool { return principal != "" && oracleText(l[i], principal) }
	}
	account := func(l []*securitypb.ServiceAccountMatch) func(int) bool {
		return func(i int) bool {
			return !c.Identity.IsZero() && l[i].GetNamespace() == c.Identity.Namespace && l[i].GetServiceAccount() == c.Identity.ServiceAccount
		}
	}
	within := func(l []*securitypb.Address, a netip.Addr) func(int) bool {
		return func(i int) bool { return oraclePrefix(l[i], a) }
	}
	port := func(l []uint32) func(int) bool { return func(i int) bool { return l[i] == uint32(c.Dst.Port()) } }
	ns := c.Identity.Namespace
	return field(len(m.Namespaces), len(m.NotNamespaces), text(m.Namespaces, ns), text(m.NotNamespaces, ns)) &&
		field(len(m.Principals), len(m.NotPrincipals), named(m.Principals), named(m.NotPrincipals)) &&
		field(len(m.ServiceAccounts), len(m.NotServiceAccounts), account(m.ServiceAccounts), account(m.NotServiceAccounts)) &&
		field(len(m.SourceIps), len(m.NotSourceIps), within(m.SourceIps, c.Src.Addr()), within(m.NotSourceIps, c.Src.Addr())) &&
		field(len(m.DestinationIps), len(m.NotDestinationIps), within(m.DestinationIps, c.Dst.Addr()), within(m.NotDestinationIps, c.Dst.Addr())) &&
		field(len(m.DestinationPorts), len(m.NotDestinationPorts), port(m.DestinationPorts), port(m.NotDestinationPorts))
}

func oracleText(m *securitypb.StringMatch, s string) bool {
	switch t := m.GetMatchType().(type) {
	case *securitypb.StringMatch_Exact:
		return s == t.Exact
	case *securitypb.StringMatch_Prefix:
		return strings.HasPrefix(s, t.Prefix)
	case *securitypb.StringMatch_Suffix:
		return strings.HasSuffix(s, t.Suffix)
	case *securitypb.StringMatch_Presence:
		return s != ""
	}
	panic("unknown kind")
}

// oraclePrefix compares bit by bit.
func oraclePrefix(m *securitypb.Address, a netip.Addr) bool {
	b := a.AsSlice()
	if len(b) != len(m.GetAddress()) {
		return false
	}
	for i := range int(m.GetLength()) {
		if (b[i/8]^m.GetAddress()[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func oracleEvaluate(list []*securitypb.Authorization, t Target, c *Conn) (allowed bool, why reason.Reason) {
	var considered []*securitypb.Authorization
	for _, p := range list {
		switch p.GetScope() {
		case mesh:
			considered = append(considered, p)
		case inNS:
			if p.GetNamespace() == t.Namespace {
				considered = append(considered, p)
			}
		case selected:
			if slices.Contains(t.Policies, p.GetNamespace()+"/"+p.GetName()) {
				considered = append(considered, p)
			}
		}
	}
	allows := false
	for _, p := range considered {
		if p.GetAction() == denying && !p.GetDryRun() && oracleMatches(p, c) {
			return false, reason.PolicyDenied
		}
		allows = allows || p.GetAction() == allowing && !p.GetDryRun()
	}
	if !allows {
		return true, reason.OK
	}
	for _, p := range considered {
		if p.GetAction() == allowing && !p.GetDryRun() && oracleMatches(p, c) {
			return true, reason.OK
		}
	}
	return false, reason.NotAllowed
}

var names = []string{"a", "b", "ab"}

func genText() *rapid.Generator[*securitypb.StringMatch] {
	return rapid.Custom(func(t *rapid.T) *securitypb.StringMatch {
		s := rapid.SampledFrom([]string{"", "a", "b", "ab", "td/ns/a", "/sa/b", "td/ns/a/sa/b"}).Draw(t, "text")
		return []*securitypb.StringMatch{is(s), begins(s), ends(s), anything()}[rapid.IntRange(0, 3).Draw(t, "kind")]
	})
}

func genCIDR() *rapid.Generator[*securitypb.Address] {
	return rapid.Custom(func(t *rapid.T) *securitypb.Address {
		return cidr(rapid.SampledFrom([]string{"10.0.0.0/31", "10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0", "fd00::/127", "fd00::1/128", "::/0"}).Draw(t, "cidr"))
	})
}

func genMatch() *rapid.Generator[*securitypb.Match] {
	return rapid.Custom(func(t *rapid.T) *securitypb.Match {
		texts := func() []*securitypb.StringMatch { return rapid.SliceOfN(genText(), 0, 2).Draw(t, "texts") }
		cidrs := func() []*securitypb.Address { return rapid.SliceOfN(genCIDR(), 0, 2).Draw(t, "cidrs") }
		ports := func() []uint32 { return rapid.SliceOfN(rapid.Uint32Range(80, 82), 0, 2).Draw(t, "ports") }
		accounts := func() []*securitypb.ServiceAccountMatch {
			return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *securitypb.ServiceAccountMatch {
				return &securitypb.ServiceAccountMatch{Namespace: rapid.SampledFrom(names).Draw(t, "ns"), ServiceAccount: rapid.SampledFrom(names).Draw(t, "sa")}
			}), 0, 2).Draw(t, "accounts")
		}
		m := &securitypb.Match{}
		// Few fields at a time, so that matches are not always false.
		for range rapid.IntRange(0, 3).Draw(t, "fields") {
			switch rapid.IntRange(0, 11).Draw(t, "field") {
			case 0:
				m.Namespaces = texts()
			case 1:
				m.NotNamespaces = texts()
			case 2:
				m.Principals = texts()
			case 3:
				m.NotPrincipals = texts()
			case 4:
				m.SourceIps = cidrs()
			case 5:
				m.NotSourceIps = cidrs()
			case 6:
				m.DestinationIps = cidrs()
			case 7:
				m.NotDestinationIps = cidrs()
			case 8:
				m.DestinationPorts = ports()
			case 9:
				m.NotDestinationPorts = ports()
			case 10:
				m.ServiceAccounts = accounts()
			case 11:
				m.NotServiceAccounts = accounts()
			}
		}
		return m
	})
}

func genPolicy(name string) *rapid.Generator[*securitypb.Authorization] {
	return rapid.Custom(func(t *rapid.T) *securitypb.Authorization {
		clause := rapid.Custom(func(t *rapid.T) *securitypb.Rules {
			return oneOf(rapid.SliceOfN(genMatch(), 0, 2).Draw(t, "matches")...)
		})
		group := rapid.Custom(func(t *rapid.T) *securitypb.Group { return all(rapid.SliceOfN(clause, 0, 2).Draw(t, "clauses")...) })
		return &securitypb.Authorization{
			Name: name, Namespace: rapid.SampledFrom(names).Draw(t, "namespace"),
			Action: rapid.SampledFrom([]securitypb.Action{allowing, denying}).Draw(t, "action"),
			Scope:  rapid.SampledFrom([]securitypb.Scope{mesh, inNS, selected}).Draw(t, "scope"),
			DryRun: rapid.IntRange(0, 4).Draw(t, "trial") == 0, Groups: rapid.SliceOfN(group, 0, 2).Draw(t, "groups"),
		}
	})
}

func genConn() *rapid.Generator[*Conn] {
	return rapid.Custom(func(t *rapid.T) *Conn {
		host := rapid.SampledFrom([]string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "fd00::", "fd00::1", "fd00::2"})
		c := &Conn{
			Src: netip.AddrPortFrom(netip.MustParseAddr(host.Draw(t, "src")), 1000),
			Dst: netip.AddrPortFrom(netip.MustParseAddr(host.Draw(t, "dst")), rapid.Uint16Range(80, 82).Draw(t, "port")),
		}
		if rapid.Bool().Draw(t, "mtls") {
			c.Identity = identity.Identity{TrustDomain: "td", Namespace: rapid.SampledFrom(names).Draw(t, "ns"), ServiceAccount: rapid.SampledFrom(names).Draw(t, "sa")}
		}
		return c
	})
}

// TestAgainstOracle compares decisions with the oracle's, while policies come
// and go.
func TestAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewStore()
		var list []*securitypb.Authorization
		var set []Update
		var removed []string
		for i := range rapid.IntRange(0, 6).Draw(t, "policies") {
			p := genPolicy(fmt.Sprint("p", i)).Draw(t, "policy")
			u := Update{p.GetNamespace() + "/" + p.GetName(), p}
			set = append(set, u)
			if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				removed = append(removed, u.Name)
			} else {
				list = append(list, p)
			}
		}
		if r := s.Apply(set, nil); len(r) > 0 {
			t.Fatalf("rejected: %v", r)
		}
		s.Apply(nil, removed)
		target := Target{Namespace: rapid.SampledFrom(names).Draw(t, "target")}
		for _, p := range list {
			if rapid.Bool().Draw(t, "selected") {
				target.Policies = append(target.Policies, p.GetNamespace()+"/"+p.GetName())
			}
		}
		// A named policy applies whatever its scope.
		for _, p := range list {
			if p.GetScope() == inNS && slices.Contains(target.Policies, p.GetNamespace()+"/"+p.GetName()) && p.GetNamespace() != target.Namespace {
				target.Policies = slices.DeleteFunc(target.Policies, func(n string) bool { return n == p.GetNamespace()+"/"+p.GetName() })
			}
		}
		for range 5 {
			c := genConn().Draw(t, "conn")
			allowed, why := oracleEvaluate(list, target, c)
			if d := s.Set().Evaluate(target, c); d.Allowed != allowed || d.Reason != why {
				t.Fatalf("%+v to %+v: %+v, oracle says %v %v", c, target, d, allowed, why)
			}
			explains(t, s.Set(), target, c)
			for _, p := range list {
				compiled, _ := Compile(p)
				if compiled.Matches(c) != oracleMatches(p, c) {
					t.Fatalf("%v matches %+v: %v", p, c, compiled.Matches(c))
				}
			}
		}
	})
}

// explains checks that an explanation has the policy that decides, and none before it
// that would have decided.
func explains(t *rapid.T, s *Set, target Target, c *Conn) {
	want := s.Evaluate(target, c)
	got, all := s.Explain(target, c)
	if got.Allowed != want.Allowed || got.Reason != want.Reason || got.Policy != want.Policy {
		t.Fatalf("Explain decides %+v, Evaluate %+v", got, want)
	}
	for i := range all {
		p := &all[i]
		if p.Matches() && !p.DryRun {
			if p.Policy != got.Policy || got.Allowed == p.Deny {
				t.Fatalf("%+v decides, says the explanation %+v; the decision is %+v", p, all, got)
			}
			return
		}
	}
	if got.Policy != "" && got.Reason != reason.PolicyUnavailable {
		t.Fatalf("no policy of %+v matches, and %q decides", all, got.Policy)
	}
}

// FuzzCompile: arbitrary bytes compile without a crash, and what is broken
// never widens.
func FuzzCompile(f *testing.F) {
	b, err := proto.Marshal(policy("ns/p", denying, inNS, all(oneOf(&securitypb.Match{
		Principals: []*securitypb.StringMatch{is("a"), begins("b")}, SourceIps: []*securitypb.Address{cidr("10.0.0.0/8")}, DestinationPorts: []uint32{80},
	}))))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(securitypb.Authorization)
		if proto.Unmarshal(b, p) != nil {
			return
		}
		compiled, err := Compile(p)
		for _, c := range []*Conn{conn(""), conn("td/ns/sa"), {}} {
			got := compiled.Matches(c)
			if err != nil && got != (p.GetAction() != allowing) {
				t.Fatalf("broken %v matches: %v", p, got)
			}
		}
		s := NewStore()
		s.Apply([]Update{{"x", p}}, nil)
		if _, err := json.Marshal(s.Set().Dump()); err != nil {
			t.Fatal(err)
		}
		s.Apply(nil, []string{"x"})
		if s.Set().Len() != 0 {
			t.Fatal("removal leaves something behind")
		}
	})
}

func BenchmarkEvaluate(b *testing.B) {
	s := NewStore()
	var set []Update
	for i := range 20 {
		m := &securitypb.Match{}
		for j := range 10 {
			m.Principals = append(m.Principals, is(fmt.Sprintf("cluster.local/ns/team-%d/sa/app-%d", i, j)))
		}
		p := policy(fmt.Sprint("ns/p", i), allowing, inNS, all(oneOf(m), oneOf(&securitypb.Match{SourceIps: []*securitypb.Address{cidr("10.0.0.0/8")}})))
		set = append(set, Update{fmt.Sprint("ns/p", i), p})
	}
	s.Apply(set, nil)
	c := conn("cluster.local/team-19/app-9")
	b.ReportAllocs()
	for b.Loop() {
		if d := s.Set().Evaluate(Target{Namespace: "ns"}, c); !d.Allowed {
			b.Fatal("not allowed")
		}
	}
}

func TestEvaluateDoesNotAllocate(t *testing.T) {
	s := store(t, policy("ns/p", allowing, inNS, all(oneOf(&securitypb.Match{Principals: []*securitypb.StringMatch{is("td/ns/ns/sa/sa")}}))),
		policy("ns/q", denying, selected, never)).Set()
	target, c := Target{"ns", []string{"ns/q"}}, conn("td/ns/sa")
	if n := testing.AllocsPerRun(100, func() { s.Evaluate(target, c) }); n != 0 {
		t.Errorf("%v allocations for each evaluation", n)
	}
}
