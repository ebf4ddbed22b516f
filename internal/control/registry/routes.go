package registry

import (
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// routing derives routes of what they can name. What changes in a Service
// without a meaning for routes recomputes none.
func (t *tables) routing(in *inputs) {
	t.gatewayPods(in)
	t.gatewayDefaults(in)
	services := collection.FlatMap(in.services.Collection, "services as destinations", (*routes.Destination).Equal, Ref.Compare,
		func(r *collection.Reader, k Ref, s *corev1.Service, emit func(routes.Target, *routes.Destination)) {
			if s.Spec.Type == corev1.ServiceTypeExternalName {
				return
			}
			d := &routes.Destination{Hosts: []string{strings.ToLower(t.hostname(r, k))}, Ports: portNames(kubePorts(s))}
			name, w, c := t.allotted(r, k.Home(), s.Labels, trafficService)
			t.bindDestination(r, d, name, w, c)
			t.keepDestination(r, d, moved{source.Service.Kind, k})
			emit(routes.Target{Kind: source.Service.Kind, Ref: k}, d)
		})
	entries := collection.FlatMap(in.entries.Collection, "entries as destinations", (*routes.Destination).Equal, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(routes.Target, *routes.Destination)) {
			d := &routes.Destination{Ports: portNames(entryPorts(e))}
			for _, h := range e.Spec.Hosts {
				d.Hosts = append(d.Hosts, strings.ToLower(h))
			}
			name, w, c := t.entryAllotted(r, k, e)
			t.bindDestination(r, d, name, w, c)
			t.keepDestination(r, d, moved{source.ServiceEntry.Kind, k})
			emit(routes.Target{Kind: source.ServiceEntry.Kind, Ref: k}, d)
		})
	destinations := collection.Merge("destinations", (*routes.Destination).Equal, services, entries)
	t.routes = routes.New(routes.Inputs{
		HTTPRoutes: in.httpRoutes.Collection, GRPCRoutes: in.grpcRoutes.Collection,
		TLSRoutes: in.tlsRoutes.Collection, TCPRoutes: in.tcpRoutes.Collection, Grants: in.grants.Collection,
		Destinations: destinations,
		Waypoint: func(r *collection.Reader, k Ref) bool {
			_, is := collection.Fetch(r, t.waypoints, k)
			return is
		},
		Cluster: t.opts.ClusterID,
	})
	t.targets = targets.New(targets.Inputs{
		Policies: in.policies.Collection, Destinations: destinations, RootNamespace: t.opts.RootNamespace, Cluster: t.opts.ClusterID,
		Requests: collection.Map(in.policies.Collection, "policies of requests", never[*policy.Requests],
			func(r *collection.Reader, _ Ref, p *securityv1.AuthorizationPolicy) (*policy.Requests, bool) {
				if len(targets.Refs(&p.Spec)) == 0 {
					return nil, false
				}
				d, _ := collection.Fetch(r, t.domains, struct{}{})
				return d.TranslateRequests(p, func(name string) (*authzpb.Provider, error) {
					all, _ := collection.Fetch(r, in.providers.Collection, struct{}{})
					return all.Check(name)
				}), true
			}),
		Authentications: in.tokens.Collection,
		Tokens: collection.Map(in.tokens.Collection, "tokens", never[*policy.Tokens],
			func(r *collection.Reader, _ Ref, p *securityv1.RequestAuthentication) (*policy.Tokens, bool) {
				if len(targets.Refs(&p.Spec)) == 0 {
					return nil, false
				}
				return policy.TranslateTokens(p, func(s jwks.Source) *jwks.State {
					state, _ := collection.Fetch(r, in.keys.Collection, s)
					return state
				}), true
			}),
		Telemetry: in.telemetry.Collection, Mesh: in.mesh.Collection, HostOwner: t.hostOwner,
		Layers: collection.Map(in.telemetry.Collection, "layers of telemetry", never[*telemetry.Made],
			func(r *collection.Reader, _ Ref, p *telemetryv1.Telemetry) (*telemetry.Made, bool) {
				return t.observes(r, p), true
			}),
		Gateways: collection.Map(t.classes, "gateways as targets", same[targets.Gateway],
			func(r *collection.Reader, k Ref, class string) (targets.Gateway, bool) {
				w, is := collection.Fetch(r, t.waypoints, k)
				return targets.Gateway{Class: class, Waypoint: is, Ready: is && w.address != nil}, true
			}),
	})
}

// keySources are where the keys of RequestAuthentications come from.
func keySources(in *inputs) *collection.Collection[jwks.Source, struct{}] {
	return collection.FlatMap(in.tokens.Collection, "sources of keys", same[struct{}], Ref.Compare,
		func(_ *collection.Reader, k Ref, p *securityv1.RequestAuthentication, emit func(jwks.Source, struct{})) {
			if len(targets.Refs(&p.Spec)) == 0 {
				return
			}
			for _, rule := range p.Spec.GetJwtRules() {
				if s, ok := policy.SourceOf(k.Namespace, rule); ok {
					emit(s, struct{}{})
				}
			}
		})
}

// Keys fetches the keys of issuers. Its methods do not wait.
type Keys interface {
	Want(jwks.Source)
	Forget(jwks.Source)
}

// followKeys has the keys fetched that objects name.
func (r *Registry) followKeys() {
	if r.opts.Keys == nil {
		return
	}
	keySources(&r.in).OnChange(func(changes []collection.Change[jwks.Source, struct{}]) {
		for _, c := range changes {
			if c.Has {
				r.opts.Keys.Want(c.Key)
			} else {
				r.opts.Keys.Forget(c.Key)
			}
		}
	})
}

// SetKeys takes in what is known of the keys of a source; nil when that is nothing.
func (r *Registry) SetKeys(s jwks.Source, state *jwks.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if state == nil {
		r.in.keys.Delete(s)
	} else {
		r.in.keys.Set(s, state)
	}
	r.settle()
}

// bindDestination notes which waypoint has the routes of a service.
func (t *tables) bindDestination(r *collection.Reader, d *routes.Destination, name Ref, w *waypoint, c *status.Condition) {
	switch {
	case c == nil:
		d.Unbound = "it has no waypoint; bind one with the label " + wellknown.LabelUseWaypoint
	case w != nil:
		d.Gateway, d.Ready = name, w.address != nil
	default:
		class, is := collection.Fetch(r, t.classes, name)
		d.Foreign = is && class != waypointClass
	}
	if c != nil && c.Status != status.True {
		d.Unbound = c.Message
	}
}

// keepDestination leaves the configuration of a service with the waypoints that its
// traffic leaves, until that has happened.
func (t *tables) keepDestination(r *collection.Reader, d *routes.Destination, k moved) {
	p, _ := collection.Fetch(r, t.bound.moving, k)
	left := p.left
	if d.Gateway == (Ref{}) && len(left) > 0 {
		d.Gateway, d.Ready, left = left[0], true, left[1:]
	}
	d.Left = slices.DeleteFunc(slices.Clone(left), func(g Ref) bool { return g == d.Gateway })
}

func portNames(ports []servicePort) []routes.Port {
	out := make([]routes.Port, 0, len(ports))
	for _, p := range ports {
		opaque := p.protocol == workloadpb.AppProtocol_TCP || p.protocol == workloadpb.AppProtocol_TLS
		requests := p.protocol == workloadpb.AppProtocol_HTTP11 || p.protocol == workloadpb.AppProtocol_HTTP2 || p.protocol == workloadpb.AppProtocol_GRPC
		out = append(out, routes.Port{Number: uint16(p.port), Name: p.name, Opaque: opaque, Requests: requests})
	}
	return out
}

// route returns a section per parent of a route that is the mesh's business.
func (d describer) route(results *collection.Collection[Ref, *routes.Result], n Ref) (out []status.Section) {
	res, ok := collection.Fetch(d.r, results, n)
	if !ok {
		return nil
	}
	for _, p := range res.Parents {
		out = append(out, status.Section{List: routes.Parents, Key: status.KeyOf(p.Ref), Conditions: p.Conditions})
	}
	return out
}
