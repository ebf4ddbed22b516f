package describe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/next"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
)

// serviceFacts is what is known of a service.
type serviceFacts struct {
	Service       *corev1.Service
	Namespace     *corev1.Namespace
	Policies      []*securityv1.AuthorizationPolicy
	Gateways      []*gatewayv1.Gateway
	Slices        []discoveryv1.EndpointSlice
	Pods          []corev1.Pod // of the namespace
	Proxy         proxyFacts
	Policy        node.Policy // of the agents
	RootNamespace string
	Type          next.Commands
}

// serviceReport is what the mesh does with a service.
type serviceReport struct {
	Name      string           `json:"name"`
	Namespace string           `json:"namespace"`
	Type      string           `json:"type"`
	VIPs      []string         `json:"vips"`
	Ports     []string         `json:"ports"`
	Hostname  string           `json:"hostname,omitempty"` // as ztunnel knows it
	Waypoint  string           `json:"waypoint,omitempty"`
	Endpoints []endpointReport `json:"endpoints"`
	Policies  []policyRow      `json:"policies"`
	// Traffic are the DestinationRules and routes by which the node proxy that was asked
	// sends connections to the service.
	Traffic    []string          `json:"traffic"`
	Conditions []admin.Condition `json:"conditions"`
	ToDo       []advice          `json:"toDo"`
}

type endpointReport struct {
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Ready   bool   `json:"ready"`
	// Mesh tells how it is reached: HBONE, plaintext, or unknown to ztunnel.
	Mesh string `json:"mesh"`
}

// describeService says what facts come to.
func describeService(f serviceFacts) *serviceReport {
	s := f.Service
	r := &serviceReport{
		Name: s.Name, Namespace: s.Namespace, Type: cmp.Or(string(s.Spec.Type), "ClusterIP"), VIPs: slices.Clone(s.Spec.ClusterIPs),
		Ports: servicePorts(s), Endpoints: []endpointReport{}, Policies: []policyRow{}, Traffic: []string{}, Conditions: []admin.Condition{}, ToDo: []advice{},
	}
	for _, c := range s.Status.Conditions {
		r.Conditions = append(r.Conditions, admin.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message})
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		r.ToDo = append(r.ToDo, advice{"the mesh does not serve ExternalName services: DNS answers as without it", "use a ServiceEntry for " + s.Spec.ExternalName})
		return r
	}
	r.directory(f)
	r.endpoints(f)
	ref, bound := waypointOf("service "+s.Name, s.Namespace, s.Labels, f.Namespace.Labels)
	if bound {
		r.Waypoint = ref.Namespace + "/" + ref.Name + " (label on " + ref.From + ")"
		r.ToDo = append(r.ToDo, waypointAdvice(ref, f.Gateways, f.Type)...)
	}
	r.policies(f, ref, bound)
	return r
}

func (r *serviceReport) directory(f serviceFacts) {
	if f.Proxy.Err != nil {
		r.ToDo = append(r.ToDo, advice{"ztunnel could not be asked: " + f.Proxy.Err.Error(), f.Type.Check()})
		return
	}
	for _, s := range f.Proxy.Dump.Services {
		if s.V.Name == r.Name && s.V.Namespace == r.Namespace {
			r.Hostname = s.V.Hostname
		}
	}
	r.traffic(f.Proxy.Dump.Traffic)
	if r.Hostname == "" {
		r.ToDo = append(r.ToDo, advice{"ztunnel " + f.Proxy.Pod + " does not know the service", "ambit proxy-status" + f.Type.Also()})
	}
}

func (r *serviceReport) endpoints(f serviceFacts) {
	ready, plain, plainPods := 0, 0, map[string]bool{}
	protocols := map[string]string{}
	if f.Proxy.Dump != nil {
		for _, w := range f.Proxy.Dump.Workloads {
			for _, ip := range w.V.WorkloadIPs {
				protocols[ip] = w.V.Protocol
			}
		}
	}
	for _, slice := range f.Slices {
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			one := endpointReport{Address: e.Addresses[0], Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
			if e.TargetRef != nil {
				one.Pod = e.TargetRef.Name
			}
			if e.NodeName != nil {
				one.Node = *e.NodeName
			}
			one.Mesh = reached(protocols[one.Address], f.Pods, one.Pod)
			if one.Ready {
				ready++
				if one.Mesh == "plaintext" {
					plain++
					plainPods[one.Pod] = true
				}
			}
			r.Endpoints = append(r.Endpoints, one)
		}
	}
	slices.SortFunc(r.Endpoints, func(a, b endpointReport) int { return strings.Compare(a.Pod+a.Address, b.Pod+b.Address) })
	switch {
	case ready == 0:
		r.ToDo = append(r.ToDo, advice{"no endpoint is ready: connections are refused (NO_HEALTHY_UPSTREAM)", f.Type.Pods(r.Namespace, selectorText(f.Service.Spec.Selector))})
	case plain > 0 && slices.ContainsFunc(f.Pods, func(p corev1.Pod) bool { return plainPods[p.Name] && canJoin(f.Policy, &p, f.RootNamespace) }):
		r.ToDo = append(r.ToDo, advice{fmt.Sprintf("%d of %d ready endpoints are not in the mesh: they are reached in plaintext", plain, ready), f.Type.Enrol(r.Namespace) + ", or see `ambit describe pod" + f.Type.Also() + "`"})
	}
}

// reached tells how an endpoint is reached: what ztunnel says, else what the
// pod announces.
func reached(protocol string, pods []corev1.Pod, pod string) string {
	switch protocol {
	case "HBONE":
		return protocol
	case "TCP":
		return "plaintext"
	}
	for _, p := range pods {
		if p.Name == pod && p.Annotations[wellknown.AnnotationRedirection] == wellknown.RedirectionEnabled {
			return "announced, not known to ztunnel"
		}
	}
	return "not known to ztunnel"
}

func selectorText(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// policies lists those that target the service or its waypoint. They are for a
// waypoint to enforce.
func (r *serviceReport) policies(f serviceFacts, ref waypointRef, bound bool) {
	for _, p := range f.Policies {
		refs := p.Spec.TargetRefs
		if p.Spec.TargetRef != nil {
			refs = append(slices.Clone(refs), p.Spec.TargetRef)
		}
		hit := slices.ContainsFunc(refs, func(t *typev1beta1.PolicyTargetReference) bool {
			ns := cmp.Or(t.Namespace, p.Namespace)
			return t.Kind == source.Service.Name && t.Name == r.Name && ns == r.Namespace ||
				bound && t.Kind == source.Gateway.Name && t.Name == ref.Name && ns == ref.Namespace
		})
		if !hit {
			continue
		}
		row := policyRow{source.AuthorizationPolicy.Name, p.Namespace + "/" + p.Name, actionText(p.Spec.Action.String()), nowhere, "no status yet"}
		for _, c := range p.Status.GetConditions() {
			row.Says = c.Message
			if c.Type == "WaypointAccepted" && c.Status == "True" && bound {
				row.EnforcedBy = "waypoint " + ref.Namespace + "/" + ref.Name
			}
		}
		if row.EnforcedBy == nowhere {
			next := "bind the service to a waypoint with the label " + wellknown.LabelUseWaypoint
			if bound {
				next = f.Type.Gateway(ref.Namespace, ref.Name)
			}
			r.ToDo = append(r.ToDo, advice{"policy " + row.Name + " is enforced nowhere: " + row.Says, next})
		}
		r.Policies = append(r.Policies, row)
	}
}

func (r *serviceReport) text() string {
	w := &writer{}
	w.field("Service", "%s (namespace %s), %s", r.Name, r.Namespace, r.Type)
	w.field("Known as", "%s", session.OrNone(r.Hostname))
	w.field("Addresses", "%s", session.OrNone(strings.Join(r.VIPs, ", ")))
	w.field("Ports", "%s", session.OrNone(strings.Join(r.Ports, ", ")))
	w.field("Waypoint", "%s", cmp.Or(r.Waypoint, "none"))
	for _, c := range r.Conditions {
		w.field("Condition", "%s=%s (%s): %s", c.Type, c.Status, c.Reason, c.Message)
	}
	w.title("Endpoints")
	for _, e := range r.Endpoints {
		ready := "ready"
		if !e.Ready {
			ready = "not ready"
		}
		w.item("%s %s on %s: %s, %s", e.Address, session.OrNone(e.Pod), session.OrNone(e.Node), ready, e.Mesh)
	}
	if len(r.Endpoints) == 0 {
		w.item("none")
	}
	if len(r.Traffic) > 0 {
		w.title("Connections")
	}
	for _, t := range r.Traffic {
		w.item("%s", t)
	}
	w.policies(r.Policies)
	w.advice(r.ToDo)
	return w.String()
}
