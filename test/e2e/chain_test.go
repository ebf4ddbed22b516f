package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var (
	tcpRoutes = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tcproutes"}
	tlsRoutes = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tlsroutes"}
)

// TestChain: a route leads to a service with another waypoint, and its requests pass both.
// Routes of connections lead there too, and their status is written.
func TestChain(t *testing.T) {
	depot, n := mesh.Namespace(t, "depot", kit.Ambient()), mesh.Namespace(t, "chain", kit.Ambient())
	from, to := twoNodes(t)
	for _, ns := range []*kit.Namespace{depot, n} {
		ns.Create("server", kit.OnNode(to), kit.WithCommand("/echo", "server", "-name", ns.Name))
		ns.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: tcp, port: 9000, appProtocol: tcp}]
`)
		if out := ambit(t, "waypoint", "apply", "-n", ns.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
			t.Error(out)
		}
	}
	n.Pod("client", kit.OnNode(from))
	depot.Ready("server")
	n.Ready("server")
	depot.MustApply(fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: chain}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: %[1]s}, {group: gateway.networking.k8s.io, kind: TCPRoute, namespace: %[1]s}]
  to: [{group: "", kind: Service, name: server}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret}
spec:
  targetRefs: [{group: "", kind: Service, name: server}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/depot/secret"]}}]}, {from: [{source: {notPrincipals: ["cluster.local/ns/%[1]s/sa/waypoint"]}}]}]
`, n.Name))
	n.MustApply(fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: chain}
spec:
  parentRefs: [{group: "", kind: Service, name: server, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /depot}}]
    backendRefs: [{namespace: %[1]s, name: server, port: 80}]
  - backendRefs: [{name: server, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: chain}
spec:
  parentRefs: [{group: "", kind: Service, name: server, port: 9000}]
  rules: [{backendRefs: [{namespace: %[1]s, name: server, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: chain}
spec:
  parentRefs: [{group: "", kind: Service, name: server, port: 9000}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: absent, port: 9000}]}]
`, depot.Name))
	for _, resource := range []schema.GroupVersionResource{httpRoutes, tcpRoutes, tlsRoutes} {
		kit.Eventually(t, resource.Resource+" have a status", func(ctx context.Context) error {
			u, err := written{n, t, resource, "chain"}.get(ctx)
			if err != nil {
				return err
			}
			if got := parentsOf(u); got != "server of istio.io/mesh-controller: True Accepted" {
				return fmt.Errorf("the parents are %q", got)
			}
			return nil
		})
	}
	at := n.URL("server")
	kit.Eventually(t, "a request passes both waypoints", func(ctx context.Context) error {
		out, err := n.Get(ctx, "client", strings.TrimSuffix(at, "/")+"/depot")
		if err != nil {
			return err
		}
		if !strings.HasPrefix(out, depot.Name+" answers") {
			return fmt.Errorf("the answer is %q", out)
		}
		return nil
	})
	for what, url := range map[string]string{
		"what the second waypoint's policy denies": strings.TrimSuffix(at, "/") + "/depot/secret", "the second waypoint for others than the first": depot.URL("server"),
	} {
		if err := n.MustRefuse("client", url); !strings.Contains(err.Error(), "403") {
			t.Errorf("%s: %v", what, err)
		}
	}
	kit.Eventually(t, "why follows the chain", func(context.Context) error {
		out := ambit(t, "why", "client."+n.Name, "svc/server."+n.Name+":80", "--path", "/depot")
		if strings.Count(out, "the waypoint\n") != 2 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	says(t, []string{"another waypoint stands before it"}, "why", "client."+n.Name, "svc/server."+n.Name+":9000", "--tcp")
}
