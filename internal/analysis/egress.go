package analysis

import (
	"fmt"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
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
		want := p.Spec.GetSelector().GetMatchLabels()
		m.withoutLookUps(e.Key, "spec.to", "of its pods", "unless the whole mesh has it, they reach none of the hosts", func(pod *corev1.Pod) bool {
			return (p.Namespace == pod.Namespace || p.Namespace == m.opts.RootNamespace) && (len(want) == 0 || selects(want, pod.Labels))
		})
	}
}

// lookedUpHosts reports ServiceEntries whose hosts look-ups find, for enrolled pods of their
// namespace whose look-ups are not captured: what these call is not known to be the entry.
func (m *mesh) lookedUpHosts() {
	for _, e := range m.events {
		entry, ok := e.Object.(*networkingv1.ServiceEntry)
		if ok && slices.ContainsFunc(entry.Spec.Hosts, func(h string) bool { return service.ByLookUp(h, entry) && !service.Served(h, entry) }) {
			m.withoutLookUps(e.Key, "spec.hosts", "pods of its namespace", "unless the whole mesh has it, what they call is not found to be this entry",
				func(pod *corev1.Pod) bool { return entry.Namespace == pod.Namespace })
		}
	}
}

// withoutLookUps reports an object for the enrolled pods, among some, whose look-ups are not
// captured.
func (m *mesh) withoutLookUps(k source.Key, at, whose, effect string, of func(*corev1.Pod) bool) {
	n, first := 0, ""
	for _, pod := range m.pods {
		if of(pod) && m.mode(pod) == wellknown.DataplaneModeAmbient && !m.capturesDNS(pod) {
			if n++; n == 1 {
				first = pod.Namespace + "/" + pod.Name
			}
		}
	}
	if n > 0 {
		m.report(codeHostsWithoutDNS, k, at, fmt.Sprintf("%d %s (%s among them) ask for no capture of look-ups: %s", n, whose, first, effect),
			"label their namespace "+wellknown.LabelDNSCapture+`="true", or set ambient.dnsCapture in the chart cni`)
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
