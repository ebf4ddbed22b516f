package source

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The functions here fill in what the Kubernetes API server would, as far as
// the mesh reads it, so that every source delivers the same object.

func defaultPod(o *corev1.Pod) {
	// The API server's admission gives no account to mirror pods.
	if _, mirror := o.Annotations[AnnotationMirror]; !mirror && o.Spec.ServiceAccountName == "" {
		o.Spec.ServiceAccountName = "default"
	}
	for i := range o.Spec.Containers {
		for j := range o.Spec.Containers[i].Ports {
			defaultProtocol(&o.Spec.Containers[i].Ports[j].Protocol)
		}
	}
}

func defaultService(o *corev1.Service) {
	if o.Spec.Type == "" {
		o.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if o.Spec.ClusterIP != "" && len(o.Spec.ClusterIPs) == 0 {
		o.Spec.ClusterIPs = []string{o.Spec.ClusterIP}
	}
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		defaultProtocol(&p.Protocol)
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
}

func defaultEndpointSlice(o *discoveryv1.EndpointSlice) {
	for i := range o.Ports {
		if o.Ports[i].Protocol == nil {
			tcp := corev1.ProtocolTCP
			o.Ports[i].Protocol = &tcp
		}
	}
}

func defaultProtocol(p *corev1.Protocol) {
	if *p == "" {
		*p = corev1.ProtocolTCP
	}
}
