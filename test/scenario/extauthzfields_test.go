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
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ambit-mesh/ambit/test/rig"
)

// fieldsOfAuthorizers are providers with the fields that others have not.
const fieldsOfAuthorizers = `
- name: http-stays
  envoyExtAuthzHttp: {service: authorizer.auth.svc.cluster.local, port: 8000, headersToUpstreamOnAllow: [x-user], includeHeadersInCheck: [x-wish], includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}
- name: http-again
  envoyExtAuthzHttp: {service: authorizer.auth.svc.cluster.local, port: 8000, headersToUpstreamOnAllow: [x-user], clearRouteCache: true}
- name: grpc-stays
  envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 8001, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}
- name: grpc-again
  envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 8001, clearRouteCache: true, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}
`

// byUser is a route by a header that the authorizer gives.
const byUser = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-user, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - matches: [{headers: [{name: x-user, value: ann}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: ann}]}}]
    backendRefs: [{name: api, port: 80}]
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: all}]}}]
    backendRefs: [{name: api, port: 80}]
`

// TestFieldsOfAuthorizers: an authorizer gets the beginning of a body and the destination
// all of it, as text and as bytes; headers by the field's old name; and what it changes
// decides about the route where the provider has that.
func TestFieldsOfAuthorizers(t *testing.T) {
	w, a, _ := startAuthorized(t, fieldsOfAuthorizers)
	w.MustApply(byUser)
	a.Answer(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("x-user", "ann") }, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "ann"}}},
		}}}, nil
	})
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	const body = "0123456789abcdef\xff"
	const post = "POST /p HTTP/1.1\nHost: api\nX-Wish: please\nContent-Length: 17\n\n" + body
	for _, tt := range []struct{ provider, rule string }{{"http-stays", "all"}, {"http-again", "ann"}, {"grpc-stays", "all"}, {"grpc-again", "ann"}} {
		w.MustApply(asks(tt.provider, `[{}]`))
		var s seen
		var asked rig.Asked
		w.Eventually(tt.provider+" is asked, and the route is that of "+tt.rule, func() error {
			a.Asked()
			resp, _, err := c.do(post)
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%v %w", resp, err)
			}
			a.Asked()
			s = c.got(post)
			all := a.Asked()
			if len(all) != 1 || (all[0].Check != nil) != strings.HasPrefix(tt.provider, "grpc") || s.Header.Get("X-Rule") != tt.rule {
				return fmt.Errorf("asked %v, the program got %v", all, s)
			}
			asked = all[0]
			return nil
		})
		if s.Header.Get("X-User") != "ann" || s.Body != strings.ToValidUTF8(body, "\ufffd") {
			t.Errorf("%s: the program got %+v", tt.provider, s)
		}
		switch tt.provider {
		case "http-stays":
			if q := asked.Request; asked.Body != body[:10] || q.Header.Get("X-Envoy-Auth-Partial-Body") != "true" || q.Header.Get("X-Wish") != "please" {
				t.Errorf("asked %q with %v", asked.Body, q.Header)
			}
		case "http-again":
			if q := asked.Request; asked.Body != "" || q.Header["X-Wish"] != nil || q.Header["X-Envoy-Auth-Partial-Body"] != nil {
				t.Errorf("asked %q with %v", asked.Body, q.Header)
			}
		case "grpc-stays":
			if h := asked.Check.GetAttributes().GetRequest().GetHttp(); h.GetBody() != body[:10] || len(h.GetRawBody()) > 0 || h.GetHeaders()["x-envoy-auth-partial-body"] != "true" {
				t.Errorf("asked %v", h)
			}
		case "grpc-again":
			if h := asked.Check.GetAttributes().GetRequest().GetHttp(); h.GetBody() != "" || string(h.GetRawBody()) != body[:10] {
				t.Errorf("asked %v", h)
			}
		}
	}
}
