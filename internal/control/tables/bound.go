package tables

import (
	"cmp"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// bindings are where the traffic of objects has to go: of those alone that have a
// waypoint. What changes in an object all the time changes nothing here.
type bindings struct {
	Services, Entries, Pods, Workloads *collection.Collection[Ref, binding.Target]
	// Of objects whose traffic moves, what is in effect meanwhile.
	Moving *collection.Collection[Moved, Passage]
	// The namespaces with a Service or entry that has a waypoint.
	spaces *collection.Collection[Space, struct{}]
}

func (t *Tables) bind(in *Inputs) {
	of := func(target binding.Target, _ *status.Condition) (binding.Target, bool) { return target, target.Bound() }
	home := func(_ *collection.Reader, k Ref, _ binding.Target, emit func(Space, struct{})) {
		emit(k.Home(), struct{}{})
	}
	b := &t.Bound
	b.Moving = in.Moving.Collection
	b.Services = collection.Map(in.Services.Collection, "waypoints of services", binding.Target.Equal,
		func(r *collection.Reader, k Ref, s *corev1.Service) (binding.Target, bool) {
			return of(t.Target(r, k.Home(), s.Labels, s.Annotations, TrafficService))
		})
	b.Entries = collection.Map(in.Entries.Collection, "waypoints of service entries", binding.Target.Equal,
		func(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) (binding.Target, bool) {
			return of(t.EntryTarget(r, k, e))
		})
	b.Pods = collection.Map(in.Pods.Collection, "waypoints of pods", binding.Target.Equal,
		func(r *collection.Reader, k Ref, p *corev1.Pod) (binding.Target, bool) {
			return of(t.Target(r, k.Home(), p.Labels, p.Annotations, TrafficWorkload))
		})
	b.Workloads = collection.Map(in.Workloads.Collection, "waypoints of workload entries", binding.Target.Equal,
		func(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry) (binding.Target, bool) {
			return of(t.Target(r, k.Home(), EntryLabels(e.Labels, e.Spec.Labels), e.Annotations, TrafficWorkload))
		})
	b.spaces = collection.Merge("namespaces with waypoints", Same[struct{}],
		collection.FlatMap(b.Services, "namespaces of services with waypoints", Same[struct{}], Ref.Compare, home),
		collection.FlatMap(b.Entries, "namespaces of entries with waypoints", Same[struct{}], Ref.Compare, home))
}

// bypassUse is what annotations say of traffic around a waypoint. Both are as written.
type bypassUse struct{ bypass, exempt string }

func useBypass(annotations map[string]string) bypassUse {
	return bypassUse{annotations[wellknown.AnnotationWaypointBypass], annotations[wellknown.AnnotationWaypointExempt]}
}

// under takes from a namespace what an object does not say.
func (u bypassUse) under(ns bypassUse) bypassUse {
	return bypassUse{cmp.Or(u.bypass, ns.bypass), cmp.Or(u.exempt, ns.exempt)}
}

// allowed reports whether traffic may go around. What is neither word means no.
func (u bypassUse) allowed(mesh bool) bool {
	return u.bypass == wellknown.WaypointBypassAllow || u.bypass == "" && mesh
}

// exempted returns the principals of the accounts that are exempt, and what is no
// account, as namespace/name, and is ignored.
func (u bypassUse) exempted(trustDomain string) (principals, bad []string) {
	for _, s := range strings.Split(u.exempt, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		ns, name, _ := strings.Cut(s, "/")
		id := identity.Identity{TrustDomain: trustDomain, Namespace: ns, ServiceAccount: name}
		if id.Validate() != nil {
			bad = append(bad, s)
			continue
		}
		principals = append(principals, id.Principal())
	}
	return principals, bad
}

// Target returns where the traffic of an object has to go, and the condition that
// says so: nil if the object has no waypoint.
func (t *Tables) Target(r *collection.Reader, home Space, labels, annotations map[string]string, what Traffic) (binding.Target, *status.Condition) {
	name, w, c := t.allotted(r, home, labels, what)
	return t.judge(r, home, annotations, name, w, c)
}

// EntryTarget is target of a ServiceEntry.
func (t *Tables) EntryTarget(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) (binding.Target, *status.Condition) {
	name, w, c := t.entryAllotted(r, k, e)
	return t.judge(r, k.Home(), e.Annotations, name, w, c)
}

// judge makes a target of what allotted returns, and completes the condition.
func (t *Tables) judge(r *collection.Reader, home Space, annotations map[string]string, name Ref, w *Waypoint, c *status.Condition) (binding.Target, *status.Condition) {
	if c == nil {
		return binding.Target{}, nil
	}
	if named, is := collection.Fetch(r, t.waypoints, name); is && named.serves == waypointForNothing {
		c.Message = explained(c.Message, "traffic goes without it")
		return binding.Target{}, c
	}
	ns, _ := collection.Fetch(r, t.Namespaces, home)
	use := useBypass(annotations).under(ns.bypass)
	trustDomain := t.Cluster(r, home.Cluster).TrustDomain
	target := binding.Target{Namespace: name.Namespace, Name: name.Name, Bypass: use.allowed(t.Opts.WaypointBypass)}
	admitted, bad := use.exempted(trustDomain)
	if c.Status == status.True {
		target.Address = w.address
		admitted = append(admitted, identity.Identity{TrustDomain: trustDomain, Namespace: name.Namespace, ServiceAccount: w.account}.Principal())
	} else {
		target.Why = c.Reason
	}
	slices.Sort(admitted)
	target.Admitted = slices.Compact(admitted)
	c.Message = explained(c.Message, consequence(target))
	if len(bad) > 0 {
		c.Message += "; ignored in the annotation " + wellknown.AnnotationWaypointExempt + ", because they are not namespace/account: " + strings.Join(bad, ", ")
	}
	return target, c
}

// explained adds to a message what follows, before its remedy.
func explained(message, what string) string {
	head, remedy, some := strings.Cut(message, "; ")
	if head += ": " + what; some {
		head += "; " + remedy
	}
	return head
}

// consequence describes how connections that do not pass the waypoint are treated.
func consequence(t binding.Target) string {
	switch {
	case t.Bypass && t.Address == nil:
		return "traffic goes around it, as the bypass of waypoints is allowed"
	case t.Bypass:
		return "traffic may go around it, as the bypass of waypoints is allowed"
	case t.Address == nil:
		return "connections are refused (WAYPOINT_UNAVAILABLE)"
	}
	return "endpoints in the mesh admit no others"
}

// state returns what is in effect for an object of a kind, whose targets these are.
func (t *Tables) state(r *collection.Reader, kind *source.Kind, of *collection.Collection[Ref, binding.Target], k Ref) binding.State {
	if s, moves := collection.Fetch(r, t.Bound.Moving, Moved{kind, k}); moves {
		return s.State
	}
	target, _ := collection.Fetch(r, of, k)
	return binding.Final(target)
}

func (t *Tables) serviceState(r *collection.Reader, k Ref) binding.State {
	return t.state(r, source.Service.Kind, t.Bound.Services, k)
}

func (t *Tables) entryState(r *collection.Reader, k Ref) binding.State {
	return t.state(r, source.ServiceEntry.Kind, t.Bound.Entries, k)
}

func (t *Tables) podState(r *collection.Reader, k Ref) binding.State {
	return t.state(r, source.Pod.Kind, t.Bound.Pods, k)
}

func (t *Tables) workloadState(r *collection.Reader, k Ref) binding.State {
	return t.state(r, source.WorkloadEntry.Kind, t.Bound.Workloads, k)
}

// shut has a workload, whose services are known, name the policy that admits only
// waypoints, if there is one, and returns it.
func (t *Tables) shut(r *collection.Reader, w *workloadpb.Workload, c source.Cluster, own binding.State) *securitypb.Authorization {
	var d binding.Doors
	d.Workload(own)
	for name, list := range w.Services {
		namespace, hostname, _ := strings.Cut(name, "/")
		t.eachState(r, c, Host{namespace, hostname}, func(s binding.State) {
			for _, p := range list.Ports {
				d.Port(p.TargetPort, s)
			}
		})
	}
	p := d.Policy(w.Namespace)
	if p != nil {
		w.AuthorizationPolicies = append(w.AuthorizationPolicies, PolicyName(p))
		slices.Sort(w.AuthorizationPolicies)
	}
	return p
}

// eachState calls f with what is in effect for each object that makes up a host.
func (t *Tables) eachState(r *collection.Reader, c source.Cluster, host Host, f func(binding.State)) {
	if t.OfService(r, c, host) {
		k, _ := t.serviceNamed(r, c, host.Hostname)
		f(t.serviceState(r, k))
		return
	}
	for k := range collection.Lookup(r, t.byHost, host) {
		f(t.entryState(r, k))
	}
}

// IsProxy returns the waypoint whose proxy a workload with these labels is.
func (t *Tables) IsProxy(r *collection.Reader, home Space, labels map[string]string) (*Waypoint, bool) {
	if g := labels[wellknown.LabelGatewayName]; g != "" {
		return collection.Fetch(r, t.waypoints, home.At(g))
	}
	return nil, false
}

// closings are the policies that pods and entries name because of their waypoints.
func (t *Tables) closings(in *Inputs) *Resources {
	// Most namespaces have none: their workloads are not derived a second time.
	skip := func(r *collection.Reader, home Space, own binding.State) bool {
		_, some := collection.Fetch(r, t.Bound.spaces, home)
		return !own.Closed && !some
	}
	pods := collection.FlatMap(in.Pods.Collection, "closed pods", SameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, p *corev1.Pod, emit func(string, *xds.Resource)) {
			if skip(r, k.Home(), t.podState(r, k)) {
				return
			}
			if _, policy := t.ClosedPod(r, k, p); policy != nil {
				emitPolicy(policy, emit)
			}
		})
	entries := collection.FlatMap(in.Workloads.Collection, "closed workload entries", SameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry, emit func(string, *xds.Resource)) {
			if skip(r, k.Home(), t.workloadState(r, k)) {
				return
			}
			if _, policy := t.closedEntry(r, k, e); policy != nil {
				emitPolicy(policy, emit)
			}
		})
	return collection.Merge("closings", SameResource, pods, entries)
}
