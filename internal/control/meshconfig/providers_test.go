package meshconfig_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

func TestProviders(t *testing.T) {
	c, unread, err := meshconfig.Parse([]byte(`
extensionProviders:
- name: by-http
  envoyExtAuthzHttp:
    service: auth/Door.auth.svc.cluster.local
    port: 8000
    timeout: 500ms
    pathPrefix: /check
    failOpen: true
    clearRouteCache: true
    statusOnError: "503"
    includeHeadersInCheck: [x-old]
    includeRequestHeadersInCheck: [x-token, "x-a*"]
    includeAdditionalHeadersInCheck: {x-b: "2", x-a: "1"}
    includeRequestBodyInCheck: {maxRequestBytes: 1000, allowPartialMessage: true, packAsBytes: true}
    headersToUpstreamOnAllow: [x-user]
    headersToDownstreamOnAllow: [x-seen]
    headersToDownstreamOnDeny: [x-why]
- name: by-grpc
  envoy_ext_authz_grpc: {service: door.example, port: 9000, fail_open: true}
- name: tracing
  zipkin: {service: z, port: 1}
- name: unknown
  newThing: {}
`))
	if err != nil || unread != nil {
		t.Fatal(unread, err)
	}
	want := &authzpb.Provider{
		Name: "by-http", Namespace: "auth", Hostname: "door.auth.svc.cluster.local", Port: 8000, TimeoutMs: 500, FailOpen: true, RecomputeRoute: true, StatusOnError: 503,
		Body: &authzpb.CheckBody{MaxBytes: 1000, AllowPartial: true, Raw: true},
		Protocol: &authzpb.Provider_Http{Http: &authzpb.HTTPCheck{
			PathPrefix: "/check", IncludeHeaders: []string{"x-token", "x-a*", "x-old"}, AddHeaders: []*authzpb.CheckHeader{{Name: "x-a", Value: "1"}, {Name: "x-b", Value: "2"}},
			ToUpstream: []string{"x-user"}, ToClientOnAllow: []string{"x-seen"}, ToClientOnDeny: []string{"x-why"},
		}},
	}
	if got, err := c.Providers.Check("by-http"); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	want = &authzpb.Provider{Name: "by-grpc", Hostname: "door.example", Port: 9000, TimeoutMs: 2000, FailOpen: true, StatusOnError: 403, Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}}}
	if got, err := c.Providers.Check("by-grpc"); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, why := range map[string]string{"": "is empty", "none": "has no provider", "tracing": "is no external authorizer", "unknown": "is no external authorizer"} {
		if _, err := c.Providers.Check(name); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if p := c.Providers.Problems(); len(p) != 0 {
		t.Error(p)
	}
}

// TestBadProviders: a mistake in a provider is that provider's alone.
func TestBadProviders(t *testing.T) {
	for entry, why := range map[string]string{
		`{name: bad}`: "",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 0}}`:                                                  "port: 0",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 99999}}`:                                              "port: 99999",
		`{name: bad, envoyExtAuthzGrpc: {port: 1}}`:                                                              "service:",
		`{name: bad, envoyExtAuthzGrpc: {service: /a, port: 1}}`:                                                 "service:",
		`{name: bad, envoyExtAuthzGrpc: {service: "*.a", port: 1}}`:                                              "service:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, timeout: soon}}`:                                   "timeout:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, timeout: 0s}}`:                                     "timeout:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, timeout: -1s}}`:                                    "timeout:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, timeout: 11m}}`:                                    "timeout:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: forbidden}}`:                        "statusOnError:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: "200"}}`:                            "statusOnError:",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, fialOpen: true}}`:                                  "fialOpen",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1, includeRequestBodyInCheck: {}}}`:                   "maxRequestBytes",
		`{name: bad, opentelemetry: {service: a, port: many}}`:                                                   "port",
		`{name: bad, envoyExtAuthzGrpc: 7}`:                                                                      "",
		`{name: bad, envoyExtAuthzGRPC: {service: a, port: 1}}`:                                                  "envoyExtAuthzGRPC",
		`{name: bad, envoyExtAuthzGrpc: {service: a, port: 1}, envoyExtAuthzHttp: {service: a, port: 1}}`:        "oneof",
		`{name: bad, envoyExtAuthzHttp: {service: a, port: 1, pathPrefix: check}}`:                               "pathPrefix",
		`{name: bad, envoyExtAuthzHttp: {service: a, port: 1, headersToUpstreamOnAllow: ["*"]}}`:                 "headersToUpstreamOnAllow",
		`{name: bad, envoyExtAuthzHttp: {service: a, port: 1, headersToUpstreamOnAllow: [":path"]}}`:             "headersToUpstreamOnAllow",
		`{name: bad, envoyExtAuthzHttp: {service: a, port: 1, headersToUpstreamOnAllow: [host]}}`:                "headersToUpstreamOnAllow",
		`{name: bad, envoyExtAuthzHttp: {service: a, port: 1, includeAdditionalHeadersInCheck: {"a b": c}}}`:     "includeAdditionalHeadersInCheck",
		"{name: bad, envoyExtAuthzGrpc: {service: a, port: 1}}\n- {name: bad, zipkin: {service: z, port: 1}}":    "two of this name",
		"{name: bad, zipkin: {service: z, port: 1}}\n- {name: bad, envoyExtAuthzGrpc: {service: evil, port: 1}}": "two of this name",
	} {
		c, _, err := meshconfig.Parse([]byte("extensionProviders:\n- " + entry + "\n- {name: good, envoyExtAuthzGrpc: {service: a, port: 1}}"))
		if err != nil {
			t.Errorf("%s: %v", entry, err)
			continue
		}
		if _, err := c.Providers.Check("bad"); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, wanted %s", entry, err, why)
		}
		good, err := c.Providers.Check("good")
		if err != nil {
			t.Errorf("%s: beside it: %v", entry, err)
			continue
		}
		if _, err := extauthz.Compile(good); err != nil {
			t.Error(err)
		}
	}
	c, _, err := meshconfig.Parse([]byte("extensionProviders: [{envoyExtAuthzGrpc: {service: a, port: 1}}, 7]"))
	if p := c.Providers.Problems(); err != nil || len(p) != 2 {
		t.Errorf("%v %q", err, p)
	}
	for _, bad := range []string{"extensionProviders: 7", "extensionProviders: {a: b}", "extensionProviders: []\nextension_providers: []"} {
		if _, _, err := meshconfig.Parse([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
