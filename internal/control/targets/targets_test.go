package targets

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/durationpb"
	apisecurity "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/source"
)

// world is a graph with some services and gateways, to which tests add policies.
type world struct {
	t         testing.TB
	g         *collection.Graph
	policies  collection.Input[source.Ref, *securityv1.AuthorizationPolicy]
	tokens    collection.Input[source.Ref, *securityv1.RequestAuthentication]
	keys      map[string]*jwks.State // by source
	dests     collection.Input[routes.Target, *routes.Destination]
	gateways  collection.Input[source.Ref, Gateway]
	telemetry collection.Input[source.Ref, *telemetryv1.Telemetry]
	mesh      collection.Input[struct{}, *telemetry.Mesh]
	pods      collection.Input[source.Ref, *corev1.Pod]
	tables    *Tables
}

func different[T any](_, _ T) bool { return false }

func newWorld(t testing.TB) *world {
	g := collection.NewGraph()
	w := &world{
		t: t, g: g,
		policies:  collection.NewInput[source.Ref](g, "policies", different[*securityv1.AuthorizationPolicy]),
		tokens:    collection.NewInput[source.Ref](g, "request authentications", different[*securityv1.RequestAuthentication]),
		dests:     collection.NewInput[routes.Target](g, "destinations", (*routes.Destination).Equal),
		telemetry: collection.NewInput[source.Ref](g, "telemetry", different[*telemetryv1.Telemetry]),
		mesh:      collection.NewInput[struct{}](g, "mesh", different[*telemetry.Mesh]),
		pods:      collection.NewInput[source.Ref](g, "pods", different[*corev1.Pod]),
		gateways:  collection.NewInput[source.Ref](g, "gateways", func(a, b Gateway) bool { return a == b }),
	}
	w.tables = New(Inputs{
		Pods: w.pods.Collection, PodUID: func(_ *collection.Reader, k source.Ref) (string, string) {
			return "Kubernetes", "Kubernetes//Pod/" + k.Namespace + "/" + k.Name
		},
		Telemetry: w.telemetry.Collection, Mesh: w.mesh.Collection, HostOwner: func(*collection.Reader, string) (string, bool) { return "shop", true },
		Layers: collection.Map(w.telemetry.Collection, "layers", different[*telemetry.Made], func(r *collection.Reader, _ source.Ref, p *telemetryv1.Telemetry) (*telemetry.Made, bool) {
			mesh, _ := collection.Fetch(r, w.mesh.Collection, struct{}{})
			return telemetry.Translate(p, mesh, func(string) (string, bool) { return "shop", true }), true
		}),
		Policies: w.policies.Collection, Destinations: w.dests.Collection, Gateways: w.gateways.Collection, RootNamespace: "istio-system", Cluster: "Kubernetes", Authentications: w.tokens.Collection,
		Tokens: collection.Map(w.tokens.Collection, "tokens", different[*policy.Tokens], func(_ *collection.Reader, _ source.Ref, p *securityv1.RequestAuthentication) (*policy.Tokens, bool) {
			return policy.TranslateTokens(p, func(s jwks.Source) *jwks.State { return w.keys[s.String()] }), true
		}),
		Requests: collection.Map(w.policies.Collection, "requests", different[*policy.Requests], func(_ *collection.Reader, _ source.Ref, p *securityv1.AuthorizationPolicy) (*policy.Requests, bool) {
			return policy.TrustDomains{}.TranslateRequests(p, func(name string) (*authzpb.Provider, error) {
				if name != "x" {
					return nil, fmt.Errorf("meshConfig.extensionProviders has no provider %q", name)
				}
				return &authzpb.Provider{Name: "x", Namespace: "a", Hostname: "b", Port: 1, TimeoutMs: 1, StatusOnError: 403, Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}}}, nil
			}), true
		}),
	})
	for _, ns := range []string{"shop", "market"} {
		w.gateways.Set(source.Ref{Namespace: ns, Name: "wp"}, Gateway{Class: "istio-waypoint", Waypoint: true, Ready: true})
		w.service(ns, "web", ns)
	}
	w.gateways.Set(source.Ref{Namespace: "shop", Name: "ingress"}, Gateway{Class: "cloud"})
	w.service("shop", "free", "")
	w.dests.Set(routes.Target{Kind: source.ServiceEntry.Kind, Ref: source.Ref{Namespace: "shop", Name: "ext"}}, &routes.Destination{
		Hosts: []string{"a.example.org", "b.example.org"}, Gateway: source.Ref{Namespace: "shop", Name: "wp"}, Ready: true,
	})
	return w
}

// service adds one that uses the waypoint of a namespace, if there is one.
func (w *world) service(ns, name, waypoint string) {
	d := &routes.Destination{Hosts: []string{name + "." + ns + ".svc"}, Unbound: "it has no waypoint"}
	if waypoint != "" {
		d.Gateway, d.Ready, d.Unbound = source.Ref{Namespace: waypoint, Name: "wp"}, true, ""
	}
	w.dests.Set(routes.Target{Kind: source.Service.Kind, Ref: source.Ref{Namespace: ns, Name: name}}, d)
}

// sent returns what gateways are sent: a line a resource, of its gateway and what the
// policy is for.
func (w *world) sent() []string {
	w.t.Helper()
	w.g.Settle()
	var lines []string
	for _, c := range w.tables.Resources {
		for name, r := range c.All() {
			s := authz.NewStore()
			if err := s.Put(name, r.Body); err != nil {
				w.t.Errorf("%s: %v", name, err)
			}
			sum := s.Summaries()[0]
			parts := strings.Split(name, "/")
			lines = append(lines, strings.Join(parts[:2], "/")+" "+sum.Action+" "+strings.Join(sum.For, " "))
			if want := "gateway/Kubernetes/" + strings.Join(parts[:2], "/"); len(r.Groups) != 1 || string(r.Groups[0]) != want || sum.Policy != strings.Join(parts[4:], "/") {
				w.t.Errorf("%s is for %v, and of %s", name, r.Groups, sum.Policy)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func ref(kind, name string) *typev1beta1.PolicyTargetReference {
	return &typev1beta1.PolicyTargetReference{Kind: kind, Name: name}
}

// TestTargets: a policy is sent to the gateways of its targets, and to no other.
func TestTargets(t *testing.T) {
	for name, tt := range map[string]struct {
		namespace string
		refs      []*typev1beta1.PolicyTargetReference
		want      []string
	}{
		"a service":            {"shop", []*typev1beta1.PolicyTargetReference{ref("Service", "web")}, []string{"shop/wp ALLOW shop/web.shop.svc"}},
		"its own gateway":      {"market", []*typev1beta1.PolicyTargetReference{ref("Service", "web")}, []string{"market/wp ALLOW market/web.market.svc"}},
		"an entry":             {"shop", []*typev1beta1.PolicyTargetReference{ref("ServiceEntry", "ext")}, []string{"shop/wp ALLOW shop/a.example.org shop/b.example.org"}},
		"a gateway":            {"shop", []*typev1beta1.PolicyTargetReference{ref("Gateway", "wp")}, []string{"shop/wp ALLOW *"}},
		"another's class":      {"shop", []*typev1beta1.PolicyTargetReference{ref("Gateway", "ingress")}, nil},
		"all of a class":       {"istio-system", []*typev1beta1.PolicyTargetReference{ref("GatewayClass", "istio-waypoint")}, []string{"market/wp ALLOW *", "shop/wp ALLOW *"}},
		"by a guest":           {"shop", []*typev1beta1.PolicyTargetReference{ref("GatewayClass", "istio-waypoint")}, nil},
		"several":              {"shop", []*typev1beta1.PolicyTargetReference{ref("Service", "web"), ref("Gateway", "wp"), ref("Service", "free")}, []string{"shop/wp ALLOW *", "shop/wp ALLOW shop/web.shop.svc"}},
		"twice":                {"shop", []*typev1beta1.PolicyTargetReference{ref("Service", "web"), ref("Service", "web")}, []string{"shop/wp ALLOW shop/web.shop.svc"}},
		"of another namespace": {"market", []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: "web", Namespace: "shop"}}, nil},
		"another group":        {"shop", []*typev1beta1.PolicyTargetReference{{Group: "example.com", Kind: "Service", Name: "web"}}, nil},
		"the group core":       {"shop", []*typev1beta1.PolicyTargetReference{{Group: "core", Kind: "Service", Name: "web"}}, []string{"shop/wp ALLOW shop/web.shop.svc"}},
		"nothing there":        {"shop", []*typev1beta1.PolicyTargetReference{ref("Service", "none")}, nil},
		"no waypoint":          {"shop", []*typev1beta1.PolicyTargetReference{ref("Service", "free")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := &securityv1.AuthorizationPolicy{}
			p.Namespace, p.Name, p.Spec.TargetRefs = tt.namespace, "p", tt.refs
			if len(tt.refs) == 1 && name != "all of a class" {
				p.Spec.TargetRefs, p.Spec.TargetRef = nil, tt.refs[0] // the old field
			}
			at := source.Ref{Namespace: tt.namespace, Name: "p"}
			w.policies.Set(at, p)
			if got := w.sent(); !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
			p = p.DeepCopy()
			p.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"a": "b"}}
			w.policies.Set(at, p)
			if got := w.sent(); got != nil {
				t.Errorf("with a selector: %q", got)
			}
		})
	}
}

// TestBinding: a service that gets another waypoint takes its policies along.
func TestBinding(t *testing.T) {
	w := newWorld(t)
	p := &securityv1.AuthorizationPolicy{}
	p.Namespace, p.Name, p.Spec.TargetRef = "shop", "p", ref("Service", "web")
	w.policies.Set(source.Ref{Namespace: "shop", Name: "p"}, p)
	w.sent()
	for waypoint, want := range map[string][]string{"market": {"market/wp ALLOW shop/web.shop.svc"}, "": nil} {
		w.service("shop", "web", waypoint)
		if got := w.sent(); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func asks(name string) *apisecurity.AuthorizationPolicy_Provider {
	return &apisecurity.AuthorizationPolicy_Provider{Provider: &apisecurity.AuthorizationPolicy_ExtensionProvider{Name: name}}
}

// TestConditions: the status says where a policy acts, and what of it does not.
func TestConditions(t *testing.T) {
	rule := []*apisecurity.Rule{{To: []*apisecurity.Rule_To{{Operation: &apisecurity.Operation{Methods: []string{"GET"}}}}}}
	token := []*apisecurity.Rule{{From: []*apisecurity.Rule_From{{Source: &apisecurity.Source{RequestPrincipals: []string{"*"}}}}}}
	metadata := []*apisecurity.Rule{{When: []*apisecurity.Condition{{Key: "experimental.envoy.x", Values: []string{"a"}}}}}
	wrong := []*apisecurity.Rule{{To: []*apisecurity.Rule_To{{Operation: &apisecurity.Operation{Paths: []string{"/a/{*}.txt"}}}}}}
	for name, tt := range map[string]struct {
		spec   *apisecurity.AuthorizationPolicy
		dryRun bool
		want   string
	}{
		"an ALLOW":               {&apisecurity.AuthorizationPolicy{Rules: rule}, false, "True Accepted: enforced by waypoint shop/wp for Service shop/web"},
		"an ALLOW of nothing":    {&apisecurity.AuthorizationPolicy{}, false, "True Accepted: enforced by waypoint shop/wp for Service shop/web; without rules it allows nothing"},
		"a DENY of nothing":      {&apisecurity.AuthorizationPolicy{Action: apisecurity.AuthorizationPolicy_DENY}, false, "True Accepted: enforced by waypoint shop/wp for Service shop/web; without rules it matches nothing"},
		"a dry run":              {&apisecurity.AuthorizationPolicy{Rules: rule}, true, "True Accepted: dry run: evaluated and counted, and not enforced, by waypoint shop/wp"},
		"an AUDIT":               {&apisecurity.AuthorizationPolicy{Action: apisecurity.AuthorizationPolicy_AUDIT, Rules: rule}, false, "True Accepted: requests that match are counted by waypoint shop/wp"},
		"an external authorizer": {&apisecurity.AuthorizationPolicy{Action: apisecurity.AuthorizationPolicy_CUSTOM, ActionDetail: asks("x"), Rules: rule}, false, "True Accepted: external authorizer x is asked about requests that match, by waypoint shop/wp for Service shop/web"},
		"an unknown authorizer":  {&apisecurity.AuthorizationPolicy{Action: apisecurity.AuthorizationPolicy_CUSTOM, ActionDetail: asks("y"), Rules: rule}, false, "False Invalid: enforced by waypoint shop/wp for Service shop/web; meshConfig.extensionProviders has no provider \"y\": everything that the rules match is denied"},
		"a token":                {&apisecurity.AuthorizationPolicy{Rules: token}, false, "True Accepted: enforced by waypoint shop/wp for Service shop/web"},
		"what no waypoint has":   {&apisecurity.AuthorizationPolicy{Rules: metadata}, false, "False UnsupportedValue: enforced by waypoint shop/wp for Service shop/web; waypoints do not decide by spec.rules[0].when[0].key \"experimental.envoy.x\" yet, so these rules never allow"},
		"a path that is not one": {&apisecurity.AuthorizationPolicy{Rules: wrong}, false, "False Invalid: enforced by waypoint shop/wp for Service shop/web; correct spec.rules[0].to[0].operation.paths: "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := &securityv1.AuthorizationPolicy{}
			tt.spec.DeepCopyInto(&p.Spec)
			p.Namespace, p.Name, p.Spec.TargetRef = "shop", "p", ref("Service", "web")
			if tt.dryRun {
				p.Annotations = map[string]string{"istio.io/dry-run": "true"}
			}
			at := source.Ref{Namespace: "shop", Name: "p"}
			w.policies.Set(at, p)
			w.g.Settle()
			res := w.tables.Policies.All()
			var c status.Condition
			for _, r := range res {
				c = r.Conditions[0]
			}
			if got := c.Status + " " + c.Reason + ": " + c.Message; c.Type != status.WaypointAccepted || !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s %s, want %s", c.Type, got, tt.want)
			}
		})
	}
}

// TestTokens: a RequestAuthentication is sent to the gateways of its targets with the
// keys that are known, and its status says both.
func TestTokens(t *testing.T) {
	issuer := jwttest.New(t, "https://issuer.example", "k", jose.ES256)
	set := jwttest.Keys(t, issuer)
	fetched := &jwks.State{Keys: string(set.Text()), Count: 1}
	uri := "https://issuer.example/keys"
	rule := &apisecurity.JWTRule{Issuer: issuer.Name, JwksUri: uri}
	for name, tt := range map[string]struct {
		refs   []*typev1beta1.PolicyTargetReference
		rule   *apisecurity.JWTRule
		keys   *jwks.State
		sent   string // gateway, keys, for what
		status []string
	}{
		"keys that were fetched": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, rule, fetched, "shop/wp 1 [shop/web.shop.svc]",
			[]string{"True Accepted: tokens are verified by waypoint shop/wp for Service shop/web", "True KeysFetched: keys: 1 of " + uri}},
		"not yet": {[]*typev1beta1.PolicyTargetReference{ref("Gateway", "wp")}, rule, nil, "shop/wp 0 [*]",
			[]string{"True Accepted: tokens are verified by waypoint shop/wp", "Unknown Pending: no token of these issuers is accepted until the keys have come"}},
		"never": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, rule, &jwks.State{Problem: "status 500"}, "shop/wp 0 [shop/web.shop.svc]",
			[]string{"True Accepted:", "False KeysUnavailable: no token of these issuers is accepted, unless a waypoint has keys from before: status 500"}},
		"no longer": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, rule, &jwks.State{Keys: fetched.Keys, Count: 1, Problem: "status 500"}, "shop/wp 1 [shop/web.shop.svc]",
			[]string{"True Accepted:", "False KeysOutdated: the keys that were fetched last stay in use: status 500"}},
		"at the issuer": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: issuer.Name}, nil, "shop/wp 0 [shop/web.shop.svc]",
			[]string{"True Accepted:", "Unknown Pending: no token of these issuers is accepted until the keys have come: " + issuer.Name}},
		"keys of its own": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: "any", Jwks: jwttest.Set(issuer)}, nil, "shop/wp 1 [shop/web.shop.svc]", []string{"True Accepted:"}},
		"a timeout": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: "any", Jwks: jwttest.Set(issuer), Timeout: durationpb.New(1)}, nil, "shop/wp 1 [shop/web.shop.svc]",
			[]string{"True Accepted: tokens are verified by waypoint shop/wp for Service shop/web; spec.jwtRules[0].timeout has no effect"}},
		"keys that are none": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: "any", Jwks: "x"}, nil, "shop/wp 0 [shop/web.shop.svc]",
			[]string{"False Invalid: tokens are verified by waypoint shop/wp for Service shop/web; correct spec.jwtRules[0].jwks: "}},
		"a header that is none": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: "any", Jwks: jwttest.Set(issuer), OutputPayloadToHeader: "host"}, nil, "shop/wp 0 [shop/web.shop.svc]",
			[]string{"False Invalid: tokens are verified by waypoint shop/wp for Service shop/web; correct spec.jwtRules[0].outputPayloadToHeader: "}},
		"a file": {[]*typev1beta1.PolicyTargetReference{ref("Service", "web")}, &apisecurity.JWTRule{Issuer: "any", JwksUri: "file:///etc/passwd"}, nil, "shop/wp 0 [shop/web.shop.svc]",
			[]string{"False Invalid: tokens are verified by waypoint shop/wp for Service shop/web; correct spec.jwtRules[0].jwksUri: "}},
		"nowhere": {[]*typev1beta1.PolicyTargetReference{ref("Service", "free")}, rule, fetched, "", []string{"False AncestorNotBound:", "True KeysFetched:"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.keys = map[string]*jwks.State{uri: tt.keys}
			p := &securityv1.RequestAuthentication{}
			p.Namespace, p.Name, p.Spec.TargetRefs, p.Spec.JwtRules = "shop", "p", tt.refs, []*apisecurity.JWTRule{tt.rule}
			w.tokens.Set(source.Ref{Namespace: "shop", Name: "p"}, p)
			w.g.Settle()
			var sent string
			for _, c := range w.tables.Tokens {
				for name, r := range c.All() {
					s := authn.NewStore()
					if err := s.Put(name, r.Body); err != nil {
						t.Fatal(err)
					}
					sum := s.Summaries()[0]
					sent += fmt.Sprint(strings.Join(strings.Split(name, "/")[:2], "/"), " ", sum.Providers[0].Keys, " ", sum.For)
				}
			}
			if sent != tt.sent {
				t.Errorf("sent %s, want %s", sent, tt.sent)
			}
			var got []status.Condition
			for _, r := range w.tables.Authentications.All() {
				got = r.Conditions
			}
			if len(got) != len(tt.status) {
				t.Fatalf("%v", got)
			}
			for i, c := range got {
				if text := c.Status + " " + c.Reason + ": " + c.Message; !strings.HasPrefix(text, tt.status[i]) {
					t.Errorf("%s, want %s", text, tt.status[i])
				}
			}
		})
	}
}
