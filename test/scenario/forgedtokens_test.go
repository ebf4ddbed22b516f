package scenario

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// admins allows one user of the issuer.
const admins = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admins, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: api}]
  rules: [{from: [{source: {requestPrincipals: ["https://issuer.example/admin"]}}]}]
`

// TestForgedTokens: an attacker, who has an issuer of its own and tokens of an ordinary
// user, is not taken for the administrator.
func TestForgedTokens(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: api() + admins})
	issuer := world.Issuer("https://issuer.example")
	issuer.Serve()
	serveAPI(world)
	attacker := world.Issuer("https://issuer.example") // claims to be the same
	world.MustApply(accepts(issuer, `, audiences: [shop], outputClaimToHeaders: [{header: x-user, claim: sub}]`))
	claims := func(sub string, more ...any) map[string]any {
		c := map[string]any{"sub": sub, "aud": "shop"}
		for i := 0; i < len(more); i += 2 {
			c[more[i].(string)] = more[i+1]
		}
		return c
	}
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	payload, err := json.Marshal(map[string]any{"iss": issuer.Name, "sub": "admin", "aud": "shop"})
	if err != nil {
		t.Fatal(err)
	}
	secret := func(alg string, key []byte) string {
		text := encode(`{"alg":"`+alg+`","kid":"first"}`) + "." + encode(string(payload))
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return text + "." + encode(string(m.Sum(nil)))
	}
	user, admin := issuer.Token(claims("user")), issuer.Token(claims("admin"))
	parts := strings.Split(user, ".")
	foreign := world.Issuer("https://evil.example")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", v6), 80)}
		c.becomes(bearing(admin), 200)
		for name, tt := range map[string]struct {
			head   string
			status int
		}{
			"no token":                       {bare, 403},
			"another user":                   {bearing(user), 403},
			"a forged header":                {bearing(user) + "\nX-User: admin", 403},
			"alg none":                       {bearing(encode(`{"alg":"none"}`) + "." + encode(string(payload)) + "."), 401},
			"HS256 by the published key":     {bearing(secret("HS256", issuer.Public())), 401},
			"RS256 that is an HMAC":          {bearing(secret("RS256", issuer.Public())), 401},
			"a key of its own":               {bearing(attacker.Token(claims("admin"))), 401},
			"a key of its own, in the token": {bearing(attacker.TokenWith(claims("admin"), map[string]any{"jwk": json.RawMessage(attacker.JWK()), "jku": attacker.URI, "x5u": attacker.URI})), 401},
			"another issuer":                 {bearing(foreign.Token(claims("admin"))), 401},
			"another payload":                {bearing(parts[0] + "." + encode(string(payload)) + "." + parts[2]), 401},
			"another audience":               {bearing(issuer.Token(claims("admin", "aud", "bank"))), 403},
			"no audience":                    {bearing(issuer.Token(map[string]any{"sub": "admin"})), 403},
			"expired":                        {bearing(issuer.Token(claims("admin", "exp", time.Now().Add(-time.Hour).Unix()))), 401},
			"not yet":                        {bearing(issuer.Token(claims("admin", "nbf", time.Now().Add(time.Hour).Unix()))), 401},
			"two, one of them bad":           {bearing(admin) + "\nAuthorization: Bearer " + parts[0] + "." + parts[1] + ".AAAA", 401},
			"two places, one of them bad":    {"GET /?access_token=x HTTP/1.1\nHost: api\nAuthorization: Bearer " + admin, 401},
			"two users":                      {"GET /?access_token=" + admin + " HTTP/1.1\nHost: api\nAuthorization: Bearer " + user, 403},
			"an hour of bytes":               {bearing(issuer.Token(claims("admin", "pad", strings.Repeat("x", 17<<10)))), 401},
			"deep":                           {bearing(issuer.Token(claims("admin", "pad", json.RawMessage(strings.Repeat("[", 99)+strings.Repeat("]", 99))))), 401},
			"a preflight that is none":       {"GET / HTTP/1.1\nHost: api\nOrigin: https://x\nAccess-Control-Request-Method: GET\nAuthorization: Bearer x", 401},
		} {
			if resp, body := c.must(tt.head); resp.StatusCode != tt.status {
				t.Errorf("%s: %d %q", name, resp.StatusCode, body)
			}
		}
		if s := c.got(bearing(admin) + "\nX-User: root\nx_user: root"); len(s.Header["X-User"]) != 1 || s.Header.Get("X-User") != "admin" || s.Header["X_user"] != nil {
			t.Errorf("the program got %v", s.Header)
		}
	})
	if n := attacker.Asked(); n != 0 {
		t.Errorf("a token had keys fetched %d times", n)
	}
}

// TestKeysOfIssuers: keys come late, change, and stay when their server fails, hangs, or
// serves something else; also when the control plane starts again.
func TestKeysOfIssuers(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: api(), Args: map[string][]string{lab.Ambitd: {"--jwks-refresh", "1s"}}})
	issuer := w.Issuer("https://issuer.example")
	serveAPI(w)
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	says := func(text string) {
		t.Helper()
		w.Eventually("the status says "+text, func() error {
			out, err := w.Ambit("status")
			if err == nil && !strings.Contains(out, text) {
				err = fmt.Errorf("it says %s", out)
			}
			return err
		})
	}
	first := bearing(issuer.Token(map[string]any{"sub": "ann"}))
	c.becomes(first, 200) // no policy: no proxy looks at the token
	w.MustApply(accepts(issuer, ""))
	c.becomes(first, 401)
	says("connection refused")
	if resp, body := c.must(first); resp.StatusCode != 401 || body != "Jwks remote fetch is failed" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	c.becomes(bare, 200)

	issuer.Serve()
	c.becomes(first, 200)
	says("keys: 1 of " + issuer.URI)
	for name, answer := range map[string]http.HandlerFunc{
		"status 503":          func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) },
		"no JSON Web Key Set": func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "<html>") },
		"none of 0 keys":      func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, `{"keys":[]}`) },
		"more than 1048576 bytes": func(rw http.ResponseWriter, _ *http.Request) {
			for range 2048 {
				_, _ = io.WriteString(rw, strings.Repeat(" ", 1024))
			}
		},
		"link-local": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "http://169.254.169.254/keys", http.StatusFound)
		},
		"no answer within 5": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		issuer.Answer(answer)
		says(name)
		if resp, body := c.must(first); resp.StatusCode != 200 {
			t.Errorf("%s: %d %q", name, resp.StatusCode, body)
		}
	}
	// The control plane forgets what it knew. The waypoint does not.
	if err := w.Kill(t.Context(), lab.Ambitd, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	says("unless a waypoint has keys from before")
	if resp, body := c.must(first); resp.StatusCode != 200 {
		t.Errorf("after a restart of ambitd: %d %q", resp.StatusCode, body)
	}
	issuer.Answer(nil)
	says("keys: 1 of " + issuer.URI)
	issuer.Rotate("second")
	second := bearing(issuer.Token(map[string]any{"sub": "ann"}))
	c.becomes(second, 200)
	c.becomes(first, 401)

	// Discovery.
	found := &rig.Issuer{Name: strings.TrimSuffix(issuer.URI, "/keys")}
	issuer.Answer(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
			_ = json.NewEncoder(rw).Encode(map[string]string{"issuer": found.Name, "jwks_uri": issuer.URI})
			return
		}
		_, _ = io.WriteString(rw, issuer.Keys())
	})
	w.MustApply(strings.Replace(accepts(found, ""), `, jwksUri: ""`, "", 1))
	c.becomes(bearing(issuer.Token(map[string]any{"iss": found.Name})), 200)
	c.becomes(second, 401)

	w.MustDelete("RequestAuthentication", "shop", "users")
	c.becomes(first, 200)
}
