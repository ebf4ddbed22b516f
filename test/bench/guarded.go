package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// A guarded service has tokens verified and policies decide about each request: half of the
// policies refuse, half allow, and a request meets the last of those that allow.
const (
	guardedPolicies = 100
	guardedService  = "guarded"
	guardedIssuer   = "https://bench.example"
	guardedUser     = "user"
)

// issuer is who signs the token of a run.
type issuer struct{ keys, token string }

// newIssuer makes a key and one token, of the kind that identity providers sign.
func newIssuer() (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issuer{}, err
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Use: "sig", Algorithm: string(jose.ES256)}}})
	if err != nil {
		return issuer{}, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return issuer{}, err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": guardedIssuer, "sub": guardedUser, "iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix(),
		"email": "user@bench.example", "groups": []string{"developers", "readers", "on-call"},
	})
	if err != nil {
		return issuer{}, err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return issuer{}, err
	}
	token, err := signed.CompactSerialize()
	return issuer{string(keys), token}, err
}

// policy is one of the policies of the guarded service.
type policy struct {
	name   string
	allows bool
	prefix string // of paths
	user   string // "" is any
}

func policies() (all []policy) {
	for i := range guardedPolicies / 2 {
		all = append(all,
			policy{name: fmt.Sprintf("deny-%03d", i), prefix: fmt.Sprintf("/denied/%d/", i)},
			policy{name: fmt.Sprintf("allow-%03d", i), allows: true, prefix: fmt.Sprintf("/r/%d/", i), user: fmt.Sprintf("%s-%d", guardedUser, i)})
	}
	last := &all[len(all)-1]
	last.prefix, last.user = "/a/", guardedUser
	return all
}

// guardedYAML is the guarded service in the mesh.
func guardedYAML(by issuer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: bench, labels: {istio.io/use-waypoint: waypoint}}\nspec:\n  selector: {app: routed}\n  ports:\n", guardedService)
	for _, p := range protocols {
		fmt.Fprintf(&b, "  - {name: %s, port: %d, targetPort: 9000, appProtocol: %s}\n", p, protocolPort[p], protocolShape[p])
	}
	fmt.Fprintf(&b, `---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: bench}
spec:
  targetRefs: [{group: "", kind: Service, name: %s}]
  jwtRules: [{issuer: %q, jwks: '%s'}]
`, guardedService, guardedIssuer, by.keys)
	for _, p := range policies() {
		action, from := "DENY", ""
		if p.allows {
			action, from = "ALLOW", fmt.Sprintf("from: [{source: {requestPrincipals: [%q]}}], ", guardedIssuer+"/"+p.user)
		}
		fmt.Fprintf(&b, `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: bench}
spec:
  targetRefs: [{group: "", kind: Service, name: %s}]
  action: %s
  rules: [{%sto: [{operation: {methods: [GET, POST], paths: [%q]}}]}]
`, p.name, guardedService, action, from, p.prefix+"*")
	}
	return b.String()
}

// envoyFilters are the same tokens and policies in Envoy, in the form that Istio gives them.
func envoyFilters(by issuer) string {
	var b strings.Builder
	fmt.Fprintf(&b, `          - name: envoy.filters.http.jwt_authn
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
                bench:
                  issuer: %q
                  payload_in_metadata: payload
                  jwt_cache_config: {jwt_cache_size: 100}
                  local_jwks: {inline_string: '%s'}
              rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: bench}, {allow_missing: {}}]}}}]
`, guardedIssuer, by.keys)
	for _, action := range []string{"DENY", "ALLOW"} {
		fmt.Fprintf(&b, `          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: %s
                policies:
`, action)
		for _, p := range policies() {
			if p.allows != (action == "ALLOW") {
				continue
			}
			principal := "{any: true}"
			if p.allows {
				claim := func(name, value string) string {
					return fmt.Sprintf("{metadata: {filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: %s}], value: {string_match: {exact: %q}}}}", name, value)
				}
				principal = fmt.Sprintf("{and_ids: {ids: [%s, %s]}}", claim("iss", guardedIssuer), claim("sub", p.user))
			}
			method := func(name string) string {
				return fmt.Sprintf("{header: {name: \":method\", string_match: {exact: %s}}}", name)
			}
			fmt.Fprintf(&b, "                  %s: {permissions: [{and_rules: {rules: [{or_rules: {rules: [%s, %s]}}, {url_path: {path: {prefix: %s}}}]}}], principals: [%s]}\n",
				p.name, method("GET"), method("POST"), p.prefix, principal)
		}
	}
	return b.String()
}

// envoyAccessLog is a log in a file, in Envoy's own form.
func envoyAccessLog(dir string) string {
	return fmt.Sprintf(`          access_log: [{name: envoy.access_loggers.file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %s}}]
`, filepath.Join(dir, "access.log"))
}

// guarded waits until requests with the token are served, and others are not: a table of
// requests that nothing judges would look very good.
func (c *contender) guarded(ctx context.Context, proto string) error {
	r := requests{proto: proto, size: 1 << 10, conns: 1, routes: 1, guarded: true}
	return c.until(ctx, r, func(ctx context.Context) error {
		without := *c
		without.token = ""
		if _, err := without.request(ctx, r, "http", "-duration", "50ms"); err == nil {
			return errors.New("a request without a token is served")
		}
		return nil
	})
}
