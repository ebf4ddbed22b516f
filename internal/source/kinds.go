package source

import (
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
)

// Groups of kinds that are not part of Kubernetes, and their versions.
const (
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
	groupTelemetry  = "telemetry.istio.io"
	groupGateway    = "gateway.networking.k8s.io"
	groupAmbit      = "ambit.mesh"
)

var (
	core               = []string{"v1"}
	networkingVersions = []string{"v1", "v1beta1", "v1alpha3"}
	securityVersions   = []string{"v1", "v1beta1"}
	telemetryVersions  = []string{"v1", "v1alpha1"}
	gatewayVersions    = []string{"v1", "v1beta1"}
)

// The kinds that the mesh reads. A declaration here is all that the sources,
// admission, analysis and the roles of the charts need. What a kind means is
// declared once more, in package registry.
var (
	Namespace = register[corev1.Namespace](Kind{
		Name: "Namespace", Plural: "namespaces", Versions: core, Builtin: true, MetadataOnly: true, LabelName: true,
		Trim: trimMeta((*Interner).namespace),
	})
	Node = register[corev1.Node](Kind{
		Name: "Node", Plural: "nodes", Versions: core, Builtin: true, MetadataOnly: true,
		Trim: trimMeta((*Interner).node),
	})
	ServiceAccount = register[corev1.ServiceAccount](Kind{
		Name: "ServiceAccount", Plural: "serviceaccounts", Versions: core, Namespaced: true, Builtin: true, MetadataOnly: true,
		Trim: trimMeta((*Interner).account),
	})
	Pod = register[corev1.Pod](Kind{
		Name: "Pod", Plural: "pods", Versions: core, Namespaced: true, Builtin: true,
		Default: defaults(defaultPod), Trim: trim((*Interner).pod),
	})
	Service = register[corev1.Service](Kind{
		Name: "Service", Plural: "services", Versions: core, Namespaced: true, Builtin: true, LabelName: true, StatusWritten: true,
		Default: defaults(defaultService), Trim: trim((*Interner).service),
	})
	// ConfigMap is for what they change of the proxies of Gateways. Of others, only the
	// names of their keys are kept.
	ConfigMap = register[corev1.ConfigMap](Kind{
		Name: "ConfigMap", Plural: "configmaps", Versions: core, Namespaced: true, Builtin: true,
		Trim: trim((*Interner).configMap),
	})
	EndpointSlice = register[discoveryv1.EndpointSlice](Kind{
		Name: "EndpointSlice", Group: "discovery.k8s.io", Plural: "endpointslices", Versions: core, Namespaced: true, Builtin: true,
		Default: defaults(defaultEndpointSlice), Trim: trim((*Interner).endpointSlice),
	})
	WorkloadEntry = register[networkingv1.WorkloadEntry](Kind{
		Name: "WorkloadEntry", Group: groupNetworking, Plural: "workloadentries", Versions: networkingVersions, Namespaced: true,
		Revisioned: true, StatusWritten: true,
		Messages: messages(func(o *networkingv1.WorkloadEntry) (spec, status proto.Message) { return &o.Spec, &o.Status }),
	})
	ServiceEntry = register[networkingv1.ServiceEntry](Kind{
		Name: "ServiceEntry", Group: groupNetworking, Plural: "serviceentries", Versions: networkingVersions, Namespaced: true,
		Revisioned: true, StatusWritten: true,
		Messages: messages(func(o *networkingv1.ServiceEntry) (spec, status proto.Message) { return &o.Spec, &o.Status }),
	})
	DestinationRule = register[networkingv1.DestinationRule](Kind{
		Name: "DestinationRule", Group: groupNetworking, Plural: "destinationrules", Versions: networkingVersions, Namespaced: true,
		Revisioned: true, StatusWritten: true,
		Messages: messages(func(o *networkingv1.DestinationRule) (spec, status proto.Message) { return &o.Spec, &o.Status }),
	})
	AuthorizationPolicy = register[securityv1.AuthorizationPolicy](Kind{
		Name: "AuthorizationPolicy", Group: groupSecurity, Plural: "authorizationpolicies", Versions: securityVersions, Namespaced: true,
		Revisioned: true, Protects: true, StatusWritten: true,
		Messages: messages(func(o *securityv1.AuthorizationPolicy) (spec, status proto.Message) { return &o.Spec, &o.Status }),
		Finish:   markEmptyRules, Close: closeAuthorization,
	})
	PeerAuthentication = register[securityv1.PeerAuthentication](Kind{
		Name: "PeerAuthentication", Group: groupSecurity, Plural: "peerauthentications", Versions: securityVersions, Namespaced: true,
		Revisioned: true, Protects: true, StatusWritten: true,
		Messages: messages(func(o *securityv1.PeerAuthentication) (spec, status proto.Message) { return &o.Spec, &o.Status }),
		Close:    closePeer,
	})
	RequestAuthentication = register[securityv1.RequestAuthentication](Kind{
		Name: "RequestAuthentication", Group: groupSecurity, Plural: "requestauthentications", Versions: securityVersions, Namespaced: true,
		Revisioned: true, Protects: true, StatusWritten: true,
		Messages: messages(func(o *securityv1.RequestAuthentication) (spec, status proto.Message) { return &o.Spec, &o.Status }),
		Close:    closeTokens,
	})
	Telemetry = register[telemetryv1.Telemetry](Kind{
		Name: "Telemetry", Group: groupTelemetry, Plural: "telemetries", Versions: telemetryVersions, Namespaced: true,
		Revisioned: true, StatusWritten: true,
		Messages: messages(func(o *telemetryv1.Telemetry) (spec, status proto.Message) { return &o.Spec, &o.Status }),
	})
	RateLimit = register[ambit.RateLimit](Kind{
		Name: "RateLimit", Group: groupAmbit, Plural: "ratelimits", Versions: []string{"v1alpha1"}, Namespaced: true,
		Revisioned: true, StatusWritten: true,
	})
	EgressPolicy = register[ambit.EgressPolicy](Kind{
		Name: "EgressPolicy", Group: groupAmbit, Plural: "egresspolicies", Versions: []string{"v1alpha1"}, Namespaced: true,
		Revisioned: true, Protects: true, StatusWritten: true,
		Messages: messages(func(o *ambit.EgressPolicy) (spec, status proto.Message) { return &o.Spec, &o.Status }),
		Close:    closeEgress,
	})
	Gateway = register[gatewayv1.Gateway](Kind{
		Name: "Gateway", Group: groupGateway, Plural: "gateways", Versions: gatewayVersions, Namespaced: true, Shared: true,
		StatusWritten: true,
	})
	GatewayClass = register[gatewayv1.GatewayClass](Kind{
		Name: "GatewayClass", Group: groupGateway, Plural: "gatewayclasses", Versions: gatewayVersions, Shared: true, StatusWritten: true,
	})
	HTTPRoute = register[gatewayv1.HTTPRoute](Kind{
		Name: "HTTPRoute", Group: groupGateway, Plural: "httproutes", Versions: gatewayVersions, Namespaced: true, Shared: true,
		StatusWritten: true,
	})
	GRPCRoute = register[gatewayv1.GRPCRoute](Kind{
		Name: "GRPCRoute", Group: groupGateway, Plural: "grpcroutes", Versions: core, Namespaced: true, Shared: true,
		StatusWritten: true,
	})
	TLSRoute = register[gatewayv1.TLSRoute](Kind{
		Name: "TLSRoute", Group: groupGateway, Plural: "tlsroutes", Versions: []string{"v1", "v1alpha3", "v1alpha2"}, Namespaced: true, Shared: true,
		StatusWritten: true,
	})
	TCPRoute = register[gatewayv1.TCPRoute](Kind{
		Name: "TCPRoute", Group: groupGateway, Plural: "tcproutes", Versions: []string{"v1", "v1alpha2"}, Namespaced: true, Shared: true,
		StatusWritten: true,
	})
	ReferenceGrant = register[gatewayv1.ReferenceGrant](Kind{
		Name: "ReferenceGrant", Group: groupGateway, Plural: "referencegrants", Versions: gatewayVersions, Namespaced: true, Shared: true,
	})
)
