package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

// What no version of the mesh could mean is refused when it is written.
func TestAdmissionRefuses(t *testing.T) {
	n := mesh.Namespace(t, "admission", nil)
	for name, text := range map[string]string{
		"a port that is none": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad}
spec: {rules: [{to: [{operation: {ports: ["http"]}}]}]}`,
		"an address block that is none": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad}
spec: {rules: [{from: [{source: {ipBlocks: ["10.0.0.0/99"]}}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			kit.Eventually(t, "it is refused", func(ctx context.Context) error {
				err := mesh.Apply(ctx, n.Name, text)
				if err == nil {
					return fmt.Errorf("it was accepted")
				}
				if !strings.Contains(err.Error(), "denied the request") {
					return err
				}
				return nil
			})
		})
	}
}

// Probes of every kind reach a pod that accepts nothing but mutual TLS, and
// nobody else does without it.
func TestStrictWithProbes(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "strict", kit.Ambient())
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	plain := mesh.Namespace(t, "plain", nil)
	plain.Pod("stranger", kit.OnNode(far))
	n.Pod("alice", kit.OnNode(far))
	probes := map[string]corev1.ProbeHandler{
		"http": {HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080), Path: "/"}},
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9000)}},
		"grpc": {GRPC: &corev1.GRPCAction{Port: 9200}},
		"exec": {Exec: &corev1.ExecAction{Command: []string{"/echo", "get", "-url", "http://127.0.0.1:8080/"}}},
	}
	for name, probe := range probes {
		n.Create(name, kit.OnNode(near), kit.WithCommand("/echo", "server", "-grpc", ":9200"), func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: probe}
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 3, ProbeHandler: probe}
		})
		n.Service(name)
	}
	for name := range probes {
		n.Ready(name)
		n.Redirected(name, true)
		n.MustGet("alice", n.URL(name))
		plain.MustRefuse("stranger", n.URL(name))
	}
	time.Sleep(5 * time.Second) // several rounds of liveness probes
	for name := range probes {
		pod := n.Ready(name)
		if r := pod.Status.ContainerStatuses[0].RestartCount; r > 0 {
			t.Errorf("pod %s was restarted %d times by its own probe", name, r)
		}
	}
}

// What the kubelet calls when a container starts and ends reaches a pod that
// accepts nothing but mutual TLS, at ports that no probe names.
func TestStrictWithLifecycleHooks(t *testing.T) {
	n := mesh.Namespace(t, "hooks", kit.Ambient())
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	plain := mesh.Namespace(t, "plain", nil)
	plain.Pod("stranger")
	refused := func(name string) {
		t.Helper()
		pod := n.Ready(name)
		n.Redirected(name, true)
		_ = plain.MustRefuse("stranger", "http://"+net.JoinHostPort(pod.Status.PodIP, "8081")+"/")
	}
	node, _ := twoNodes(t)
	serves := kit.WithCommand("/echo", "server", "-http", ":8081", "-tcp", "")
	noProbe := func(p *corev1.Pod) { p.Spec.Containers[0].ReadinessProbe = nil }
	n.Pod("before", kit.OnNode(node), serves, noProbe)
	refused("before") // the node's proxy has heard of STRICT
	n.Create("hooked", kit.OnNode(node), serves, func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		// The hooks of one container call the other, which is there before it.
		called := *c.DeepCopy()
		called.Name, called.RestartPolicy = "called", ptr.To(corev1.ContainerRestartPolicyAlways)
		called.Command, called.ReadinessProbe = []string{"/echo", "server"}, nil
		called.StartupProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9000)}}}
		p.Spec.InitContainers = []corev1.Container{called}
		c.ReadinessProbe = nil
		call := &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080), Path: "/hook"}}
		c.Lifecycle = &corev1.Lifecycle{PostStart: call, PreStop: call}
	})
	if pod := n.Ready("hooked"); pod.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Errorf("the container was restarted: %+v", pod.Status.ContainerStatuses[0].LastTerminationState)
	}
	refused("hooked")
	if err := mesh.Kube.CoreV1().Pods(n.Name).Delete(t.Context(), "hooked", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the pod is gone", func(ctx context.Context) error {
		_, err := mesh.Kube.CoreV1().Pods(n.Name).Get(ctx, "hooked", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return cmp.Or(err, errors.New("it is there"))
	})
	events, err := mesh.Kube.CoreV1().Events(n.Name).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.Reason == "FailedPostStartHook" || e.Reason == "FailedPreStopHook" {
			t.Errorf("%s: %s", e.Reason, e.Message)
		}
	}
}
