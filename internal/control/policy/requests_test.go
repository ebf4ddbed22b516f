package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"pgregory.net/rapid"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// authorizers has one, called x.
func authorizers(name string) (*authzpb.Provider, error) {
	if name != "x" {
		return nil, fmt.Errorf("no provider %q", name)
	}
	return &authzpb.Provider{
		Name: "x", Namespace: "a", Hostname: "b", Port: 1, TimeoutMs: 1, StatusOnError: 403, Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}},
	}, nil
}

// answered is the metadata of each answer of an external authorizer.
var answered = func() *extauthz.Metadata {
	s, err := structpb.NewStruct(map[string]any{"user": "ann", "level": 3.0, "groups": []any{"dev", "ops"}, "org": map[string]any{"team": "books"}})
	if err != nil {
		panic(err)
	}
	m, err := extauthz.NewMetadata(s)
	if err != nil {
		panic(err)
	}
	return m
}()

// atGateway is what a gateway decides with the translation. It reports whether all
// policies were translated as they are written.
func atGateway(t interface{ Fatal(...any) }, d TrustDomains, policies []*securityv1.AuthorizationPolicy, r *request, h *message.Head) (allowed, exact bool) {
	s := authz.NewStore()
	exact = true
	for i, p := range policies {
		q := d.TranslateRequests(p, authorizers)
		exact = exact && q.Lossy == ""
		if err := s.Put(fmt.Sprint(i), q.For(nil)); err != nil {
			t.Fatal("the gateway rejects a translation: ", err)
		}
	}
	a := authz.NewAccess(r.conn, nil, nil)
	a.Begin(s.Set(), h, r.tokens)
	a.Metadata(answered)
	return a.Judge() == nil, exact
}

// TestGatewaysAllowNothingMore is the invariant at gateways, which see requests.
func TestGatewaysAllowNothingMore(t *testing.T) {
	tokens := map[string]*jwt.Claims{}
	for _, sub := range []string{"a", "b"} {
		tokens[sub] = jwttest.Claims(t, map[string]any{"iss": "a", "sub": sub})
	}
	rapid.Check(t, func(t *rapid.T) {
		var policies []*securityv1.AuthorizationPolicy
		for i := range rapid.IntRange(1, 3).Draw(t, "policies") {
			policies = append(policies, genPolicy(t, fmt.Sprintf("p%d", i)))
		}
		for range 4 {
			r := genRequest(t)
			r.hidden["connection.sni"] = "" // a request has none
			if c := tokens[r.hidden["request.principal"]]; c != nil {
				r.tokens, r.hidden["request.principal"] = []*jwt.Claims{c}, c.Principal
			}
			h := &message.Head{Method: []byte(r.hidden["method"]), Authority: []byte(r.hidden["host"]), Path: []byte(r.hidden["path"])}
			if v := r.hidden["request.headers[x]"]; v != "" {
				h.Add(message.NewKey("X"), []byte(v))
			}
			allowed, exact := atGateway(t, TrustDomains{}, policies, r, h)
			written := asWritten(policies, r)
			if allowed && !written {
				t.Fatalf("allowed by the gateway, denied as written:\n%s\n%+v", show(policies), r)
			}
			whole := r.hidden["method"] != "" && r.hidden["host"] != "" && r.hidden["path"] != ""
			if exact && whole && allowed != written {
				t.Fatalf("accepted without reservation, and yet allowed=%v where %v is written:\n%s\n%+v", allowed, written, show(policies), r)
			}
		}
	})
}

// TestAttributes: each attribute of the API decides at a gateway, alone. An attribute
// that a gateway does not have never allows, and denies.
func TestAttributes(t *testing.T) {
	when := func(key string, v ...string) *apisecurity.Rule {
		return &apisecurity.Rule{When: []*apisecurity.Condition{{Key: key, Values: v}}}
	}
	whenNot := func(key string, v ...string) *apisecurity.Rule {
		return &apisecurity.Rule{When: []*apisecurity.Condition{{Key: key, NotValues: v}}}
	}
	from := func(s *apisecurity.Source) *apisecurity.Rule {
		return &apisecurity.Rule{From: []*apisecurity.Rule_From{{Source: s}}}
	}
	to := func(o *apisecurity.Operation) *apisecurity.Rule {
		return &apisecurity.Rule{To: []*apisecurity.Rule_To{{Operation: o}}}
	}
	l := func(v ...string) []string { return v }
	claims := jwttest.Claims(t, map[string]any{"sub": "ann", "aud": []string{"x", "a"}, "azp": "presenter", "org": map[string]any{"groups": []string{"ops", "dev"}}})
	for name, tt := range map[string]struct {
		rule  *apisecurity.Rule
		fits  bool
		lossy bool
	}{
		"principals":                   {from(&apisecurity.Source{Principals: l("td/ns/shop/sa/cart")}), true, false},
		"principals, alias":            {from(&apisecurity.Source{Principals: l("old/ns/shop/sa/cart")}), true, false},
		"notPrincipals":                {from(&apisecurity.Source{NotPrincipals: l("td/ns/shop/*")}), false, false},
		"namespaces":                   {from(&apisecurity.Source{Namespaces: l("sh*")}), true, false},
		"notNamespaces":                {from(&apisecurity.Source{NotNamespaces: l("shop")}), false, false},
		"serviceAccounts":              {from(&apisecurity.Source{ServiceAccounts: l("cart", "web/x")}), true, false},
		"notServiceAccounts":           {from(&apisecurity.Source{NotServiceAccounts: l("shop/cart")}), false, false},
		"trustDomains":                 {from(&apisecurity.Source{TrustDomains: l("td")}), true, false},
		"trustDomains, alias":          {from(&apisecurity.Source{TrustDomains: l("old")}), true, false},
		"notTrustDomains":              {from(&apisecurity.Source{NotTrustDomains: l("other")}), true, false},
		"ipBlocks":                     {from(&apisecurity.Source{IpBlocks: l("10.0.0.0/24")}), true, false},
		"notIpBlocks":                  {from(&apisecurity.Source{NotIpBlocks: l("10.0.0.1")}), false, false},
		"remoteIpBlocks":               {from(&apisecurity.Source{RemoteIpBlocks: l("10.0.0.1")}), true, false},
		"ipBlocks and remote":          {from(&apisecurity.Source{IpBlocks: l("10.0.0.1"), RemoteIpBlocks: l("10.9.0.0/16")}), false, false},
		"notRemoteIpBlocks":            {from(&apisecurity.Source{NotRemoteIpBlocks: l("10.0.0.0/8")}), false, false},
		"hosts":                        {to(&apisecurity.Operation{Hosts: l("web*")}), true, false},
		"notHosts":                     {to(&apisecurity.Operation{NotHosts: l("web")}), false, false},
		"ports":                        {to(&apisecurity.Operation{Ports: l("80")}), true, false},
		"notPorts":                     {to(&apisecurity.Operation{NotPorts: l("81")}), true, false},
		"methods":                      {to(&apisecurity.Operation{Methods: l("GET")}), true, false},
		"notMethods":                   {to(&apisecurity.Operation{NotMethods: l("GET")}), false, false},
		"paths":                        {to(&apisecurity.Operation{Paths: l("/a/{*}/c")}), true, false},
		"notPaths":                     {to(&apisecurity.Operation{NotPaths: l("*/c")}), false, false},
		"a combination":                {to(&apisecurity.Operation{Methods: l("GET"), Paths: l("/x")}), false, false},
		"alternatives":                 {&apisecurity.Rule{To: []*apisecurity.Rule_To{{Operation: &apisecurity.Operation{Methods: l("PUT")}}, {Operation: &apisecurity.Operation{Paths: l("/a/*")}}}}, true, false},
		"source.ip":                    {when("source.ip", "10.0.0.0/8"), true, false},
		"remote.ip":                    {when("remote.ip", "10.0.0.0/8"), true, false},
		"not remote.ip":                {whenNot("remote.ip", "10.0.0.0/8"), false, false},
		"source.namespace":             {when("source.namespace", "shop"), true, false},
		"source.principal":             {when("source.principal", "*/sa/cart"), true, false},
		"source.serviceAccount":        {when("source.serviceAccount", "shop/cart"), true, false},
		"source.trustDomain":           {when("source.trustDomain", "t*"), true, false},
		"not source.trustDomain":       {whenNot("source.trustDomain", "old"), false, false},
		"destination.ip":               {when("destination.ip", "10.1.0.1"), true, false},
		"destination.port":             {when("destination.port", "80"), true, false},
		"connection.sni":               {when("connection.sni", "web"), false, false},
		"request.headers":              {when("request.headers[X-Role]", "adm*"), true, false},
		"not request.headers":          {whenNot("request.headers[x-role]", "admin"), false, false},
		"a missing header":             {whenNot("request.headers[x-none]", "*"), true, false},
		"request.headers[:authority]":  {when("request.headers[:authority]", "web"), true, false},
		"requestPrincipals":            {from(&apisecurity.Source{RequestPrincipals: l("*")}), true, false},
		"requestPrincipals, exact":     {from(&apisecurity.Source{RequestPrincipals: l("https://issuer.example/ann")}), true, false},
		"requestPrincipals, others":    {from(&apisecurity.Source{RequestPrincipals: l("https://issuer.example/bob")}), false, false},
		"requestPrincipals, prefix":    {from(&apisecurity.Source{RequestPrincipals: l("https://issuer.example/*")}), true, false},
		"notRequestPrincipals":         {from(&apisecurity.Source{NotRequestPrincipals: l("*")}), false, false},
		"notRequestPrincipals, others": {from(&apisecurity.Source{NotRequestPrincipals: l("*/bob")}), true, false},
		"request.auth.principal":       {when("request.auth.principal", "*/ann"), true, false},
		"not request.auth.principal":   {whenNot("request.auth.principal", "*/ann"), false, false},
		"request.auth.audiences":       {when("request.auth.audiences", "a"), true, false},
		"request.auth.presenter":       {when("request.auth.presenter", "pres*"), true, false},
		"request.auth.claims":          {when("request.auth.claims[iss]", "https://issuer.example"), true, false},
		"nested claims":                {when("request.auth.claims[org][groups]", "dev"), true, false},
		"not a claim":                  {whenNot("request.auth.claims[org][groups]", "dev"), false, false},
		"a claim that is missing":      {whenNot("request.auth.claims[other]", "*"), true, false},
		"a claim without an end":       {when("request.auth.claims[iss", "a"), false, true},
		"a claim without a name":       {when("request.auth.claims[a][]", "a"), false, true},
		// The metadata of external authorizers.
		"metadata":                     {when("experimental.envoy.filters.http.ext_authz[user]", "ann"), true, false},
		"another value":                {when("experimental.envoy.filters.http.ext_authz[user]", "bob", "a"), false, false},
		"not metadata":                 {whenNot("experimental.envoy.filters.http.ext_authz[user]", "a*"), false, false},
		"nested metadata":              {when("experimental.envoy.filters.http.ext_authz[org][team]", "books"), true, false},
		"metadata of a list":           {when("experimental.envoy.filters.http.ext_authz[groups]", "[ops]"), true, false},
		"metadata that is a number":    {when("experimental.envoy.filters.http.ext_authz[level]", "3"), true, false},
		"metadata that is missing":     {when("experimental.envoy.filters.http.ext_authz[none]", "*"), false, false},
		"metadata that is a structure": {when("experimental.envoy.filters.http.ext_authz[org]", "*"), false, false},
		"metadata without a key":       {when("experimental.envoy.filters.http.ext_authz", "a"), false, true},
		// What gateways do not have.
		"experimental":           {when("experimental.envoy.filters.a[b]", "a"), false, true},
		"request.headers[:path]": {when("request.headers[:path]", "/a/b/c"), false, true},
		"a key that is none":     {when("request.header[x]", "a"), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := TrustDomains{Local: "td", Aliases: []string{"old"}}
			r := genuine(claims)
			h := &message.Head{Method: []byte("GET"), Authority: []byte("web"), Path: []byte("/a/b/c")}
			h.Add(message.NewKey("x-role"), []byte("admin"))
			p := &securityv1.AuthorizationPolicy{}
			p.Namespace, p.Name, p.Spec.Rules = "shop", "p", []*apisecurity.Rule{tt.rule}
			allowed, exact := atGateway(t, d, []*securityv1.AuthorizationPolicy{p}, r, h)
			if allowed != tt.fits || exact == tt.lossy {
				t.Errorf("ALLOW: %v, exact %v", allowed, exact)
			}
			p.Spec.Action = apisecurity.AuthorizationPolicy_DENY
			if allowed, _ := atGateway(t, d, []*securityv1.AuthorizationPolicy{p}, r, h); allowed == (tt.fits || tt.lossy) {
				t.Errorf("DENY: %v", allowed)
			}
			p.Spec.Action = apisecurity.AuthorizationPolicy_CUSTOM
			if allowed, exact := atGateway(t, d, []*securityv1.AuthorizationPolicy{p}, r, h); allowed == (tt.fits || tt.lossy) || exact {
				t.Errorf("CUSTOM without a provider: %v", allowed)
			}
			// To be asked about is as good as to be denied here.
			p.Spec.ActionDetail = &apisecurity.AuthorizationPolicy_Provider{Provider: &apisecurity.AuthorizationPolicy_ExtensionProvider{Name: "x"}}
			if allowed, exact := atGateway(t, d, []*securityv1.AuthorizationPolicy{p}, r, h); allowed == (tt.fits || tt.lossy) || exact == tt.lossy {
				t.Errorf("CUSTOM: %v, exact %v", allowed, exact)
			}
			p.Annotations = map[string]string{"istio.io/dry-run": "true"}
			if allowed, _ := atGateway(t, d, []*securityv1.AuthorizationPolicy{p}, r, h); !allowed {
				t.Error("a dry run denies")
			}
		})
	}
}

func genuine(claims *jwt.Claims) *request {
	r := &request{tokens: []*jwt.Claims{claims}}
	r.conn.Identity = identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "cart"}
	r.conn.Src, r.conn.Dst = netip.MustParseAddrPort("10.0.0.1:4000"), netip.MustParseAddrPort("10.1.0.1:80")
	return r
}

// TestTooLarge: a policy that no gateway would take denies what it is for.
func TestTooLarge(t *testing.T) {
	p := &securityv1.AuthorizationPolicy{}
	p.Namespace, p.Name = "shop", "p"
	o := &apisecurity.Operation{}
	for i := range 70_000 {
		o.Paths = append(o.Paths, fmt.Sprint("/", i))
	}
	p.Spec.Rules = []*apisecurity.Rule{{}, {To: []*apisecurity.Rule_To{{Operation: o}}}}
	q := TrustDomains{}.TranslateRequests(p, authorizers)
	if !strings.Contains(q.Lossy, "deny everything") {
		t.Error(q.Lossy)
	}
	if allowed, _ := atGateway(t, TrustDomains{}, []*securityv1.AuthorizationPolicy{p}, genuine(nil), &message.Head{Path: []byte("/")}); allowed {
		t.Error("allowed")
	}
}
