package both

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// fieldsOfAuthorizers are providers of the authorizer with all fields: what it gets, what its
// answer changes, and what holds when there is no answer.
const fieldsOfAuthorizers = `
- name: $shop-http-whole
  envoyExtAuthzHttp:
    service: authorizer.$auth.svc.cluster.local
    port: 8000
    pathPrefix: /check
    includeRequestHeadersInCheck: [x-token]
    includeAdditionalHeadersInCheck: {x-asker: waypoint}
    headersToUpstreamOnAllow: [x-user]
    headersToDownstreamOnAllow: [x-seen]
    headersToDownstreamOnDeny: [x-why]
    includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}
- name: $shop-http-open
  envoyExtAuthzHttp: {service: authorizer.$auth.svc.cluster.local, port: 8000, includeHeadersInCheck: [x-token], headersToUpstreamOnAllow: [x-user], clearRouteCache: true, timeout: 0.5s, failOpen: true}
- name: $shop-http-strict
  envoyExtAuthzHttp: {service: authorizer.$auth.svc.cluster.local, port: 8000, includeRequestHeadersInCheck: [x-token], timeout: 0.5s, statusOnError: "429", includeRequestBodyInCheck: {maxRequestBytes: 10}}
- name: $shop-grpc-whole
  envoyExtAuthzGrpc: {service: authorizer.$auth.svc.cluster.local, port: 8001, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}
- name: $shop-grpc-open
  envoyExtAuthzGrpc: {service: authorizer.$auth.svc.cluster.local, port: 8001, clearRouteCache: true, timeout: 0.5s, failOpen: true, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}
- name: $shop-grpc-strict
  envoyExtAuthzGrpc: {service: authorizer.$auth.svc.cluster.local, port: 8001, timeout: 0.5s, statusOnError: "429", includeRequestBodyInCheck: {maxRequestBytes: 10}}
`

// byUser is a route by a header that the authorizer gives.
const byUser = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-user, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - matches: [{headers: [{name: x-user, value: ann}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: ann}]}}]
    backendRefs: [{name: api, port: 80}]
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: all}]}}]
    backendRefs: [{name: api, port: 80}]
`

// TestFieldsOfAuthorizers: each field of a provider has its effect, by HTTP and by gRPC.
func TestFieldsOfAuthorizers(t *testing.T) {
	w := startAuthorized(t, world.Options{}, onlyHTTP, fieldsOfAuthorizers)
	w.Apply(byUser)
	w.Families(func(w *world.World, v6 bool) {
		const body = "0123456789abcdef"
		to := w.Service("shop", "api", 80, v6)
		n := 0
		// post makes a request with a body.
		post := func(path string, headers ...string) (traffic.Response, error) {
			head := append([]string{"POST " + path + " HTTP/1.1", "Host: api", fmt.Sprint("Content-Length: ", len(body))}, headers...)
			all, err := w.Raw(far, to, strings.Join(head, "\n")+"\n\n"+body)
			if err != nil {
				return traffic.Response{}, err
			}
			return all[0], nil
		}
		for _, by := range []string{"http", "grpc"} {
			// path is one that no request has had.
			path := func(of string) string {
				n++
				return fmt.Sprintf("/%s/%s/%v/%d/headers", of, by, v6, n)
			}
			question := func(path string) (question, error) {
				all := asked(w, path)
				if len(all) == 0 || all[0].By != by {
					return question{}, fmt.Errorf("asked about %s: %v", path, all)
				}
				return all[0], nil
			}
			w.Apply(asks("ask", by+"-whole", `[{}]`))
			w.Eventually("what the authorizer gets, and what its answer changes, by "+by, func() error {
				at, prefix := path("whole"), ""
				if by == "http" {
					prefix = "/check"
				}
				r, err := post(at, letIn, "X-User: root")
				h, errBody := r.Request()
				if err := errors.Join(err, errBody); err != nil {
					return err
				}
				if h.Get("X-User") != "ann" || h.Get("X-Rule") != "all" || r.Header.Get("X-Seen") != "yes" || h["X-Secret"] != nil || r.Header["X-Secret"] != nil {
					return fmt.Errorf("the program got %v, the client %v", h, r.Header)
				}
				q, err := question(prefix + at)
				if err != nil {
					return err
				}
				if q.Body != body[:10] || q.Bytes || q.Headers.Get("X-Envoy-Auth-Partial-Body") != "true" || (q.Headers.Get("X-Asker") == "waypoint") != (by == "http") {
					return fmt.Errorf("asked %+v", q)
				}
				if r, err = post(path("whole")); err != nil || r.Status != 401 || r.Header.Get("X-Why") != "no token" || r.Header["X-Secret"] != nil {
					return fmt.Errorf("denied: %+v, error %w", r, err)
				}
				return nil
			})
			w.Apply(asks("ask", by+"-open", `[{}]`))
			w.Eventually("a route by what the answer changes, and no answer is an allow, by "+by, func() error {
				at := path("open")
				r, err := post(at, letIn)
				h, errBody := r.Request()
				if err := errors.Join(err, errBody); err != nil {
					return err
				}
				q, err := question(at)
				if err != nil || h.Get("X-Rule") != "ann" || q.Bytes != (by == "grpc") {
					return fmt.Errorf("the program got %v, asked %+v, error %w", h, q, err)
				}
				if r, err = post("/slow" + path("open")); err != nil || r.Status != 200 {
					return fmt.Errorf("no answer: %+v, error %w", r, err)
				}
				return nil
			})
			w.Apply(asks("ask", by+"-strict", `[{}]`))
			w.Eventually("no answer has a status, and a body may be too large, by "+by, func() error {
				if r := w.Request(far, to, "/slow"+path("strict"), letIn); r.Status != 429 {
					return fmt.Errorf("no answer: %+v", r)
				}
				if r, err := post(path("strict"), letIn); err != nil || r.Status != 413 {
					return fmt.Errorf("a large body: %+v, error %w", r, err)
				}
				return nil
			})
		}
		w.Delete(asks("ask", "http", "[]"))
	})
}
