package main

import (
	"fmt"
	"net/netip"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

const (
	// ownLabel is on every object of a run that is in no namespace of its own.
	ownLabel = "ambit-scale"
	// systemNamespace is where the control plane and the node proxies are, as
	// far as the cluster knows.
	systemNamespace = "ambit-scale-system"
	proxyAccount    = "ztunnel"
	leaseNamespace  = "kube-node-lease"

	servicesPerNamespace = 100
	// One service in selectorless has no selector, and endpoints that somebody
	// writes.
	selectorless        = 50
	endpointsOfSlice    = 10
	leaseSeconds        = 40 // as a kubelet's
	labelServiceProxy   = "service.kubernetes.io/service-proxy-name"
	labelSliceManagedBy = "endpointslice.kubernetes.io/managed-by"
)

// shape is how large the mesh is.
type shape struct {
	services, pods, nodes int
	routed
}

func (s shape) String() string {
	text := fmt.Sprintf("%d services, %d pods, %d nodes", s.services, s.pods, s.nodes)
	if s.waypoints > 0 {
		text += fmt.Sprintf(", %d waypoints of %d proxies, %d routes", s.waypoints, s.replicas, s.routes)
	}
	return text
}

func (s shape) namespaces() int {
	return (s.services + servicesPerNamespace - 1) / servicesPerNamespace
}

// slices are the services whose endpoints are written by somebody.
func (s shape) slices() int { return (s.services + selectorless - 1) / selectorless }

// addresses are the names of the resources that every node must end up with:
// workloads and services, the node proxies' own pods among them.
func (s shape) addresses() []string {
	var names []string
	for i := range s.nodes {
		names = append(names, podResource(systemNamespace, proxyName(i)))
	}
	for i := range s.pods {
		names = append(names, podResource(home(s.serviceOf(i)), podName(i)))
	}
	for i := range s.services {
		names = append(names, home(i)+"/"+serviceName(i)+"."+home(i)+".svc."+wellknown.DefaultDomain)
		if external(i) {
			for e := range endpointsOfSlice {
				names = append(names, sliceResource(i, e))
			}
		}
	}
	for g := range s.waypoints {
		ns := namespaceName(g)
		names = append(names, ns+"/"+waypointName+"."+ns+".svc."+wellknown.DefaultDomain)
		for i := range s.replicas {
			names = append(names, podResource(ns, proxyOfWaypoint(i)))
		}
	}
	return names
}

func podResource(namespace, name string) string {
	return wellknown.DefaultCluster + "//Pod/" + namespace + "/" + name
}

func sliceResource(service, endpoint int) string {
	return wellknown.DefaultCluster + "/discovery.k8s.io/EndpointSlice/" + home(service) + "/" + serviceName(service) + "/" + sliceAddress(service, endpoint)
}

func namespaceName(i int) string { return fmt.Sprintf("ambit-scale-%d", i) }
func nodeName(i int) string      { return fmt.Sprintf("ambit-scale-%d", i) }

// home is the namespace of a service.
func home(service int) string { return namespaceName(service / servicesPerNamespace) }

func serviceName(i int) string { return fmt.Sprintf("svc-%d", i) }

func external(service int) bool { return service%selectorless == 0 }

// serviceOf spreads pods evenly over the services that have a selector.
func (s shape) serviceOf(pod int) int {
	n := pod % (s.services - s.slices())
	return n + n/(selectorless-1) + 1
}

func podName(i int) string { return fmt.Sprintf("pod-%d", i) }

// address is the i-th after first.
func address(first [4]byte, i int) string {
	n := uint32(first[0])<<24 | uint32(first[1])<<16 | uint32(first[2])<<8 | uint32(first[3])
	n += uint32(i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}).String()
}

// Addresses that no cluster of tests uses.
var (
	firstPod      = [4]byte{11, 0, 0, 1}
	firstProxy    = [4]byte{12, 0, 0, 1}
	firstExternal = [4]byte{13, 0, 0, 1}
)

func namespace(name string, waypoint bool) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		ownLabel: "", wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient,
	}}}
	if waypoint {
		n.Labels[wellknown.LabelUseWaypoint] = waypointName
	}
	return n
}

// clusterNode says that it is ready; a lease that is renewed keeps it so.
func clusterNode(i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{
			ownLabel: "", "topology.kubernetes.io/region": "region", "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3),
		}},
		Spec:   corev1.NodeSpec{Taints: []corev1.Taint{{Key: ownLabel, Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}},
	}
}

func lease(node int) *coordinationv1.Lease {
	name := nodeName(node)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: leaseNamespace, Labels: map[string]string{ownLabel: ""}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: new(int32(leaseSeconds)), RenewTime: new(metav1.NewMicroTime(time.Now()))},
	}
}

func account(namespace, name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// service has a label that keeps kube-proxy from programming it.
func service(i int) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: home(i), Name: serviceName(i), Labels: map[string]string{labelServiceProxy: ownLabel}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	if !external(i) {
		s.Spec.Selector = map[string]string{"app": serviceName(i)}
		s.Spec.Ports[0].TargetPort = intstr.FromString("http")
	}
	return s
}

// slice has the endpoints of a service without a selector.
func slice(service int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: home(service), Name: serviceName(service), Labels: map[string]string{
			discoveryv1.LabelServiceName: serviceName(service), labelSliceManagedBy: ownLabel, labelServiceProxy: ownLabel,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for i := range endpointsOfSlice {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{sliceAddress(service, i)}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return s
}

func sliceAddress(service, endpoint int) string {
	return address(firstExternal, service/selectorless*endpointsOfSlice+endpoint)
}

// pod is one that its node has started.
func (s shape) pod(i int) *corev1.Pod {
	svc := s.serviceOf(i)
	p := running(home(svc), podName(i), nodeName(i%s.nodes), address(firstPod, i))
	p.Labels = map[string]string{"app": serviceName(svc), "version": "v1", "pod-template-hash": fmt.Sprintf("%08x", svc)}
	p.Annotations = map[string]string{wellknown.AnnotationRedirection: wellknown.RedirectionEnabled}
	p.Spec.ServiceAccountName = serviceName(svc)
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http"), Path: "/"}}}
	return p
}

func proxyPod(node int) *corev1.Pod {
	p := running(systemNamespace, proxyName(node), nodeName(node), address(firstProxy, node))
	p.Labels = map[string]string{"app": "ztunnel"}
	p.Spec.ServiceAccountName = proxyAccount
	return p
}

func proxyName(node int) string { return fmt.Sprintf("ztunnel-%d", node) }

func running(namespace, name, node, ip string) *corev1.Pod {
	now := metav1.Now()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
			Name: "main", Image: "example.invalid/image:v1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, StartTime: &now,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue},
			},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "main", Ready: true, Started: new(true), Image: "example.invalid/image:v1", ImageID: "example.invalid/image@sha256:0000",
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
			}},
		},
	}
}
