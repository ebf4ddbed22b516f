package rbac

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

func is(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
}

func begins(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Prefix{Prefix: s}}
}

func ends(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Suffix{Suffix: s}}
}

func anything() *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}

func cidr(s string) *securitypb.Address {
	p := netip.MustParsePrefix(s)
	return &securitypb.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

// rules builds groups from clauses from matches.
func rules(groups ...*securitypb.Group) []*securitypb.Group { return groups }

func all(clauses ...*securitypb.Rules) *securitypb.Group { return &securitypb.Group{Rules: clauses} }

func oneOf(matches ...*securitypb.Match) *securitypb.Rules {
	return &securitypb.Rules{Matches: matches}
}

func policy(name string, action securitypb.Action, scope securitypb.Scope, groups ...*securitypb.Group) *securitypb.Authorization {
	ns, name, _ := strings.Cut(name, "/")
	return &securitypb.Authorization{Name: name, Namespace: ns, Action: action, Scope: scope, Groups: groups}
}

const (
	allowing = securitypb.Action_ALLOW
	denying  = securitypb.Action_DENY
	mesh     = securitypb.Scope_GLOBAL
	inNS     = securitypb.Scope_NAMESPACE
	selected = securitypb.Scope_WORKLOAD_SELECTOR
)

func conn(id string) *Conn {
	c := &Conn{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.1.2:8080")}
	if id != "" {
		parts := strings.Split(id, "/")
		c.Identity = identity.Identity{TrustDomain: parts[0], Namespace: parts[1], ServiceAccount: parts[2]}
	}
	return c
}

func TestMatch(t *testing.T) {
	type m = securitypb.Match
	sa := func(ns, name string) []*securitypb.ServiceAccountMatch {
		return []*securitypb.ServiceAccountMatch{{Namespace: ns, ServiceAccount: name}}
	}
	texts := func(l ...*securitypb.StringMatch) []*securitypb.StringMatch { return l }
	ips := func(l ...string) (out []*securitypb.Address) {
		for _, s := range l {
			out = append(out, cidr(s))
		}
		return out
	}
	for _, tc := range []struct {
		name string
		m    *m
		id   string
		want bool
	}{
		{"namespace", &m{Namespaces: texts(is("ns"))}, "td/ns/sa", true},
		{"other namespace", &m{Namespaces: texts(is("ns"))}, "td/ns2/sa", false},
		{"one of several", &m{Namespaces: texts(is("x"), begins("n"))}, "td/ns/sa", true},
		{"not namespace", &m{NotNamespaces: texts(is("ns"))}, "td/ns/sa", false},
		{"not other namespace", &m{NotNamespaces: texts(is("x"))}, "td/ns/sa", true},
		{"no identity is not in a namespace", &m{Namespaces: texts(anything())}, "", false},
		{"no identity is not not in one", &m{NotNamespaces: texts(anything())}, "", true},
		{"principal has no scheme", &m{Principals: texts(is("td/ns/ns/sa/sa"))}, "td/ns/sa", true},
		{"principal with scheme never", &m{Principals: texts(is("spiffe://td/ns/ns/sa/sa"))}, "td/ns/sa", false},
		{"principal prefix", &m{Principals: texts(begins("td/ns/ns/"))}, "td/ns/sa", true},
		{"principal prefix on whole parts", &m{Principals: texts(begins("td/ns/n/"))}, "td/ns/sa", false},
		{"principal suffix", &m{Principals: texts(ends("/sa/sa"))}, "td/ns/sa", true},
		{"principal suffix longer than it", &m{Principals: texts(ends("xtd/ns/ns/sa/sa"))}, "td/ns/sa", false},
		{"principal presence", &m{Principals: texts(anything())}, "td/ns/sa", true},
		{"no identity has no principal", &m{Principals: texts(anything(), begins(""), is(""))}, "", false},
		{"not principal presence", &m{NotPrincipals: texts(anything())}, "td/ns/sa", false},
		{"strict: no identity", &m{NotPrincipals: texts(anything())}, "", true},
		{"account in any trust domain", &m{ServiceAccounts: sa("ns", "sa")}, "other/ns/sa", true},
		{"other account", &m{ServiceAccounts: sa("ns", "sa2")}, "td/ns/sa", false},
		{"account of no identity", &m{ServiceAccounts: sa("", "")}, "", false},
		{"not account", &m{NotServiceAccounts: sa("ns", "sa")}, "td/ns/sa", false},
		{"not account of no identity", &m{NotServiceAccounts: sa("", "")}, "", true},
		{"source", &m{SourceIps: ips("10.0.0.0/24")}, "", true},
		{"other source", &m{SourceIps: ips("10.0.1.0/24")}, "", false},
		{"source of another family", &m{SourceIps: ips("::/0")}, "", false},
		{"source in v6 clothing", &m{SourceIps: ips("::ffff:10.0.0.0/120")}, "", true},
		{"not source", &m{NotSourceIps: ips("10.0.0.1/32")}, "", false},
		{"destination", &m{DestinationIps: ips("10.0.1.2/32")}, "", true},
		{"not destination", &m{NotDestinationIps: ips("10.0.1.0/24")}, "", false},
		{"port", &m{DestinationPorts: []uint32{1, 8080}}, "", true},
		{"other port", &m{DestinationPorts: []uint32{1}}, "", false},
		{"not port", &m{NotDestinationPorts: []uint32{8080}}, "", false},
		{"fields are ANDed", &m{DestinationPorts: []uint32{8080}, Namespaces: texts(is("x"))}, "td/ns/sa", false},
		{"positive and not", &m{Namespaces: texts(begins("n")), NotNamespaces: texts(is("ns"))}, "td/ns/sa", false},
		{"empty is skipped", &m{}, "td/ns/sa", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Compile(policy("ns/p", allowing, mesh, all(oneOf(tc.m))))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Matches(conn(tc.id)); got != tc.want {
				t.Errorf("matches %v: %v", tc.id, got)
			}
		})
	}
}

func TestStructure(t *testing.T) {
	yes := &securitypb.Match{DestinationPorts: []uint32{8080}}
	no := &securitypb.Match{DestinationPorts: []uint32{1}}
	empty := &securitypb.Match{}
	for _, tc := range []struct {
		name   string
		groups []*securitypb.Group
		want   bool
	}{
		{"no rules never match", nil, false},
		{"a rule without clauses matches", rules(all()), true},
		{"rules are ORed", rules(all(oneOf(no)), all(oneOf(yes))), true},
		{"clauses are ANDed", rules(all(oneOf(yes), oneOf(no))), false},
		{"matches are ORed", rules(all(oneOf(no, yes))), true},
		{"an empty clause matches", rules(all(oneOf(), oneOf(yes))), true},
		{"an empty match is skipped", rules(all(oneOf(empty, yes))), true},
		{"only empty matches do not match", rules(all(oneOf(empty))), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Compile(policy("ns/p", allowing, mesh, tc.groups...))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Matches(conn("td/ns/sa")); got != tc.want {
				t.Errorf("matches: %v", got)
			}
		})
	}
}

var (
	always = all(oneOf(&securitypb.Match{DestinationPorts: []uint32{8080}}))
	never  = all(oneOf(&securitypb.Match{DestinationPorts: []uint32{1}}))
)

func trial(p *securitypb.Authorization) *securitypb.Authorization { p.DryRun = true; return p }

func store(t testing.TB, list ...*securitypb.Authorization) *Store {
	t.Helper()
	s := NewStore()
	var set []Update
	for _, p := range list {
		set = append(set, Update{p.GetNamespace() + "/" + p.GetName(), p})
	}
	s.Apply(set, nil)
	return s
}

func TestEvaluate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		policies []*securitypb.Authorization
		selected []string
		want     Decision
	}{
		{"nothing allows", nil, nil, Decision{Allowed: true}},
		{"deny of the namespace", []*securitypb.Authorization{policy("ns/d", denying, inNS, always)}, nil,
			Decision{Reason: reason.PolicyDenied, Policy: "ns/d"}},
		{"deny of another namespace", []*securitypb.Authorization{policy("x/d", denying, inNS, always)}, nil, Decision{Allowed: true}},
		{"deny of the mesh", []*securitypb.Authorization{policy("root/d", denying, mesh, always)}, nil,
			Decision{Reason: reason.PolicyDenied, Policy: "root/d"}},
		{"deny that is selected", []*securitypb.Authorization{policy("ns/d", denying, selected, always)}, []string{"ns/d"},
			Decision{Reason: reason.PolicyDenied, Policy: "ns/d"}},
		{"deny that is not", []*securitypb.Authorization{policy("ns/d", denying, selected, always)}, nil, Decision{Allowed: true}},
		{"deny before allow", []*securitypb.Authorization{policy("ns/a", allowing, inNS, always), policy("ns/d", denying, inNS, always)}, nil,
			Decision{Reason: reason.PolicyDenied, Policy: "ns/d"}},
		{"deny that does not match", []*securitypb.Authorization{policy("ns/d", denying, inNS, never)}, nil, Decision{Allowed: true}},
		{"allow", []*securitypb.Authorization{policy("ns/a", allowing, inNS, never), policy("ns/b", allowing, inNS, always)}, nil,
			Decision{Allowed: true, Policy: "ns/b"}},
		{"none allows", []*securitypb.Authorization{policy("ns/a", allowing, inNS, never)}, nil, Decision{Reason: reason.NotAllowed}},
		{"allow nothing", []*securitypb.Authorization{policy("ns/a", allowing, inNS)}, nil, Decision{Reason: reason.NotAllowed}},
		{"unknown refuses", nil, []string{"ns/gone"}, Decision{Reason: reason.PolicyUnavailable, Policy: "ns/gone"}},
		{"unknown refuses whatever allows", []*securitypb.Authorization{policy("ns/a", allowing, inNS, always)}, []string{"ns/gone"},
			Decision{Reason: reason.PolicyUnavailable, Policy: "ns/gone"}},
		{"a DENY is final, whatever is unknown", []*securitypb.Authorization{policy("ns/d", denying, selected, always)}, []string{"ns/gone", "ns/d"},
			Decision{Reason: reason.PolicyDenied, Policy: "ns/d"}},
		{"deny under trial", []*securitypb.Authorization{trial(policy("ns/d", denying, inNS, always))}, nil,
			Decision{Allowed: true, DryRun: []DryRun{{"ns/d", true}}}},
		{"allow under trial matches", []*securitypb.Authorization{trial(policy("ns/a", allowing, inNS, always))}, nil,
			Decision{Allowed: true, DryRun: []DryRun{{"ns/a", false}}}},
		{"allow under trial would deny", []*securitypb.Authorization{trial(policy("ns/a", allowing, inNS, never))}, nil,
			Decision{Allowed: true, WouldDeny: true}},
		{"trial does not weaken allow", []*securitypb.Authorization{trial(policy("ns/a", allowing, inNS, always)), policy("ns/b", allowing, inNS, never)}, nil,
			Decision{Reason: reason.NotAllowed, DryRun: []DryRun{{"ns/a", false}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := store(t, tc.policies...).Set().Evaluate(Target{"ns", tc.selected}, conn("td/ns/sa"))
			if got.Allowed != tc.want.Allowed || got.Reason != tc.want.Reason || got.Policy != tc.want.Policy || got.WouldDeny != tc.want.WouldDeny ||
				!slices.Equal(got.DryRun, tc.want.DryRun) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			if (got.Error() == nil) != got.Allowed {
				t.Errorf("error: %v", got.Error())
			}
		})
	}
	if d := (*Set)(nil).Evaluate(Target{"ns", nil}, conn("")); !d.Allowed {
		t.Error("the empty set refuses")
	}
	if d := (*Set)(nil).Evaluate(Target{"ns", []string{"ns/p"}}, conn("")); d.Reason != reason.PolicyUnavailable {
		t.Errorf("no set: %+v", d)
	}
}

// unknownField is a field of the future.
func unknownField() []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "?")
}

// TestBrokenNeverWidens: whatever is wrong with a policy, an ALLOW of it
// matches nothing and a DENY of it everything.
func TestBrokenNeverWidens(t *testing.T) {
	base := &securitypb.Match{DestinationPorts: []uint32{8080}}
	future := func(m interface{ ProtoReflect() protoreflect.Message }) { m.ProtoReflect().SetUnknown(unknownField()) }
	for name, spoil := range map[string]func(p *securitypb.Authorization, m *securitypb.Match){
		"short address": func(_ *securitypb.Authorization, m *securitypb.Match) {
			m.SourceIps = []*securitypb.Address{{Address: []byte{1}}}
		},
		"no address": func(_ *securitypb.Authorization, m *securitypb.Match) { m.NotSourceIps = []*securitypb.Address{{}} },
		"long prefix": func(_ *securitypb.Authorization, m *securitypb.Match) {
			m.DestinationIps = []*securitypb.Address{{Address: []byte{1, 2, 3, 4}, Length: 33}}
		},
		"port": func(_ *securitypb.Authorization, m *securitypb.Match) { m.NotDestinationPorts = []uint32{70000} },
		"text": func(_ *securitypb.Authorization, m *securitypb.Match) { m.Namespaces = []*securitypb.StringMatch{{}} },
		"extension": func(_ *securitypb.Authorization, m *securitypb.Match) {
			m.Extensions = []*workloadpb.Extension{{Name: "x"}}
		},
		"future match":    func(_ *securitypb.Authorization, m *securitypb.Match) { future(m) },
		"future rules":    func(p *securitypb.Authorization, _ *securitypb.Match) { future(p.Groups[0].Rules[0]) },
		"future group":    func(p *securitypb.Authorization, _ *securitypb.Match) { future(p.Groups[0]) },
		"scope":           func(p *securitypb.Authorization, _ *securitypb.Match) { p.Scope = 9 },
		"scope and group": func(p *securitypb.Authorization, _ *securitypb.Match) { p.Scope = 9; future(p.Groups[0]) },
	} {
		for _, action := range []securitypb.Action{allowing, denying} {
			t.Run(name+" "+action.String(), func(t *testing.T) {
				m := &securitypb.Match{DestinationPorts: slices.Clone(base.DestinationPorts)}
				p := policy("ns/p", action, inNS, all(oneOf(m)), always)
				spoil(p, m)
				s := NewStore()
				rejected := s.Apply([]Update{{"ns/p", p}}, nil)
				if len(rejected) != 1 || rejected[0].Name != "ns/p" {
					t.Fatalf("rejections: %v", rejected)
				}
				for _, id := range []string{"", "td/ns/sa"} {
					if d := s.Set().Evaluate(Target{Namespace: "ns"}, conn(id)); d.Allowed {
						t.Errorf("%q is allowed", id)
					}
				}
				if d := s.Set().Evaluate(Target{Namespace: "other"}, conn("")); !d.Allowed {
					t.Error("another namespace is denied")
				}
			})
		}
	}
	s := NewStore()
	s.Apply([]Update{{"ns/p", policy("ns/p", 7, inNS, never)}}, nil)
	if d := s.Set().Evaluate(Target{Namespace: "ns"}, conn("")); d.Allowed || d.Reason != reason.PolicyDenied {
		t.Errorf("unknown action: %+v", d)
	}
	// A resource whose bytes are no policy at all.
	s = NewStore()
	if r := s.Apply([]Update{{"ns/p", nil}}, nil); len(r) != 1 {
		t.Errorf("rejections: %v", r)
	}
	if d := s.Set().Evaluate(Target{Namespace: "ns"}, conn("")); d.Allowed {
		t.Error("an undecodable policy allows")
	}
	if d := s.Set().Evaluate(Target{Namespace: "other"}, conn("")); !d.Allowed {
		t.Error("an undecodable policy denies elsewhere")
	}
}

func TestStore(t *testing.T) {
	s := NewStore()
	told := 0
	cancel := s.Subscribe(func(set *Set) {
		if set != s.Set() {
			t.Error("told before the set is visible")
		}
		told++
	})
	before := s.Set()
	s.Apply([]Update{{"ns/p", policy("ns/p", denying, inNS, always)}}, nil)
	deny := s.Set()
	// Its scope changes: it must leave the namespace.
	s.Apply([]Update{{"ns/p", policy("ns/p", denying, selected, always)}}, nil)
	if d := s.Set().Evaluate(Target{Namespace: "ns"}, conn("")); !d.Allowed {
		t.Error("still of the namespace")
	}
	if d := s.Set().Evaluate(Target{"ns", []string{"ns/p"}}, conn("")); d.Allowed {
		t.Error("not in force where selected")
	}
	s.Apply(nil, []string{"ns/p", "unknown"})
	s.Apply(nil, []string{"ns/p"})
	cancel()
	s.Apply([]Update{{"ns/q", policy("ns/q", denying, inNS, always)}}, nil)
	if told != 3 {
		t.Errorf("told %d times, want 3", told)
	}
	if before.Len() != 0 || deny.Len() != 1 || s.Set().Len() != 1 {
		t.Errorf("sizes %d, %d, %d", before.Len(), deny.Len(), s.Set().Len())
	}
	if d := deny.Evaluate(Target{Namespace: "ns"}, conn("")); d.Allowed {
		t.Error("an old set changed")
	}
}

func TestDump(t *testing.T) {
	p := policy("ns/p", denying, inNS, all(oneOf(&securitypb.Match{
		Namespaces: []*securitypb.StringMatch{is("a"), begins("b"), ends("c"), anything()}, NotServiceAccounts: []*securitypb.ServiceAccountMatch{{Namespace: "n", ServiceAccount: "s"}},
		SourceIps: []*securitypb.Address{cidr("10.0.0.0/8")}, DestinationPorts: []uint32{80},
	}), oneOf()))
	got, err := json.Marshal(store(t, p, policy("ns/z", allowing, 9)).Set().Dump())
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"name":"p","namespace":"ns","scope":"Namespace","action":"Deny","rules":[[[{` +
		`"namespaces":[{"Exact":"a"},{"Prefix":"b"},{"Suffix":"c"},{"Presence":[]}],` +
		`"notServiceAccounts":[{"namespace":"n","serviceAccount":"s"}],"sourceIps":["10.0.0.0/8"],"destinationPorts":[80]}],[]]],"dryRun":false},` +
		`{"name":"z","namespace":"ns","scope":"Namespace","action":"Allow","rules":[],"dryRun":false,"error":"policy ns/z fails closed: scope: unknown value 9"}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestRemovedPolicyHolds: a policy that is removed holds for workloads that
// name it, until none does; the number of such policies is bounded.
func TestRemovedPolicyHolds(t *testing.T) {
	s := store(t, policy("ns/p", denying, selected, always))
	names := Target{"ns", []string{"ns/p"}}
	s.Apply(nil, []string{"ns/p"})
	if d := s.Set().Evaluate(names, conn("")); d.Reason != reason.PolicyDenied {
		t.Errorf("after the removal: %+v", d)
	}
	if s.Set().Len() != 0 || s.Set().Retired() != 1 {
		t.Errorf("%d policies, %d retired", s.Set().Len(), s.Set().Retired())
	}
	s.Prune(func(name string) bool { return name == "ns/p" })
	if d := s.Set().Evaluate(names, conn("")); d.Reason != reason.PolicyDenied {
		t.Errorf("while it is named: %+v", d)
	}
	s.Prune(func(string) bool { return false })
	if d := s.Set().Evaluate(names, conn("")); d.Reason != reason.PolicyUnavailable {
		t.Errorf("when it was not named: %+v", d)
	}
	// It comes back with another content: that holds at once.
	s.Apply([]Update{{"ns/p", policy("ns/p", denying, selected, always)}}, nil)
	s.Apply(nil, []string{"ns/p"})
	s.Apply([]Update{{"ns/p", policy("ns/p", denying, selected, never)}}, nil)
	if d := s.Set().Evaluate(names, conn("")); !d.Allowed || s.Set().Retired() != 0 {
		t.Errorf("the new content: %+v", d)
	}
	// A policy of a whole namespace ends with its removal.
	s.Apply([]Update{{"ns/q", policy("ns/q", denying, inNS, always)}}, nil)
	s.Apply(nil, []string{"ns/q"})
	if d := s.Set().Evaluate(names, conn("")); !d.Allowed || s.Set().Retired() != 0 {
		t.Errorf("a policy of the namespace: %+v", d)
	}
	for i := range 3 * maxRetired {
		name := fmt.Sprintf("ns/x%d", i)
		s.Apply([]Update{{name, policy(name, denying, selected, always)}}, nil)
		s.Apply(nil, []string{name})
	}
	if n := s.Set().Retired(); n != maxRetired {
		t.Errorf("%d are retired, at most %d may be", n, maxRetired)
	}
	last := fmt.Sprintf("ns/x%d", 3*maxRetired-1)
	if d := s.Set().Evaluate(Target{"ns", []string{last}}, conn("")); d.Reason != reason.PolicyDenied {
		t.Errorf("the last one: %+v", d)
	}
	if d := s.Set().Evaluate(Target{"ns", []string{"ns/x0"}}, conn("")); d.Reason != reason.PolicyUnavailable {
		t.Errorf("the first one: %+v", d)
	}
}

// TestStraddlingBlock: an IPv6 block that has IPv4 inside is read so that less
// is allowed.
func TestStraddlingBlock(t *testing.T) {
	wide := []*securitypb.Address{cidr("::ffff:0:0/95")}
	v4 := &Conn{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:8080")}
	mapped := &Conn{Src: netip.MustParseAddrPort("[::ffff:10.0.0.1]:1"), Dst: netip.MustParseAddrPort("[::ffff:10.0.0.2]:8080")}
	for name, tc := range map[string]struct {
		action securitypb.Action
		match  *securitypb.Match
	}{
		"deny source":           {denying, &securitypb.Match{SourceIps: wide}},
		"deny all but source":   {denying, &securitypb.Match{NotSourceIps: wide}},
		"deny destination":      {denying, &securitypb.Match{DestinationIps: wide}},
		"allow source":          {allowing, &securitypb.Match{SourceIps: wide}},
		"allow all but source":  {allowing, &securitypb.Match{NotSourceIps: wide}},
		"allow all but address": {allowing, &securitypb.Match{NotDestinationIps: wide}},
	} {
		s := store(t, policy("ns/p", tc.action, inNS, all(oneOf(tc.match))))
		for _, c := range []*Conn{v4, mapped} {
			if d := s.Set().Evaluate(Target{Namespace: "ns"}, c); d.Allowed {
				t.Errorf("%s: %v is let in", name, c.Src)
			}
		}
	}
}
