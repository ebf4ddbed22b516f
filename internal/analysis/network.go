package analysis

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingk8s "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// networkPolicies says which enrolled pods a NetworkPolicy cuts off. The
// policies of a pod add up: what one of them admits is admitted. Between
// enrolled pods the network sees port 15008 only, whatever the port of the
// program.
func (m *mesh) networkPolicies() {
	in, out, probes := map[*networkingk8s.NetworkPolicy]*cutOff{}, map[*networkingk8s.NetworkPolicy]*cutOff{}, map[*networkingk8s.NetworkPolicy]*cutOff{}
	for _, pod := range m.pods {
		if !m.wanted(pod) {
			continue
		}
		ingress, egress := m.isolating(pod)
		if s := ingressScope(pod, ingress); len(ingress) > 0 && s.others && !s.tunnel {
			note(in, ingress, pod, 0)
		} else if port := unadmittedProbe(pod, ingress); len(ingress) > 0 && port != 0 {
			note(probes, ingress, pod, port)
		}
		if s := egressScope(pod, egress); len(egress) > 0 && s.others && !s.tunnel {
			note(out, egress, pod, 0)
		}
	}
	for _, np := range m.firewalls {
		key := keyOf(NetworkPolicy, np)
		if c := in[np]; c != nil {
			m.report(codeBlocksHBONE, key, "spec.ingress", fmt.Sprintf("admits connections to %s on other ports, but not on 15008, where they arrive from enrolled clients: these fail with CONNECT_TIMEOUT", c), "admit TCP port 15008 from the same peers")
		}
		if c := out[np]; c != nil {
			m.report(codeBlocksHBONE, key, "spec.egress", fmt.Sprintf("lets %s connect to other ports, but not to 15008, where enrolled servers are reached: these connections fail with CONNECT_TIMEOUT", c), "admit TCP port 15008 to the same peers")
		}
		if c := probes[np]; c != nil {
			m.report(codeBlocksProbes, key, "spec.ingress", fmt.Sprintf("does not name the node for probes of port %d of %s: most network plugins admit the kubelet nevertheless, not all do", c.port, c), "if probes fail, admit the port from the node's addresses with an ipBlock")
		}
	}
}

// cutOff counts the pods that a policy cuts off.
type cutOff struct {
	pods    int
	example string
	port    int32
}

func (c *cutOff) String() string {
	if c.pods == 1 {
		return "pod " + c.example
	}
	return fmt.Sprintf("%d pods (%s among them)", c.pods, c.example)
}

func note(into map[*networkingk8s.NetworkPolicy]*cutOff, policies []*networkingk8s.NetworkPolicy, pod *corev1.Pod, port int32) {
	for _, np := range policies {
		if into[np] == nil {
			into[np] = &cutOff{example: pod.Name, port: port}
		}
		into[np].pods++
	}
}

// isolating are the policies that select a pod, by direction.
func (m *mesh) isolating(pod *corev1.Pod) (ingress, egress []*networkingk8s.NetworkPolicy) {
	for _, np := range m.firewalls {
		if np.Namespace != pod.Namespace {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err != nil || !sel.Matches(labels.Set(pod.Labels)) {
			continue
		}
		// Without types, ingress is meant, and egress when there are rules for it.
		types := np.Spec.PolicyTypes
		if slices.Contains(types, networkingk8s.PolicyTypeIngress) || len(types) == 0 {
			ingress = append(ingress, np)
		}
		if slices.Contains(types, networkingk8s.PolicyTypeEgress) || len(types) == 0 && len(np.Spec.Egress) > 0 {
			egress = append(egress, np)
		}
	}
	return ingress, egress
}

// scope is what rules admit: the port of tunnels, and any other TCP port but
// that of DNS.
type scope struct{ tunnel, others bool }

func ingressScope(pod *corev1.Pod, policies []*networkingk8s.NetworkPolicy) (s scope) {
	for _, np := range policies {
		for i := range np.Spec.Ingress {
			s.add(pod, np.Spec.Ingress[i].Ports)
		}
	}
	return s
}

func egressScope(pod *corev1.Pod, policies []*networkingk8s.NetworkPolicy) (s scope) {
	for _, np := range policies {
		for i := range np.Spec.Egress {
			s.add(pod, np.Spec.Egress[i].Ports)
		}
	}
	return s
}

func (s *scope) add(pod *corev1.Pod, ports []networkingk8s.NetworkPolicyPort) {
	const dns = 53
	if len(ports) == 0 {
		s.tunnel, s.others = true, true
	}
	for _, p := range ports {
		if !isTCP(p) {
			continue
		}
		s.tunnel = s.tunnel || admits(pod, p, wellknown.PortHBONE)
		if p.Port == nil || p.Port.Type == intstr.String || p.Port.IntVal != dns || p.EndPort != nil {
			s.others = true
		}
	}
}

func isTCP(p networkingk8s.NetworkPolicyPort) bool {
	return p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP
}

func admits(pod *corev1.Pod, p networkingk8s.NetworkPolicyPort, port int32) bool {
	switch {
	case p.Port == nil:
		return true
	case p.Port.Type == intstr.String:
		return containerPort(pod, p.Port.StrVal) == port
	case p.EndPort != nil:
		return p.Port.IntVal <= port && port <= *p.EndPort
	}
	return p.Port.IntVal == port
}

// unadmittedProbe is a port that the kubelet asks and that no rule admits from
// outside of the cluster's pods; 0 for none.
func unadmittedProbe(pod *corev1.Pod, policies []*networkingk8s.NetworkPolicy) int32 {
	for _, port := range source.KubeletPorts(pod) {
		port := int32(port)
		open := slices.ContainsFunc(policies, func(np *networkingk8s.NetworkPolicy) bool {
			return slices.ContainsFunc(np.Spec.Ingress, func(r networkingk8s.NetworkPolicyIngressRule) bool {
				return fromOutside(r.From) && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p networkingk8s.NetworkPolicyPort) bool {
					return isTCP(p) && admits(pod, p, port)
				}))
			})
		})
		if !open {
			return port
		}
	}
	return 0
}

func fromOutside(peers []networkingk8s.NetworkPolicyPeer) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingk8s.NetworkPolicyPeer) bool { return p.IPBlock != nil })
}
