package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// provide adds providers to the mesh configuration, until the test ends.
func provide(t *testing.T, providers ...any) {
	t.Helper()
	write := func(ctx context.Context, change func(mesh map[string]any)) error {
		maps := mesh.Kube.CoreV1().ConfigMaps(kit.SystemNamespace)
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			m, err := maps.Get(ctx, "istio", metav1.GetOptions{})
			if err != nil {
				return err
			}
			all := map[string]any{}
			if err := yaml.Unmarshal([]byte(m.Data["mesh"]), &all); err != nil {
				return err
			}
			change(all)
			text, err := yaml.Marshal(all)
			if err != nil {
				return err
			}
			m.Data["mesh"] = string(text)
			_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			return err
		}
		// Kubelets look at a mounted ConfigMap once a minute, or when the pod changes.
		pods, err := mesh.Ambitds(ctx)
		if err != nil {
			return err
		}
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"ambit.test/look":"%d"}}}`, time.Now().UnixNano())
		for _, p := range pods {
			if _, err := mesh.Kube.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				return err
			}
		}
		return nil
	}
	var before any
	had := false
	if err := write(t.Context(), func(all map[string]any) {
		before, had = all["extensionProviders"]
		all["extensionProviders"] = providers
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := write(ctx, func(all map[string]any) {
			if delete(all, "extensionProviders"); had {
				all["extensionProviders"] = before
			}
		}); err != nil {
			t.Error(err)
		}
	})
}

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
	provide(t,
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
