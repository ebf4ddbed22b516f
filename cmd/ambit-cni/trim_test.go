package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
)

// TestTrimmedPodsAreTheSameToTheAgent checks that what the Kubernetes source
// leaves of a pod is all that the agent reads of it.
func TestTrimmedPodsAreTheSameToTheAgent(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	tcp := func(port intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port, Host: "h"}}}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: "u", Labels: map[string]string{"x": "y"}, Annotations: map[string]string{
			wellknown.AnnotationRedirection: "enabled", wellknown.AnnotationSidecarStatus: "s", wellknown.AnnotationBypassInbound: "true",
			wellknown.AnnotationDNSCapture: "false", wellknown.AnnotationRerouteInterfaces: "net1", source.AnnotationConfigHash: "h", source.AnnotationMirror: "m",
		}},
		Spec: corev1.PodSpec{
			NodeName: "n", HostNetwork: true, ServiceAccountName: "sa",
			InitContainers: []corev1.Container{
				{Name: "ends", Image: "i"},
				{Name: "side", RestartPolicy: &always, StartupProbe: tcp(intstr.FromString("s")), Ports: []corev1.ContainerPort{{Name: "s", ContainerPort: 1}}},
			},
			Containers: []corev1.Container{
				{Name: "named", Ports: []corev1.ContainerPort{{ContainerPort: 9}, {Name: "s", ContainerPort: 2, Protocol: corev1.ProtocolTCP}}, LivenessProbe: tcp(intstr.FromString("s"))},
				{Name: "http", ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(3), Path: "/x"}}}},
				{Name: "grpc", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 4}}}},
				{Name: "hooks", Lifecycle: &corev1.Lifecycle{
					PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(5), Path: "/x"}},
					PreStop:   &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(6)}},
				}},
				{Name: "exec", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}},
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodFailed, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}},
	}
	whole, trimmed := podOf(pod), podOf(kube.Trim(pod).(*corev1.Pod))
	if d := cmp.Diff(whole, trimmed, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
	if len(whole.ProbePorts) != 6 || len(whole.IPs) != 2 || len(whole.Annotations) != 7 || whole.StaticUID != "h" {
		t.Errorf("the test pod does not say enough: %+v", whole)
	}
}
