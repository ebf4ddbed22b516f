package source

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// ours reports whether an annotation is one that the mesh may read.
func ours(annotation string) bool {
	domain, _, _ := strings.Cut(annotation, "/")
	return domain == "istio.io" || strings.HasSuffix(domain, ".istio.io") || domain == wellknown.AnnotationDomain ||
		annotation == AnnotationConfigHash || annotation == AnnotationMirror
}

// meta is what is read of the metadata of built-in kinds.
func (in *Interner) meta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Name: m.Name, Namespace: in.get(m.Namespace), UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: in.all(m.Labels, nil),
		Annotations: in.all(m.Annotations, ours),
	}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		out.OwnerReferences = in.owner(c)
	}
	return out
}

func (in *Interner) namespace(m *metav1.ObjectMeta) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: in.meta(m)}
}

func (in *Interner) node(m *metav1.ObjectMeta) *corev1.Node {
	out := &corev1.Node{ObjectMeta: in.meta(m)}
	out.Annotations = nil
	return out
}

func (in *Interner) account(m *metav1.ObjectMeta) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: m.Name, Namespace: in.get(m.Namespace), UID: m.UID, ResourceVersion: m.ResourceVersion}}
}

func (in *Interner) pod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: in.meta(&p.ObjectMeta)}
	out.Spec = corev1.PodSpec{
		NodeName: in.get(p.Spec.NodeName), ServiceAccountName: in.get(p.Spec.ServiceAccountName), HostNetwork: p.Spec.HostNetwork,
		Containers: in.containers(p.Spec.Containers), InitContainers: in.containers(p.Spec.InitContainers),
	}
	out.Status = corev1.PodStatus{Phase: corev1.PodPhase(in.get(string(p.Status.Phase))), PodIP: p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		if ip.IP == p.Status.PodIP {
			ip.IP = p.Status.PodIP // one string
		}
		out.Status.PodIPs = append(out.Status.PodIPs, ip)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = in.ready(c.Status)
		}
	}
	if !Ended(p) && Ended(out) {
		out.Status.ContainerStatuses = stillRunning
	}
	return out
}

// stillRunning is all that is kept of the status of containers, and only of a
// pod that has a final phase and still runs.
var stillRunning = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}

// containers are those with named ports or with what the kubelet connects to,
// cut down to these.
func (in *Interner) containers(list []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range list {
		c := &list[i]
		t := corev1.Container{RestartPolicy: c.RestartPolicy, ReadinessProbe: probe(c.ReadinessProbe), LivenessProbe: probe(c.LivenessProbe), StartupProbe: probe(c.StartupProbe), Lifecycle: hooks(c.Lifecycle)}
		for _, p := range c.Ports {
			if p.Name != "" {
				t.Ports = append(t.Ports, corev1.ContainerPort{Name: in.get(p.Name), ContainerPort: p.ContainerPort, Protocol: corev1.Protocol(in.get(string(p.Protocol)))})
			}
		}
		if len(t.Ports) > 0 || t.ReadinessProbe != nil || t.LivenessProbe != nil || t.StartupProbe != nil || t.Lifecycle != nil {
			t.Name = in.get(c.Name)
			out = append(out, t)
		}
	}
	return in.list(out)
}

// probe is where a probe connects to; nil when it does not.
func probe(p *corev1.Probe) *corev1.Probe {
	var out corev1.Probe
	switch {
	case p == nil:
		return nil
	case p.HTTPGet != nil:
		out.HTTPGet = &corev1.HTTPGetAction{Port: p.HTTPGet.Port}
	case p.TCPSocket != nil:
		out.TCPSocket = &corev1.TCPSocketAction{Port: p.TCPSocket.Port}
	case p.GRPC != nil:
		out.GRPC = &corev1.GRPCAction{Port: p.GRPC.Port}
	default:
		return nil
	}
	return &out
}

// hooks are where lifecycle hooks connect to; nil when none does.
func hooks(l *corev1.Lifecycle) *corev1.Lifecycle {
	if l == nil {
		return nil
	}
	out := corev1.Lifecycle{PostStart: hook(l.PostStart), PreStop: hook(l.PreStop)}
	if out.PostStart == nil && out.PreStop == nil {
		return nil
	}
	return &out
}

func hook(h *corev1.LifecycleHandler) *corev1.LifecycleHandler {
	if h == nil || h.HTTPGet == nil {
		return nil
	}
	return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: h.HTTPGet.Port}}
}

func (in *Interner) service(s *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: in.meta(&s.ObjectMeta)}
	out.Spec = corev1.ServiceSpec{
		Type: s.Spec.Type, ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs, IPFamilies: s.Spec.IPFamilies,
		Selector: in.all(s.Spec.Selector, nil), Ports: s.Spec.Ports, ExternalName: s.Spec.ExternalName,
		TrafficDistribution: s.Spec.TrafficDistribution, InternalTrafficPolicy: s.Spec.InternalTrafficPolicy,
		PublishNotReadyAddresses: s.Spec.PublishNotReadyAddresses, SessionAffinity: s.Spec.SessionAffinity,
	}
	out.Status.Conditions = s.Status.Conditions
	for _, i := range s.Status.LoadBalancer.Ingress {
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: i.IP})
	}
	return out
}

// configMap keeps the values that are overlays of what is made for Gateways.
func (in *Interner) configMap(c *corev1.ConfigMap) *corev1.ConfigMap {
	out := &corev1.ConfigMap{ObjectMeta: in.meta(&c.ObjectMeta)}
	out.Annotations, out.OwnerReferences = nil, nil
	for key, text := range c.Data {
		if out.Data == nil {
			out.Data = make(map[string]string, len(c.Data))
		}
		if !slices.Contains(wellknown.OverlayKeys, key) {
			text = ""
		}
		out.Data[in.get(key)] = text
	}
	return out
}

func (in *Interner) endpointSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: in.meta(&s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports}
	out.Endpoints = make([]discoveryv1.Endpoint, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, in.endpoint(&s.Endpoints[i], s.Namespace))
	}
	return out
}

// endpoint of a pod is its name and whether it is ready: the rest is known
// from the pod itself.
func (in *Interner) endpoint(e *discoveryv1.Endpoint, namespace string) discoveryv1.Endpoint {
	var out discoveryv1.Endpoint
	if r := e.TargetRef; r != nil {
		out.TargetRef = &corev1.ObjectReference{Kind: in.get(r.Kind), Namespace: in.get(r.Namespace), Name: r.Name}
		if r.Kind == "Pod" && r.Name != "" && (r.Namespace == "" || r.Namespace == namespace) {
			out.Conditions = endpointConditions(e.Conditions)
			return out
		}
	}
	out.Addresses, out.NodeName = e.Addresses, e.NodeName
	out.Conditions = endpointConditions(e.Conditions)
	return out
}

// endpointConditions shares what the conditions point to.
func endpointConditions(c discoveryv1.EndpointConditions) discoveryv1.EndpointConditions {
	return discoveryv1.EndpointConditions{Ready: shared(c.Ready), Serving: shared(c.Serving), Terminating: shared(c.Terminating)}
}

var yes, no = true, false

func shared(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return &yes
	}
	return &no
}
