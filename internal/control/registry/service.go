package registry

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// coreKey names the part of a service that one object makes: a Kubernetes
// Service all of it, each ServiceEntry of a host its own ports and selector.
type coreKey struct {
	host    Host
	entry   string // name of the ServiceEntry; empty for a Kubernetes Service
	cluster source.Cluster
}

func (k coreKey) Compare(o coreKey) int {
	return cmp.Or(k.host.Compare(o.host), strings.Compare(k.entry, o.entry), k.cluster.Compare(o.cluster))
}

// core is what workloads need to know of such a part.
type core struct {
	selector map[string]string
	ports    []servicePort
	created  int64 // Unix seconds
	// publish: endpoints that are not ready are used as well.
	publish bool
}

// servicePort is a TCP port of a service. The target is a number, else the
// name of a port of the endpoint. byName, if any, is a port of a pod's
// container that replaces the number in pods that have it.
type servicePort struct {
	name       string
	port       uint32
	target     uint32
	targetName string
	byName     string
	protocol   workloadpb.AppProtocol
}

func sameCore(a, b *core) bool {
	return maps.Equal(a.selector, b.selector) && slices.Equal(a.ports, b.ports) &&
		a.created == b.created && a.publish == b.publish
}

// hostname returns the host name of a Kubernetes Service.
func (t *tables) hostname(r *collection.Reader, n Ref) string {
	return n.Name + "." + n.Namespace + ".svc." + t.cluster(r, n.Cluster).domain
}

// kubeKey is the key of a Kubernetes Service.
func (t *tables) kubeKey(r *collection.Reader, n Ref) coreKey {
	return coreKey{host: Host{n.Namespace, t.hostname(r, n)}, cluster: n.Cluster}
}

func (t *tables) serviceCore(r *collection.Reader, k Ref, s *corev1.Service, emit func(coreKey, *core)) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	emit(t.kubeKey(r, k), &core{
		selector: s.Spec.Selector, ports: kubePorts(s),
		created: s.CreationTimestamp.Unix(), publish: s.Spec.PublishNotReadyAddresses,
	})
}

// kubePorts leaves out what is not TCP: no proxy of the mesh carries it.
func kubePorts(s *corev1.Service) []servicePort {
	var out []servicePort
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" || p.Port <= 0 || p.Port > 65535 {
			continue
		}
		sp := servicePort{name: p.Name, port: uint32(p.Port), targetName: p.TargetPort.StrVal}
		if sp.targetName == "" {
			sp.target = uint32(p.TargetPort.IntVal)
			if sp.target == 0 {
				sp.target = sp.port
			}
		} else if n, err := strconv.ParseUint(sp.targetName, 10, 16); err == nil {
			sp.target, sp.targetName = uint32(n), ""
		}
		sp.protocol = appProtocol(p.AppProtocol, p.Name)
		out = append(out, sp)
	}
	return out
}

// appProtocol reads the protocol of the application from the field for it,
// else from the port's name up to the first dash.
func appProtocol(declared *string, name string) workloadpb.AppProtocol {
	p, _, _ := strings.Cut(strings.ToLower(name), "-")
	if declared != nil {
		p = strings.ToLower(*declared)
	}
	switch p {
	case "http", "http1":
		return workloadpb.AppProtocol_HTTP11
	case "http2", "h2c", "kubernetes.io/h2c":
		return workloadpb.AppProtocol_HTTP2
	case "grpc":
		return workloadpb.AppProtocol_GRPC
	case "tcp":
		return workloadpb.AppProtocol_TCP
	case "tls", "https":
		return workloadpb.AppProtocol_TLS
	}
	return workloadpb.AppProtocol_UNKNOWN
}

func portsOf(ports []servicePort) []*workloadpb.Port {
	var out []*workloadpb.Port
	for _, p := range ports {
		out = append(out, &workloadpb.Port{ServicePort: p.port, TargetPort: p.target, AppProtocol: p.protocol})
	}
	return out
}

func (t *tables) serviceResource(r *collection.Reader, k Ref, s *corev1.Service, emit func(string, *xds.Resource)) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	ns, _ := collection.Fetch(r, t.namespaces, k.Home())
	out := &workloadpb.Service{
		Name:          k.Name,
		Namespace:     k.Namespace,
		Hostname:      t.hostname(r, k),
		Ports:         portsOf(kubePorts(s)),
		LoadBalancing: serviceBalancing(s, ns.trafficDistribution),
		IpFamilies:    kubeFamilies(s),
		Canonical:     true,
	}
	if len(s.Spec.Selector) == 0 {
		for _, p := range out.Ports {
			p.TargetPort = 0 // the endpoint slices say, each for its own endpoints
		}
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil { // not: "None"
			out.Addresses = append(out.Addresses, networkAddress(t.cluster(r, k.Cluster).network, netip.PrefixFrom(a, a.BitLen())))
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionClientAffinity}}
	}
	state := t.serviceState(r, k)
	bindService(out, state)
	out.IngressUseWaypoint = out.Waypoint != nil && ingressUsesWaypoint(s.Labels, ns)
	t.emitService(out, emit)
}

// bindService sets what proxies need of the waypoint of a service.
func bindService(out *workloadpb.Service, s binding.State) {
	out.Waypoint, out.WeightedWaypoints = s.Waypoint, accepting(s)
	if s.Taken && (s.Waypoint != nil || len(s.Accepts) > 0) {
		out.Extensions = append(out.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionEndpointsTaken})
	}
	if s.Waypoint == nil || !s.Endpoints {
		return
	}
	beside := &structpb.ListValue{}
	for _, p := range s.Beside {
		beside.Values = append(beside.Values, structpb.NewStringValue(p))
	}
	// Made here, it marshals.
	config := &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.ListValue"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(beside)
	out.Extensions = append(out.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionEndpoints, Config: config})
}

// accepting are the waypoints that take the traffic of a service and that clients do
// not go to: they have no weight.
func accepting(s binding.State) (out []*workloadpb.WeightedWaypoint) {
	for _, a := range s.Accepts {
		out = append(out, &workloadpb.WeightedWaypoint{Destination: a})
	}
	return out
}

func networkAddress(network string, p netip.Prefix) *workloadpb.NetworkAddress {
	a := p.Addr()
	bits := p.Bits()
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	out := &workloadpb.NetworkAddress{Network: network, Address: a.AsSlice()}
	if bits < a.BitLen() {
		n := uint32(bits)
		out.Length = &n
		out.Address = netip.PrefixFrom(a, bits).Masked().Addr().AsSlice()
	}
	return out
}

func (t *tables) emitService(s *workloadpb.Service, emit func(string, *xds.Resource)) {
	name := Host{s.Namespace, s.Hostname}.String()
	var aliases []string
	for _, a := range s.Addresses {
		if a.Length == nil {
			aliases = append(aliases, addressAlias(a.Network, a.Address))
		}
	}
	emit(name, encode(wellknown.TypeAddress, name, aliases, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}}))
}

func addressAlias(network string, addr []byte) string {
	a, _ := netip.AddrFromSlice(addr)
	return network + "/" + a.String()
}

func kubeFamilies(s *corev1.Service) workloadpb.IPFamilies {
	var v4, v6 bool
	for _, f := range s.Spec.IPFamilies {
		v4 = v4 || f == corev1.IPv4Protocol
		v6 = v6 || f == corev1.IPv6Protocol
	}
	if !v4 && !v6 {
		return addressFamilies(s.Spec.ClusterIPs)
	}
	return families(v4, v6)
}

func addressFamilies(addrs []string) workloadpb.IPFamilies {
	var v4, v6 bool
	for _, s := range addrs {
		host, _, _ := strings.Cut(s, "/")
		if a, err := netip.ParseAddr(host); err == nil {
			v4 = v4 || a.Unmap().Is4()
			v6 = v6 || a.Is6() && !a.Is4In6()
		}
	}
	return families(v4, v6)
}

func families(v4, v6 bool) workloadpb.IPFamilies {
	switch {
	case v4 && v6:
		return workloadpb.IPFamilies_DUAL
	case v4:
		return workloadpb.IPFamilies_IPV4_ONLY
	case v6:
		return workloadpb.IPFamilies_IPV6_ONLY
	}
	return workloadpb.IPFamilies_AUTOMATIC
}

// serviceBalancing is nil when any healthy endpoint will do.
func serviceBalancing(s *corev1.Service, nsDistribution string) *workloadpb.LoadBalancing {
	lb := &workloadpb.LoadBalancing{}
	declared := ""
	if s.Spec.TrafficDistribution != nil {
		declared = *s.Spec.TrafficDistribution
	}
	prefer(lb, firstKnown(declared, s.Annotations[wellknown.AnnotationTrafficDistribution], nsDistribution))
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode = workloadpb.LoadBalancing_STRICT
		lb.RoutingPreference = []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NODE}
	}
	if s.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL
	}
	return orNil(lb)
}

func orNil(lb *workloadpb.LoadBalancing) *workloadpb.LoadBalancing {
	if lb.Mode == workloadpb.LoadBalancing_UNSPECIFIED_MODE && lb.HealthPolicy == workloadpb.LoadBalancing_ONLY_HEALTHY {
		return nil
	}
	return lb
}

func firstKnown(values ...string) string {
	for _, v := range values {
		switch v {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone,
			corev1.ServiceTrafficDistributionPreferSameNode, "Any":
			return v
		}
	}
	return ""
}

// prefer sets the scopes in which client and endpoint should agree, the most
// important first.
func prefer(lb *workloadpb.LoadBalancing, distribution string) {
	scopes := []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE}
	switch distribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		scopes = append(scopes, workloadpb.LoadBalancing_SUBZONE, workloadpb.LoadBalancing_NODE)
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return
	}
	lb.Mode, lb.RoutingPreference = workloadpb.LoadBalancing_FAILOVER, scopes
}

// served reports whether a host of a ServiceEntry can be told to node proxies;
// wildcards can only be served by a waypoint.
func served(host string, e *networkingv1.ServiceEntry) bool {
	return host != "" && !strings.Contains(host, "*") && !dynamicDNS(e)
}

func dynamicDNS(e *networkingv1.ServiceEntry) bool {
	return e.Spec.Resolution == networkingapi.ServiceEntry_DYNAMIC_DNS
}

func (t *tables) entryCores(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(coreKey, *core)) {
	if t.scope(r, k, e) == meshconfig.None {
		return
	}
	c := &core{selector: e.Spec.WorkloadSelector.GetLabels(), ports: entryPorts(e), created: e.CreationTimestamp.Unix()}
	for _, h := range e.Spec.Hosts {
		if t.ofService(r, k.Cluster, Host{k.Namespace, h}) {
			continue // as in Istio, the Service alone has the host
		}
		if served(h, e) || t.servedByWaypoint(r, k) {
			emit(coreKey{Host{k.Namespace, h}, k.Name, k.Cluster}, c)
		}
	}
}

// servedByWaypoint reports whether a ServiceEntry has a waypoint that can be used.
func (t *tables) servedByWaypoint(r *collection.Reader, k Ref) bool {
	target, _ := collection.Fetch(r, t.bound.entries, k)
	return target.Address != nil
}

func entryPorts(e *networkingv1.ServiceEntry) []servicePort {
	var out []servicePort
	for _, p := range e.Spec.Ports {
		if strings.EqualFold(p.Protocol, "UDP") || p.Number == 0 || p.Number > 65535 {
			continue
		}
		// Istio finds the port of a pod by the name of the entry's port.
		sp := servicePort{name: p.Name, port: p.Number, target: p.TargetPort, byName: p.Name, protocol: entryProtocol(p)}
		if sp.target == 0 {
			sp.target = p.Number
		}
		out = append(out, sp)
	}
	return out
}

func entryProtocol(p *networkingapi.ServicePort) workloadpb.AppProtocol {
	if p.Protocol == "" {
		return appProtocol(nil, p.Name)
	}
	return appProtocol(&p.Protocol, p.Name)
}

// entryAddresses are those written, else those allocated for the host.
func entryAddresses(e *networkingv1.ServiceEntry, host string) []string {
	if len(e.Spec.Addresses) > 0 {
		return e.Spec.Addresses
	}
	var out []string
	for _, a := range e.Status.Addresses {
		if a.Host == host || a.Host == "" {
			out = append(out, a.Value)
		}
	}
	return out
}

func parseBlock(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}
