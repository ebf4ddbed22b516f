package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	securitypb "github.com/ambit-mesh/ambit/api/security"
)

func TestExpandPrincipals(t *testing.T) {
	renamed := TrustDomains{Local: "corp.example", Aliases: []string{"old.example", "older.example"}}
	plain := TrustDomains{Local: "cluster.local"}
	const web = "/ns/shop/sa/web"
	all := []string{"corp.example" + web, "old.example" + web, "older.example" + web}
	for _, tc := range []struct {
		domains      TrustDomains
		in           string
		exact, wider []string // wider: with prefixes
	}{
		{plain, "cluster.local" + web, []string{"cluster.local" + web}, nil},
		{plain, "old.example" + web, []string{"old.example" + web}, nil},
		{TrustDomains{}, "cluster.local" + web, []string{"cluster.local" + web}, nil},
		{renamed, "corp.example" + web, all, nil},
		{renamed, "old.example" + web, all, nil},
		{renamed, "older.example" + web, all, nil},
		{renamed, "cluster.local" + web, all, nil},
		{renamed, "foreign.example" + web, []string{"foreign.example" + web}, nil},
		{renamed, "*" + web, []string{"*" + web}, nil},
		{renamed, "*.example" + web, []string{"*.example" + web}, nil},
		{renamed, "*d.example" + web, []string{"corp.example" + web, "*d.example" + web, "older.example" + web}, nil},
		{renamed, "cluster.local/ns/shop/sa/*", []string{"corp.example/ns/shop/sa/*", "old.example/ns/shop/sa/*", "older.example/ns/shop/sa/*"}, nil},
		{renamed, "cluster.local/ns/shop/*", []string{"cluster.local/ns/shop/*"}, []string{"corp.example/ns/shop/*", "old.example/ns/shop/*", "older.example/ns/shop/*"}},
		{renamed, "old.example/*", []string{"old.example/*"}, []string{"corp.example/*", "old.example/*", "older.example/*"}},
		{renamed, "foreign.example/*", []string{"foreign.example/*"}, nil},
		{renamed, "*/sa/web", []string{"*/sa/web"}, nil},
		{renamed, "*", []string{"*"}, nil},
		{renamed, "", []string{""}, nil},
		{renamed, "cluster.local", []string{"cluster.local"}, nil},
		{renamed, "spiffe://cluster.local" + web, []string{"spiffe://cluster.local" + web}, nil},
		{TrustDomains{Local: "a", Aliases: []string{"a", "b", "b"}}, "b" + web, []string{"a" + web, "b" + web}, nil},
	} {
		if got := tc.domains.Expand([]string{tc.in}, false); !slices.Equal(got, tc.exact) {
			t.Errorf("%+v, %q: %q", tc.domains, tc.in, got)
		}
		want := tc.wider
		if want == nil {
			want = tc.exact
		}
		if got := tc.domains.Expand([]string{tc.in}, true); !slices.Equal(got, want) {
			t.Errorf("%+v, %q with prefixes: %q", tc.domains, tc.in, got)
		}
	}
}

// TestAliasesInPolicies checks every place of a policy that names principals.
func TestAliasesInPolicies(t *testing.T) {
	domains := TrustDomains{Local: "corp.example", Aliases: []string{"old.example"}}
	const prefix = `"cluster.local/ns/shop/*"`
	for _, action := range []string{"ALLOW", "DENY", "CUSTOM"} {
		for _, place := range []string{
			`{"from":[{"source":{"principals":[%s]}}]}`, `{"from":[{"source":{"notPrincipals":[%s]}}]}`,
			`{"when":[{"key":"source.principal","values":[%s]}]}`, `{"when":[{"key":"source.principal","notValues":[%s]}]}`,
		} {
			translate := func(value string) string {
				p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
				text := fmt.Sprintf(`{"action":%q,"rules":[`+place+`]}`, action, value)
				if err := protojson.Unmarshal([]byte(text), &p.Spec); err != nil {
					t.Fatal(err)
				}
				return protojson.Format(domains.Translate(p, "istio-system").Policy)
			}
			got := translate(`"cluster.local/ns/shop/sa/far"`)
			for _, want := range []string{"corp.example/ns/shop/sa/far", "old.example/ns/shop/sa/far"} {
				if !strings.Contains(got, want) {
					t.Errorf("%s %s: nothing of %s in %s", action, place, want, got)
				}
			}
			// What refuses is expanded further than what lets in.
			refuses := (action != "ALLOW") != strings.Contains(place, "not")
			if got := translate(prefix); strings.Contains(got, "corp.example") != refuses {
				t.Errorf("%s %s with a prefix: %s", action, place, got)
			}
		}
	}
}

// TestAliasesNeverAllowMore checks the invariant of translation for names of
// the trust domain: of the mesh's own clients, a policy that uses another name
// lets in those that it would let in under the mesh's own name, and no other.
func TestAliasesNeverAllowMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		domains := TrustDomains{Local: "corp.example", Aliases: []string{"old.example"}}
		rest := rapid.SampledFrom([]string{"/ns/shop/sa/web", "/ns/shop/sa/*", "/ns/*", "/ns/shop/sa/far"}).Draw(t, "rest")
		name := rapid.SampledFrom([]string{"cluster.local", "old.example", "corp.example", "foreign.example"}).Draw(t, "name")
		deny := rapid.Bool().Draw(t, "deny")
		client := "corp.example" + rapid.SampledFrom([]string{"/ns/shop/sa/web", "/ns/shop/sa/far", "/ns/street/sa/web"}).Draw(t, "client")
		matches := func(principal string) bool {
			p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
			if deny {
				p.Spec.Action = apisecurity.AuthorizationPolicy_DENY
			}
			p.Spec.Rules = []*apisecurity.Rule{{From: []*apisecurity.Rule_From{{Source: &apisecurity.Source{Principals: []string{principal}}}}}}
			for _, g := range domains.Translate(p, "istio-system").Policy.Groups {
				for _, m := range g.Rules[0].Matches[0].Principals {
					if matchString(m, client) {
						return true
					}
				}
			}
			return false
		}
		asOwn, got := matches("corp.example"+rest), matches(name+rest)
		switch {
		case name == "foreign.example" && got:
			t.Errorf("%s%s matches %s", name, rest, client)
		case name != "foreign.example" && got && !asOwn:
			t.Errorf("%s%s matches %s, which the mesh's own name does not", name, rest, client)
		case name != "foreign.example" && deny && asOwn && !got:
			t.Errorf("DENY %s%s does not match %s", name, rest, client)
		}
	})
}

func matchString(m *securitypb.StringMatch, s string) bool {
	switch v := m.MatchType.(type) {
	case *securitypb.StringMatch_Exact:
		return s == v.Exact
	case *securitypb.StringMatch_Prefix:
		return strings.HasPrefix(s, v.Prefix)
	case *securitypb.StringMatch_Suffix:
		return strings.HasSuffix(s, v.Suffix)
	}
	return true
}
