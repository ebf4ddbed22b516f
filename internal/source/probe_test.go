package source_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/source"
)

func TestKubeletPorts(t *testing.T) {
	get := func(port intstr.IntOrString) *corev1.HTTPGetAction { return &corev1.HTTPGetAction{Port: port} }
	n, name := intstr.FromInt32, intstr.FromString
	probe := func(h corev1.ProbeHandler) *corev1.Probe { return &corev1.Probe{ProbeHandler: h} }
	ports := []corev1.ContainerPort{{Name: "web", ContainerPort: 80}, {ContainerPort: 81}}
	for what, tt := range map[string]struct {
		container corev1.Container
		want      []uint16
	}{
		"nothing":      {corev1.Container{Ports: ports}, nil},
		"HTTP":         {corev1.Container{ReadinessProbe: probe(corev1.ProbeHandler{HTTPGet: get(n(8080))})}, []uint16{8080}},
		"by name":      {corev1.Container{Ports: ports, LivenessProbe: probe(corev1.ProbeHandler{HTTPGet: get(name("web"))})}, []uint16{80}},
		"unknown name": {corev1.Container{Ports: ports, LivenessProbe: probe(corev1.ProbeHandler{HTTPGet: get(name("db"))})}, nil},
		"TCP":          {corev1.Container{StartupProbe: probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: n(5432)}})}, []uint16{5432}},
		"gRPC":         {corev1.Container{StartupProbe: probe(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9200}})}, []uint16{9200}},
		"exec":         {corev1.Container{StartupProbe: probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{}})}, nil},
		"hooks": {corev1.Container{Ports: ports, Lifecycle: &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{HTTPGet: get(n(82))}, PreStop: &corev1.LifecycleHandler{HTTPGet: get(name("web"))},
		}}, []uint16{80, 82}},
		"hooks without a connection": {corev1.Container{Lifecycle: &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: n(83)}}, PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{}},
		}}, nil},
		"the same twice": {corev1.Container{
			ReadinessProbe: probe(corev1.ProbeHandler{HTTPGet: get(n(80))}), LivenessProbe: probe(corev1.ProbeHandler{HTTPGet: get(n(80))}),
		}, []uint16{80}},
		"no port": {corev1.Container{
			ReadinessProbe: probe(corev1.ProbeHandler{HTTPGet: get(n(0))}), LivenessProbe: probe(corev1.ProbeHandler{HTTPGet: get(n(65536))}),
		}, nil},
	} {
		for _, pod := range []*corev1.Pod{
			{Spec: corev1.PodSpec{Containers: []corev1.Container{{}, tt.container}}},
			{Spec: corev1.PodSpec{InitContainers: []corev1.Container{tt.container}}},
		} {
			if got := source.KubeletPorts(pod); !slices.Equal(got, tt.want) {
				t.Errorf("%s: %v, want %v", what, got, tt.want)
			}
		}
	}
}
