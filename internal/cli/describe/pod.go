package describe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	networkv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/next"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/nodestate"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
)

// podFacts is what is known of a pod, from everybody who knows something.
type podFacts struct {
	Pod             *corev1.Pod
	Namespace       *corev1.Namespace
	Node            *corev1.Node // nil if it cannot be read
	RootNamespace   string
	Discovery       []metav1.LabelSelector            // of the namespaces that the control plane looks at; none: all
	Policies        []*securityv1.AuthorizationPolicy // of the namespace and the root namespace
	Services        []corev1.Service                  // of the namespace
	NetworkPolicies []networkv1.NetworkPolicy         // of the namespace
	Gateways        []*gatewayv1.Gateway              // of all namespaces
	Agent           agentFacts
	Proxy           proxyFacts
	Type            next.Commands
}

// agentFacts is what the agent of the pod's node says.
type agentFacts struct {
	Pod    string             // of the agent
	Policy node.Policy        // which pods it enrols
	Err    error              // why it was not asked or did not answer
	Status *admin.EnrolledPod // nil if it does not know the pod
}

// proxyFacts is what a ztunnel says.
type proxyFacts struct {
	Pod  string
	Err  error
	Dump *dump.Dump // nil with Err
}

// podReport is what the mesh does with a pod.
type podReport struct {
	Name           string   `json:"name"`
	Namespace      string   `json:"namespace"`
	Node           string   `json:"node,omitempty"`
	Addresses      []string `json:"addresses"`
	ServiceAccount string   `json:"serviceAccount"`

	// Enrolled is yes, no, pending, or unproven when those who should know
	// could not be asked or contradict each other.
	Enrolled string `json:"enrolled"`
	// Evidence is who says what about that.
	Evidence []evidence `json:"evidence"`

	Identity    string `json:"identity,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Waypoint    string `json:"waypoint,omitempty"`
	// Outbound is its outbound traffic policy, when it has one.
	Outbound string `json:"outboundTrafficPolicy,omitempty"`
	// Egress are its EgressPolicies, and what they did.
	Egress string `json:"egressPolicies,omitempty"`

	Services []podServiceReport `json:"services"`
	Policies []policyRow        `json:"policies"`
	// Inbound is absent when no proxy could be asked.
	Inbound *admission `json:"inbound,omitempty"`
	ToDo    []advice   `json:"toDo"`
}

type evidence struct {
	Who  string `json:"who"`
	Says string `json:"says"`
}

type podServiceReport struct {
	Name  string   `json:"name"`
	VIPs  []string `json:"vips"`
	Ports []string `json:"ports"`
}

// Values of podReport.Enrolled.
const (
	enrolledYes      = "yes"
	enrolledNo       = "no"
	enrolledPending  = "pending"
	enrolledUnproven = "unproven"
)

// describePod says what facts come to.
func describePod(f podFacts) *podReport {
	p := f.Pod
	account, _ := source.Account(p)
	r := &podReport{
		Name: p.Name, Namespace: p.Namespace, Node: p.Spec.NodeName, Addresses: []string{},
		ServiceAccount: account,
		Services:       podServices(f), Policies: []policyRow{}, ToDo: []advice{},
	}
	for _, ip := range p.Status.PodIPs {
		r.Addresses = append(r.Addresses, ip.IP)
	}
	w := f.Proxy.workload(p)
	r.enrolment(f, w)
	if r.Enrolled != enrolledNo {
		r.identity(f, w)
	}
	if s := f.Proxy.state(p); s != nil && s.Egress != nil && s.Egress.Mode != egress.AllowAny.String() {
		r.Outbound = fmt.Sprintf("%s (%d connections refused, %d reported)", s.Egress.Mode, s.Egress.Refused, s.Egress.Reported)
	}
	if s := f.Proxy.state(p); s != nil && s.Egress != nil && len(s.Egress.Policies) > 0 {
		r.Egress = fmt.Sprintf("%s: %d connections allowed, %d refused, %d reported", s.Egress.PolicyNames(), s.Egress.PolicyAllowed, s.Egress.PolicyRefused, s.Egress.PolicyReported)
		if s.Egress.UDP != "" {
			r.Egress += "; UDP is refused"
		}
	}
	r.analysis(f)
	r.waypoint(f)
	r.policies(f, w)
	return r
}

// workload is the pod in the proxy's directory, nil if it is not there.
func (f proxyFacts) workload(p *corev1.Pod) *admin.Workload {
	if f.Dump == nil {
		return nil
	}
	for i := range f.Dump.Workloads {
		if w := &f.Dump.Workloads[i].V; w.Name == p.Name && w.Namespace == p.Namespace && strings.Contains(w.UID, "/Pod/") {
			return w
		}
	}
	return nil
}

// state is what the proxy says about serving the pod, nil if it does not.
func (f proxyFacts) state(p *corev1.Pod) *admin.Pod {
	if f.Dump == nil {
		return nil
	}
	if s, ok := f.Dump.WorkloadState[string(p.UID)]; ok {
		return &s.V
	}
	return nil
}

// enrolment brings together what labels ask for, what was announced, and what
// agent and proxy say; when they differ, it says what to do.
func (r *podReport) enrolment(f podFacts, w *admin.Workload) {
	p := f.Pod
	wanted, why := wants(f)
	announced := p.Annotations[wellknown.AnnotationRedirection]
	state := f.Proxy.state(p)
	r.says("labels", "%s", why)
	r.says("annotation", "%s: %s", wellknown.AnnotationRedirection, cmp.Or(announced, "not set"))
	r.says("agent", "%s", f.Agent.text())
	r.says("ztunnel", "%s", f.Proxy.text(state, w))

	enrolled := announced == wellknown.RedirectionEnabled
	proven := f.Agent.Status != nil && f.Agent.Status.Enrolled && f.Agent.Status.Served && state != nil && state.State == "Up"
	switch {
	case enrolled && proven:
		r.Enrolled = enrolledYes
	case enrolled:
		r.Enrolled = enrolledUnproven
	case wanted:
		r.Enrolled = enrolledPending
	default:
		r.Enrolled = enrolledNo
	}
	r.ToDo = append(r.ToDo, enrolmentAdvice(f, r.Enrolled, why, state, w)...)
}

// noAccount is what there is to say of a pod that no identity can be given to.
const noAccount = "the pod has no service account (static pods have none) and so no identity: connections to it are plaintext, those from it to pods of the mesh are refused"

func enrolmentAdvice(f podFacts, enrolled, why string, state *admin.Pod, w *admin.Workload) []advice {
	p := f.Pod
	logs := f.Type.Logs(session.PartAgent, f.Agent.Pod)
	var out []advice
	add := func(what, next string) { out = append(out, advice{what, next}) }
	if f.Node != nil && enrolled != enrolledNo {
		for _, c := range f.Node.Status.Conditions {
			if c.Type == nodestate.Condition && c.Status != corev1.ConditionTrue {
				add(fmt.Sprintf("node %s cannot capture traffic: %s", p.Spec.NodeName, cmp.Or(c.Message, c.Reason)), f.Type.Check())
			}
		}
	}
	switch {
	case enrolled == enrolledNo:
		if canJoin(f.Agent.Policy, p, f.RootNamespace) {
			add("the pod is not in the mesh: "+why, f.Type.Enrol(p.Namespace))
		}
	case f.Agent.Err != nil:
		add("the agent of its node does not answer: "+f.Agent.Err.Error(), f.Type.Where(session.PartAgent))
	case f.Agent.Status == nil:
		add("the agent of its node does not know the pod", logs)
	case !f.Agent.Status.Enrolled && enrolled == enrolledPending:
		add("enrolment was asked for and has not happened: "+f.Agent.Status.State, logs)
	case !f.Agent.Status.Enrolled:
		add("the pod is announced as enrolled, but its agent has no rules in it", logs)
	case !f.Agent.Status.Served:
		add("no ztunnel serves the pod: its connections are refused", f.Type.Where(session.PartZtunnel))
	}
	switch {
	case enrolled == enrolledNo:
	case f.Proxy.Err != nil:
		add("ztunnel could not be asked: "+f.Proxy.Err.Error(), f.Type.Where(session.PartZtunnel))
	case state == nil || state.State != "Up":
		add("ztunnel does not listen in the pod yet", f.Type.Logs(session.PartZtunnel, f.Proxy.Pod))
	case w == nil:
		add("the control plane has not told ztunnel about the pod: its connections are refused (UNKNOWN_SOURCE)", "ambit proxy-status"+f.Type.Also())
	case !hasAccount(p):
		add(noAccount, "run the pod from the API server to give it an identity")
	case w.Protocol != "HBONE":
		add("others do not send tunnels to the pod yet", "ambit proxy-status"+f.Type.Also())
	}
	return out
}

func hasAccount(p *corev1.Pod) bool {
	_, ok := source.Account(p)
	return ok
}

// canJoin reports whether a label on its namespace would bring a pod into the
// mesh. The mesh's own pods are better left outside.
func canJoin(policy node.Policy, p *corev1.Pod, root string) bool {
	yes, _ := policy.Enrols(nodePod(p), map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient})
	return yes && p.Namespace != root
}

// nodePod is a pod as its agent sees it.
func nodePod(p *corev1.Pod) node.Pod {
	return node.Pod{
		Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations,
		HostNetwork: p.Spec.HostNetwork, Terminal: source.Ended(p),
	}
}

// wants tells what the labels ask for, in words.
func wants(f podFacts) (bool, string) {
	p := f.Pod
	yes, why := f.Agent.Policy.Enrols(nodePod(p), f.Namespace.Labels)
	own, ofNamespace := p.Labels[wellknown.LabelDataplaneMode], f.Namespace.Labels[wellknown.LabelDataplaneMode]
	switch {
	case yes && own != "":
		return yes, fmt.Sprintf("pod has %s=%s", wellknown.LabelDataplaneMode, own)
	case yes && ofNamespace != wellknown.DataplaneModeAmbient:
		return yes, "an enablement selector of ambit-cni chooses the pod"
	case yes:
		return yes, fmt.Sprintf("namespace %s has %s=%s", p.Namespace, wellknown.LabelDataplaneMode, ofNamespace)
	case own != "":
		return yes, fmt.Sprintf("pod has %s=%s", wellknown.LabelDataplaneMode, own)
	case why == "no selector matches":
		return yes, fmt.Sprintf("neither the pod nor namespace %s has %s=%s", p.Namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient)
	}
	return yes, why
}

func (r *podReport) says(who, format string, args ...any) {
	r.Evidence = append(r.Evidence, evidence{who, fmt.Sprintf(format, args...)})
}

func (f agentFacts) text() string {
	switch {
	case f.Err != nil:
		return "not asked: " + f.Err.Error()
	case f.Status == nil:
		return f.Pod + " does not know the pod"
	case f.Status.Enrolled && f.Status.Served:
		return f.Pod + ": " + f.Status.State + ", rules are in the kernel, served by ztunnel"
	case f.Status.Enrolled:
		return f.Pod + ": " + f.Status.State + ", rules are in the kernel, NOT served by a ztunnel"
	}
	return f.Pod + ": " + f.Status.State
}

func (f proxyFacts) text(state *admin.Pod, w *admin.Workload) string {
	if f.Err != nil {
		return "not asked: " + f.Err.Error()
	}
	var parts []string
	if state == nil {
		parts = append(parts, "does not listen in the pod")
	} else {
		parts = append(parts, fmt.Sprintf("%s in the pod, %d inbound and %d outbound connections", state.State, len(state.Connections.Inbound), len(state.Connections.Outbound)))
	}
	if w == nil {
		parts = append(parts, "the pod is not in its directory")
	} else {
		parts = append(parts, fmt.Sprintf("reaches it by %s, %s", w.Protocol, cmp.Or(w.Status, "Healthy")))
	}
	return f.Pod + ": " + strings.Join(parts, "; ")
}

// identity is the name others see, and what proves it.
func (r *podReport) identity(f podFacts, w *admin.Workload) {
	if r.ServiceAccount == "" {
		r.Identity, r.Certificate = "none", "none: "+noAccount
		return
	}
	domain := wellknown.DefaultDomain
	if w != nil {
		domain = cmp.Or(w.TrustDomain, domain)
	}
	r.Identity = fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", domain, r.Namespace, r.ServiceAccount)
	if f.Proxy.Dump == nil {
		return
	}
	r.Certificate = "none: ztunnel has not asked for one"
	for _, c := range f.Proxy.Dump.Certificates {
		if c.V.Identity != r.Identity {
			continue
		}
		r.Certificate = c.V.State
		if len(c.V.CertChain) > 0 {
			r.Certificate += ", until " + c.V.CertChain[0].ExpirationTime.Format(time.RFC3339)
		}
		if strings.HasPrefix(c.V.State, "Unavailable") {
			r.ToDo = append(r.ToDo, advice{"no certificate, so no connection to or from the pod through the mesh: " + c.V.State, "ambit proxy-status" + f.Type.Also() + "; " + f.Type.Logs(session.PartAmbitd, "")})
		}
	}
}

func podServices(f podFacts) []podServiceReport {
	out := []podServiceReport{}
	for _, s := range f.Services {
		if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(f.Pod.Labels)) {
			continue
		}
		out = append(out, podServiceReport{Name: s.Name, VIPs: slices.Clone(s.Spec.ClusterIPs), Ports: servicePorts(&s)})
	}
	return out
}

// servicePorts is PORT→TARGET/PROTOCOL of each port.
func servicePorts(s *corev1.Service) []string {
	out := []string{}
	for _, p := range s.Spec.Ports {
		target := p.TargetPort.String()
		if target == "0" || target == "" {
			target = fmt.Sprint(p.Port)
		}
		text := fmt.Sprintf("%d→%s/%s", p.Port, target, cmp.Or(string(p.Protocol), "TCP"))
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			text += " (bypasses the mesh)"
		}
		out = append(out, text)
	}
	return out
}

// analysis adds what is wrong with the pod itself, its namespace's label, and
// the network policies that guard it.
func (r *podReport) analysis(f podFacts) {
	event := func(kind *source.Kind, o metav1.Object) source.Event {
		return source.Event{Key: source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}, Object: o}
	}
	events := []source.Event{event(source.Namespace.Kind, f.Namespace), event(source.Pod.Kind, f.Pod)}
	for i := range f.NetworkPolicies {
		events = append(events, event(analysis.NetworkPolicy, &f.NetworkPolicies[i]))
	}
	// Partial: of what else there is, this knows nothing, and how far enrolment
	// is, the agent has said.
	opts := analysis.Options{RootNamespace: f.RootNamespace, ExcludeNamespaces: f.Agent.Policy.ExcludeNamespaces, DiscoverySelectors: f.Discovery, Partial: true}
	for _, finding := range analysis.Analyze(events, opts) {
		if finding.Severity.AtLeast(analysis.Warning) || finding.Object.Kind == source.Pod.Kind {
			r.ToDo = append(r.ToDo, advice{live.ObjectName(finding.Object) + ": " + finding.Message + " (" + finding.Code + ")", finding.Next})
		}
	}
}

func (r *podReport) waypoint(f podFacts) {
	ref, ok := waypointOf("pod "+f.Pod.Name, f.Pod.Namespace, f.Pod.Labels, f.Namespace.Labels)
	if !ok {
		return
	}
	r.Waypoint = ref.Namespace + "/" + ref.Name + " (label on " + ref.From + ")"
	r.ToDo = append(r.ToDo, waypointAdvice(ref, f.Gateways, f.Type)...)
}

// waypointAdvice says what is wrong with the waypoint that labels name.
func waypointAdvice(ref waypointRef, gateways []*gatewayv1.Gateway, next next.Commands) []advice {
	i := slices.IndexFunc(gateways, func(g *gatewayv1.Gateway) bool { return g.Name == ref.Name && g.Namespace == ref.Namespace })
	switch {
	case i < 0:
		return []advice{{fmt.Sprintf("%s names waypoint %s/%s, which does not exist: connections are refused", ref.From, ref.Namespace, ref.Name), "create that Gateway, or remove the label " + wellknown.LabelUseWaypoint}}
	case len(gateways[i].Status.Addresses) == 0:
		return []advice{{fmt.Sprintf("waypoint %s/%s has no address yet: connections are refused until it has", ref.Namespace, ref.Name), next.Gateway(ref.Namespace, ref.Name)}}
	}
	return nil
}

// policies lists what the proxy enforces, and what was written and it does not.
func (r *podReport) policies(f podFacts, w *admin.Workload) {
	var enforced []admin.Policy
	if w != nil && r.Enrolled != enrolledNo {
		for _, p := range f.Proxy.Dump.Policies {
			if applies(p.V, w) {
				enforced = append(enforced, p.V)
			}
		}
		in := admit(enforced)
		r.Inbound = &in
	}
	written := map[string]bool{}
	for _, p := range f.Policies {
		if !concerns(p, f.Pod.Namespace, f.RootNamespace, f.Pod.Labels) {
			continue
		}
		written[p.Namespace+"/"+p.Name] = true
		r.Policies = append(r.Policies, r.policy(p, f, enforced))
	}
	for _, p := range enforced {
		if !written[p.Namespace+"/"+p.Name] {
			r.Policies = append(r.Policies, policyRow{derivedKind(p), derivedName(p), p.Action, f.Proxy.Pod, rulesText(p)})
		}
	}
}

// derivedKind is what a policy was made from that is no AuthorizationPolicy.
func derivedKind(p admin.Policy) string {
	switch {
	case p.Name == strictPolicy, strings.HasPrefix(p.Name, convertedPrefix):
		return source.PeerAuthentication.Name
	case strings.HasPrefix(p.Name, wellknown.DerivedWaypointPolicy):
		return "Waypoint"
	}
	return source.AuthorizationPolicy.Name
}

// derivedName is the name of what a policy was made from.
func derivedName(p admin.Policy) string {
	if p.Name == strictPolicy {
		return "(mutual TLS is required)"
	}
	if strings.HasPrefix(p.Name, wellknown.DerivedWaypointPolicy) {
		return "(others than the waypoint are refused)"
	}
	return p.Namespace + "/" + strings.TrimPrefix(p.Name, convertedPrefix)
}

func rulesText(p admin.Policy) string {
	var out []string
	for _, rule := range p.Rules {
		out = append(out, ruleText(rule))
	}
	s := cmp.Or(strings.Join(out, "; "), "nobody")
	if p.DryRun {
		s += " (dry run: decides nothing)"
	}
	return s
}

// concerns reports whether an AuthorizationPolicy is about a pod itself, rather
// than about the waypoint or service it targets.
func concerns(p *securityv1.AuthorizationPolicy, namespace, root string, podLabels map[string]string) bool {
	if p.Spec.TargetRef != nil || len(p.Spec.TargetRefs) > 0 || p.Namespace != namespace && p.Namespace != root {
		return false
	}
	return labels.SelectorFromSet(p.Spec.Selector.GetMatchLabels()).Matches(labels.Set(podLabels))
}

// policy says where an AuthorizationPolicy is enforced for the pod.
func (r *podReport) policy(p *securityv1.AuthorizationPolicy, f podFacts, enforced []admin.Policy) policyRow {
	name := p.Namespace + "/" + p.Name
	row := policyRow{source.AuthorizationPolicy.Name, name, actionText(p.Spec.Action.String()), nowhere, ""}
	for _, e := range enforced {
		if e.Namespace == p.Namespace && e.Name == p.Name {
			row.EnforcedBy, row.Says = f.Proxy.Pod, rulesText(e)
		}
	}
	for _, c := range p.Status.GetConditions() {
		if c.Status == "False" || row.EnforcedBy == nowhere {
			row.Says = strings.TrimPrefix(row.Says+"; "+c.Message, "; ")
		}
	}
	switch {
	case row.EnforcedBy != nowhere:
	case r.Enrolled == enrolledNo:
		row.Says = "the pod is not in the mesh, so nothing enforces it"
		r.ToDo = append(r.ToDo, advice{"policy " + name + " is not enforced for this pod", "enrol the pod"})
	case f.Proxy.Dump != nil && row.Says == "":
		row.Says = "ztunnel does not have it (yet): `ambit status -n " + p.Namespace + f.Type.Also() + "` says why"
	}
	return row
}

func actionText(s string) string {
	if s == "" {
		return s
	}
	return s[:1] + strings.ToLower(s[1:])
}

func (r *podReport) text() string {
	w := &writer{}
	w.field("Pod", "%s (namespace %s)", r.Name, r.Namespace)
	w.field("Node", "%s", session.OrNone(r.Node))
	w.field("Addresses", "%s", session.OrNone(strings.Join(r.Addresses, ", ")))
	w.field("In the mesh", "%s", r.Enrolled)
	for _, e := range r.Evidence {
		w.item("%-12s %s", e.Who, e.Says)
	}
	if r.Identity != "" {
		w.field("Identity", "%s", r.Identity)
		w.field("Certificate", "%s", cmp.Or(r.Certificate, "unknown"))
	}
	w.field("Waypoint", "%s", cmp.Or(r.Waypoint, "none"))
	if r.Outbound != "" {
		w.field("Outbound", "%s", r.Outbound)
	}
	if r.Egress != "" {
		w.field("Egress", "%s", r.Egress)
	}
	w.title("Services")
	for _, s := range r.Services {
		w.item("%s (%s): %s", s.Name, strings.Join(s.VIPs, ", "), strings.Join(s.Ports, ", "))
	}
	if len(r.Services) == 0 {
		w.item("none selects the pod")
	}
	w.policies(r.Policies)
	if r.Inbound != nil {
		w.title("Connections to the pod")
		for _, s := range r.Inbound.Refused {
			w.item("refused:  %s", s)
		}
		for _, s := range r.Inbound.Accepted {
			w.item("accepted: %s", s)
		}
	}
	w.advice(r.ToDo)
	return w.String()
}
