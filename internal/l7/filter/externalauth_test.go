package filter

import (
	"testing"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

// TestAuthorizersOfPoliciesAndRoutes: the authorizer of a policy is asked first, then that
// of the rule, and each of them once; without a rule the first alone.
func TestAuthorizersOfPoliciesAndRoutes(t *testing.T) {
	provider := func(name string) *authzpb.Provider {
		return &authzpb.Provider{Name: name, Namespace: "auth", Hostname: "a", Port: 1, TimeoutMs: 1, StatusOnError: 403, Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}}}
	}
	of, err := extauthz.Compile(provider("HTTPRoute shop/web, rule 0"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := authz.Encode(&authzpb.Policy{
		Namespace: "shop", Name: "ask", Action: authzpb.Action_CUSTOM, Everything: true, Provider: provider("z"),
		Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{{Methods: []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Exact{Exact: "GET"}}}}}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	policies := authz.NewStore()
	if err := policies.Put("ask", body); err != nil {
		t.Fatal(err)
	}
	rule := &route.Target{Rule: &route.Rule{Filters: route.Filters{ExternalAuth: of}}}
	for name, tt := range map[string]struct {
		access bool
		rule   *route.Target
		asked  []string
	}{
		"both": {true, rule, []string{"z", of.Name}}, "a policy": {true, &route.Target{Rule: &route.Rule{}}, []string{"z"}}, "no rule": {true, nil, []string{"z"}},
		"a rule": {false, rule, []string{of.Name}}, "none": {false, nil, nil},
	} {
		h := &message.Head{Method: []byte("GET"), Authority: []byte("web"), Path: []byte("/")}
		c := &Call{Request: h, Rule: tt.rule}
		if tt.access {
			c.Access = authz.NewAccess(rbac.Conn{}, nil, func(authz.Note) {})
			c.Access.Begin(policies.Set(), h, nil)
		}
		v := Request(c)
		for _, want := range tt.asked {
			if v != Ask || c.Authorizer == nil || c.Authorizer.Name != want {
				t.Fatalf("%s: %d, asked %v, want %s", name, v, c.Authorizer, want)
			}
			c.Allowed = append(c.Allowed, c.Authorizer.Name)
			v = Resume(c)
		}
		if v != Continue {
			t.Errorf("%s: %d in the end, asked %v", name, v, c.Authorizer)
		}
	}
}
