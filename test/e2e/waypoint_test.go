package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var gatewayClasses = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}

const waypoint = "waypoint"

// versioned makes two versions of a server and a client, and the service front of
// both versions.
func versioned(t *testing.T, n *kit.Namespace) (v1, v2 *corev1.Pod) {
	t.Helper()
	from, to := twoNodes(t)
	tier := kit.WithLabels(map[string]string{"tier": "server"})
	serves := func(name string) kit.Option {
		return kit.WithCommand("/echo", "server", "-name", name, "-grpc", ":9200")
	}
	for _, name := range []string{"v1", "v2"} {
		n.Create(name, kit.OnNode(to), tier, serves(name))
		n.Service(name)
	}
	n.Pod("client", kit.OnNode(from))
	n.MustApply(front)
	return n.Ready("v1"), n.Ready("v2")
}

// front is a service of all servers, by HTTP and gRPC.
const front = `
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  selector: {tier: server}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 9200}]
`

// split is a route of front: nine of ten requests go to v1, and those with a header
// to v2.
const split = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{headers: [{name: x-version, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]
`

// waypointPods are those of a waypoint that are not about to end.
func waypointPods(ctx context.Context, n *kit.Namespace, name string) (out []corev1.Pod, err error) {
	list, err := n.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName + "=" + name})
	if err != nil {
		return nil, err
	}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// TestWaypoint: one command line is enough for requests to a namespace's services to
// go through a waypoint; and another takes it away again.
func TestWaypoint(t *testing.T) {
	n := mesh.Namespace(t, "waypoint", kit.Ambient())
	_, v2 := versioned(t, n)
	kit.Eventually(t, "the class of waypoints is accepted", func(ctx context.Context) error {
		u, err := mesh.Dynamic.Resource(gatewayClasses).Get(ctx, wellknown.ClassWaypoint, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if c := conditionOf(u, "Accepted"); c["status"] != "True" {
			return fmt.Errorf("its condition is %v", c)
		}
		if list, _, _ := unstructured.NestedSlice(u.Object, "status", "supportedFeatures"); len(list) == 0 {
			return errors.New("it has no features")
		}
		return nil
	})
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	pods, err := waypointPods(t.Context(), n, waypoint)
	if err != nil || len(pods) != 1 || pods[0].Spec.ServiceAccountName != waypoint {
		t.Fatalf("pods of the waypoint: %+v, error %v", pods, err)
	}
	gateway := written{n, t, gateways, waypoint}
	gateway.says("Accepted", "True Accepted")
	gateway.says("Programmed", "True Programmed", "ready pods: 1")
	u, err := gateway.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	service, err := n.Kube.CoreV1().Services(n.Name).Get(t.Context(), waypoint, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addresses, _, _ := unstructured.NestedSlice(u.Object, "status", "addresses")
	if got := fmt.Sprint(addresses); !strings.Contains(got, waypoint+"."+n.Name+".svc."+wellknown.DefaultDomain) || !strings.Contains(got, service.Spec.ClusterIP) {
		t.Errorf("addresses of the Gateway: %s", got)
	}
	written{n, t, services, "front"}.says("istio.io/WaypointBound", "True WaypointAccepted")

	n.MustApply(split)
	kit.Eventually(t, "the route is accepted", func(ctx context.Context) error {
		u, err := written{n, t, httpRoutes, "split"}.get(ctx)
		if err != nil {
			return err
		}
		if got := parentsOf(u); got != "front of istio.io/mesh-controller: True Accepted" {
			return fmt.Errorf("its parents are %q", got)
		}
		return nil
	})
	kit.Eventually(t, "requests go through the waypoint", func(ctx context.Context) error { return through(ctx, n) })

	rest := objectVersions(t, n)
	time.Sleep(restTime)
	if now := objectVersions(t, n); now != rest {
		t.Errorf("objects were written again without a change: %s, then %s", rest, now)
	}

	says(t, []string{waypoint, "service", "True"}, "waypoint", "list", "-n", n.Name)
	says(t, []string{n.Name, waypoint}, "waypoint", "list", "-A")
	says(t, []string{waypoint, "True", "Programmed", "ready pods: 1"}, "waypoint", "status", "-n", n.Name)

	n.Label(map[string]*string{wellknown.LabelUseWaypoint: nil})
	if out := ambit(t, "waypoint", "delete", waypoint, "-n", n.Name); !strings.Contains(out, "deleted") {
		t.Error(out)
	}
	kit.Eventually(t, "what was made for the waypoint is gone", func(ctx context.Context) error {
		_, serr := n.Kube.CoreV1().Services(n.Name).Get(ctx, waypoint, metav1.GetOptions{})
		_, derr := n.Kube.AppsV1().Deployments(n.Name).Get(ctx, waypoint, metav1.GetOptions{})
		_, aerr := n.Kube.CoreV1().ServiceAccounts(n.Name).Get(ctx, waypoint, metav1.GetOptions{})
		if !apierrors.IsNotFound(serr) || !apierrors.IsNotFound(derr) || !apierrors.IsNotFound(aerr) {
			return fmt.Errorf("service: %w, deployment: %w, account: %w", serr, derr, aerr)
		}
		return nil
	})
	n.Tunnelled("client", n.URL("v2"), v2)
}

// through reports why a request to front did not come from a pod of the waypoint.
func through(ctx context.Context, n *kit.Namespace) error {
	pods, err := waypointPods(ctx, n, waypoint)
	if err != nil {
		return err
	}
	out, err := n.Get(ctx, "client", n.URL("front"))
	if err != nil {
		return err
	}
	f := strings.Fields(out)
	for _, p := range pods {
		if a, err := netip.ParseAddr(f[min(2, len(f)-1)]); err == nil && hasAddress(p, a.Unmap()) {
			return nil
		}
	}
	return fmt.Errorf("the answer was %q, and the waypoint has %d pods", out, len(pods))
}

func hasAddress(p corev1.Pod, a netip.Addr) bool {
	for _, ip := range p.Status.PodIPs {
		if ip.IP == a.String() {
			return true
		}
	}
	return false
}

// objectVersions are those of what the mesh writes for a waypoint.
func objectVersions(t *testing.T, n *kit.Namespace) string {
	t.Helper()
	var out []string
	for _, r := range []schema.GroupVersionResource{
		gateways, services, {Version: "v1", Resource: "serviceaccounts"}, {Group: "apps", Version: "v1", Resource: "deployments"},
	} {
		out = append(out, written{n, t, r, waypoint}.String()+" "+written{n, t, r, waypoint}.version())
	}
	return strings.Join(append(out, "route "+written{n, t, httpRoutes, "split"}.version()), ", ")
}

// perLoad is how many connections a load client of waypointLoads keeps.
const perLoad = 8

// loads are clients of the service front, and of the address of one of its pods.
type loads map[string]*kit.Load

// waypointLoads starts the clients of frontLoads, and one that makes a connection for each
// request to the address of the pod v1.
func waypointLoads(t *testing.T, n *kit.Namespace, v1 *corev1.Pod) loads {
	t.Helper()
	from, _ := twoNodes(t)
	l := frontLoads(t, n)
	l["pod"] = n.StartLoad("load-pod", "http://"+net.JoinHostPort(v1.Status.PodIP, "8080")+"/", 50, kit.OnNode(from), eachRequest)
	return l
}

// frontLoads starts clients that keep their connections, of HTTP/1.1, HTTP/2 and gRPC, and
// one that makes a connection for each request. A connection that is kept stays on the way
// that it began on.
func frontLoads(t *testing.T, n *kit.Namespace) loads {
	t.Helper()
	from, _ := twoNodes(t)
	with := func(protocol string, args ...string) kit.Option {
		return func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Command = append(append(c.Command, "-protocol", protocol), args...)
		}
	}
	kept := []string{"-per-conn", "0", "-workers", fmt.Sprint(perLoad)}
	grpc := "http://front." + n.Name + ".svc." + wellknown.DefaultDomain + ":9200/"
	return loads{
		"http1": n.StartLoad("load-http1", n.URL("front"), 100, kit.OnNode(from), with("http1", kept...)),
		"h2":    n.StartLoad("load-h2", n.URL("front"), 100, kit.OnNode(from), with("h2", kept...)),
		"grpc":  n.StartLoad("load-grpc", grpc, 100, kit.OnNode(from), with("grpc", kept...)),
		"fresh": n.StartLoad("load-fresh", n.URL("front"), 50, kit.OnNode(from), eachRequest),
	}
}

// goOn waits until every client has made requests for some seconds more.
func (l loads) goOn(seconds int) {
	for _, c := range l {
		c.Seconds(seconds)
	}
}

// clean ends the clients, of whose requests none may have failed.
func (l loads) clean(t *testing.T) {
	t.Helper()
	for name, c := range l {
		t.Logf("%s: %+v", name, c.Clean())
	}
}

// addWaypoint gives the services of a namespace a waypoint, and waits until requests go
// through it.
func addWaypoint(t *testing.T, n *kit.Namespace) {
	t.Helper()
	ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait")
	kit.Eventually(t, "requests go through the waypoint", func(ctx context.Context) error { return through(ctx, n) })
}

// TestWaypointComesAndGoes: no request fails, on connections that are kept and on new
// ones, while a waypoint is added, gets more pods, loses one, has one again, is rolled
// out and is taken away.
func TestWaypointComesAndGoes(t *testing.T) {
	n := mesh.Namespace(t, "waypoint-load", kit.Ambient())
	v1, _ := versioned(t, n)
	early := n.StartLoad("load-early", n.URL("front"), 50, eachRequest)
	addWaypoint(t, n)
	l := waypointLoads(t, n, v1)
	l["early"] = early
	l.goOn(3)
	scaleWaypoint(t, n, 3)
	l.goOn(3)
	if err := n.Kube.CoreV1().Pods(n.Name).Delete(t.Context(), aWaypointPod(t, n).Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	scaleWaypoint(t, n, 3)
	l.goOn(1)
	scaleWaypoint(t, n, 1)
	l.goOn(3)
	roll(t, n, waypoint)
	l.goOn(3)
	if err := through(t.Context(), n); err != nil {
		t.Error(err)
	}
	n.Label(map[string]*string{wellknown.LabelUseWaypoint: nil})
	l.goOn(3)
	ambit(t, "waypoint", "delete", waypoint, "-n", n.Name)
	l.goOn(3)
	l.clean(t)
}

// TestWaypointUpgraded: no request fails while an upgrade of the mesh changes the pods
// of waypoints.
func TestWaypointUpgraded(t *testing.T) {
	n := mesh.Namespace(t, "waypoint-upgrade", kit.Ambient())
	v1, _ := versioned(t, n)
	addWaypoint(t, n)
	l := waypointLoads(t, n, v1)
	t.Cleanup(func() {
		if err := mesh.Upgrade(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, memory := range []string{"96Mi", "112Mi"} {
		if err := mesh.Upgrade(t.Context(), "--set", "values.global.waypoint.resources.requests.memory="+memory); err != nil {
			t.Fatal(err)
		}
		kit.Eventually(t, "the only pod of the waypoint requests "+memory, func(ctx context.Context) error {
			list, err := n.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName + "=" + waypoint})
			if err != nil || len(list.Items) != 1 {
				return fmt.Errorf("%d pods, error %w", len(list.Items), err)
			}
			if got := list.Items[0].Spec.Containers[0].Resources.Requests.Memory().String(); got != memory {
				return fmt.Errorf("it requests %s", got)
			}
			return nil
		})
		l.goOn(3)
	}
	if err := through(t.Context(), n); err != nil {
		t.Error(err)
	}
	l.clean(t)
}

// TestWaypointKilled: the three pods of a waypoint are killed, one after the other the
// program alone, and then a whole pod without time to end. Of the connections that one
// carried, each fails once at most. No other request does.
func TestWaypointKilled(t *testing.T) {
	own := mesh.Machines(t)
	n := mesh.Namespace(t, "waypoint-killed", kit.Ambient())
	v1, _ := versioned(t, n)
	addWaypoint(t, n)
	scaleWaypoint(t, n, 3)
	l := waypointLoads(t, n, v1)
	l.goOn(1)
	pods, err := waypointPods(t.Context(), n, waypoint)
	if err != nil || len(pods) != 3 {
		t.Fatalf("%d pods, error %v", len(pods), err)
	}
	for _, p := range pods {
		id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
		if out, err := own.Output(t.Context(), p.Spec.NodeName, "ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", id); err != nil {
			t.Fatal(out, err)
		}
		kit.Eventually(t, "pod "+p.Name+" runs again", func(ctx context.Context) error {
			now, err := n.Kube.CoreV1().Pods(n.Name).Get(ctx, p.Name, metav1.GetOptions{})
			if err == nil && now.Status.ContainerStatuses[0].RestartCount == 0 {
				err = errors.New("it has not ended")
			}
			return err
		})
		l.goOn(2)
		scaleWaypoint(t, n, 3)
		l.goOn(1)
	}
	if err := n.Kube.CoreV1().Pods(n.Name).Delete(t.Context(), aWaypointPod(t, n).Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	l.goOn(5)
	scaleWaypoint(t, n, 3)
	l.goOn(3)
	for name, c := range l {
		r := c.Stop()
		t.Logf("%s: %+v", name, r)
		if r.OK == 0 || r.Failed > 4*perLoad {
			t.Errorf("%s: of %d requests, %d were answered and %d failed: %v", name, r.Sent, r.OK, r.Failed, r.Errors)
		}
	}
}

// aWaypointPod returns a pod of the waypoint.
func aWaypointPod(t *testing.T, n *kit.Namespace) corev1.Pod {
	t.Helper()
	pods, err := waypointPods(t.Context(), n, waypoint)
	if err != nil || len(pods) == 0 {
		t.Fatalf("%d pods, error %v", len(pods), err)
	}
	return pods[0]
}

// scaleWaypoint waits until as many pods are ready, and the others have gone.
func scaleWaypoint(t *testing.T, n *kit.Namespace, replicas int) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	if _, err := n.Kube.AppsV1().Deployments(n.Name).Patch(t.Context(), waypoint, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, fmt.Sprintf("the waypoint has %d pods", replicas), func(ctx context.Context) error {
		list, err := n.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName + "=" + waypoint})
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range list.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if len(list.Items) != replicas || ready != replicas {
			return fmt.Errorf("there are %d, of which %d are ready", len(list.Items), ready)
		}
		return nil
	})
}

// TestWaypointParameters: a ConfigMap changes what is made for a Gateway, also in the
// eyes of the API server, and one that cannot be applied is in the Gateway's status.
func TestWaypointParameters(t *testing.T) {
	n := mesh.Namespace(t, "waypoint-parameters", kit.Ambient())
	n.MustApply(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
  infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: parameters}}
`)
	gateway := written{n, t, gateways, waypoint}
	gateway.says("Accepted", "False InvalidParameters", "parameters", "does not exist")
	parameters := func(deployment string) {
		n.MustApply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: parameters}
data:
  deployment: "` + deployment + `"
  horizontalPodAutoscaler: "spec: {minReplicas: 2}"
  podDisruptionBudget: ""
`)
	}
	parameters("spec: {template: {metadata: {labels: {tier: mesh}}}}")
	gateway.says("Accepted", "True Accepted")
	kit.Eventually(t, "the autoscaler and the budget are there, and two pods with the label", func(ctx context.Context) error {
		a, err := n.Kube.AutoscalingV2().HorizontalPodAutoscalers(n.Name).Get(ctx, waypoint, metav1.GetOptions{})
		if err != nil {
			return err
		}
		b, err := n.Kube.PolicyV1().PodDisruptionBudgets(n.Name).Get(ctx, waypoint, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := waypointPods(ctx, n, waypoint)
		if err != nil {
			return err
		}
		labelled := 0
		for _, p := range pods {
			if p.Labels["tier"] == "mesh" {
				labelled++
			}
		}
		if a.Spec.MaxReplicas < 2 || b.Spec.MaxUnavailable == nil || labelled != 2 {
			return fmt.Errorf("autoscaler %+v, budget %+v, %d of %d pods labelled", a.Spec, b.Spec, labelled, len(pods))
		}
		return nil
	})
	parameters("spec: {replica: 3}")
	gateway.says("Accepted", "False InvalidParameters", "replica")
}
