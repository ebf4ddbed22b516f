package both

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// attempt is a request of a client, with the status that a page of Istio's documentation
// names for it.
type attempt struct {
	status int
	from   world.Place
	head   string // what follows the method and the path is headers
}

// TestPoliciesOfIstiosTasks: what the tasks of Istio's documentation have users try has the
// answers that the pages name. A policy there that has a selector has a target here.
func TestPoliciesOfIstiosTasks(t *testing.T) {
	const issuer = "testing@secure.istio.io"
	own := jwttest.New(t, issuer, "k", jose.RS256)
	token := func(more ...any) string {
		claims := map[string]any{"sub": issuer, "exp": time.Now().Add(time.Hour).Unix()}
		for i := 0; i < len(more); i += 2 {
			claims[more[i].(string)] = more[i+1]
		}
		return "\nAuthorization: Bearer " + own.Token(claims)
	}
	demo, grouped := token("foo", "bar"), token("foo", "bar", "groups", []string{"group1", "group2"}, "scope", []string{"scope1"})
	other := world.Place{Namespace: "else", Pod: "other"}
	w := startAPI(t)
	w.Namespace("else", true)
	w.Apply(rig.PodObject("$else", "other", "node1", ""))
	requestAuthentication := fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt-example, namespace: $shop}
spec: {targetRefs: [{group: "", kind: Service, name: api}], jwtRules: [{issuer: %q, jwks: '%s', outputClaimToHeaders: [{header: x-jwt-claim-foo, claim: foo}]}]}
`, issuer, jwttest.Set(own))
	policy := func(name, action, spec string) string {
		return rig.PolicyObject("$shop", name, action, `targetRefs: [{group: "", kind: Service, name: api}], `+spec)
	}
	allowNothing := strings.Replace(policy("allow-nothing", "ALLOW", ""), ", }", "}", 1)
	denyGet := policy("deny-method-get", "DENY", `rules: [{to: [{operation: {methods: [GET]}}], when: [{key: "request.headers[x-token]", notValues: [admin]}]}]`)
	requireJWT := func(when string) string {
		return policy("require-jwt", "ALLOW", `rules: [{from: [{source: {requestPrincipals: ["`+issuer+`/`+issuer+`"]}}]`+when+`}]`)
	}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "api", 80, v6)
		for _, task := range []struct {
			name, yaml string
			attempts   []attempt
		}{
			{"HTTP traffic: nothing is allowed", allowNothing, []attempt{{403, far, "GET /"}, {403, far, "POST /"}}},
			{"HTTP traffic: a method", allowNothing + policy("productpage-viewer", "ALLOW", `rules: [{to: [{operation: {methods: [GET]}}]}]`), []attempt{
				{200, far, "GET /productpage"}, {200, other, "GET /productpage"}, {403, far, "POST /productpage"},
			}},
			{"HTTP traffic: a method of a service account", allowNothing + policy("details-viewer", "ALLOW", `rules: [{from: [{source: {principals: ["cluster.local/ns/$shop/sa/far"]}}], to: [{operation: {methods: [GET]}}]}]`), []attempt{
				{200, far, "GET /details"}, {403, far, "POST /details"}, {403, other, "GET /details"},
			}},
			{"explicit denial: a method, but not for a header", denyGet, []attempt{
				{200, far, "GET /get\nx-token: admin"}, {403, far, "GET /get\nx-token: guest"}, {403, far, "GET /get"}, {200, far, "POST /post"},
			}},
			{"explicit denial: before what is allowed", denyGet + policy("allow-path-ip", "ALLOW", `rules: [{to: [{operation: {paths: [/ip]}}]}]`), []attempt{
				{403, far, "GET /ip\nx-token: guest"}, {200, far, "GET /ip\nx-token: admin"}, {403, far, "GET /get\nx-token: admin"},
			}},
			{"JWT: a token that is wrong, and none", requestAuthentication, []attempt{
				{401, far, "GET /headers\nAuthorization: Bearer invalidToken"}, {200, far, "GET /headers"}, {200, far, "GET /headers" + demo},
			}},
			{"JWT: a principal", requestAuthentication + requireJWT(""), []attempt{
				{200, far, "GET /headers" + demo}, {403, far, "GET /headers"}, {401, far, "GET /headers\nAuthorization: Bearer invalidToken"},
			}},
			{"JWT: a claim that is a list", requestAuthentication + requireJWT(`, when: [{key: "request.auth.claims[groups]", values: [group1]}]`), []attempt{
				{200, far, "GET /headers" + grouped}, {403, far, "GET /headers" + demo},
			}},
			{"JWT: no token is required on a path", requestAuthentication + policy("frontend", "DENY", `rules: [{from: [{source: {notRequestPrincipals: ["*"]}}], to: [{operation: {notPaths: [/healthz]}}]}]`), []attempt{
				{200, far, "GET /healthz"}, {403, far, "GET /headers"}, {200, far, "GET /headers" + demo},
			}},
			{"policies of L7 in ambient mode", policy("productpage-waypoint", "ALLOW", `rules: [{from: [{source: {principals: [cluster.local/ns/$else/sa/other]}}], to: [{operation: {methods: [GET]}}]}]`), []attempt{
				{200, other, "GET /productpage"}, {403, other, "DELETE /productpage"}, {403, far, "GET /productpage"},
			}},
			{"namespaces", policy("tester", "ALLOW", `rules: [{from: [{source: {namespaces: [$else]}}], to: [{operation: {methods: [GET, HEAD]}}]}]`), []attempt{
				{200, other, "GET /"}, {403, far, "GET /"}, {403, other, "POST /"},
			}},
			{"conditions", policy("conditions", "ALLOW", `rules: [{when: [{key: "request.headers[User-Agent]", values: ["Mozilla/*"]}, {key: destination.port, values: ["80"]}]}]`), []attempt{
				{200, far, "GET /\nUser-Agent: Mozilla/5.0"}, {403, far, "GET /\nUser-Agent: curl/8"}, {403, far, "GET /"},
			}},
			{"dry run", strings.Replace(denyGet, "metadata: {", `metadata: {annotations: {istio.io/dry-run: "true"}, `, 1), []attempt{{200, far, "GET /"}}},
		} {
			w.Apply(task.yaml)
			w.Eventually(task.name, func() error {
				for _, a := range task.attempts { // all of them at one moment
					first, headers, more := strings.Cut(a.head, "\n")
					head := first + " HTTP/1.1\nHost: api\nContent-Length: 0"
					if more {
						head += "\n" + headers
					}
					if got, err := statuses(w, a.from, to, head); err != nil || got[0] != a.status {
						return fmt.Errorf("%q of %s gets %v, not %d, error %w", a.head, a.from, got, a.status, err)
					}
				}
				return nil
			})
			if task.yaml == requestAuthentication {
				if h, err := w.Request(far, to, "/headers", strings.TrimSpace(demo)).Request(); err != nil || h.Get("X-Jwt-Claim-Foo") != "bar" {
					w.Errorf("the claim in a header: %v, error %v", h, err)
				}
			}
			w.Delete(task.yaml)
			w.Becomes(200, far, to, "/without/"+fmt.Sprint(len(task.name)))
		}
	})
}
