package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// TestWaypointHolds: a policy for HTTP refuses a path, by the service and by the address of
// its pod, in both families. A bad route costs that route alone. A server that speaks
// first is heard at a port that declares nothing. Without a proxy of the waypoint nothing
// is answered.
func TestWaypointHolds(t *testing.T) {
	n := mesh.Namespace(t, "waypoint-holds", kit.Ambient())
	from, to := twoNodes(t)
	n.Create("server", kit.OnNode(to), kit.WithCommand("/echo", "server", "-name", "server", "-first", ":9100"))
	n.Pod("client", kit.OnNode(from))
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: held}
spec:
  selector: {app: server}
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: foo, port: 9100}]
`)
	server := n.Ready("server")
	addWaypointOnly(t, n)
	service, err := getService(t, n, "held")
	if err != nil {
		t.Fatal(err)
	}
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-x}
spec:
  targetRefs: [{group: "", kind: Service, name: held}]
  action: DENY
  rules: [{to: [{operation: {ports: ["80", "8080"], paths: ["/x"]}}]}]
`)
	urls := map[string]string{}
	for _, ip := range service {
		urls["the service at "+ip] = "http://" + net.JoinHostPort(ip, "80")
	}
	for _, ip := range server.Status.PodIPs {
		urls["the pod at "+ip.IP] = "http://" + net.JoinHostPort(ip.IP, "8080")
	}
	for name, url := range urls {
		n.MustGet("client", url+"/")
		kit.Eventually(t, name+" refuses the path", func(ctx context.Context) error { return forbidden(ctx, n, url+"/x") })
	}
	for _, ip := range service {
		kit.Eventually(t, "the server speaks first at "+ip, func(ctx context.Context) error {
			out, err := n.Exec(ctx, n.Name, "client", "/echo", "greet", "-addr", net.JoinHostPort(ip, "9100"))
			if err == nil && !strings.HasPrefix(out, "220 ") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	}

	// The API server takes this route. It cannot be served.
	rule := `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s}
spec:
  parentRefs: [{group: "", kind: Service, name: held, port: 80}]
  rules:
  - matches: [{path: {type: Exact, value: /%[1]s}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: "%[2]s"}]}}]
    backendRefs: [{name: held, port: 80}]
`
	n.MustApply(fmt.Sprintf(rule, "good", "good"))
	n.MustApply(fmt.Sprintf(rule, "bad", `\u0001`))
	n.MustApply(fmt.Sprintf(rule, "later", "good"))
	at := "http://" + net.JoinHostPort(service[0], "80")
	n.MustGet("client", at+"/good")
	n.MustGet("client", at+"/later")
	for name, want := range map[string]string{"good": "True", "bad": "False", "later": "True"} {
		kit.Eventually(t, "the status of the route "+name, func(ctx context.Context) error {
			u, err := written{n, t, httpRoutes, name}.get(ctx)
			if err != nil {
				return err
			}
			if got := parentsOf(u); !strings.Contains(got, want+" ") {
				return fmt.Errorf("its parents are %q", got)
			}
			return nil
		})
	}

	scaleWaypoint(t, n, 0)
	for _, url := range urls {
		_, _ = n.MustRefuse("client", url+"/x"), n.MustRefuse("client", url+"/good")
	}
	scaleWaypoint(t, n, 1)
	n.MustGet("client", at+"/good")
	for name, url := range urls {
		kit.Eventually(t, name+" refuses the path again", func(ctx context.Context) error { return forbidden(ctx, n, url+"/x") })
	}
}

// addWaypointOnly gives the services of a namespace a waypoint.
func addWaypointOnly(t *testing.T, n *kit.Namespace) {
	t.Helper()
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	written{n, t, services, "held"}.says("istio.io/WaypointBound", "True WaypointAccepted")
}

// getService returns the addresses of a service.
func getService(t *testing.T, n *kit.Namespace, name string) ([]string, error) {
	t.Helper()
	s, err := n.Kube.CoreV1().Services(n.Name).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return s.Spec.ClusterIPs, nil
}

// forbidden returns an error unless a request is refused by a policy of requests.
func forbidden(ctx context.Context, n *kit.Namespace, url string) error {
	out, err := n.Get(ctx, "client", url)
	if err == nil {
		return fmt.Errorf("it was answered: %s", out)
	}
	if !strings.Contains(err.Error(), "403") {
		return err
	}
	return nil
}
