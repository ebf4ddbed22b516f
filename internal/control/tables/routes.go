package tables

import (
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/limits"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/control/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// routing derives routes of what they can name. What changes in a Service
// without a meaning for routes recomputes none.
func (t *Tables) routing(in *Inputs) {
	t.gatewayPods(in)
	t.gatewayDefaults(in)
	services := collection.FlatMap(in.Services.Collection, "services as destinations", (*routes.Destination).Equal, Ref.Compare,
		func(r *collection.Reader, k Ref, s *corev1.Service, emit func(routes.Target, *routes.Destination)) {
			if s.Spec.Type == corev1.ServiceTypeExternalName {
				return
			}
			d := &routes.Destination{Hosts: []string{strings.ToLower(t.Hostname(r, k))}, Ports: routes.PortsOf(service.Ports(s))}
			name, w, c := t.allotted(r, k.Home(), s.Labels, TrafficService)
			t.bindDestination(r, d, name, w, c)
			t.keepDestination(r, d, Moved{source.Service.Kind, k})
			emit(routes.Target{Kind: source.Service.Kind, Ref: k}, d)
		})
	entries := collection.FlatMap(in.Entries.Collection, "entries as destinations", (*routes.Destination).Equal, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(routes.Target, *routes.Destination)) {
			d := &routes.Destination{Ports: routes.PortsOf(service.EntryPorts(e))}
			for _, h := range e.Spec.Hosts {
				d.Hosts = append(d.Hosts, strings.ToLower(h))
			}
			name, w, c := t.entryAllotted(r, k, e)
			t.bindDestination(r, d, name, w, c)
			t.keepDestination(r, d, Moved{source.ServiceEntry.Kind, k})
			emit(routes.Target{Kind: source.ServiceEntry.Kind, Ref: k}, d)
		})
	destinations := collection.Merge("destinations", (*routes.Destination).Equal, services, entries)
	t.Traffic = traffic.New(traffic.Inputs{
		Rules: in.Rules.Collection, Pods: t.pods,
		ID: func(r *collection.Reader, c source.Cluster) string { return t.Cluster(r, c).ID },
		Place: func(r *collection.Reader) traffic.Place {
			return traffic.Place{Domain: t.Cluster(r, source.Cluster{}).Domain, RootNamespace: t.Opts.RootNamespace}
		},
	})
	t.Limits = limits.New(limits.Inputs{
		Limits: in.Limits.Collection, Pods: t.pods, PodUID: t.podID,
		Host: func(r *collection.Reader, k Ref) (string, bool) {
			_, is := collection.Fetch(r, in.Services.Collection, k)
			return t.Hostname(r, k), is
		},
	})
	t.Egress.Publish(t.Traffic.Reach)
	t.Routes = routes.New(routes.Inputs{
		HTTPRoutes: in.HttpRoutes.Collection, GRPCRoutes: in.GrpcRoutes.Collection,
		TLSRoutes: in.TlsRoutes.Collection, TCPRoutes: in.TcpRoutes.Collection, Grants: in.grants.Collection,
		Destinations: destinations,
		Waypoint: func(r *collection.Reader, k Ref) bool {
			_, is := collection.Fetch(r, t.waypoints, k)
			return is
		},
		Cluster: t.Opts.ClusterID,
		Reach:   t.Traffic.Reach,
	})
	t.Targets = targets.New(targets.Inputs{
		Policies: in.Policies.Collection, Destinations: destinations, RootNamespace: t.Opts.RootNamespace, Cluster: t.Opts.ClusterID,
		Requests: collection.Map(in.Policies.Collection, "policies of requests", Never[*policy.Requests],
			func(r *collection.Reader, _ Ref, p *securityv1.AuthorizationPolicy) (*policy.Requests, bool) {
				if len(targets.Refs(&p.Spec)) == 0 {
					return nil, false
				}
				d, _ := collection.Fetch(r, t.domains, struct{}{})
				return d.TranslateRequests(p, func(name string) (*authzpb.Provider, error) {
					all, _ := collection.Fetch(r, in.Providers.Collection, struct{}{})
					return all.Check(name)
				}), true
			}),
		Authentications: in.Tokens.Collection,
		Tokens: collection.Map(in.Tokens.Collection, "tokens", Never[*policy.Tokens],
			func(r *collection.Reader, _ Ref, p *securityv1.RequestAuthentication) (*policy.Tokens, bool) {
				if len(targets.Refs(&p.Spec)) == 0 {
					return nil, false
				}
				return policy.TranslateTokens(p, func(s jwks.Source) *jwks.State {
					state, _ := collection.Fetch(r, in.Keys.Collection, s)
					return state
				}), true
			}),
		Telemetry: in.Telemetry.Collection, Mesh: in.Mesh.Collection, HostOwner: t.hostOwner,
		Pods: t.pods, PodUID: t.podID,
		Layers: collection.Map(in.Telemetry.Collection, "layers of telemetry", Never[*telemetry.Made],
			func(r *collection.Reader, _ Ref, p *telemetryv1.Telemetry) (*telemetry.Made, bool) {
				return t.Observes(r, p), true
			}),
		Gateways: collection.Map(t.classes, "gateways as targets", Same[targets.Gateway],
			func(r *collection.Reader, k Ref, class string) (targets.Gateway, bool) {
				w, is := collection.Fetch(r, t.waypoints, k)
				return targets.Gateway{Class: class, Waypoint: is, Ready: is && w.address != nil}, true
			}),
	})
}

// bindDestination notes which waypoint has the routes of a service.
func (t *Tables) bindDestination(r *collection.Reader, d *routes.Destination, name Ref, w *Waypoint, c *status.Condition) {
	switch d.Named = c != nil; {
	case c == nil:
		d.Unbound = "it has no waypoint; bind one with the label " + wellknown.LabelUseWaypoint
	case w != nil:
		d.Gateway, d.Ready = name, w.address != nil
	default:
		class, is := collection.Fetch(r, t.classes, name)
		d.Foreign = is && class != WaypointClass
	}
	if c != nil && c.Status != status.True {
		d.Unbound = c.Message
	}
}

// keepDestination leaves the configuration of a service with the waypoints that its
// Traffic leaves, until that has happened.
func (t *Tables) keepDestination(r *collection.Reader, d *routes.Destination, k Moved) {
	p, _ := collection.Fetch(r, t.Bound.Moving, k)
	left := p.Left
	if d.Gateway == (Ref{}) && len(left) > 0 {
		d.Gateway, d.Ready, left = left[0], true, left[1:]
	}
	d.Left = slices.DeleteFunc(slices.Clone(left), func(g Ref) bool { return g == d.Gateway })
}
