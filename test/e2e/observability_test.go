package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// operatorKinds are those of the Prometheus operator, as far as the API server stores them.
const operatorKinds = `
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: %[2]s, plural: %[1]s}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

// TestObservability: rules and monitors are installed where the kinds of the operator are, and
// refused elsewhere; each monitor selects pods that answer at its port; boards are where a sidecar
// of Grafana looks for them; and all go when they are not wanted any more.
func TestObservability(t *testing.T) {
	t.Cleanup(func() {
		if err := mesh.Install(context.Background()); err != nil {
			t.Error(err)
		}
	})
	on := []string{"--set", "components.observability.enabled=true", "--set", "values.observability.rules.enabled=true", "--set", "values.observability.monitors.enabled=true"}
	if err := mesh.Upgrade(t.Context(), on...); err == nil || !strings.Contains(err.Error(), "the cluster has no kind") {
		t.Fatalf("without the operator's kinds: %v", err)
	}
	kinds := fmt.Sprintf(operatorKinds, "prometheusrules", "PrometheusRule") + fmt.Sprintf(operatorKinds, "podmonitors", "PodMonitor")
	t.Cleanup(func() {
		if err := mesh.Delete(context.Background(), "", kinds); err != nil {
			t.Error(err)
		}
	})
	if err := mesh.Apply(t.Context(), "", kinds); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the mesh is upgraded once the kinds are served", func(context.Context) error { return mesh.Upgrade(t.Context(), on...) })

	boards, err := mesh.Kube.CoreV1().ConfigMaps(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "grafana_dashboard=1"})
	if err != nil || len(boards.Items) != 5 {
		t.Errorf("%d boards, %v", len(boards.Items), err)
	}
	list := func(plural string) []unstructured.Unstructured {
		t.Helper()
		all, err := mesh.Dynamic.Resource(schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: plural}).Namespace(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return all.Items
	}
	if rules := list("prometheusrules"); len(rules) != 1 || !strings.Contains(fmt.Sprint(rules[0].Object), "AmbitControlPlaneMissing") {
		t.Errorf("%d objects with rules", len(rules))
	}
	monitors := list("podmonitors")
	if len(monitors) != 4 {
		t.Errorf("%d monitors", len(monitors))
	}
	for i := range monitors {
		if monitors[i].GetName() != "waypoint" { // none runs
			scraped(t, &monitors[i])
		}
	}

	if err := mesh.Upgrade(t.Context(), on[:2]...); err != nil {
		t.Fatal(err)
	}
	if n := len(list("prometheusrules")) + len(list("podmonitors")); n != 0 {
		t.Errorf("%d objects of the operator's kinds stay", n)
	}
}

// scraped checks that a monitor selects pods, and that each serves metrics where it says.
func scraped(t *testing.T, m *unstructured.Unstructured) {
	t.Helper()
	labels, _, _ := unstructured.NestedStringMap(m.Object, "spec", "selector", "matchLabels")
	ends, _, _ := unstructured.NestedSlice(m.Object, "spec", "podMetricsEndpoints")
	end := ends[0].(map[string]any)
	pods, err := mesh.Kube.CoreV1().Pods(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})})
	if err != nil || len(pods.Items) == 0 {
		t.Errorf("%s selects %d pods, %v", m.GetName(), len(pods.Items), err)
	}
	for _, p := range pods.Items {
		port := int32(0)
		for _, c := range p.Spec.Containers[0].Ports {
			if c.Name == end["port"] {
				port = c.ContainerPort
			}
		}
		if port == 0 {
			t.Errorf("%s: pod %s has no port %v", m.GetName(), p.Name, end["port"])
			continue
		}
		b, err := mesh.Kube.CoreV1().RESTClient().Get().Namespace(p.Namespace).Resource("pods").Name(fmt.Sprintf("%s:%d", p.Name, port)).SubResource("proxy").Suffix(fmt.Sprint(end["path"])).DoRaw(t.Context())
		if err != nil || !strings.Contains(string(b), "istio_build{") {
			t.Errorf("%s: pod %s: %d bytes, %v", m.GetName(), p.Name, len(b), err)
		}
	}
}

// TestDashboard: `ambit dashboard grafana` finds the pod in whatever namespace, and forwards a
// port of this machine to it, through the API server.
func TestDashboard(t *testing.T) {
	n := mesh.Namespace(t, "watch", nil)
	n.Pod("grafana", kit.WithLabels(map[string]string{"app.kubernetes.io/name": "grafana"}), kit.WithCommand("/echo", "server", "-http", ":3000", "-name", "grafana"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port.IntVal = 3000
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(mesh.Bin, "ambit"), "dashboard", "grafana", "--browser=false", "--address", "127.0.0.1") //nolint:gosec // the program that is tested
	cmd.Env = append(os.Environ(), "KUBECONFIG="+mesh.Kubeconfig)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "pod "+n.Name+"/grafana") {
		t.Fatalf("%q, %v", line, err)
	}
	for range 3 {
		resp, err := http.Get(strings.Fields(line)[3]) //nolint:noctx // the test ends it
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(b), "grafana") {
			t.Errorf("%q, %v", b, err)
		}
	}
	cancel()
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}
