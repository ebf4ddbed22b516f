package registry

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	apisecurity "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Status says about every object what became of it, ordered by kind,
// namespace and name. It is worked out when asked for: nobody pays for it
// while nobody looks.
func (r *Registry) Status() []admin.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]admin.Object, 0, len(r.origins))
	for k, origin := range r.origins {
		o := admin.Object{Kind: k.Kind.Name, Group: k.Kind.Group, Cluster: k.Cluster.String(), Namespace: k.Namespace, Name: k.Name, Conditions: []status.Condition{}}
		for _, s := range r.sections(k) {
			if s.List == "" {
				o.Conditions = append(o.Conditions, s.Conditions...)
			} else {
				o.Entries = append(o.Entries, admin.ObjectEntry{List: s.List, Key: json.RawMessage(s.Key), Conditions: s.Conditions})
			}
		}
		if file, line, ok := cutLast(origin, ":"); ok {
			o.File = file
			o.Line, _ = strconv.Atoi(line)
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b admin.Object) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Group, b.Group), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Cluster, b.Cluster))
	})
	return out
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

type describer struct {
	t  *tables.Tables
	in *tables.Inputs
	r  *collection.Reader
}

func accepted(format string, args ...any) status.Condition {
	return status.Yes(status.Accepted, status.ReasonAccepted, format, args...)
}

func (d describer) pod(n tables.Ref, p *corev1.Pod) []status.Condition {
	out := []status.Condition{d.inMesh(n, p)}
	if _, is := d.t.IsProxy(d.r, n.Home(), p.Labels); !is {
		if _, c := d.t.Target(d.r, n.Home(), p.Labels, p.Annotations, tables.TrafficWorkload); c != nil {
			out = append(out, *c)
		}
	}
	if _, policy := d.t.ClosedPod(d.r, n, p); policy != nil {
		out = append(out, status.Yes(status.WaypointOnly, status.ReasonWaypointRequired, "%s (policy %s)", binding.Describe(policy), tables.PolicyName(policy)))
	}
	return out
}

func hasAccount(p *corev1.Pod) bool {
	_, ok := source.Account(p)
	return ok
}

func (d describer) inMesh(n tables.Ref, p *corev1.Pod) status.Condition {
	mode := p.Labels[wellknown.LabelDataplaneMode]
	if ns, ok := collection.Fetch(d.r, d.in.Namespaces.Collection, n.Home()); ok && mode == "" {
		mode = ns.Labels[wellknown.LabelDataplaneMode]
	}
	switch {
	case source.Ended(p):
		return status.No(status.InMesh, status.ReasonCompleted, "the pod has ended")
	case len(tables.PodAddresses(p)) == 0:
		return status.Maybe(status.InMesh, status.ReasonNoAddress, "the pod has no address yet (status.podIP); see the kubelet of its node")
	case p.Labels[wellknown.LabelTunnel] == "http":
		return status.Yes(status.InMesh, status.ReasonNativeTunnel, "the pod speaks HBONE itself (label %s)", wellknown.LabelTunnel)
	case p.Spec.HostNetwork:
		return status.No(status.InMesh, status.ReasonHostNetwork, "the pod uses its node's network, which is not redirected")
	case p.Annotations[wellknown.AnnotationRedirection] == wellknown.RedirectionEnabled && !hasAccount(p):
		return status.Yes(status.InMesh, status.ReasonRedirected, "traffic goes through the node proxy of node %s, without an identity: the pod has no service account, as static pods have none. Connections to it are plaintext, those from it to pods of the mesh are refused", p.Spec.NodeName)
	case p.Annotations[wellknown.AnnotationRedirection] == wellknown.RedirectionEnabled:
		return status.Yes(status.InMesh, status.ReasonRedirected, "traffic goes through the node proxy of node %s", p.Spec.NodeName)
	case mode == wellknown.DataplaneModeAmbient:
		return status.No(status.InMesh, status.ReasonPending, "enrolment was asked for and has not happened; see the log of ambit-cni on node %s", p.Spec.NodeName)
	}
	return status.No(status.InMesh, status.ReasonNotRedirected, "not enrolled; label the namespace or the pod %s=%s", wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient)
}

func (d describer) service(n tables.Ref, s *corev1.Service) []status.Condition {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return []status.Condition{status.No(status.Accepted, status.ReasonUnsupportedValue,
			"node proxies do not serve ExternalName services: DNS answers for them as without the mesh; use a ServiceEntry")}
	}
	c := accepted("served as %s", d.t.Hostname(d.r, n))
	if skipped := len(s.Spec.Ports) - len(service.Ports(s)); skipped > 0 {
		c.Message += fmt.Sprintf("; %d ports are not TCP and bypass the mesh", skipped)
	}
	return d.serviceWaypoint([]status.Condition{c}, n, s)
}

func (d describer) serviceWaypoint(out []status.Condition, n tables.Ref, s *corev1.Service) []status.Condition {
	_, c := d.t.Target(d.r, n.Home(), s.Labels, s.Annotations, tables.TrafficService)
	d.awaits(tables.Moved{Kind: source.Service.Kind, Ref: n}, c)
	return d.bound(out, c, n.Home(), s.Labels, s.Annotations)
}

// awaits changes the condition of an object whose waypoint has not accepted it yet.
func (d describer) awaits(k tables.Moved, c *status.Condition) {
	if p, moves := collection.Fetch(d.r, d.t.Bound.Moving, k); c != nil && moves && p.Refuses() {
		*c = status.No(status.WaypointBound, status.ReasonPending,
			"its waypoint has not accepted the configuration: connections are refused (WAYPOINT_UNAVAILABLE); see /debug/syncz of ambitd, and the waypoint's log")
	}
}

// bound adds the condition of a waypoint for a service, if there is one.
func (d describer) bound(out []status.Condition, c *status.Condition, home tables.Space, labels, annotations map[string]string) []status.Condition {
	if c == nil {
		return out
	}
	if c.Status == status.True {
		d.noteCanary(home, labels, annotations, c)
	}
	return append(out, *c)
}

func (d describer) entry(n tables.Ref, e *networkingv1.ServiceEntry) []status.Condition {
	visible := d.visible(n, e)
	if d.t.Scope(d.r, n, e) == meshconfig.None {
		return []status.Condition{status.No(status.Accepted, status.ReasonNotVisible, "no proxy gets it: %s", visible.Message), *visible}
	}
	out := []status.Condition{accepted("served as %s", strings.Join(e.Spec.Hosts, ", "))}
	if slices.ContainsFunc(e.Spec.Hosts, func(h string) bool { return service.ByLookUp(h, e) }) {
		out[0].Message += "; node proxies find its hosts by captured look-ups of pods"
	}
	if visible != nil {
		out = append(out, *visible)
	}
	target, waypoint := d.t.EntryTarget(d.r, n, e)
	d.awaits(tables.Moved{Kind: source.ServiceEntry.Kind, Ref: n}, waypoint)
	if target.Address == nil {
		out = append(out, withoutWaypoint(e)...)
	}
	for _, a := range e.Spec.Addresses {
		if _, ok := service.ParseBlock(a); !ok {
			out = append(out, status.No(status.Accepted, status.ReasonPartiallyInvalid, "address %q is neither an address nor a CIDR block and is left out", a))
		}
	}
	if c := d.claims(n, e); c != nil {
		out = append(out, *c)
	}
	return d.bound(out, waypoint, n.Home(), e.Labels, e.Annotations)
}

// withoutWaypoint is what an entry needs a waypoint for that it does not have.
func withoutWaypoint(e *networkingv1.ServiceEntry) []status.Condition {
	for _, h := range e.Spec.Hosts {
		if !service.Served(h, e) && !service.ByLookUp(h, e) {
			return []status.Condition{status.Yes(status.WaypointMissing, status.ReasonNoWaypointForWildcard,
				"host %q can only be served by a waypoint, and none is bound; set the label %s", h, wellknown.LabelUseWaypoint)}
		}
	}
	return nil
}

func (d describer) workloadEntry(n tables.Ref, e *networkingv1.WorkloadEntry) []status.Condition {
	c := accepted("a workload of the mesh")
	if d.t.Endpoint(&e.Spec, n) == nil {
		c = status.No(status.Accepted, status.ReasonUnsupportedEndpointType, "address %q can be reached by no proxy: give an IP address or a host name", e.Spec.Address)
	}
	if pod, is := d.isPod(n, e); is {
		c.Message = fmt.Sprintf("its address is that of pod %s: it is reached as that pod, with its identity", pod)
	}
	out := []status.Condition{c}
	if _, c := d.t.Target(d.r, n.Home(), tables.EntryLabels(e.Labels, e.Spec.Labels), e.Annotations, tables.TrafficWorkload); c != nil {
		out = append(out, *c)
	}
	return out
}

func (d describer) policy(n tables.Ref, _ *securityv1.AuthorizationPolicy) []status.Condition {
	a, _ := collection.Fetch(d.r, d.t.Translated, n)
	if a == nil {
		return nil
	}
	if a.Policy != nil || !a.Targeted {
		return slices.Clone(a.Conditions)
	}
	if res, ok := collection.Fetch(d.r, d.t.Targets.Policies, n); ok {
		return res.Conditions
	}
	return nil
}

func (d describer) tokens(n tables.Ref, p *securityv1.RequestAuthentication) []status.Condition {
	if res, ok := collection.Fetch(d.r, d.t.Targets.Authentications, n); ok {
		return res.Conditions
	}
	if len(p.Spec.GetSelector().GetMatchLabels()) > 0 && (p.Spec.GetTargetRef() != nil || len(p.Spec.GetTargetRefs()) > 0) {
		return []status.Condition{status.No(status.WaypointAccepted, status.ReasonInvalid, "a policy has either a selector or targetRefs: no token is looked at; remove the selector")}
	}
	return []status.Condition{status.No(status.WaypointAccepted, status.ReasonUnsupportedValue,
		"no token is looked at: node proxies see connections and not requests; name the Service or the waypoint in targetRefs")}
}

func (d describer) peer(n tables.Ref, p *securityv1.PeerAuthentication) []status.Condition {
	pa, _ := collection.Fetch(d.r, d.t.Peers, n)
	if pa == nil {
		return nil
	}
	switch {
	case pa.Selector == nil && d.superseded(pa):
		return []status.Condition{status.No(status.Accepted, status.ReasonSuperseded,
			"an older PeerAuthentication of namespace %s is in effect; keep one without a selector", n.Namespace)}
	case pa.Selector == nil && len(pa.Ports) > 0:
		return []status.Condition{status.No(status.Accepted, status.ReasonPartiallyInvalid,
			"portLevelMtls has no effect without a selector; the mode itself is in effect")}
	}
	message := "in effect"
	if pa.Selector != nil && n.Namespace == d.t.Opts.RootNamespace {
		message = "in effect for the workloads it selects in namespace " + n.Namespace + ", and in no other"
	}
	if p.Spec.Mtls.GetMode() == apisecurity.PeerAuthentication_MutualTLS_DISABLE {
		message = "treated as PERMISSIVE: node proxies always use mutual TLS among themselves"
	}
	return []status.Condition{accepted("%s", message)}
}

func (d describer) superseded(pa *policy.PeerAuthentication) bool {
	for _, o := range collection.Lookup(d.r, d.t.PeersOf, pa.Namespace) {
		if policy.Older(o, pa) {
			return true
		}
	}
	return false
}

// Origin returns where an object was written, for people.
func (r *Registry) Origin(k source.Key) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.origins[k]
}
