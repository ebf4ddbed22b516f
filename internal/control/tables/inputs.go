package tables

import (
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Inputs are the objects as their sources deliver them.
type Inputs struct {
	Namespaces collection.Input[Space, *corev1.Namespace]
	nodes      collection.Input[Space, *corev1.Node]
	accounts   collection.Input[Ref, *corev1.ServiceAccount]
	Pods       collection.Input[Ref, *corev1.Pod]
	Services   collection.Input[Ref, *corev1.Service]
	configMaps collection.Input[Ref, *corev1.ConfigMap]
	slices     collection.Input[Ref, *discoveryv1.EndpointSlice]
	Workloads  collection.Input[Ref, *networkingv1.WorkloadEntry]
	Entries    collection.Input[Ref, *networkingv1.ServiceEntry]
	Rules      collection.Input[Ref, *networkingv1.DestinationRule]
	Limits     collection.Input[Ref, *ambit.RateLimit]
	Egress     collection.Input[Ref, *ambit.EgressPolicy]
	Policies   collection.Input[Ref, *securityv1.AuthorizationPolicy]
	Peers      collection.Input[Ref, *securityv1.PeerAuthentication]
	Tokens     collection.Input[Ref, *securityv1.RequestAuthentication]
	Telemetry  collection.Input[Ref, *telemetryv1.Telemetry]
	Gateways   collection.Input[Ref, *gatewayv1.Gateway]
	GwClasses  collection.Input[Ref, *gatewayv1.GatewayClass]
	HttpRoutes collection.Input[Ref, *gatewayv1.HTTPRoute]
	GrpcRoutes collection.Input[Ref, *gatewayv1.GRPCRoute]
	TlsRoutes  collection.Input[Ref, *gatewayv1.TLSRoute]
	TcpRoutes  collection.Input[Ref, *gatewayv1.TCPRoute]
	grants     collection.Input[Ref, *gatewayv1.ReferenceGrant]
	// What the mesh's administrator says about entries: one row, or none.
	Visibility collection.Input[struct{}, *meshconfig.Visibility]
	Providers  collection.Input[struct{}, meshconfig.Providers]
	Outbound   collection.Input[struct{}, egress.Mode] // of the mesh: one row, or none
	// The mesh's settings of telemetry: one row, or none.
	Mesh collection.Input[struct{}, *telemetry.Mesh]
	// The names of the trust domain: always one row.
	Domains collection.Input[struct{}, policy.TrustDomains]

	// The keys that were fetched for RequestAuthentications.
	Keys collection.Input[jwks.Source, *jwks.State]

	// What is in effect for objects whose traffic moves between waypoints.
	Moving collection.Input[Moved, Passage]

	// The facts about clusters, one row each.
	Clusters collection.Input[source.Cluster, ClusterFacts]

	// byKind puts an object, or nil, into the input of its kind.
	byKind map[*source.Kind]func(source.Key, metav1.Object)
}

// NewInputs returns inputs without objects.
func NewInputs(g *collection.Graph) Inputs {
	in := Inputs{byKind: map[*source.Kind]func(source.Key, metav1.Object){}}
	in.Namespaces = objects(&in, g, source.Namespace, keySpace)
	in.nodes = objects(&in, g, source.Node, keySpace)
	in.accounts = objects(&in, g, source.ServiceAccount, source.Key.Ref)
	in.Pods = objects(&in, g, source.Pod, source.Key.Ref)
	in.Services = objects(&in, g, source.Service, source.Key.Ref)
	in.configMaps = objects(&in, g, source.ConfigMap, source.Key.Ref)
	in.slices = objects(&in, g, source.EndpointSlice, source.Key.Ref)
	in.Workloads = objects(&in, g, source.WorkloadEntry, source.Key.Ref)
	in.Entries = objects(&in, g, source.ServiceEntry, source.Key.Ref)
	in.Rules = objects(&in, g, source.DestinationRule, source.Key.Ref)
	in.Limits = objects(&in, g, source.RateLimit, source.Key.Ref)
	in.Egress = objects(&in, g, source.EgressPolicy, source.Key.Ref)
	in.Policies = objects(&in, g, source.AuthorizationPolicy, source.Key.Ref)
	in.Peers = objects(&in, g, source.PeerAuthentication, source.Key.Ref)
	in.Tokens = objects(&in, g, source.RequestAuthentication, source.Key.Ref)
	in.Telemetry = objects(&in, g, source.Telemetry, source.Key.Ref)
	in.Gateways = objects(&in, g, source.Gateway, source.Key.Ref)
	in.GwClasses = objects(&in, g, source.GatewayClass, source.Key.Ref)
	in.HttpRoutes = objects(&in, g, source.HTTPRoute, source.Key.Ref)
	in.GrpcRoutes = objects(&in, g, source.GRPCRoute, source.Key.Ref)
	in.TlsRoutes = objects(&in, g, source.TLSRoute, source.Key.Ref)
	in.TcpRoutes = objects(&in, g, source.TCPRoute, source.Key.Ref)
	in.grants = objects(&in, g, source.ReferenceGrant, source.Key.Ref)
	in.Visibility = collection.NewInput[struct{}](g, "visibility of entries", samePointer[meshconfig.Visibility])
	in.Providers = collection.NewInput[struct{}](g, "external authorizers", meshconfig.Providers.Same)
	in.Outbound = collection.NewInput[struct{}](g, "outbound traffic policy", Same[egress.Mode])
	in.Mesh = collection.NewInput[struct{}](g, "telemetry of the mesh", samePointer[telemetry.Mesh])
	in.Clusters = collection.NewInput[source.Cluster](g, "clusters", Same[ClusterFacts])
	in.Keys = collection.NewInput[jwks.Source](g, "keys of issuers", jwks.Same)
	in.Moving = collection.NewInput[Moved](g, "moves between waypoints", samePassage)
	in.Domains = collection.NewInput[struct{}](g, "trust domains", sameDomains)
	return in
}

func keySpace(k source.Key) Space { return Space{Cluster: k.Cluster, Name: k.Name} }

// objects makes the input of a kind. Its rows have the key that rowKey returns.
func objects[K comparable, T any, P interface {
	*T
	metav1.Object
}](in *Inputs, g *collection.Graph, kind source.Of[P], rowKey func(source.Key) K) collection.Input[K, P] {
	c := collection.NewInput[K](g, kind.Plural, func(a, b P) bool { return a == b })
	in.byKind[kind.Kind] = func(k source.Key, obj metav1.Object) {
		if v, ok := obj.(P); ok && v != nil {
			c.Set(rowKey(k), v)
			return
		}
		c.Delete(rowKey(k))
	}
	return c
}

// Put sets an object, or deletes it when it is nil or has not the type of its
// kind. Objects of kinds that have no input are ignored.
func (in *Inputs) Put(k source.Key, obj metav1.Object) {
	if f := in.byKind[k.Kind]; f != nil {
		f(k, obj)
	}
}
