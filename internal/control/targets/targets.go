// Package targets finds what policies with targetRefs are for: which gateway enforces
// a policy, for which services. What gateways are sent and what the status of a policy
// says are made of the same decision.
package targets

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Gateway is what policies depend on of a Gateway.
type Gateway struct {
	Class    string
	Waypoint bool // of this control plane
	Ready    bool // it has an address
}

// Inputs are the tables that bindings are made of.
type Inputs struct {
	Policies *collection.Collection[source.Ref, *securityv1.AuthorizationPolicy]
	// Requests are the policies as gateways get them.
	Requests *collection.Collection[source.Ref, *policy.Requests]
	// Authentications are those of requests, Tokens the same as gateways get them.
	Authentications *collection.Collection[source.Ref, *securityv1.RequestAuthentication]
	Tokens          *collection.Collection[source.Ref, *policy.Tokens]

	// Telemetry are the objects, Layers the same as gateways get them, Mesh what the
	// mesh's settings say: one row, or none.
	Telemetry *collection.Collection[source.Ref, *telemetryv1.Telemetry]
	Layers    *collection.Collection[source.Ref, *telemetry.Made]
	Mesh      *collection.Collection[struct{}, *telemetry.Mesh]
	// HostOwner returns the namespace of the entry that has a host.
	HostOwner func(r *collection.Reader, host string) (string, bool)
	// Pods are those of all clusters. PodUID returns the ID of a pod's cluster, and the UID of
	// its workload.
	Pods   *collection.Collection[source.Ref, *corev1.Pod]
	PodUID func(r *collection.Reader, k source.Ref) (cluster, uid string)

	Destinations  *collection.Collection[routes.Target, *routes.Destination]
	Gateways      *collection.Collection[source.Ref, Gateway]
	RootNamespace string
	Cluster       string // ID of the control plane's own
}

// Tables are what is made of policies.
type Tables struct {
	in Inputs
	// Policies has the result of each policy with targets.
	Policies *collection.Collection[source.Ref, *Result]
	// Resources are what gateways are sent: one of each policy for each target.
	Resources []*collection.Collection[string, *xds.Resource]

	// Authentications has the result of each RequestAuthentication with targets, and
	// Tokens are what gateways are sent of them.
	Authentications *collection.Collection[source.Ref, *Result]
	Tokens          []*collection.Collection[string, *xds.Resource]

	// Telemetry has the result of each Telemetry with targets, and Layers are what
	// gateways are sent of all of them.
	Telemetry *collection.Collection[source.Ref, *Result]
	Layers    []*collection.Collection[string, *xds.Resource]
}

// Result is what became of one policy.
type Result struct {
	Conditions []status.Condition
	resources  []*xds.Resource
}

// forServices is a policy as gateways get it: its message for services, or, without
// any, for everything.
type forServices interface {
	For(services []authz.Service) []byte
}

// attached is the part of a policy's spec that says where it acts.
type attached interface {
	GetSelector() *typev1beta1.WorkloadSelector
	GetTargetRef() *typev1beta1.PolicyTargetReference
	GetTargetRefs() []*typev1beta1.PolicyTargetReference
}

// Refs returns the targets of a policy; none for one of node proxies.
func Refs(spec attached) []*typev1beta1.PolicyTargetReference {
	if len(spec.GetSelector().GetMatchLabels()) > 0 {
		return nil
	}
	refs := spec.GetTargetRefs()
	if own := spec.GetTargetRef(); own != nil {
		refs = append(slices.Clone(refs), own)
	}
	return refs
}

// New adds the derivations to the graph of the inputs.
func New(in Inputs) *Tables {
	t := &Tables{in: in}
	t.Policies, t.Resources = follow(t, "policies", wellknown.TypePolicy, in.Policies, in.Requests,
		func(p *securityv1.AuthorizationPolicy) attached { return &p.Spec },
		func(p *securityv1.AuthorizationPolicy, req *policy.Requests, bound, open []binding) []status.Condition {
			return []status.Condition{condition(p, req, bound, open)}
		})
	t.Authentications, t.Tokens = follow(t, "request authentications", wellknown.TypeAuthentication, in.Authentications, in.Tokens,
		func(p *securityv1.RequestAuthentication) attached { return &p.Spec }, tokenConditions)
	t.observe()
	return t
}

// follow derives what becomes of the policies of a kind, and what gateways are sent of
// them. made are the policies as gateways get them.
func follow[P any, M forServices](t *Tables, what, typeURL string, all *collection.Collection[source.Ref, P], made *collection.Collection[source.Ref, M],
	spec func(P) attached, conditions func(p P, made M, bound, open []binding) []status.Condition,
) (results *collection.Collection[source.Ref, *Result], resources []*collection.Collection[string, *xds.Resource]) {
	never := func(_, _ *Result) bool { return false } // remade only when something changed
	results = collection.Map(all, "targets of "+what, never, func(r *collection.Reader, k source.Ref, p P) (*Result, bool) {
		refs := Refs(spec(p))
		m, ok := collection.Fetch(r, made, k)
		if len(refs) == 0 || !ok {
			return nil, false
		}
		out := &Result{}
		bound, open := t.bindAll(r, k, refs, func(gateway source.Ref, ref *typev1beta1.PolicyTargetReference, services []authz.Service) {
			res := t.resource(typeURL, gateway, k, ref.Kind, ref.Name, m, services)
			if !slices.ContainsFunc(out.resources, func(o *xds.Resource) bool { return o.Name == res.Name }) {
				out.resources = append(out.resources, res)
			}
		})
		out.Conditions = conditions(p, m, bound, open)
		return out, true
	})
	byTarget := collection.FlatMap(results, what+" of gateways", sameResource, source.Ref.Compare,
		func(_ *collection.Reader, _ source.Ref, res *Result, emit func(string, *xds.Resource)) {
			for _, r := range res.resources {
				emit(r.Name, r)
			}
		})
	ofClass := collection.NewIndex(all, func(k source.Ref, p P) []string {
		if k.Namespace == t.in.RootNamespace && slices.ContainsFunc(Refs(spec(p)), isClass) {
			return []string{wellknown.ClassWaypoint}
		}
		return nil
	})
	byClass := collection.FlatMap(t.in.Gateways, what+" of a class of gateways", sameResource, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, g Gateway, emit func(string, *xds.Resource)) {
			if !g.Waypoint {
				return
			}
			for at := range collection.Lookup(r, ofClass, wellknown.ClassWaypoint) {
				if m, ok := collection.Fetch(r, made, at); ok {
					res := t.resource(typeURL, k, at, source.GatewayClass.Name, wellknown.ClassWaypoint, m, nil)
					emit(res.Name, res)
				}
			}
		})
	return results, []*collection.Collection[string, *xds.Resource]{byTarget, byClass}
}

func isClass(ref *typev1beta1.PolicyTargetReference) bool {
	return ref.Kind == source.GatewayClass.Name && ref.Name == wellknown.ClassWaypoint
}

func sameResource(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }

// binding is what one target came to.
type binding struct {
	what     string // kind and name, for people
	gateway  source.Ref
	left     []source.Ref    // have the policy until the traffic has left them
	services []authz.Service // none: everything
	// class: of the class of waypoints, whose gateways get the policy by another way.
	class bool
	// open is why nobody is known to enforce the policy here.
	open *status.Condition
}

func (b *binding) where() string {
	switch {
	case b.class:
		return "every waypoint of class " + wellknown.ClassWaypoint
	case len(b.services) == 0:
		return "waypoint " + b.gateway.String()
	}
	return fmt.Sprintf("waypoint %s for %s", b.gateway, b.what)
}

// bindAll binds each target, and emits for which gateways the policy is.
func (t *Tables) bindAll(r *collection.Reader, k source.Ref, refs []*typev1beta1.PolicyTargetReference,
	emit func(gateway source.Ref, ref *typev1beta1.PolicyTargetReference, services []authz.Service),
) (bound, open []binding) {
	for _, ref := range refs {
		b := t.bind(r, k, ref)
		// The policy is sent also where the gateway is not ready yet.
		for _, gateway := range append([]source.Ref{b.gateway}, b.left...) {
			if gateway != (source.Ref{}) {
				emit(gateway, ref, b.services)
			}
		}
		if b.open != nil {
			open = append(open, b)
		} else {
			bound = append(bound, b)
		}
	}
	return bound, open
}

// resource makes the message of a policy for a gateway. The name has the target:
// what a target no longer has is removed, which waits for what other types say of it.
func (t *Tables) resource(typeURL string, gateway, at source.Ref, kind, name string, made forServices, services []authz.Service) *xds.Resource {
	body := made.For(services)
	if c, ok := made.(forClass); ok && kind == source.GatewayClass.Name {
		body = c.ForClass()
	}
	return t.made(typeURL, gateway, at, kind, name, body)
}

// forClass is one whose message for a class differs from that for a gateway.
type forClass interface{ ForClass() []byte }

// made makes the resource of a message.
func (t *Tables) made(typeURL string, gateway, at source.Ref, kind, name string, body []byte) *xds.Resource {
	full := fmt.Sprintf("%s/%s/%s/%s/%s/%s", gateway.Namespace, gateway.Name, kind, name, at.Namespace, at.Name)
	out := xds.NewResource(typeURL, full, nil, body)
	out.Groups = []xds.Group{access.GatewayGroup(access.Gateway{Cluster: t.in.Cluster, Namespace: gateway.Namespace, Name: gateway.Name})}
	return out
}

func (t *Tables) bind(r *collection.Reader, k source.Ref, ref *typev1beta1.PolicyTargetReference) (b binding) {
	no := func(reason, format string, args ...any) binding {
		c := status.No(status.WaypointAccepted, reason, format, args...)
		b.open = &c
		return b
	}
	at := k.At(k.Namespace, ref.Name)
	b.what = ref.Kind + " " + at.String()
	if ref.Namespace != "" && ref.Namespace != k.Namespace {
		b.what = fmt.Sprintf("%s %s/%s", ref.Kind, ref.Namespace, ref.Name)
		return no(status.ReasonInvalid, "%s is of another namespace: a policy is for objects of its own namespace %s; move the policy there", b.what, k.Namespace)
	}
	kind, known := source.KindOf(groupOf(ref), ref.Kind)
	switch {
	case !known:
	case kind == source.GatewayClass.Kind:
		b.what = "GatewayClass " + ref.Name
		switch {
		case k.Namespace != t.in.RootNamespace:
			return no(status.ReasonInvalid, "only a policy of the root namespace %s can be for a GatewayClass: move it there, or name a Gateway", t.in.RootNamespace)
		case !isClass(ref):
			return no(status.ReasonInvalid, "GatewayClass %s is not that of waypoints: write %s", ref.Name, wellknown.ClassWaypoint)
		}
		b.class = true
		return b
	case kind == source.Gateway.Kind:
		return t.bindGateway(r, b, at)
	case kind == source.Service.Kind, kind == source.ServiceEntry.Kind:
		return t.bindService(r, b, routes.Target{Kind: kind, Ref: at})
	}
	return no(status.ReasonInvalid, "nothing enforces a policy for a %s: name a Gateway, a GatewayClass, a Service or a ServiceEntry", ref.Kind)
}

// groupOf returns the group of a target. "core" is another name of that of Services.
func groupOf(ref *typev1beta1.PolicyTargetReference) string {
	switch ref.Kind {
	case source.Gateway.Name:
		return cmp.Or(ref.Group, source.Gateway.Group)
	case source.GatewayClass.Name:
		return cmp.Or(ref.Group, source.GatewayClass.Group)
	case source.ServiceEntry.Name:
		return cmp.Or(ref.Group, source.ServiceEntry.Group)
	case source.Service.Name:
		return strings.TrimPrefix(ref.Group, "core")
	}
	return ref.Group
}

func (t *Tables) bindGateway(r *collection.Reader, b binding, at source.Ref) binding {
	g, there := collection.Fetch(r, t.in.Gateways, at)
	var c status.Condition
	switch {
	case !there:
		c = status.No(status.WaypointAccepted, status.ReasonTargetNotFound, "there is no Gateway %s", at)
	case !g.Waypoint:
		c = status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint,
			"Gateway %s is of class %s: only the controller of that class can enforce the policy; node proxies do not", at, g.Class)
	case !g.Ready:
		b.gateway = at
		c = status.No(status.WaypointAccepted, status.ReasonAncestorNotBound, "waypoint %s has no address yet: no proxy enforces the policy until it has; see its pods", at)
	default:
		b.gateway = at
		return b
	}
	b.open = &c
	return b
}

func (t *Tables) bindService(r *collection.Reader, b binding, at routes.Target) binding {
	d, there := collection.Fetch(r, t.in.Destinations, at)
	var c status.Condition
	switch {
	case !there:
		c = status.No(status.WaypointAccepted, status.ReasonTargetNotFound, "there is no %s that a waypoint can serve", at)
	case d.Foreign:
		c = status.Maybe(status.WaypointAccepted, status.ReasonEnforcedByWaypoint, "%s uses a Gateway of another class: only the controller of that class can enforce the policy; node proxies do not", at)
	case d.Gateway == (source.Ref{}):
		c = status.No(status.WaypointAccepted, status.ReasonAncestorNotBound, "no proxy enforces the policy for %s: %s", at, d.Unbound)
	default:
		b.gateway, b.left = d.Gateway, d.Left
		for _, h := range d.Hosts {
			b.services = append(b.services, authz.Service{Namespace: at.Ref.Namespace, Hostname: h})
		}
		if d.Ready {
			return b
		}
		c = status.No(status.WaypointAccepted, status.ReasonAncestorNotBound, "no proxy enforces the policy for %s yet: %s", at, d.Unbound)
	}
	b.open = &c
	return b
}
