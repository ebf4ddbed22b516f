package scenario

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// asking is a route of api whose requests below /private an authorizer of the namespace
// auth is asked about.
func asking(filter string) string {
	return `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ask, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - matches: [{path: {value: /private}}]
    filters: [{type: ExternalAuth, externalAuth: ` + filter + `}]
    backendRefs: [{name: api, port: 80}]
  - backendRefs: [{name: api, port: 80}]
`
}

const granted = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: routes, namespace: auth}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service}]
`

const (
	askHTTP = `{protocol: HTTP, backendRef: {name: authorizer, namespace: auth, port: 8000}, http: {path: /check, allowedHeaders: [x-wish], allowedResponseHeaders: [x-user]}, forwardBody: {maxSize: 10}}`
	askAny  = `{protocol: HTTP, backendRef: {name: authorizer, namespace: auth, port: 8000}}`
	askGRPC = `{protocol: GRPC, backendRef: {name: authorizer, namespace: auth, port: 8001}, grpc: {allowedHeaders: [x-wish]}}`
)

// TestExternalAuthOfRoutes: the filter ExternalAuth of a rule has its requests asked about
// and no others, by HTTP and by gRPC, with the headers and the body that it names.
func TestExternalAuthOfRoutes(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: strings.Replace(authorized(), ", appProtocol: http}]}", "}, {name: open, port: 81, targetPort: 8080}]}", 1)})
	serveAPI(world)
	a := world.Authorizer(lab.InPod("auth", "authorizer"))
	hasStatus := func(text string) {
		t.Helper()
		world.Eventually("the status has "+text, func() error {
			out, err := world.Ambit("status")
			if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), text) {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
	}
	// Without a grant the reference is refused, and the rule's requests fail.
	c := userAgent{world, netip.AddrPortFrom(world.Service("shop", "api", false), 80)}
	world.MustApply(asking(askHTTP))
	c.becomes("GET /private HTTP/1.1\nHost: api", 500)
	c.becomes(bare, 200)
	hasStatus("externalAuth: Service auth/authorizer is of another namespace, which does not permit it")
	if n := len(a.Asked()); n != 0 {
		t.Errorf("asked %d times", n)
	}
	a.Answer(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("x-user", "ann")
		rw.Header().Set("x-other", "o")
		rw.Header().Set("content-language", "de")
		if r.Header.Get("x-wish") != "please" {
			rw.WriteHeader(401)
			_, _ = io.WriteString(rw, "say please")
		}
	}, func(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		if q.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-wish"] != "please" {
			return &authv3.CheckResponse{Status: &status.Status{Code: 7}}, nil
		}
		return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "bob"}}},
		}}}, nil
	})
	world.MustApply(granted)
	c.becomes("GET /private HTTP/1.1\nHost: api", 401)
	hasStatus("every backend exists, and may be used")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", v6), 80)}
		w.MustApply(asking(askHTTP))
		c.becomes("GET /private HTTP/1.1\nHost: api", 401)
		a.Asked()
		const post = "POST /private/a?b=c HTTP/1.1\nHost: api\nAuthorization: Basic xyz\nX-Other: o\nX-User: root\nX-Wish: please\nContent-Length: 6\n\nsecret"
		s := c.got(post)
		if s.Header.Get("X-User") != "ann" || s.Header.Get("X-Other") != "o" {
			t.Errorf("the program got %v", s.Header)
		}
		all := a.Asked()
		if len(all) != 1 {
			t.Fatalf("%d questions", len(all))
		}
		if q := all[0].Request; q.RequestURI != "/check/private/a?b=c" || q.Method != "POST" || q.Host != "api" || q.Header.Get("Authorization") != "Basic xyz" || q.Header["X-Other"] != nil || q.ContentLength != 6 || all[0].Body != "secret" {
			t.Errorf("asked: %s %s %s %v %q", q.Method, q.Host, q.RequestURI, q.Header, all[0].Body)
		}
		if resp, body := c.must("GET /private HTTP/1.1\nHost: api"); resp.StatusCode != 401 || body != "say please" {
			t.Errorf("denied: %d %q", resp.StatusCode, body)
		}
		if resp, _ := c.must("POST /private HTTP/1.1\nHost: api\nX-Wish: please\nContent-Length: 11\n\nsecret12345"); resp.StatusCode != 413 {
			t.Errorf("a large body: %d", resp.StatusCode)
		}
		a.Asked()
		if c.got("GET /public HTTP/1.1\nHost: api"); len(a.Asked()) != 0 {
			t.Error("asked about another rule's request")
		}

		// Without lists: of the request what is always sent, of the answer all that is no part of it.
		w.MustApply(asking(askAny))
		w.Eventually("only what is always sent", func() error {
			a.Asked()
			_, _ = c.must("GET /private HTTP/1.1\nHost: api\nX-Wish: please\nAuthorization: a")
			if all := a.Asked(); len(all) != 1 || all[0].Request.Header["X-Wish"] != nil || all[0].Request.Header.Get("Authorization") != "a" || all[0].Request.URL.Path != "/private" {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})

		// By gRPC.
		w.MustApply(asking(askGRPC))
		w.Eventually("asked by gRPC", func() error {
			a.Asked()
			resp, _, err := c.do("GET /private HTTP/1.1\nHost: api\nX-Wish: please\nX-Other: o\nX-User: root")
			if all := a.Asked(); err != nil || resp.StatusCode != 200 || len(all) != 1 || all[0].Check == nil {
				return fmt.Errorf("%v %+v %w", resp, all, err)
			} else if h := maps.Collect(maps.All(all[0].Check.GetAttributes().GetRequest().GetHttp().GetHeaders())); h["x-other"] != "" || h["x-wish"] != "please" || h[":path"] != "/private" {
				return fmt.Errorf("%v", h)
			}
			return nil
		})
		if s := c.got("GET /private HTTP/1.1\nHost: api\nX-Wish: please\nX-User: root"); s.Header.Get("X-User") != "bob" {
			t.Errorf("the program got %v", s.Header)
		}
		c.becomes("GET /private HTTP/1.1\nHost: api", 403)
	})
	if out, err := world.Ambit("why", "far.shop", "svc/api.shop:81"); err == nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "a route asks an external authorizer about requests, and the connection carries no HTTP") {
		t.Errorf("why, without HTTP: %v\n%s", err, out)
	}
	if out, err := world.Ambit("why", "far.shop", "http://api/private"); err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "if it is allowed by HTTPRoute shop/ask, rule 0 (gRPC to authorizer.auth.svc.cluster.local:8001)") {
		t.Errorf("why: %v\n%s", err, out)
	}
}

// TestAttacksOnExternalAuthOfRoutes: whatever an authorizer of a route does that is no
// allow, and however a client writes the path, nothing reaches the program.
func TestAttacksOnExternalAuthOfRoutes(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: strings.Replace(authorized(), ", appProtocol: http}]}", "}, {name: open, port: 81, targetPort: 8080}]}", 1) + granted})
	reached := sink(w)
	a := w.Authorizer(lab.InPod("auth", "authorizer"))
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	for _, protocol := range []string{askHTTP, askGRPC} {
		a.Answer(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(401) }, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{Status: &status.Status{Code: 16}, HttpResponse: &authv3.CheckResponse_DeniedResponse{}}, nil
		})
		w.MustApply(asking(protocol))
		c.becomes("GET /private HTTP/1.1\nHost: api", map[string]int{askHTTP: 401, askGRPC: 403}[protocol])
		reached()
		for _, path := range []string{"/private", "/private/", "/private?x", "//private", "/./private", "/x/../private", "/%70rivate", "/private%2fa", "/private//a", `/x\..\private`, "/x/%2e%2e/private", "http://api/private", "/private#a", "/private;a=b/c"} {
			resp, body, err := c.do("GET " + path + " HTTP/1.1\nHost: api\nX-Envoy-Auth-Partial-Body: false\nX-Ambit-Allowed: HTTPRoute shop/ask, rule 0")
			if err != nil {
				continue // refused as no request
			}
			for _, got := range reached() {
				if strings.Contains(strings.ToLower(got), "private") && path != `/x\..\private` && path != "/private;a=b/c" {
					t.Errorf("%s: %d %q, the program got %s", path, resp.StatusCode, body, got)
				}
			}
		}
		// Without HTTP there is no request to ask about.
		reached()
		for _, first := range []string{"\r\nGET /private HTTP/1.1\r\nHost: api\r\n\r\n", " GET /private HTTP/1.1\r\nHost: api\r\n\r\n", "\x00\x01", "get /private HTTP/1.1\r\nHost: api\r\n\r\n"} {
			conn := w.MustDial(far, netip.AddrPortFrom(c.to.Addr(), 81))
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(conn, first)
			b, _ := io.ReadAll(conn)
			if len(reached()) != 0 || strings.HasPrefix(string(b), "HTTP/1.1 200") {
				t.Errorf("%q got through: %q", first, b)
			}
		}
		// What fails, denies.
		for what, answer := range map[string]http.HandlerFunc{
			"fails": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) },
			"slow":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			"cuts": func(rw http.ResponseWriter, _ *http.Request) {
				if conn, _, err := http.NewResponseController(rw).Hijack(); err == nil {
					_ = conn.Close()
				}
			},
			"redirects": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(302) },
			"201":       func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(201) },
		} {
			a.Answer(answer, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
				if what == "slow" {
					<-ctx.Done()
				}
				return nil, net.ErrClosed
			})
			resp, body := c.must("GET /private HTTP/1.1\nHost: api\nX-Wish: please")
			if all := reached(); len(all) != 0 || resp.StatusCode == 200 {
				t.Errorf("%s: %d %q, the program got %q", what, resp.StatusCode, body, all)
			}
		}
		// Without an authorizer.
		a.Stop()
		if resp, body := c.must("GET /private HTTP/1.1\nHost: api"); resp.StatusCode != 403 || len(reached()) != 0 {
			t.Errorf("without an authorizer: %d %q", resp.StatusCode, body)
		}
		a.Serve(lab.InPod("auth", "authorizer"))
	}
	// A reference that becomes invalid lets nothing pass.
	w.MustDelete("ReferenceGrant", "auth", "routes")
	c.becomes("GET /private HTTP/1.1\nHost: api", 500)
	conn := w.MustDial(far, netip.AddrPortFrom(c.to.Addr(), 81))
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(conn, "get /private HTTP/1.1\r\nHost: api\r\n\r\n")
	_, _ = io.ReadAll(conn)
	if all := reached(); len(all) != 0 {
		t.Errorf("the program got %q", all)
	}
}
