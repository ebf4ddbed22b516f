package registry

import (
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/source"
)

// inputs are the objects as their sources deliver them.
type inputs struct {
	namespaces collection.Input[Space, *corev1.Namespace]
	nodes      collection.Input[Space, *corev1.Node]
	accounts   collection.Input[Ref, *corev1.ServiceAccount]
	pods       collection.Input[Ref, *corev1.Pod]
	services   collection.Input[Ref, *corev1.Service]
	configMaps collection.Input[Ref, *corev1.ConfigMap]
	slices     collection.Input[Ref, *discoveryv1.EndpointSlice]
	workloads  collection.Input[Ref, *networkingv1.WorkloadEntry]
	entries    collection.Input[Ref, *networkingv1.ServiceEntry]
	policies   collection.Input[Ref, *securityv1.AuthorizationPolicy]
	peers      collection.Input[Ref, *securityv1.PeerAuthentication]
	tokens     collection.Input[Ref, *securityv1.RequestAuthentication]
	telemetry  collection.Input[Ref, *telemetryv1.Telemetry]
	gateways   collection.Input[Ref, *gatewayv1.Gateway]
	gwClasses  collection.Input[Ref, *gatewayv1.GatewayClass]
	httpRoutes collection.Input[Ref, *gatewayv1.HTTPRoute]
	grpcRoutes collection.Input[Ref, *gatewayv1.GRPCRoute]
	tlsRoutes  collection.Input[Ref, *gatewayv1.TLSRoute]
	tcpRoutes  collection.Input[Ref, *gatewayv1.TCPRoute]
	grants     collection.Input[Ref, *gatewayv1.ReferenceGrant]
	// What the mesh's administrator says about entries: one row, or none.
	visibility collection.Input[struct{}, *meshconfig.Visibility]
	providers  collection.Input[struct{}, meshconfig.Providers]
	// The mesh's settings of telemetry: one row, or none.
	mesh collection.Input[struct{}, *telemetry.Mesh]
	// The names of the trust domain: always one row.
	domains collection.Input[struct{}, policy.TrustDomains]

	// The keys that were fetched for RequestAuthentications.
	keys collection.Input[jwks.Source, *jwks.State]

	// What is in effect for objects whose traffic moves between waypoints.
	moving collection.Input[moved, passage]

	// The facts about clusters, one row each.
	clusters collection.Input[source.Cluster, clusterFacts]

	// byKind puts an object, or nil, into the input of its kind.
	byKind map[*source.Kind]func(source.Key, metav1.Object)
}

func newInputs(g *collection.Graph) inputs {
	in := inputs{byKind: map[*source.Kind]func(source.Key, metav1.Object){}}
	in.namespaces = objects(&in, g, source.Namespace, keySpace)
	in.nodes = objects(&in, g, source.Node, keySpace)
	in.accounts = objects(&in, g, source.ServiceAccount, source.Key.Ref)
	in.pods = objects(&in, g, source.Pod, source.Key.Ref)
	in.services = objects(&in, g, source.Service, source.Key.Ref)
	in.configMaps = objects(&in, g, source.ConfigMap, source.Key.Ref)
	in.slices = objects(&in, g, source.EndpointSlice, source.Key.Ref)
	in.workloads = objects(&in, g, source.WorkloadEntry, source.Key.Ref)
	in.entries = objects(&in, g, source.ServiceEntry, source.Key.Ref)
	in.policies = objects(&in, g, source.AuthorizationPolicy, source.Key.Ref)
	in.peers = objects(&in, g, source.PeerAuthentication, source.Key.Ref)
	in.tokens = objects(&in, g, source.RequestAuthentication, source.Key.Ref)
	in.telemetry = objects(&in, g, source.Telemetry, source.Key.Ref)
	in.gateways = objects(&in, g, source.Gateway, source.Key.Ref)
	in.gwClasses = objects(&in, g, source.GatewayClass, source.Key.Ref)
	in.httpRoutes = objects(&in, g, source.HTTPRoute, source.Key.Ref)
	in.grpcRoutes = objects(&in, g, source.GRPCRoute, source.Key.Ref)
	in.tlsRoutes = objects(&in, g, source.TLSRoute, source.Key.Ref)
	in.tcpRoutes = objects(&in, g, source.TCPRoute, source.Key.Ref)
	in.grants = objects(&in, g, source.ReferenceGrant, source.Key.Ref)
	in.visibility = collection.NewInput[struct{}](g, "visibility of entries", samePointer[meshconfig.Visibility])
	in.providers = collection.NewInput[struct{}](g, "external authorizers", meshconfig.Providers.Same)
	in.mesh = collection.NewInput[struct{}](g, "telemetry of the mesh", samePointer[telemetry.Mesh])
	in.clusters = collection.NewInput[source.Cluster](g, "clusters", same[clusterFacts])
	in.keys = collection.NewInput[jwks.Source](g, "keys of issuers", jwks.Same)
	in.moving = collection.NewInput[moved](g, "moves between waypoints", samePassage)
	in.domains = collection.NewInput[struct{}](g, "trust domains", sameDomains)
	return in
}

// samePointer is the equality of inputs: a source that delivers the very same
// object reports that nothing changed.
func samePointer[T any](a, b *T) bool { return a == b }

func keySpace(k source.Key) Space { return Space{Cluster: k.Cluster, Name: k.Name} }

// objects makes the input of a kind. Its rows have the key that rowKey returns.
func objects[K comparable, T any, P interface {
	*T
	metav1.Object
}](in *inputs, g *collection.Graph, kind source.Of[P], rowKey func(source.Key) K) collection.Input[K, P] {
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

// put sets an object, or deletes it when it is nil or has not the type of its
// kind. Objects of kinds that have no input are ignored.
func (in *inputs) put(k source.Key, obj metav1.Object) {
	if f := in.byKind[k.Kind]; f != nil {
		f(k, obj)
	}
}
