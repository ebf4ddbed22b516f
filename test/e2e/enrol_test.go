package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// enrolTime is what a label on a namespace may take to have its effect.
const enrolTime = 5 * time.Second

// twoNodes are the nodes that clients and servers are put on.
func twoNodes(t *testing.T) (client, server string) {
	t.Helper()
	nodes, err := mesh.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) < 2 {
		t.Fatalf("this test needs two nodes, the cluster has %v", nodes)
	}
	return nodes[len(nodes)-1], nodes[len(nodes)-2]
}

// restarts are how often the containers of a namespace's pods have started
// again.
func restarts(t *testing.T, ns string) string {
	t.Helper()
	list, err := mesh.Kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range list.Items {
		for _, s := range p.Status.ContainerStatuses {
			all = append(all, fmt.Sprintf("%s/%s started %d times, now %s", p.Name, p.UID, s.RestartCount+1, s.ContainerID))
		}
	}
	return strings.Join(all, "\n")
}

// A label on a namespace enrols its running pods, and taking it away gives
// everything back, while requests go on.
func TestNamespaceLabelEnrolsRunningPods(t *testing.T) {
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "enrol", nil)
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	n.Pod("client", kit.OnNode(from))
	load := n.StartLoad("load", n.URL("server"), 500, kit.OnNode(from))
	before := restarts(t, n.Name)

	since := time.Now()
	n.Enrol(true)
	for _, pod := range []string{"server", "client", "load"} {
		n.Redirected(pod, true)
	}
	if took := time.Since(since); took > enrolTime {
		t.Logf("enrolled after %s, on a machine that may be slow", took)
	}
	n.Tunnelled("client", n.URL("server"), server)
	n.Logged(server, since, `direction="inbound"`, "/sa/load\"")
	load.Seconds(3)

	n.Enrol(false)
	for _, pod := range []string{"server", "client", "load"} {
		n.Redirected(pod, false)
	}
	load.Seconds(3)
	if after := restarts(t, n.Name); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	load.Clean()
}

// A label on a pod decides for the pod, whatever the namespace says.
func TestPodLabelDecides(t *testing.T) {
	n := mesh.Namespace(t, "podlabel", nil)
	n.Pod("one", kit.WithLabels(kit.Ambient()))
	n.Pod("two")
	n.Redirected("one", true)
	n.Redirected("two", false)

	label := func(pod, value string) {
		t.Helper()
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, wellknown.LabelDataplaneMode, value)
		if _, err := mesh.Kube.CoreV1().Pods(n.Name).Patch(t.Context(), pod, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	label("one", "null")
	n.Redirected("one", false)
	n.Enrol(true)
	n.Redirected("one", true)
	n.Redirected("two", true)
	label("two", `"none"`)
	n.Redirected("two", false)
	n.Redirected("one", true)
}

// A new pod is captured before its first program runs: its init container
// already speaks through the mesh.
func TestInitContainerIsCaptured(t *testing.T) {
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "init", kit.Ambient())
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	since := time.Now()
	n.Pod("late", kit.OnNode(from), func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: kit.TestImage, Command: []string{"/echo", "get", "-url", n.URL("server")}}}
	})
	n.Logged(server, since, `direction="inbound"`, "/sa/late\"")
	if log, err := mesh.Logs(context.Background(), n.Name, "late", "first", time.Time{}); err != nil || !strings.Contains(log, "server") {
		t.Errorf("init container: %q, %v", log, err)
	}
	pod, err := mesh.Kube.CoreV1().Pods(n.Name).Get(t.Context(), "late", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range pod.Status.InitContainerStatuses {
		if s.RestartCount > 0 {
			t.Errorf("the init container had to try %d times", s.RestartCount+1)
		}
	}
}

// The network namespace of a pod with users of its own belongs to these; the
// agent and the proxy work in it nevertheless, before its first program runs and
// later.
func TestUsersOfItsOwn(t *testing.T) {
	from, to := twoNodes(t)
	own := func(p *corev1.Pod) { p.Spec.HostUsers = ptr.To(false) }
	n := mesh.Namespace(t, "users", kit.Ambient())
	server := n.Pod("server", kit.OnNode(to), own)
	n.Pod("client", kit.OnNode(from), own)
	n.Service("server")
	if server.Spec.HostUsers == nil || *server.Spec.HostUsers {
		t.Fatal("this cluster gives pods no users of their own")
	}
	n.Tunnelled("client", n.URL("server"), server)
	n.Enrol(false)
	for _, pod := range []string{"client", "server"} {
		n.Redirected(pod, false)
	}
	n.MustGet("client", n.URL("server"))
	n.Enrol(true)
	n.Tunnelled("client", n.URL("server"), server)
}
