package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var requestAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"}

// TestTokens: a waypoint verifies tokens of users by the keys of a RequestAuthentication,
// a policy demands one, and the status says where both hold.
func TestTokens(t *testing.T) {
	n := mesh.Namespace(t, "tokens", kit.Ambient())
	versioned(t, n)
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	issuer, attacker := jwttest.New(t, "https://issuer.example", "k", jose.ES256), jwttest.New(t, "https://issuer.example", "k", jose.ES256)
	n.MustApply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  jwtRules: [{issuer: "https://issuer.example", jwks: '%s'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  rules: [{from: [{source: {requestPrincipals: ["https://issuer.example/ann"]}}]}]
`, jwttest.Set(issuer)))
	written{n, t, requestAuthentications, "users"}.says("WaypointAccepted", "True Accepted", "tokens are verified by waypoint "+n.Name+"/waypoint")
	claims := map[string]any{"sub": "ann", "exp": time.Now().Add(time.Hour).Unix()}
	for _, tt := range []struct{ name, token, want string }{
		{"no token", "", "403"}, {"a token", issuer.Token(claims), "answers"}, {"a forged token", attacker.Token(claims), "401"},
	} {
		header := "x: y"
		if tt.token != "" {
			header = "authorization: Bearer " + tt.token
		}
		kit.Eventually(t, tt.name+" gets "+tt.want, func(ctx context.Context) error {
			out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-H", header, "-url", n.URL("front"))
			if got := fmt.Sprint(out, err); !strings.Contains(got, tt.want) {
				return fmt.Errorf("it got %s", got)
			}
			return nil
		})
	}
}
