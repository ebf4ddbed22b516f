package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// TestExternalAuthorization: a waypoint asks an external authorizer of the mesh, by HTTP
// and by gRPC, and a policy that names none denies.
func TestExternalAuthorization(t *testing.T) {
	n := mesh.Namespace(t, "extauthz", kit.Ambient())
	versioned(t, n)
	_, to := twoNodes(t)
	n.Create("door", kit.OnNode(to), kit.WithCommand("/echo", "server", "-authorizer-http", ":8000", "-authorizer-grpc", ":8001"))
	n.MustApply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: door, labels: {istio.io/use-waypoint: none}}
spec:
  selector: {app: door}
  ports: [{name: http, port: 8000}, {name: grpc, port: 8001}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: waypoint-only}
spec:
  selector: {matchLabels: {app: door}}
  rules: [{from: [{source: {principals: ["cluster.local/ns/%s/sa/waypoint"]}}]}]
`, n.Name))
	n.Ready("door")
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	service := "door." + n.Name + ".svc.cluster.local"
	mesh.Provide(t,
		map[string]any{"name": n.Name + "-http", "envoyExtAuthzHttp": map[string]any{"service": service, "port": 8000, "includeRequestHeadersInCheck": []string{"x-token"}}},
		map[string]any{"name": n.Name + "-grpc", "envoyExtAuthzGrpc": map[string]any{"service": n.Name + "/" + service, "port": 8001}},
		map[string]any{"name": n.Name + "-broken", "envoyExtAuthzGrpc": map[string]any{"service": service, "port": 0}},
	)
	for _, tt := range []struct{ provider, without, with, status string }{
		{"-http", "401", "answers", "True Accepted"}, {"-grpc", "401", "answers", "True Accepted"}, {"-broken", "403", "403", "False Invalid"},
	} {
		n.MustApply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  action: CUSTOM
  provider: {name: %s}
  rules: [{}]
`, n.Name+tt.provider))
		for header, want := range map[string]string{"x-token: guess": tt.without, "x-token: letmein": tt.with} {
			kit.Eventually(t, header+" gets "+want+" of "+tt.provider, func(ctx context.Context) error {
				out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-H", header, "-url", n.URL("front"))
				if got := fmt.Sprint(out, err); !strings.Contains(got, want) {
					return fmt.Errorf("it got %s", got)
				}
				return nil
			})
		}
		written{n, t, policies, "ask"}.says("WaypointAccepted", tt.status, n.Name+tt.provider)
	}
}
