package source

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// KubeletPorts are the TCP ports of a pod that the kubelet of its node connects
// to: those of its probes and of its containers' lifecycle hooks. In order, each
// once; a name that no port of the container has is left out.
func KubeletPorts(pod *corev1.Pod) []uint16 {
	var ports []uint16
	add := func(c *corev1.Container, port intstr.IntOrString) {
		if n := numberOf(c, port); n > 0 && n <= math.MaxUint16 {
			ports = append(ports, uint16(n))
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
				switch {
				case p == nil:
				case p.HTTPGet != nil:
					add(c, p.HTTPGet.Port)
				case p.TCPSocket != nil:
					add(c, p.TCPSocket.Port)
				case p.GRPC != nil:
					add(c, intstr.FromInt32(p.GRPC.Port))
				}
			}
			if c.Lifecycle == nil {
				continue
			}
			for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
				// TCP hooks are accepted by the API, and never run.
				if h != nil && h.HTTPGet != nil {
					add(c, h.HTTPGet.Port)
				}
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

func numberOf(c *corev1.Container, port intstr.IntOrString) int32 {
	if port.Type == intstr.Int {
		return port.IntVal
	}
	for _, named := range c.Ports {
		if named.Name == port.StrVal {
			return named.ContainerPort
		}
	}
	return 0
}
