// Package wellknown holds the names and numbers that are an interface of the
// mesh: what users type, what peers expect on the wire, what the kernel is
// given. They are those of Istio ambient mode, so that both can be mixed.
package wellknown

// Ports that the node proxy listens on inside a pod's network namespace.
const (
	PortOutbound = 15001 // captured connections of the pod's programs
	PortInbound  = 15006 // captured plaintext connections to the pod
	PortHBONE    = 15008 // mutual TLS tunnels to the pod
	PortDNS      = 15053
	PortSOCKS5   = 15080
)

// Ports of the node proxy's own pod.
const (
	PortAdmin   = 15000 // localhost only
	PortMetrics = 15020
	PortReady   = 15021
)

// Ports of the control plane.
const (
	PortXDSPlain       = 15010 // plaintext, only on request
	PortXDS            = 15012 // TLS: xDS and CA
	PortControlMonitor = 15014
	PortControlWebhook = 15017
	PortControlDebug   = 8080
)

// IsProxyPort reports whether a port belongs to the proxy itself: a connection
// to one of them through the proxy would be a loop or an attempt to bypass it.
func IsProxyPort(p uint16) bool {
	switch p {
	case PortOutbound, PortInbound, PortHBONE, PortDNS, PortSOCKS5:
		return true
	}
	return false
}

// UIDProxy owns the sockets that the node proxy listens on inside pods. The
// kernel lets sockets share a port (SO_REUSEPORT) only when one user owns them,
// and no program of a pod can be this one without CAP_SETUID: Kubernetes ends
// at 2^31-1 (runAsUser), and user namespaces of pods are mapped below.
const UIDProxy = 1<<31 + 1337

// Marks, routing and addresses of in-pod redirection.
const (
	MarkProxy  = 0x539 // on packets the proxy sends; masked by MarkMask
	MarkReturn = 0x111 // connection mark: replies go back to the proxy
	MarkMask   = 0xfff

	RouteTable   = 100   // local routes for marked replies
	RulePriority = 32764 // before the main table (32766)

	ProbeSourceIPv4 = "169.254.7.127"
	ProbeSourceIPv6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
)

// NoServiceAccount stands for the account of a pod that has none, as static
// pods have none. Nothing can have it: no Kubernetes name contains an
// underscore. An empty account would not do, because it means "default" on the
// wire.
const NoServiceAccount = "_none"

// Labels and annotations.
const (
	LabelDataplaneMode        = "istio.io/dataplane-mode"
	DataplaneModeAmbient      = "ambient"
	DataplaneModeNone         = "none"
	LabelUseWaypoint          = "istio.io/use-waypoint"
	LabelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	LabelIngressUseWaypoint   = "istio.io/ingress-use-waypoint"
	LabelWaypointFor          = "istio.io/waypoint-for"
	LabelNetwork              = "topology.istio.io/network"
	LabelSubzone              = "topology.istio.io/subzone"
	LabelRegion               = "topology.kubernetes.io/region"
	LabelZone                 = "topology.kubernetes.io/zone"
	LabelTunnel               = "networking.istio.io/tunnel"
	LabelCanonicalName        = "service.istio.io/canonical-name"
	LabelCanonicalRevision    = "service.istio.io/canonical-revision"
	LabelWorkloadName         = "service.istio.io/workload-name"
	LabelGatewayName          = "gateway.networking.k8s.io/gateway-name"
	LabelRevision             = "istio.io/rev"
	DefaultRevision           = "default" // of a control plane that was given none; as a tag, of the one that checks what has no label

	AnnotationRedirection         = "ambient.istio.io/redirection"
	RedirectionEnabled            = "enabled"
	RedirectionPending            = "pending"
	AnnotationSidecarStatus       = "sidecar.istio.io/status"
	AnnotationBypassInbound       = "ambient.istio.io/bypass-inbound-capture"
	AnnotationDNSCapture          = "ambient.istio.io/dns-capture"
	LabelDNSCapture               = AnnotationDNSCapture // on a namespace, for its pods
	AnnotationRerouteInterfaces   = "istio.io/reroute-virtual-interfaces"
	AnnotationDryRun              = "istio.io/dry-run"
	AnnotationClientIdentity      = "ambient.istio.io/xfcc-include-client-identity"
	AnnotationTrafficDistribution = "networking.istio.io/traffic-distribution"
)

// Annotations of Services, ServiceEntries, Pods, WorkloadEntries and Namespaces, which
// are Ambit's own. See docs/waypoints.md.
const (
	AnnotationDomain = "ambit.mesh"
	// AnnotationWaypointBypass is WaypointBypassAllow or WaypointBypassDeny: whether
	// traffic may go around the waypoint that a label names.
	AnnotationWaypointBypass = AnnotationDomain + "/waypoint-bypass"
	WaypointBypassAllow      = "allow"
	WaypointBypassDeny       = "deny"
	// AnnotationWaypointExempt lists accounts, as namespace/name with commas between,
	// that are admitted beside the waypoint.
	AnnotationWaypointExempt = AnnotationDomain + "/waypoint-exempt"
	// AnnotationOutbound of a Pod is its outbound traffic policy, LabelOutbound of a
	// Namespace that of its pods. See docs/egress.md.
	AnnotationOutbound = AnnotationDomain + "/outbound-traffic-policy"
	LabelOutbound      = AnnotationOutbound
)

// DerivedWaypointPolicy begins the names of policies that admit only waypoints. No
// Kubernetes name contains an underscore.
const DerivedWaypointPolicy = "ambit_waypoint_"

// UnavailableWaypoint ends the host names that stand for a waypoint that cannot be
// used. Names below .invalid never exist (RFC 6761), so that a proxy which looks one
// up finds nothing, and refuses.
const UnavailableWaypoint = ".waypoint.invalid"

// What is asked of waypoints beside that. A canary is a second waypoint, with
// the share of new connections that it should get.
const (
	LabelUseWaypointCanary            = "istio.io/use-waypoint-canary"
	LabelUseWaypointCanaryNamespace   = "istio.io/use-waypoint-canary-namespace"
	AnnotationUseWaypointCanaryWeight = "istio.io/use-waypoint-canary-weight"
	// AnnotationConnectStrategy of a ServiceEntry says how to connect.
	AnnotationConnectStrategy = "istio.io/connect-strategy"
)

// xDS resource types.
const (
	TypeAddress        = "type.googleapis.com/istio.workload.Address"
	TypeWorkload       = "type.googleapis.com/istio.workload.Workload"
	TypeAuthorization  = "type.googleapis.com/istio.security.Authorization"
	TypeRoute          = "type.googleapis.com/ambit.route.v1.Rule"           // Ambit's own
	TypeAuthentication = "type.googleapis.com/ambit.authn.v1.Authentication" // Ambit's own
	TypePolicy         = "type.googleapis.com/ambit.authz.v1.Policy"         // Ambit's own
	TypeTelemetry      = "type.googleapis.com/ambit.telemetry.v1.Layer"      // Ambit's own
	TypeTraffic        = "type.googleapis.com/ambit.traffic.v1.Rule"         // Ambit's own
	TypeRateLimit      = "type.googleapis.com/ambit.ratelimit.v1.Limit"      // Ambit's own
	TypeEgress         = "type.googleapis.com/ambit.egress.v1.Policy"        // Ambit's own
	TypeHost           = "type.googleapis.com/istio.workload.Service"        // Ambit's own, with Istio's message
)

// ExtensionClientAffinity is the name of a Service's extension, without a
// configuration, that keeps each client on one endpoint (sessionAffinity:
// ClientIP). It is Ambit's own: Istio's node proxies have no such thing and pass
// over it.
const ExtensionClientAffinity = "ambit.client-affinity"

// ExtensionRace is the name of a Service's extension, without a configuration, that has
// proxies connect to all addresses of an endpoint's name at once, and take the first one that
// answers (annotation istio.io/connect-strategy). It is Ambit's own.
const ExtensionRace = "ambit.race-connect"

// ExtensionByName is the name of a Service's extension, without a configuration, whose
// connections go to the name that a client has called (resolution DYNAMIC_DNS). It is Ambit's own.
const ExtensionByName = "ambit.by-name"

// StrategyRace is the value of AnnotationConnectStrategy for that.
const StrategyRace = "RACE_FIRST_TCP_CONNECT"

// ExtensionEndpoints is the name of a Service's extension that sends connections to its
// endpoints' own addresses to its waypoint as well, as the endpoints admit no other
// peers. Its configuration is a google.protobuf.ListValue with the principals that go
// there directly. It is Ambit's own as well.
const ExtensionEndpoints = "ambit.endpoints-behind-waypoint"

// ExtensionEndpointsTaken is the name of a Service's extension, without a configuration,
// that has its waypoints take such connections. It comes before the other one.
const ExtensionEndpointsTaken = "ambit.endpoints-taken-by-waypoint"

// ExtensionOutbound is the name of a Workload's extension with its outbound traffic
// policy, a google.protobuf.StringValue. A workload without it may call any address.
const ExtensionOutbound = "ambit.outbound-traffic-policy"

// ExtensionEgress is the name of a Workload's extension with the names of the
// EgressPolicies that select it. It is Ambit's own.
const ExtensionEgress = "ambit.egress-policies"

// ExtensionEnding is the name of a Workload's extension that it has while it is about to
// end: from when its pod's end was asked for, until the pod is gone. Its configuration, a
// google.protobuf.StringValue, is SERVING as long as the pod is ready.
const ExtensionEnding = "ambit.ending"

// TokenAudience is what a service account token must be issued for.
const TokenAudience = "istio-ca"

// Keys of a ConfigMap that changes what is made for Gateways: each has YAML that is
// merged into one object.
const (
	OverlayDeployment     = "deployment"
	OverlayService        = "service"
	OverlayServiceAccount = "serviceAccount"
	OverlayAutoscaler     = "horizontalPodAutoscaler"
	OverlayBudget         = "podDisruptionBudget"
)

// OverlayKeys are all of them.
var OverlayKeys = []string{OverlayDeployment, OverlayService, OverlayServiceAccount, OverlayAutoscaler, OverlayBudget}

// LabelOverlayClass is on a ConfigMap of the root namespace whose changes are for all
// Gateways of the class that its value names.
const LabelOverlayClass = "gateway.istio.io/defaults-for-class"

// ClassWaypoint is the class of Gateways that are waypoints.
const ClassWaypoint = "istio-waypoint"

// RootsConfigMap is the ConfigMap of every namespace with the roots of the control
// plane, in its key RootsKey.
const (
	RootsConfigMap = "istio-ca-root-cert"
	RootsKey       = "root-cert.pem"
)

// Defaults of an installation.
const (
	SystemNamespace   = "istio-system"
	DefaultCluster    = "Kubernetes"
	DefaultDomain     = "cluster.local"
	ZDSSocket         = "/var/run/ztunnel/ztunnel.sock"
	PluginEventSocket = "/var/run/istio-cni/pluginevent.sock"
)

// ConditionLargePackets begins the part of a node's condition (AmbitRedirectionReady)
// that has how large packets on the way out of the node may be.
const ConditionLargePackets = "; large packets: "
