package registry

import (
	"slices"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/gateways"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/control/vips"
	"github.com/ambit-mesh/ambit/internal/source"
)

// reporter reports on the objects of a kind.
type reporter struct {
	kind *source.Kind
	// describe returns the sections for an object of the kind; ok is false when
	// there is none.
	describe func(d describer, n tables.Ref) (sections []status.Section, ok bool)
	// derive makes reports rows of the graph, kept up to date for writers. It is
	// nil for kinds whose status is not written.
	derive func(r *Registry) *collection.Collection[tables.Ref, status.Report]
}

// reporters are the kinds that have something to report. Objects of other kinds
// have been read, and that is all.
func (r *Registry) reporters() []*reporter {
	in := &r.in
	service := writes(source.Service, in.Services, status.Owned{Conditions: []string{status.WaypointBound}},
		func(s *corev1.Service) status.State {
			return status.State{Conditions: status.SeenIn(s.Status.Conditions)}
		},
		conditions(func(d describer, n tables.Ref, s *corev1.Service) []status.Condition {
			// Most services of a cluster do not concern the mesh: a report is only
			// written to those that ask for a waypoint.
			return d.serviceWaypoint(nil, n, s)
		}))
	service.describe = describes(in.Services, conditions(describer.service))
	return []*reporter{
		{kind: source.Pod.Kind, describe: describes(in.Pods, conditions(describer.pod))},
		writesSome(source.Gateway, in.Gateways, gateways.Status, gateways.Seen, describer.gateway, gateways.Own),
		writesSome(source.GatewayClass, in.GwClasses, gateways.ClassStatus, gateways.SeenClass, describer.class, gateways.OwnClass),
		service,
		writes(source.ServiceEntry, in.Entries,
			status.Owned{Conditions: []string{status.Accepted, status.WaypointBound, status.WaypointMissing, status.VisibilityApplied, status.ClaimsAccepted}},
			func(e *networkingv1.ServiceEntry) status.State {
				s := seenIstio(e.Status.GetConditions())
				s.Fields = addressField(e)
				return s
			},
			func(d describer, n tables.Ref, e *networkingv1.ServiceEntry) []status.Section {
				s := status.Section{Conditions: d.entry(n, e)}
				if vips.Allocates(e) {
					s.Fields = addressField(d.t.Addressed(d.r, n, e))
				}
				return []status.Section{s}
			}),
		writes(source.WorkloadEntry, in.Workloads, status.Owned{Conditions: []string{status.Accepted, status.WaypointBound}},
			func(e *networkingv1.WorkloadEntry) status.State { return seenIstio(e.Status.GetConditions()) }, conditions(describer.workloadEntry)),
		writes(source.DestinationRule, in.Rules, status.Owned{Conditions: []string{status.ZtunnelAccepted}},
			func(p *networkingv1.DestinationRule) status.State { return seenIstio(p.Status.GetConditions()) }, conditions(describer.rule)),
		writes(source.RateLimit, in.Limits, status.Owned{Conditions: []string{status.ZtunnelAccepted}},
			func(l *ambit.RateLimit) status.State {
				return status.State{Conditions: status.SeenIn(l.Status.Conditions)}
			}, conditions(describer.limit)),
		writes(source.EgressPolicy, in.Egress, status.Owned{Conditions: []string{status.ZtunnelAccepted}},
			func(p *ambit.EgressPolicy) status.State { return seenIstio(p.Status.GetConditions()) },
			conditions(func(d describer, _ tables.Ref, p *ambit.EgressPolicy) []status.Condition {
				return []status.Condition{d.t.Egress.Condition(p)}
			})),
		writes(source.AuthorizationPolicy, in.Policies,
			status.Owned{Conditions: []string{status.Accepted, status.ZtunnelAccepted, status.WaypointAccepted}},
			func(p *securityv1.AuthorizationPolicy) status.State { return seenIstio(p.Status.GetConditions()) }, conditions(describer.policy)),
		writes(source.PeerAuthentication, in.Peers, status.Owned{Conditions: []string{status.Accepted}},
			func(p *securityv1.PeerAuthentication) status.State { return seenIstio(p.Status.GetConditions()) }, conditions(describer.peer)),
		writes(source.RequestAuthentication, in.Tokens, status.Owned{Conditions: []string{status.WaypointAccepted, status.KeysFetched}},
			func(p *securityv1.RequestAuthentication) status.State { return seenIstio(p.Status.GetConditions()) }, conditions(describer.tokens)),
		writes(source.Telemetry, in.Telemetry, status.Owned{Conditions: []string{status.WaypointAccepted, status.ZtunnelAccepted}},
			func(p *telemetryv1.Telemetry) status.State { return seenIstio(p.Status.GetConditions()) }, conditions(describer.telemetry)),
		writes(source.HTTPRoute, in.HttpRoutes, routes.Status, func(o *gatewayv1.HTTPRoute) status.State { return routes.Seen(o.Status.RouteStatus) },
			func(d describer, n tables.Ref, _ *gatewayv1.HTTPRoute) []status.Section {
				return d.route(d.t.Routes.HTTP, n)
			}),
		writes(source.GRPCRoute, in.GrpcRoutes, routes.Status, func(o *gatewayv1.GRPCRoute) status.State { return routes.Seen(o.Status.RouteStatus) },
			func(d describer, n tables.Ref, _ *gatewayv1.GRPCRoute) []status.Section {
				return d.route(d.t.Routes.GRPC, n)
			}),
		writes(source.TLSRoute, in.TlsRoutes, routes.Status, func(o *gatewayv1.TLSRoute) status.State { return routes.Seen(o.Status.RouteStatus) },
			func(d describer, n tables.Ref, _ *gatewayv1.TLSRoute) []status.Section {
				return d.route(d.t.Routes.TLS, n)
			}),
		writes(source.TCPRoute, in.TcpRoutes, routes.Status, func(o *gatewayv1.TCPRoute) status.State { return routes.Seen(o.Status.RouteStatus) },
			func(d describer, n tables.Ref, _ *gatewayv1.TCPRoute) []status.Section {
				return d.route(d.t.Routes.TCP, n)
			}),
	}
}

// describe makes the sections of a report on one object.
type describe[P metav1.Object] func(d describer, n tables.Ref, obj P) []status.Section

// conditions are the sections of a kind that has conditions only.
func conditions[P metav1.Object](f func(d describer, n tables.Ref, obj P) []status.Condition) describe[P] {
	return func(d describer, n tables.Ref, obj P) []status.Section {
		if list := f(d, n, obj); len(list) > 0 {
			return []status.Section{{Conditions: list}}
		}
		return nil
	}
}

func describes[P metav1.Object](in collection.Input[tables.Ref, P], f describe[P]) func(describer, tables.Ref) ([]status.Section, bool) {
	return func(d describer, n tables.Ref) ([]status.Section, bool) {
		obj, ok := collection.Fetch(d.r, in.Collection, n)
		if !ok {
			return nil, false
		}
		return f(d, n, obj), true
	}
}

// writes is a kind whose status is written: the parts that are owned, where
// state, the status as an object has it, differs from them.
func writes[P metav1.Object](kind source.Of[P], in collection.Input[tables.Ref, P], owned status.Owned, state func(P) status.State, f describe[P]) *reporter {
	return writesSome(kind, in, owned, state, f, func(P) bool { return true })
}

// writesSome is writes for a kind of which other controllers own some objects.
// The status of those is not written.
func writesSome[P metav1.Object](kind source.Of[P], in collection.Input[tables.Ref, P], owned status.Owned, state func(P) status.State, f describe[P], own func(P) bool) *reporter {
	derive := func(r *Registry) *collection.Collection[tables.Ref, status.Report] {
		return collection.Map(in.Collection, "reports on "+kind.Plural, status.Report.Equal, func(rd *collection.Reader, n tables.Ref, obj P) (status.Report, bool) {
			if !own(obj) {
				return status.Report{}, false
			}
			report := status.Report{
				UID: string(obj.GetUID()), Generation: obj.GetGeneration(), Owned: &owned,
				Sections: f(describer{r.t, &r.in, rd}, n, obj), Named: r.named(kind.Kind, obj),
			}
			report.Written = report.In(state(obj))
			return report, true
		})
	}
	return &reporter{kind: kind.Kind, describe: describes(in, f), derive: derive}
}

// addressField is what the status of an entry has of allocated addresses.
func addressField(e *networkingv1.ServiceEntry) []status.Field {
	if len(e.Status.GetAddresses()) == 0 {
		return nil
	}
	var list []map[string]string
	for _, a := range e.Status.GetAddresses() {
		list = append(list, map[string]string{"host": a.GetHost(), "value": a.GetValue()})
	}
	return []status.Field{{Name: "addresses", JSON: status.KeyOf(list)}}
}

// seenIstio is a status of conditions as Istio has them.
func seenIstio(list []*metav1alpha1.IstioCondition) (s status.State) {
	for _, c := range list {
		s.Conditions = append(s.Conditions, status.Seen{
			Condition:  status.Condition{Type: c.GetType(), Status: c.GetStatus(), Reason: c.GetReason(), Message: c.GetMessage()},
			Generation: c.GetObservedGeneration(),
		})
	}
	return s
}

// deriveReports adds the reports that are written to the graph. It comes after
// everything that they read.
func (r *Registry) deriveReports() {
	r.Reports = status.NewReports()
	for _, rep := range r.kinds {
		if rep.derive == nil {
			continue
		}
		rep.derive(r).OnChange(func(changes []collection.Change[tables.Ref, status.Report]) { r.Reports.Apply(rep.kind, changes) })
	}
}

// sections returns the report on an object for people. It is computed when it is
// asked for, by the functions that make the rows for writers.
func (r *Registry) sections(k source.Key) []status.Section {
	return r.describe(describer{r.t, &r.in, collection.Untracked()}, k)
}

func (r *Registry) describe(d describer, k source.Key) []status.Section {
	i := slices.IndexFunc(r.kinds, func(rep *reporter) bool { return rep.kind == k.Kind })
	if i >= 0 {
		if list, ok := r.kinds[i].describe(d, k.Ref()); ok {
			return list
		}
	}
	return []status.Section{{Conditions: []status.Condition{accepted("read")}}}
}
