package authz

import (
	"fmt"
	"testing"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// asking is a policy that has an authorizer asked about what the matches match.
func asking(provider string, matches ...*authzpb.Match) *authzpb.Policy {
	p := policy(authzpb.Action_CUSTOM, matches...)
	p.Provider = &authzpb.Provider{
		Name: provider, Namespace: "a", Hostname: "b", Port: 1, TimeoutMs: 1, StatusOnError: 403, Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}},
	}
	return p
}

// set takes policies in.
func set(t testing.TB, policies ...*authzpb.Policy) (*Store, *Set) {
	t.Helper()
	s := NewStore()
	for i, p := range policies {
		body, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(fmt.Sprint(i), body); err != nil {
			t.Fatal(err)
		}
	}
	return s, s.Set()
}

// TestAsk: which authorizers are asked, in which order.
func TestAsk(t *testing.T) {
	trial := asking("t")
	trial.DryRun = true
	for name, tt := range map[string]struct {
		policies []*authzpb.Policy
		want     string
		notes    string
	}{
		"no policy":              {nil, "[]", "[]"},
		"everything":             {[]*authzpb.Policy{asking("x")}, "[x]", "[]"},
		"what matches":           {[]*authzpb.Policy{asking("x", methods("GET"))}, "[x]", "[]"},
		"what does not":          {[]*authzpb.Policy{asking("x", methods("POST"))}, "[]", "[]"},
		"what may be read so":    {[]*authzpb.Policy{asking("x", atPaths("/a/b"))}, "[x]", "[]"},
		"each once, by name":     {[]*authzpb.Policy{asking("y"), asking("x"), asking("y", methods("GET")), asking("z", methods("POST"))}, "[x y]", "[]"},
		"a dry run":              {[]*authzpb.Policy{trial}, "[]", "[{shop/p would_ask}]"},
		"a dry run beside one":   {[]*authzpb.Policy{trial, asking("x")}, "[x]", "[{shop/p would_ask}]"},
		"one that never matches": {[]*authzpb.Policy{func() *authzpb.Policy { p := asking("x"); p.Rules = nil; return p }()}, "[]", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := set(t, tt.policies...)
			r := from("GET", "a", "/a//b/;c")
			notes := []Note{}
			a := NewAccess(r.conn, r.services, func(n Note) { notes = append(notes, n) })
			a.Begin(s, r.head(), nil)
			asked := []string{}
			for p := a.Ask(asked); p != nil; p = a.Ask(asked) {
				asked = append(asked, p.Name)
			}
			if fmt.Sprint(asked) != tt.want || fmt.Sprint(notes) != tt.notes {
				t.Errorf("%v %v", asked, notes)
			}
			// A connection without HTTP cannot be asked about.
			a.Begin(s, nil, nil)
			if err := a.Judge(); (err != nil) != (name != "no policy" && name != "a dry run" && name != "one that never matches") || err != nil && err.Reason != reason.PolicyUnsupported || (err == nil) != (a.Rejudge() == nil) {
				t.Errorf("without HTTP: %v", err)
			}
		})
	}
}

// TestExplainAsk: the authorizer of a policy is said, and what is refused stays so.
func TestExplainAsk(t *testing.T) {
	store, s := set(t, asking("x", methods("GET")), policy(denying, methods("GET")))
	r := from("GET", "a", "/")
	a := NewAccess(r.conn, r.services, nil)
	a.Begin(s, r.head(), nil)
	all, err := a.Explain()
	if err == nil || err.Reason != reason.PolicyDenied || len(all) != 2 || all[0].Action != "CUSTOM" || !all[0].Matches || all[0].Provider != "x (gRPC to b:1)" || all[1].Provider != "" {
		t.Errorf("%v %+v", err, all)
	}
	if sum := store.Summaries(); sum[0].Action != "CUSTOM" || sum[0].Provider != "x (gRPC to b:1)" || sum[0].Error != "" {
		t.Errorf("%+v", sum)
	}
	if !store.Asks("x") || store.Asks("y") {
		t.Error("who is asked")
	}
}

// TestRejectedProviders: a CUSTOM policy has a provider that can be asked, and no other
// policy has one.
func TestRejectedProviders(t *testing.T) {
	for name, p := range map[string]*authzpb.Policy{
		"none":      policy(authzpb.Action_CUSTOM),
		"of a DENY": func() *authzpb.Policy { p := asking("x"); p.Action = denying; return p }(),
		"bad":       func() *authzpb.Policy { p := asking("x"); p.Provider.Port = 0; return p }(),
		"a later field": func() *authzpb.Policy {
			p := asking("x")
			p.Provider.ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 1})
			return p
		}(),
		"a later field of a protocol": func() *authzpb.Policy {
			p := asking("x")
			p.Provider.GetGrpc().ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 1})
			return p
		}(),
	} {
		if _, err := Encode(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// BenchmarkAsk is the cost of CUSTOM policies for a request that none of them matches.
func BenchmarkAsk(b *testing.B) {
	_, s := set(b, asking("x", methods("POST")), asking("y", atPaths("/admin/*")), asking("z", withHeader("x-a", "b")))
	r := from("GET", "a", "/shop/items")
	h := r.head()
	a := NewAccess(r.conn, r.services, nil)
	a.Begin(s, h, nil)
	b.ReportAllocs()
	for b.Loop() {
		a.Begin(s, h, nil)
		if a.Ask(nil) != nil {
			b.Fatal("asked")
		}
	}
}
