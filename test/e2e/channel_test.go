package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// experimentalRoute uses the fields of HTTPRoute that the experimental channel alone has.
const experimentalRoute = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: experimental}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{path: {value: /private}}]
    filters:
    - type: ExternalAuth
      externalAuth: {protocol: HTTP, backendRef: {name: door, port: 8000}, http: {allowedHeaders: [x-token]}}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /basket}}]
    sessionPersistence: {sessionName: basket}
    backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]
`

// TestExperimentalChannel: the experimental channel of the Gateway API is installed by the
// command line, and what it adds to HTTPRoute acts. Without it the API server rejects it.
func TestExperimentalChannel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	channel := func() string {
		crd, err := mesh.Dynamic.Resource(definitions).Get(ctx, "httproutes."+httpRoutes.Group, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return crd.GetAnnotations()["gateway.networking.k8s.io/channel"]
	}
	if was := channel(); was != "standard" {
		t.Fatalf("the channel is %q before", was)
	}
	n := mesh.Namespace(t, "channel", kit.Ambient())
	versioned(t, n)
	_, to := twoNodes(t)
	n.Create("door", kit.OnNode(to), kit.WithCommand("/echo", "server", "-authorizer-http", ":8000"))
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: door, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: door}, ports: [{name: http, port: 8000}]}
`)
	n.Ready("door")
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	mesh.Experimental(t)
	if now := channel(); now != "experimental" {
		t.Fatalf("the channel is %q after the upgrade", now)
	}
	n.MustApply(experimentalRoute)
	kit.Eventually(t, "the route is accepted", func(ctx context.Context) error {
		u, err := written{n, t, httpRoutes, "experimental"}.get(ctx)
		if err != nil {
			return err
		}
		if got := parentsOf(u); !strings.Contains(got, "True Accepted") {
			return fmt.Errorf("its parents are %q", got)
		}
		return nil
	})
	for header, want := range map[string]string{"x-token: guess": "401", "x-token: letmein": "answers"} {
		kit.Eventually(t, header+" gets "+want, func(ctx context.Context) error {
			out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-H", header, "-url", n.URL("front")+"private")
			if got := fmt.Sprint(out, err); !strings.Contains(got, want) {
				return fmt.Errorf("it got %s", got)
			}
			return nil
		})
	}
	const requests = 40
	out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-cookies", "-n", fmt.Sprint(requests), "-url", n.URL("front")+"basket")
	if v1, v2 := strings.Count(out, "v1 answers"), strings.Count(out, "v2 answers"); err != nil || v1+v2 != requests || v1 > 0 && v2 > 0 {
		t.Errorf("a session was answered %d times by v1 and %d times by v2, error %v", v1, v2, err)
	}
}
