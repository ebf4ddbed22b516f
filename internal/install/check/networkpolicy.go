package check

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func labelSet(m map[string]string) labels.Set { return labels.Set(m) }

// networkPolicies looks for policies that were written for the ports of
// programs and that stop the tunnels between them.
func (j *judge) networkPolicies() {
	blocked := map[string][]string{} // policies and direction: pods
	for i := range j.Pods {
		p := &j.Pods[i]
		switch {
		case j.wantsMesh(p):
			j.blocked(blocked, p, networkingv1.PolicyTypeIngress, wellknown.PortHBONE)
			j.blocked(blocked, p, networkingv1.PolicyTypeEgress, wellknown.PortHBONE)
		case p.Namespace == j.Namespace && p.Labels["app"] == "istiod":
			j.blocked(blocked, p, networkingv1.PolicyTypeIngress, wellknown.PortXDS)
		case p.Namespace == j.Namespace && p.Labels["app"] == "ztunnel":
			j.blocked(blocked, p, networkingv1.PolicyTypeEgress, wellknown.PortXDS)
		}
	}
	for _, key := range sortedKeys(blocked) {
		pods := blocked[key]
		what, rest, _ := strings.Cut(key, "|")
		port, object, _ := strings.Cut(rest, "|")
		direction := "to"
		if what == string(networkingv1.PolicyTypeEgress) {
			direction = "from"
		}
		j.add(Error, "network policies", object, fmt.Sprintf("allows no connection on port %s %s %s", port, direction, some(pods)),
			fmt.Sprintf("add TCP port %s to its %s rules", port, strings.ToLower(what)))
	}
	if len(blocked) == 0 && len(j.NetworkPolicies) > 0 {
		j.add(OK, "network policies", "", fmt.Sprintf("none of %d stops the mesh", len(j.NetworkPolicies)), "")
	}
}

// blocked notes the policies that together keep a pod from using a port.
// Policies add up: one that allows it is enough.
func (j *judge) blocked(into map[string][]string, p *corev1.Pod, direction networkingv1.PolicyType, port int32) {
	var names []string
	for i := range j.NetworkPolicies {
		np := &j.NetworkPolicies[i]
		if np.Namespace != p.Namespace || !concerns(np, direction) || !matches(&np.Spec.PodSelector, p.Labels) {
			continue
		}
		if allows(np, direction, port) {
			return
		}
		names = append(names, np.Namespace+"/"+np.Name)
	}
	if len(names) == 0 {
		return
	}
	key := fmt.Sprintf("%s|%d|NetworkPolicy %s", direction, port, strings.Join(names, ", "))
	into[key] = append(into[key], p.Namespace+"/"+p.Name)
}

// concerns reports whether a policy speaks about a direction. A policy that does
// not say which speaks about ingress, and about egress if it has such rules.
func concerns(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	if len(np.Spec.PolicyTypes) > 0 {
		return slices.Contains(np.Spec.PolicyTypes, direction)
	}
	return direction == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
}

// allows reports whether any rule lets a port through, to or from anybody.
func allows(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType, port int32) bool {
	if direction == networkingv1.PolicyTypeIngress {
		return slices.ContainsFunc(np.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return covers(r.Ports, port) })
	}
	return slices.ContainsFunc(np.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return covers(r.Ports, port) })
}

// covers reports whether the ports of a rule contain one; none means all. Names
// are of container ports, and nothing of the mesh is one.
func covers(ports []networkingv1.NetworkPolicyPort, port int32) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			return false
		}
		if p.Port == nil {
			return true
		}
		first := p.Port.IntVal
		if p.Port.StrVal != "" {
			return false
		}
		if p.EndPort != nil {
			return first <= port && port <= *p.EndPort
		}
		return first == port
	})
}

// some names a few of many.
func some(names []string) string {
	const few = 3
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more pods", strings.Join(names[:few], ", "), len(names)-few)
}

func sortedKeys(m map[string][]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
