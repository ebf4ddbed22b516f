package both

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// TestTokens: a waypoint verifies tokens of users by the keys of a RequestAuthentication, a
// policy demands one, and the status says where both hold.
func TestTokens(t *testing.T) {
	const issuer, front = "https://issuer.example", `targetRefs: [{group: "", kind: Service, name: front}], `
	own, forger := jwttest.New(t, issuer, "k", jose.ES256), jwttest.New(t, issuer, "k", jose.ES256)
	w := start(t, world.Options{})
	w.Apply(versions() + fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: $shop}
spec: {%sjwtRules: [{issuer: %q, jwks: '%s'}]}
`, front, issuer, jwttest.Set(own)) + rig.PolicyObject("$shop", "users", "ALLOW", front+`rules: [{from: [{source: {requestPrincipals: ["`+issuer+`/ann"]}}]}]`))
	w.Condition("RequestAuthentication", "shop", "users", "WaypointAccepted", "True Accepted", "tokens are verified by waypoint $shop/waypoint")
	claims := func(sub string, valid time.Duration) map[string]any {
		return map[string]any{"sub": sub, "exp": time.Now().Add(valid).Unix()}
	}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Becomes(403, far, to, "/")
		for token, want := range map[string]int{
			own.Token(claims("ann", time.Hour)): 200, own.Token(claims("bob", time.Hour)): 403,
			own.Token(claims("ann", -time.Hour)): 401, forger.Token(claims("ann", time.Hour)): 401,
		} {
			w.Becomes(want, far, to, "/", "authorization: Bearer "+token)
		}
	})
}
