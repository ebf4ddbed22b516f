// Package routes turns the routes of Gateway API into rules that gateways
// execute (package wire), and into the status of each route. A route is one
// step: its rules and its status are made of the same decisions. Everything is
// derived incrementally; a change of a Service costs the routes that name it.
package routes

import (
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Target names an object that can be the parent or the backend of a route.
type Target struct {
	Kind *source.Kind // Service or ServiceEntry
	Ref  source.Ref
}

// String renders kind, namespace and name, for people.
func (t Target) String() string { return t.Kind.Name + " " + t.Ref.String() }

// Destination is what routes depend on of a Service or a ServiceEntry.
type Destination struct {
	Hosts []string // lower case
	Ports []Port
	// Gateway is the waypoint that has the routes of the service, also while it
	// has no address. It is empty when there is none, and Unbound is why.
	Gateway source.Ref
	Unbound string
	// Named: it asks for a waypoint, which need not exist.
	Named bool
	// Left are other waypoints, which have them until the traffic has left them.
	Left []source.Ref
	// Ready is false as long as clients do not use the waypoint; Unbound is why.
	Ready bool
	// Foreign destinations are bound to a Gateway of another controller, which
	// writes the status of their routes.
	Foreign bool
}

// Gateways returns the waypoints that have the configuration of the service.
func (d *Destination) Gateways() []source.Ref {
	if d.Gateway == (source.Ref{}) {
		return d.Left
	}
	return append([]source.Ref{d.Gateway}, d.Left...)
}

// Port is a port of a destination.
type Port struct {
	Number uint16
	Name   string
	// Opaque ports are declared to carry something else than HTTP. Waypoints do
	// not look for requests on them.
	Opaque bool
	// Requests are declared to be HTTP: waypoints read nothing else there.
	Requests bool
}

// Equal reports whether two destinations are the same to routes.
func (d *Destination) Equal(o *Destination) bool {
	return slices.Equal(d.Hosts, o.Hosts) && slices.Equal(d.Ports, o.Ports) && d.Gateway == o.Gateway && slices.Equal(d.Left, o.Left) && d.Unbound == o.Unbound && d.Ready == o.Ready && d.Foreign == o.Foreign && d.Named == o.Named
}

// Inputs are the tables that routes are made of. Routes are configuration of the
// control plane's own cluster.
type Inputs struct {
	HTTPRoutes   *collection.Collection[source.Ref, *gatewayv1.HTTPRoute]
	GRPCRoutes   *collection.Collection[source.Ref, *gatewayv1.GRPCRoute]
	TLSRoutes    *collection.Collection[source.Ref, *gatewayv1.TLSRoute]
	TCPRoutes    *collection.Collection[source.Ref, *gatewayv1.TCPRoute]
	Grants       *collection.Collection[source.Ref, *gatewayv1.ReferenceGrant]
	Destinations *collection.Collection[Target, *Destination]
	// Waypoint reports whether a Gateway is a waypoint of this control plane.
	Waypoint func(*collection.Reader, source.Ref) bool
	Cluster  string // ID of the control plane's own
	// Reach returns the groups of node proxies with pods in some namespaces, by the start of
	// the names of what they are sent; for nil, that of all. Without it none are sent routes.
	Reach func(r *collection.Reader, namespaces []string) map[string]xds.Group
}

// Tables are what is made of routes.
type Tables struct {
	in     Inputs
	grants *collection.Index[string, source.Ref, *gatewayv1.ReferenceGrant] // by the namespace that grants
	// rivals are the routes of connections by their parents: of those for the same, one
	// is in effect.
	rivals map[*source.Kind]*collection.Index[Target, source.Ref, *object]
	// HTTP, GRPC, TLS and TCP hold the result of each route.
	HTTP *collection.Collection[source.Ref, *Result]
	GRPC *collection.Collection[source.Ref, *Result]
	TLS  *collection.Collection[source.Ref, *Result]
	TCP  *collection.Collection[source.Ref, *Result]
	// Resources are what gateways are sent: of each gateway, a resource a rule.
	Resources []*collection.Collection[string, *xds.Resource]
}

// Result is what became of one route.
type Result struct {
	Parents   []Parent
	resources []*xds.Resource
}

// Parent is what became of a route at one of its parents.
type Parent struct {
	Ref        gatewayv1.ParentReference // with group and kind
	Conditions []status.Condition
}

// New adds the derivations to the graph of the inputs.
func New(in Inputs) *Tables {
	t := &Tables{in: in, rivals: map[*source.Kind]*collection.Index[Target, source.Ref, *object]{}}
	t.grants = collection.NewIndex(in.Grants, func(k source.Ref, _ *gatewayv1.ReferenceGrant) []string { return []string{k.Namespace} })
	t.HTTP = collection.Map(in.HTTPRoutes, "results of HTTPRoutes", never, func(r *collection.Reader, k source.Ref, o *gatewayv1.HTTPRoute) (*Result, bool) {
		return t.result(r, readHTTP(k, o)), true
	})
	t.GRPC = collection.Map(in.GRPCRoutes, "results of GRPCRoutes", never, func(r *collection.Reader, k source.Ref, o *gatewayv1.GRPCRoute) (*Result, bool) {
		return t.result(r, readGRPC(k, o)), true
	})
	t.TLS = t.ofConnections(source.TLSRoute.Kind, collection.Map(in.TLSRoutes, "TLSRoutes as they are read", never,
		func(_ *collection.Reader, k source.Ref, o *gatewayv1.TLSRoute) (*object, bool) {
			return readTLS(k, o), true
		}))
	t.TCP = t.ofConnections(source.TCPRoute.Kind, collection.Map(in.TCPRoutes, "TCPRoutes as they are read", never,
		func(_ *collection.Reader, k source.Ref, o *gatewayv1.TCPRoute) (*object, bool) {
			return readTCP(k, o), true
		}))
	for _, results := range []*collection.Collection[source.Ref, *Result]{t.HTTP, t.GRPC, t.TLS, t.TCP} {
		t.Resources = append(t.Resources, collection.FlatMap(results, "rules of routes", sameResource, source.Ref.Compare,
			func(_ *collection.Reader, _ source.Ref, res *Result, emit func(string, *xds.Resource)) {
				for _, r := range res.resources {
					emit(r.Name, r)
				}
			}))
	}
	return t
}

// ofConnections derives the results of routes of connections, which depend on each other.
func (t *Tables) ofConnections(kind *source.Kind, read *collection.Collection[source.Ref, *object]) *collection.Collection[source.Ref, *Result] {
	t.rivals[kind] = collection.NewIndex(read, func(_ source.Ref, o *object) []Target { return o.targets() })
	return collection.Map(read, "results of "+kind.Plural, never, func(r *collection.Reader, _ source.Ref, o *object) (*Result, bool) { return t.result(r, o), true })
}

// never is the equality of what is only remade when something changed.
func never[T any](_, _ T) bool { return false }

// sameResource compares what follows from a name and a body: the group of a rule
// is in its name.
func sameResource(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }

// resource makes the message of a rule for a gateway.
func (t *Tables) resource(gateway source.Ref, r *wire.Rule) (*xds.Resource, error) {
	return named(gateway.Namespace+"/"+gateway.Name, access.GatewayGroup(access.Gateway{Cluster: t.in.Cluster, Namespace: gateway.Namespace, Name: gateway.Name}), r)
}

// named makes the message of a rule for a group, whose name it begins with.
func named(to string, group xds.Group, r *wire.Rule) (*xds.Resource, error) {
	body, err := r.Encode()
	if err != nil {
		return nil, err
	}
	o := &r.Origin
	out := xds.NewResource(wellknown.TypeRoute, fmt.Sprintf("%s/%s/%s/%s/%d", to, o.Kind, o.Namespace, o.Name, o.Rule), nil, body)
	out.Groups = []xds.Group{group}
	return out, nil
}
