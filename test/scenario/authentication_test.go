package scenario

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// api is a service with a waypoint, whose program is the test's own.
func api() string {
	return rig.NamespaceObject("shop", true) + rig.PodObject("shop", "far", "node2", "") + rig.PodObject("shop", "api", "node1", "app: api") + managed + `
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: api}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`
}

// seen is what the program behind the waypoint got.
type seen struct {
	URI    string
	Header http.Header
	Body   string
}

// serveAPI answers each request with what came.
func serveAPI(w *rig.World) {
	l := w.Listen(lab.InPod("shop", "api"), ":8080")
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(rw).Encode(seen{r.URL.RequestURI(), r.Header, string(body)})
	})}
	go func() { _ = s.Serve(l) }()
	w.T().Cleanup(func() { _ = s.Close() })
}

// userAgent makes requests from far to the service api.
type userAgent struct {
	w  *rig.World
	to netip.AddrPort
}

// do writes the head of a request as it is.
func (c userAgent) do(head string) (*http.Response, string, error) {
	conn, err := c.w.Dial(c.w.T().Context(), far, "tcp", c.to.String())
	if err != nil {
		return nil, "", err
	}
	defer conn.Close() //nolint:errcheck // the answer has come
	return converse(conn, head)
}

func (c userAgent) must(head string) (*http.Response, string) {
	c.w.T().Helper()
	resp, body, err := c.do(head)
	if err != nil {
		c.w.T().Fatalf("%.100q: %v", head, err)
	}
	return resp, body
}

// got makes a request that is answered by the program, and returns what that got.
func (c userAgent) got(head string) seen {
	c.w.T().Helper()
	resp, body := c.must(head)
	var s seen
	if err := json.Unmarshal([]byte(body), &s); resp.StatusCode != 200 || err != nil {
		c.w.T().Fatalf("%.100q: %d %.200q", head, resp.StatusCode, body)
	}
	return s
}

// becomes waits for the status of a request.
func (c userAgent) becomes(head string, want int) {
	c.w.T().Helper()
	c.w.Eventually(fmt.Sprintf("status %d", want), func() error {
		resp, body, err := c.do(head)
		if err != nil {
			return err
		}
		if resp.StatusCode != want {
			return fmt.Errorf("status %d: %.200q", resp.StatusCode, body)
		}
		return nil
	})
}

func bearing(token string) string {
	return "GET / HTTP/1.1\nHost: api\nAuthorization: Bearer " + token
}

const bare = "GET / HTTP/1.1\nHost: api"

// accepts is a RequestAuthentication of the service api for an issuer.
func accepts(i *rig.Issuer, more string) string {
	return fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: api}]
  jwtRules:
  - {issuer: %q, jwksUri: %q%s}
`, i.Name, i.URI, more)
}

// TestTokens: a waypoint accepts the tokens of an issuer whose keys ambitd has fetched,
// refuses all others, and policies allow by what a token says.
func TestTokens(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: api(), Args: map[string][]string{lab.Ambitd: {"--jwks-refresh", "1s"}}})
	issuer := world.Issuer("https://issuer.example")
	issuer.Serve()
	serveAPI(world)
	world.MustApply(accepts(issuer, `, audiences: [shop], outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-user, claim: sub}, {header: x-group, claim: org.group}]`))
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", v6), 80)}
		claims := map[string]any{"sub": "ann", "aud": "shop", "org": map[string]any{"group": "admins"}, "scope": "read write"}
		good := issuer.Token(claims)
		c.becomes(bearing("none"), 401)
		c.becomes(bearing(good), 200)
		c.becomes(bare, 200)
		s := c.got(bearing(good) + "\nX-User: root\nx_group: root")
		if s.Header.Get("X-User") != "ann" || s.Header.Get("X-Group") != "admins" || s.Header.Get("X-Payload") != strings.Split(good, ".")[1] || s.Header["Authorization"] != nil || s.Header["X_group"] != nil {
			t.Errorf("the program got %v", s.Header)
		}
		if s := c.got(bare + "\nX-User: root\nX-Payload: e30\nx-group: root"); s.Header["X-User"] != nil || s.Header["X-Payload"] != nil || s.Header["X-Group"] != nil {
			t.Errorf("headers that a client forged: %v", s.Header)
		}
		if s := c.got("GET /a?b=1&access_token=" + good + "&c=2 HTTP/1.1\nHost: api"); s.URI != "/a?b=1&c=2" || s.Header.Get("X-User") != "ann" {
			t.Errorf("the program got %s, %v", s.URI, s.Header)
		}
		resp, body := c.must("GET /a?b HTTP/1.1\nHost: api\nAuthorization: Bearer " + good + "x")
		if resp.StatusCode != 401 || resp.Header.Get("Www-Authenticate") != `Bearer realm="http://api/a", error="invalid_token"` || !strings.HasPrefix(body, "Jwt ") {
			t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
		}
		claims["aud"] = "others"
		if resp, body := c.must(bearing(issuer.Token(claims))); resp.StatusCode != 403 || body != "Audiences in Jwt are not allowed" {
			t.Errorf("another audience: %d %q", resp.StatusCode, body)
		}

		// Policies.
		w.MustApply(`
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: api}]
  rules:
  - from: [{source: {requestPrincipals: ["https://issuer.example/*"]}}]
    when: [{key: "request.auth.claims[org][group]", values: [admins]}, {key: "request.auth.claims[scope]", values: [write]}]
`)
		c.becomes(bare, 403)
		c.becomes(bearing(good), 200)
		claims["aud"], claims["scope"] = "shop", "read"
		if resp, body := c.must(bearing(issuer.Token(claims))); resp.StatusCode != 403 || body != "RBAC: access denied" {
			t.Errorf("without the scope: %d %q", resp.StatusCode, body)
		}
		w.MustDelete("AuthorizationPolicy", "shop", "users")
		c.becomes(bare, 200)
	})
	world.Eventually("the status has both", func() error {
		out, err := world.Ambit("status")
		if err != nil || !strings.Contains(out, "tokens are verified by waypoint shop/waypoint for Service shop/api") || !strings.Contains(out, "keys: 1 of "+issuer.URI) {
			return fmt.Errorf("%s, error %w", out, err)
		}
		return nil
	})
}
