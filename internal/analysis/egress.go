package analysis

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// egressHosts reports EgressPolicies with hosts that select enrolled pods whose look-ups are
// not captured: these reach none of the hosts.
func (m *mesh) egressHosts() {
	for _, e := range m.events {
		p, ok := e.Object.(*ambit.EgressPolicy)
		if !ok {
			continue
		}
		hosts := false
		for _, entry := range p.Spec.GetTo() {
			hosts = hosts || len(entry.GetHosts()) > 0
		}
		if !hosts {
			continue
		}
		n, first, want := 0, "", p.Spec.GetSelector().GetMatchLabels()
		for _, pod := range m.pods {
			if (p.Namespace == pod.Namespace || p.Namespace == m.opts.RootNamespace) && m.mode(pod) == wellknown.DataplaneModeAmbient &&
				(len(want) == 0 || selects(want, pod.Labels)) && !m.capturesDNS(pod) {
				if n++; n == 1 {
					first = pod.Namespace + "/" + pod.Name
				}
			}
		}
		if n > 0 {
			m.report(codeHostsWithoutDNS, e.Key, "spec.to", fmt.Sprintf("%d of its pods (%s among them) ask for no capture of look-ups: unless the whole mesh has it, they reach none of the hosts", n, first),
				"label their namespace "+wellknown.LabelDNSCapture+`="true", or set ambient.dnsCapture in the chart cni`)
		}
	}
}

// capturesDNS reports whether a pod, or its namespace, asks for the capture of look-ups.
func (m *mesh) capturesDNS(pod *corev1.Pod) bool {
	captured := false
	if ns := m.namespaces[pod.Namespace]; ns != nil {
		captured = ns.Labels[wellknown.LabelDNSCapture] == "true"
	}
	switch pod.Annotations[wellknown.AnnotationDNSCapture] {
	case "true":
		return true
	case "false":
		return false
	}
	return captured
}
