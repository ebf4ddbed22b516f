package analysis

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

var codeOf = map[admission.Class]code{
	admission.Malformed:   codeMalformed,
	admission.Invalid:     codeInvalid,
	admission.Unread:      codeUnread,
	admission.Ignored:     codeIgnored,
	admission.Narrowed:    codeNarrowed,
	admission.Widened:     codeWidened,
	admission.DeniesAll:   codeDeniesAll,
	admission.Elsewhere:   codeElsewhere,
	admission.Ineffectual: codeIneffectual,
	admission.Failing:     codeRuleNotExecuted,
}

// judged says what admission says about each object.
func (m *mesh) judged() {
	reviewer := admission.Reviewer{RootNamespace: m.opts.RootNamespace}
	for _, e := range m.events {
		findings := reviewer.Check(e.Object)
		if _, unread := e.Object.(*Unread); unread {
			findings = admission.CheckKind(schema.GroupKind{Group: e.Key.Kind.Group, Kind: e.Key.Kind.Name})
		}
		for _, f := range findings {
			m.report(codeOf[f.Class], e.Key, f.Field, f.Message, f.Next)
		}
	}
}

// verdicts says what the control plane would report in the status of objects,
// where admission has not said it.
func (m *mesh) verdicts() {
	for _, e := range m.events {
		m.routeParts(e.Key)
		pod, isPod := e.Object.(*corev1.Pod)
		for _, c := range m.conditions[e.Key] {
			if isPod && c.Type == status.InMesh && !m.wanted(pod) {
				continue // said by enrolment
			}
			if code, report := m.verdict(c); report {
				key := e.Key
				if c.Type == status.WaypointBound && e.Object.GetLabels()[wellknown.LabelUseWaypoint] == "" {
					// Asked for by the namespace: said once, about it.
					key = source.Key{Kind: source.Namespace.Kind, Name: e.Key.Namespace}
				}
				message, next, _ := strings.Cut(c.Message, "; ")
				m.report(code, key, "", message, next)
			}
		}
	}
}

func (m *mesh) verdict(c status.Condition) (code, bool) {
	switch c.Type {
	case status.ZtunnelAccepted, status.WaypointMissing:
		return code{}, false // said by admission, rule by rule
	case status.InMesh:
		// In files no pod has been enrolled yet.
		return codeNotRedirected, c.Reason == status.ReasonPending && c.Status == status.False && !m.opts.Partial
	case status.Programmed:
		return code{}, false // said of what is bound to the Gateway
	}
	if c.Status != status.False {
		return code{}, false
	}
	switch c.Reason {
	case status.ReasonSuperseded:
		return codeSuperseded, true
	case status.ReasonOwnedByOthers:
		return codeOwnedByOthers, true
	case status.ReasonClaimedEarlier:
		return codeClaimedEarlier, true
	case status.ReasonHostOfService:
		return code{}, false // said by hosts
	case status.ReasonMerged:
		return codeDuplicateHost, true
	case status.ReasonTargetNotFound:
		if c.Type == status.WaypointBound {
			return codeNoWaypoint, !m.opts.Partial || m.has(source.Gateway.Kind)
		}
		return codeNoTarget, false // said by targets, which knows what may be missing
	case status.ReasonWaypointIsNotReady:
		return codeWaypointNotReady, !m.opts.Partial
	case status.ReasonAttachmentDenied, status.ReasonUnsupportedTrafficType:
		return codeWaypointRefuses, true
	case status.ReasonAncestorNotBound:
		return codeEnforcedNowhere, false // said by targets as well
	case status.ReasonUnsupportedValue, status.ReasonPartiallyInvalid, status.ReasonInvalid:
		// Admission names the field. ExternalName services are Kubernetes' own.
		return code{}, false
	}
	return codeCondition, true
}

func (m *mesh) has(kind *source.Kind) bool {
	return slices.ContainsFunc(m.events, func(e source.Event) bool { return e.Key.Kind == kind })
}

// outbound reports outbound traffic policies that cannot be read.
func (m *mesh) outbound() {
	for _, e := range m.events {
		values, field := e.Object.GetAnnotations(), "metadata.annotations["
		switch e.Key.Kind {
		case source.Namespace.Kind:
			values, field = e.Object.GetLabels(), "metadata.labels["
		case source.Pod.Kind, source.WorkloadEntry.Kind:
		default:
			continue
		}
		s := egress.Of(values, wellknown.AnnotationOutbound)
		if _, err := egress.Parse(s.Text); s.Set && err != nil {
			m.report(codeUnknownOutbound, e.Key, field+wellknown.AnnotationOutbound+"]", err.Error()+": it counts as REGISTRY_ONLY", "write one of the three")
		}
	}
}

// enrolment says which pods are not enrolled although their labels, or those
// of their namespace, read as if.
func (m *mesh) enrolment() {
	for _, e := range m.events {
		if e.Key.Kind != source.Namespace.Kind && e.Key.Kind != source.Pod.Kind {
			continue
		}
		v, set := e.Object.GetLabels()[wellknown.LabelDataplaneMode]
		field := "metadata.labels[" + wellknown.LabelDataplaneMode + "]"
		if set && v != wellknown.DataplaneModeAmbient && v != wellknown.DataplaneModeNone {
			m.report(codeUnknownMode, e.Key, field, fmt.Sprintf("%q is no mode: nothing is enrolled by it", v), "write ambient or none")
		}
		if e.Key.Kind == source.Namespace.Kind && v == wellknown.DataplaneModeAmbient {
			m.unenrollable(e.Key, field)
		}
	}
	for _, p := range m.pods {
		if m.mode(p) != wellknown.DataplaneModeAmbient || m.excluded(p.Namespace) {
			continue
		}
		key := keyOf(source.Pod.Kind, p)
		switch {
		case m.undiscovered(p.Namespace):
			// What the namespace's label asks for is reported at the namespace.
			if p.Labels[wellknown.LabelDataplaneMode] != "" && m.namespaces[p.Namespace].Labels[wellknown.LabelDataplaneMode] != wellknown.DataplaneModeAmbient {
				m.report(codeNotDiscovered, key, "metadata.labels["+wellknown.LabelDataplaneMode+"]", undiscovered("the pod is not enrolled"), whenUndiscovered)
			}
		case p.Spec.HostNetwork:
			m.report(codeHostNetwork, key, "spec.hostNetwork", "the pod uses its node's network and is not enrolled: it has no identity, and policies that ask for one refuse it", "label it "+wellknown.LabelDataplaneMode+"=none to say so, or give it a network of its own")
		case hasSidecar(p):
			m.report(codeSidecar, key, "", "the pod has a sidecar and is not enrolled", "turn injection off for it and restart it")
		}
	}
}

// unenrollable reports a namespace that is labelled for the mesh and whose pods
// are not enrolled.
func (m *mesh) unenrollable(key source.Key, field string) {
	switch {
	case m.excluded(key.Name):
		m.report(codeExcluded, key, field, "the namespace is excluded from the mesh: none of its pods is enrolled", "remove the label, or change excludeNamespaces of the chart cni")
	case m.undiscovered(key.Name):
		m.report(codeNotDiscovered, key, field, undiscovered("none of its pods is enrolled, and its policies and Services are not read"), whenUndiscovered)
	}
}

const whenUndiscovered = "give the namespace labels that meshConfig.discoverySelectors choose, or remove " + wellknown.LabelDataplaneMode

func undiscovered(effect string) string {
	return "no selector of meshConfig.discoverySelectors chooses the namespace: " + effect
}

// ports says which services end on ports that a node proxy holds in a pod.
func (m *mesh) ports() {
	for _, s := range m.services {
		for i, p := range s.Spec.Ports {
			if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, pod := range m.pods {
				if !m.wanted(pod) || pod.Namespace != s.Namespace || !selects(s.Spec.Selector, pod.Labels) {
					continue
				}
				port := p.TargetPort.IntVal
				if p.TargetPort.StrVal != "" {
					port = containerPort(pod, p.TargetPort.StrVal)
				}
				if port == 0 {
					port = p.Port
				}
				if port > 0 && port <= 65535 && wellknown.IsProxyPort(uint16(port)) {
					m.report(codeReservedPort, keyOf(source.Service.Kind, s), fmt.Sprintf("spec.ports[%d].targetPort", i),
						fmt.Sprintf("port %d of enrolled pods (%s among them) belongs to the node proxy: connections to it are refused", port, pod.Name), "let the program listen on another port")
					break
				}
			}
		}
	}
}

func containerPort(p *corev1.Pod, name string) int32 {
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.Name == name {
				return port.ContainerPort
			}
		}
	}
	return 0
}

// selects reports whether a selector chooses labels; the empty one none.
func selects(selector, labels map[string]string) bool {
	return len(selector) > 0 && source.HasAll(labels, selector)
}

// selectors says what selects nothing, and so holds nowhere.
func (m *mesh) selectors() {
	if m.opts.Partial && len(m.pods)+len(m.machines) == 0 {
		return
	}
	report := func(kind *source.Kind, o interface {
		GetNamespace() string
		GetName() string
	}, field string, selector map[string]string) {
		if len(selector) > 0 && !m.selectsAny(o.GetNamespace(), selector) {
			m.report(codeSelectsNothing, keyOf(kind, o), field, "no pod and no WorkloadEntry has the labels "+show(selector)+": the object holds nowhere", "compare the labels with kubectl get pods --show-labels")
		}
	}
	for _, p := range m.policies {
		report(source.AuthorizationPolicy.Kind, p, "spec.selector", p.Spec.Selector.GetMatchLabels())
	}
	for _, p := range m.peers {
		report(source.PeerAuthentication.Kind, p, "spec.selector", p.Spec.Selector.GetMatchLabels())
	}
	for _, e := range m.entries {
		report(source.ServiceEntry.Kind, e, "spec.workloadSelector", e.Spec.WorkloadSelector.GetLabels())
	}
}

// selectsAny looks in a namespace; from the root namespace, everywhere.
func (m *mesh) selectsAny(namespace string, selector map[string]string) bool {
	within := func(ns string) bool { return ns == namespace || namespace == m.opts.RootNamespace }
	for _, p := range m.pods {
		if within(p.Namespace) && selects(selector, p.Labels) {
			return true
		}
	}
	for _, e := range m.machines {
		labels := map[string]string{}
		for _, set := range []map[string]string{e.Labels, e.Spec.Labels} {
			for k, v := range set {
				labels[k] = v
			}
		}
		if within(e.Namespace) && selects(selector, labels) {
			return true
		}
	}
	return false
}

func show(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// revisions says what is meant for a control plane that is not there. Which are
// there is known by their Services.
func (m *mesh) revisions() {
	var known []string
	for _, s := range m.services {
		revision := s.Labels[wellknown.LabelRevision]
		if s.Labels["app"] != "istiod" || revision == "" {
			continue
		}
		known = append(known, revision)
		if tag, ok := strings.CutPrefix(s.Name, "istiod-revision-tag-"); ok {
			known = append(known, tag)
		}
	}
	if len(known) == 0 {
		return
	}
	slices.Sort(known)
	known = slices.Compact(known)
	for _, e := range m.events {
		revision, named := e.Object.GetLabels()[wellknown.LabelRevision]
		if !named || slices.Contains(known, revision) || !e.Key.Kind.Revisioned {
			continue
		}
		m.report(codeNoRevision, e.Key, "metadata.labels", fmt.Sprintf("the label %s says %q, and no control plane has that name: none reads the object", wellknown.LabelRevision, revision),
			"write one that is there ("+strings.Join(known, ", ")+"), or remove the label")
	}
}
