package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// authorized is a service with a waypoint, and the pod of an external authorizer on another
// node, which only the waypoint may call.
func authorized() string {
	return api() + rig.NamespaceObject("auth", true) + rig.PodObject("auth", "authorizer", "node2", "app: authorizer") +
		rig.ServiceObject("auth", "authorizer", "authorizer", "{name: http, port: 8000, targetPort: 9000}, {name: grpc, port: 8001, targetPort: 9001}") +
		rig.PolicyObject("auth", "waypoint-only", "ALLOW", `rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/waypoint"]}}]}]`)
}

// authorizers is a mesh configuration with the authorizer by both protocols.
const authorizers = `
extensionProviders:
- name: by-http
  envoyExtAuthzHttp:
    service: authorizer.auth.svc.cluster.local
    port: 8000
    pathPrefix: /check
    includeRequestHeadersInCheck: [x-wish, cookie]
    includeAdditionalHeadersInCheck: {x-asker: waypoint}
    headersToUpstreamOnAllow: [x-user, "x-team-*"]
    headersToDownstreamOnAllow: [x-seen]
    headersToDownstreamOnDeny: [x-why]
- name: by-grpc
  envoyExtAuthzGrpc: {service: auth/authorizer.auth.svc.cluster.local, port: 8001}
- name: broken
  envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 0}
`

// asks is a CUSTOM policy of the service api.
func asks(provider, rules string) string {
	return rig.PolicyObject("shop", "ask", "CUSTOM", fmt.Sprintf(`provider: {name: %s}, targetRefs: [{group: "", kind: Service, name: api}], rules: %s`, provider, rules))
}

func startAuthorized(t *testing.T, more string) (*rig.World, *rig.Authorizer, rig.MeshFile) {
	m := rig.NewMeshFile(t, authorizers+more)
	w := rig.Start(t, lab.Config{YAML: authorized(), Args: map[string][]string{lab.Ambitd: {"--mesh-config", m.Path}}})
	serveAPI(w)
	return w, w.Authorizer(lab.InPod("auth", "authorizer")), m
}

// TestExternalAuthorization: requests that a CUSTOM policy matches get the answer of the
// authorizer, by HTTP and by gRPC, and no others are asked about.
func TestExternalAuthorization(t *testing.T) {
	world, a, _ := startAuthorized(t, "")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", v6), 80)}
		c.becomes(bare, 200)

		// By HTTP.
		a.Answer(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("x-why", "because")
			rw.Header().Set("x-secret", "s")
			if r.Header.Get("x-wish") != "please" {
				rw.WriteHeader(401)
				_, _ = rw.Write([]byte("say please"))
				return
			}
			rw.Header().Set("x-user", "ann")
			rw.Header().Set("x-seen", "yes")
		}, nil)
		w.MustApply(asks("by-http", `[{to: [{operation: {paths: ["/private*"]}}]}]`))
		c.becomes("GET /private HTTP/1.1\nHost: api", 401)
		a.Asked()
		resp, body := c.must("GET /private/a?b=c HTTP/1.1\nHost: api\nAuthorization: Basic xyz\nX-Other: o")
		if resp.StatusCode != 401 || body != "say please" || resp.Header.Get("x-why") != "because" || resp.Header["X-Secret"] != nil {
			t.Errorf("denied: %d %q %v", resp.StatusCode, body, resp.Header)
		}
		all := a.Asked()
		if len(all) != 1 {
			t.Fatalf("%d questions", len(all))
		}
		if q := all[0].Request; q.RequestURI != "/check/private/a?b=c" || q.Method != "GET" || q.Host != "api" || q.Header.Get("Authorization") != "Basic xyz" || q.Header["X-Other"] != nil || q.Header.Get("X-Asker") != "waypoint" {
			t.Errorf("asked: %s %s %s %v", q.Method, q.Host, q.RequestURI, q.Header)
		}
		if s := c.got("GET /private HTTP/1.1\nHost: api\nX-Wish: please\nX-User: root\nx_user: root\nX-Team-A: a"); s.Header.Get("X-User") != "ann" || s.Header["X_user"] != nil || s.Header["X-Team-A"] != nil {
			t.Errorf("the program got %v", s.Header)
		}
		if resp, _ := c.must("GET /private HTTP/1.1\nHost: api\nX-Wish: please"); resp.Header.Get("x-seen") != "yes" || resp.Header["X-Why"] != nil {
			t.Errorf("the client got %v", resp.Header)
		}
		a.Asked()
		c.got("GET /public HTTP/1.1\nHost: api")
		if n := len(a.Asked()); n != 0 {
			t.Errorf("asked %d times about what no rule matches", n)
		}

		// By gRPC.
		a.Answer(nil, func(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			h := q.GetAttributes().GetRequest().GetHttp()
			if h.GetHeaders()["x-wish"] != "please" {
				return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
					Status: &typev3.HttpStatus{Code: typev3.StatusCode_PaymentRequired}, Body: "pay", Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-why", Value: "because"}}},
				}}}, nil
			}
			return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
				Headers:              []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "bob"}}},
				HeadersToRemove:      []string{"x-wish"},
				ResponseHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-seen", Value: "yes"}}},
				QueryParametersToSet: []*corev3.QueryParameter{{Key: "who", Value: "bob & co"}}, QueryParametersToRemove: []string{"b"},
			}}}, nil
		})
		w.MustApply(asks("by-grpc", `[{to: [{operation: {paths: ["/private*"]}}]}]`))
		c.becomes("GET /private HTTP/1.1\nHost: api", 402)
		a.Asked()
		resp, body = c.must("GET /private?a=1 HTTP/1.1\nHost: api\nX-Other: 1\nX-Other: 2")
		if resp.StatusCode != 402 || body != "pay" || resp.Header.Get("x-why") != "because" {
			t.Errorf("denied: %d %q %v", resp.StatusCode, body, resp.Header)
		}
		if all = a.Asked(); len(all) != 1 {
			t.Fatalf("%d questions", len(all))
		}
		at := all[0].Check.GetAttributes()
		if h := at.GetRequest().GetHttp(); h.GetPath() != "/private?a=1" || h.GetMethod() != "GET" || h.GetHost() != "api" || h.GetHeaders()["x-other"] != "1,2" || h.GetProtocol() != "HTTP/1.1" ||
			at.GetSource().GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/far" || at.GetDestination().GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/waypoint" ||
			at.GetSource().GetAddress().GetSocketAddress().GetAddress() != w.Pod("shop", "far", v6).String() || at.GetDestination().GetAddress().GetSocketAddress().GetPortValue() != 80 {
			t.Errorf("asked: %v", at)
		}
		s := c.got("GET /private?a=1&b=2 HTTP/1.1\nHost: api\nX-Wish: please\nX-User: root")
		if s.Header.Get("X-User") != "bob" || s.Header["X-Wish"] != nil || s.URI != "/private?a=1&who=bob+%26+co" {
			t.Errorf("the program got %s %v", s.URI, s.Header)
		}
		w.MustDelete("AuthorizationPolicy", "shop", "ask")
		c.becomes("GET /private HTTP/1.1\nHost: api", 200)
	})
	if t.Failed() {
		return
	}
	at, err := gatewayPod(world)
	if err != nil {
		t.Fatal(err)
	}
	world.MustApply(asks("by-http", `[{}]`))
	c := userAgent{world, netip.AddrPortFrom(world.Service("shop", "api", false), 80)}
	a.Answer(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(403) }, nil)
	c.becomes(bare, 403)
	if n := countOf(world.MetricsIn(at, "ambit_external_authorizations_total"), "authorizer", "by-http", "outcome", "denied"); n == 0 {
		t.Error("no denial is counted")
	}
	// What a user sees of it.
	world.MustApply(asks("by-http", `[{to: [{operation: {paths: ["/private*"]}}]}]`))
	c.becomes(bare, 200)
	for path, want := range map[string]string{
		"/private": "CUSTOM matches: asks by-http (HTTP to authorizer.auth.svc.cluster.local:8000)",
		"/public":  "CUSTOM does not match: does not ask by-http (HTTP to authorizer.auth.svc.cluster.local:8000)",
	} {
		if out, err := world.Ambit("why", "far.shop", "http://api"+path); err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("why %s: %v\n%s", path, err, out)
		}
	}
	if out, err := world.Ambit("waypoint-config", "policies", "waypoint.shop"); err != nil || !strings.Contains(out, "CUSTOM: asks by-http") {
		t.Errorf("%v\n%s", err, out)
	}
	world.Eventually("the status names the authorizer", func() error {
		out, err := world.Ambit("status")
		if err != nil || !strings.Contains(out, "external authorizer by-http is asked about requests that match, by waypoint shop/waypoint for Service shop/api") {
			return fmt.Errorf("%s, error %w", out, err)
		}
		return nil
	})

	// An authorizer that cannot be used denies, and says why.
	for name, why := range map[string]string{
		"nobody": `meshConfig.extensionProviders has no provider "nobody": everything that the rules match is denied`,
		"broken": `provider "broken" of meshConfig.extensionProviders: port: 0 is not 1 to 65535: everything that the rules match is denied`,
	} {
		world.MustApply(asks(name, `[{to: [{operation: {paths: ["/private"]}}]}]`))
		world.Eventually(name+" denies", func() error {
			resp, body, err := c.do("GET /private HTTP/1.1\nHost: api")
			if err != nil || resp.StatusCode != 403 || body != "RBAC: access denied" {
				return fmt.Errorf("%v %q %w", resp, body, err)
			}
			return nil
		})
		if resp, _ := c.must(bare); resp.StatusCode != 200 {
			t.Errorf("%s: what no rule matches: %d", name, resp.StatusCode)
		}
		world.Eventually("the status says why", func() error {
			out, err := world.Ambit("status")
			if err != nil || !strings.Contains(out, why) {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
	}
}

func countOf(all []traffic.Sample, labels ...string) (n float64) {
	for _, s := range all {
		fits := true
		for i := 0; i < len(labels); i += 2 {
			fits = fits && s.Labels[labels[i]] == labels[i+1]
		}
		if fits {
			n += s.Value
		}
	}
	return n
}
