package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// accept replaces what tokens are accepted at the whole gateway. It does not recheck.
func (w *world) accept(p *authnpb.Provider) {
	w.t.Helper()
	s := authn.NewStore()
	body, err := authn.Encode(&authnpb.Authentication{Namespace: "ns", Name: "tokens", Everything: true, Providers: []*authnpb.Provider{p}})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Put("ns/tokens", body); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tokens = s.Set()
}

// principals is an ALLOW policy of the whole gateway.
func principals(p string) *authzpb.Policy {
	m := &authzpb.Match{RequestPrincipals: []*securitypb.StringMatch{exactly(p)}}
	return &authzpb.Policy{Action: authzpb.Action_ALLOW, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{m}}}}}}
}

// TestTokens: each request of a connection is judged by its own token.
func TestTokens(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	issuer := jwttest.New(t, "https://a", "k", jose.ES256)
	provider := &authnpb.Provider{Issuer: issuer.Name, Jwks: jwttest.Set(issuer), Audiences: []string{"shop"}, ClaimHeaders: []*authnpb.ClaimHeader{{Header: "x-user", Claim: []string{"sub"}}}}
	w.accept(provider)
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	claims := map[string]any{"sub": "ann", "aud": "shop"}
	good, other := issuer.Token(claims), issuer.Token(map[string]any{"aud": "x"})
	check := func(when, head string, want int, body string) http.Header {
		t.Helper()
		resp, b := ask(t, c, head)
		if resp.StatusCode != want || body != "" && b != body {
			t.Errorf("%s: %d %q", when, resp.StatusCode, b)
		}
		return resp.Header
	}
	const get = "GET /x?y=z HTTP/1.1\nHost: shop\n"
	check("without a token", get+"X: y", 200, "")
	check("with a token", get+"Authorization: Bearer "+good, 200, "")
	h := check("with a bad one", get+"Authorization: Bearer x", 401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")
	if got := h.Get("Www-Authenticate"); got != `Bearer realm="http://shop/x", error="invalid_token"` {
		t.Error(got)
	}
	h = check("for others", get+"Authorization: Bearer "+other, 403, "Audiences in Jwt are not allowed")
	if got := h.Get("Www-Authenticate"); got != `Bearer realm="http://shop/x", error="invalid_token"` {
		t.Error(got)
	}
	h = check("a call of gRPC", "POST /x HTTP/1.1\nHost: shop\nContent-Type: application/grpc\nContent-Length: 0\nAuthorization: Bearer x.y.z", 200, "")
	if h.Get("Grpc-Status") != "16" || !strings.HasPrefix(h.Get("Grpc-Message"), "Jwt header") {
		t.Errorf("%v", h)
	}
	h = check("a realm", `GET /a"b HTTP/1.1`+"\nHost: shop\nAuthorization: Bearer x", 401, "")
	if got := h.Get("Www-Authenticate"); strings.Count(got, `"`) != 4 {
		t.Error(got)
	}
	h = check("a long realm", "GET /"+strings.Repeat("x", 1000)+" HTTP/1.1\nHost: shop\nAuthorization: Bearer x", 401, "")
	if got := h.Get("Www-Authenticate"); len(got) > 320 {
		t.Error(got)
	}
	check("a token that logs do not get", "GET /x?access_token="+good+" HTTP/1.1\nHost: shop", 200, "")

	w.enforce(principals("https://a/ann"))
	check("allowed", get+"Authorization: Bearer "+good, 200, "")
	check("not allowed", get+"X: y", 403, "RBAC: access denied")

	// Routes see the headers that tokens give, and none that a client forged. The
	// answer to a bad token is readable for pages of other origins.
	w.enforce()
	of := func(user string) []route.Match {
		m := segments("/")
		m[0].Headers = []route.Value{{Name: "x-user", Kind: route.Exact, Value: user}}
		return m
	}
	w.routes("shop",
		route.Rule{Origin: "admin", Matches: of("root"), Filters: route.Filters{Redirect: &route.Redirect{Host: "admin"}}},
		route.Rule{Origin: "ann", Matches: of("ann"), Filters: route.Filters{Redirect: &route.Redirect{Host: "ann"}}},
		route.Rule{Origin: "all", Matches: segments("/"), Backends: []route.Backend{{Name: "v1", Weight: 1}}, Filters: route.Filters{CORS: &route.CORS{Origins: []string{"https://page"}, Methods: []string{"PUT"}}}},
	)
	check("a forged header", get+"X-User: root", 200, "")
	check("a forged header beside a token", get+"X-User: root\nAuthorization: Bearer "+good, 302, "")
	if h := check("another origin", get+"Origin: https://page\nAuthorization: Bearer x", 401, ""); h.Get("Access-Control-Allow-Origin") != "https://page" {
		t.Errorf("%v", h)
	}
	check("a preflight request", "OPTIONS /x HTTP/1.1\nHost: shop\nOrigin: https://page\nAccess-Control-Request-Method: PUT\nAuthorization: Bearer x", 204, "")

	all := w.seen(14, func() []Record { return w.requests })
	if r := all[2]; r.Reason != reason.InvalidToken || r.Err == nil || !strings.Contains(r.Err.Error(), "RequestAuthentication ns/tokens: Jwt is not in the form") {
		t.Errorf("%v, %v", r.Reason, r.Err)
	}
	if r := all[3]; r.Reason != reason.TokenAudience {
		t.Errorf("%v", r.Reason)
	}
}

// TestTokenIsNotLogged: the path of a request whose token was a parameter has no token.
func TestTokenIsNotLogged(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	issuer := jwttest.New(t, "https://a", "k", jose.ES256)
	w.accept(&authnpb.Provider{Issuer: issuer.Name, Jwks: jwttest.Set(issuer)})
	var path string
	w.g.opts.Telemetry.Request = func(r *Record) { w.mu.Lock(); defer w.mu.Unlock(); path = string(r.Path) }
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, _ := get(t, c, "/x?a&access_token="+issuer.Token(nil)); status != 200 {
		t.Fatal(status)
	}
	w.on(w.group.Loop(0), func() {})
	w.mu.Lock()
	defer w.mu.Unlock()
	if path != "/x?a" {
		t.Error(path)
	}
}

// TestStreamsOfTokens: a request that goes on is cut when its token is not accepted any
// more, and when a policy does not allow the user any more.
func TestStreamsOfTokens(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(w *world, issuer *jwttest.Issuer)
		cut    bool
	}{
		"nothing": {func(*world, *jwttest.Issuer) {}, false},
		"another key": {func(w *world, i *jwttest.Issuer) {
			w.accept(&authnpb.Provider{Issuer: i.Name, Jwks: jwttest.Set(jwttest.New(t, i.Name, "k", jose.ES256))})
		}, true},
		"a second key": {func(w *world, i *jwttest.Issuer) {
			w.accept(&authnpb.Provider{Issuer: i.Name, Jwks: jwttest.Set(i, jwttest.New(t, i.Name, "l", jose.ES256))})
		}, false},
		"another policy": {func(w *world, _ *jwttest.Issuer) { w.enforce(principals("https://a/bob")) }, true},
		"same policy":    {func(w *world, _ *jwttest.Issuer) { w.enforce(principals("https://a/ann")) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.shop()
			stop := make(chan struct{})
			srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(rw, "begun")
				_ = http.NewResponseController(rw).Flush()
				select {
				case <-stop:
				case <-r.Context().Done():
				}
			}))
			defer srv.Close()
			w.endpoint("v1", "10.0.2.1", "v1", srv.Listener.Addr().String())
			w.routes("shop", route.Rule{Origin: "r", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
			issuer := jwttest.New(t, "https://a", "k", jose.ES256)
			w.accept(&authnpb.Provider{Issuer: issuer.Name, Jwks: jwttest.Set(issuer)})
			c, err := w.connect("10.1.0.1:80")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer %s\r\n\r\n", issuer.Token(map[string]any{"sub": "ann"}))
			var got strings.Builder
			for !strings.Contains(got.String(), "begun") {
				b := make([]byte, 512)
				n, err := c.Read(b)
				if err != nil {
					t.Fatalf("%q, error %v", got.String(), err)
				}
				got.Write(b[:n])
			}
			tt.change(w, issuer)
			w.g.Recheck()
			w.on(w.group.Loop(0), func() {})
			if !tt.cut {
				if len(w.requests) != 0 {
					t.Error("the request is cut")
				}
				close(stop)
			} else {
				defer close(stop)
				if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the request goes on")
				}
			}
			want := reason.OK
			if tt.cut {
				want = reason.PolicyChanged
			}
			if r := w.seen(1, func() []Record { return w.requests })[0]; r.Reason != want {
				t.Errorf("%v", r.Reason)
			}
		})
	}
}
