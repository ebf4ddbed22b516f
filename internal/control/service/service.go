// Package service reads what Services, ServiceEntries and EndpointSlices declare: ports
// and their protocols, address families, load balancing. Values in, values out.
package service

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Port is a TCP port of a service. The target is a number, else the
// name of a port of the endpoint. byName, if any, is a port of a pod's
// container that replaces the number in pods that have it.
type Port struct {
	Name       string
	Port       uint32
	Target     uint32
	TargetName string
	ByName     string
	Protocol   workloadpb.AppProtocol
}

// Ports leaves out what is not TCP: no proxy of the mesh carries it.
func Ports(s *corev1.Service) []Port {
	var out []Port
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" || p.Port <= 0 || p.Port > 65535 {
			continue
		}
		sp := Port{Name: p.Name, Port: uint32(p.Port), TargetName: p.TargetPort.StrVal}
		if sp.TargetName == "" {
			sp.Target = uint32(p.TargetPort.IntVal)
			if sp.Target == 0 {
				sp.Target = sp.Port
			}
		} else if n, err := strconv.ParseUint(sp.TargetName, 10, 16); err == nil {
			sp.Target, sp.TargetName = uint32(n), ""
		}
		sp.Protocol = appProtocol(p.AppProtocol, p.Name)
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

// WirePorts returns ports as they travel.
func WirePorts(ports []Port) []*workloadpb.Port {
	var out []*workloadpb.Port
	for _, p := range ports {
		out = append(out, &workloadpb.Port{ServicePort: p.Port, TargetPort: p.Target, AppProtocol: p.Protocol})
	}
	return out
}

// Families returns the address families of a Service.
func Families(s *corev1.Service) workloadpb.IPFamilies {
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

// Balancing is nil when any healthy endpoint will do.
func Balancing(s *corev1.Service, nsDistribution string) *workloadpb.LoadBalancing {
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

// EntryBalancing is Balancing for a ServiceEntry.
func EntryBalancing(e *networkingv1.ServiceEntry, nsDistribution string) *workloadpb.LoadBalancing {
	lb := &workloadpb.LoadBalancing{}
	prefer(lb, firstKnown(e.Annotations[wellknown.AnnotationTrafficDistribution], nsDistribution))
	if e.Spec.Resolution == networkingapi.ServiceEntry_NONE || dynamicDNS(e) {
		lb.Mode, lb.RoutingPreference = workloadpb.LoadBalancing_PASSTHROUGH, nil
		lb.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL // it has no endpoints whose health were known
	}
	return orNil(lb)
}

// EntryExtensions returns what only Ambit's proxies know of a ServiceEntry.
func EntryExtensions(e *networkingv1.ServiceEntry) (out []*workloadpb.Extension) {
	if strings.EqualFold(e.Annotations[wellknown.AnnotationConnectStrategy], wellknown.StrategyRace) {
		out = append(out, &workloadpb.Extension{Name: wellknown.ExtensionRace})
	}
	if dynamicDNS(e) {
		out = append(out, &workloadpb.Extension{Name: wellknown.ExtensionByName})
	}
	return out
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

// Served reports whether a host of a ServiceEntry can be sent to node proxies;
// wildcards can only be served by a waypoint.
func Served(host string, e *networkingv1.ServiceEntry) bool {
	return host != "" && !strings.Contains(host, "*") && !dynamicDNS(e)
}

// Passed reports whether a connection to a host of a ServiceEntry goes where it was going, so
// that proxies need to know the host itself.
func Passed(host string, e *networkingv1.ServiceEntry) bool {
	return ByLookUp(host, e) || e.Spec.Resolution == networkingapi.ServiceEntry_NONE && host != "" && host != "*"
}

// ByLookUp reports whether node proxies find a host of a ServiceEntry by the look-ups of
// pods: a connection goes where it was going, and the entry has no address.
func ByLookUp(host string, e *networkingv1.ServiceEntry) bool {
	if host == "" || host == "*" {
		return false
	}
	return dynamicDNS(e) || e.Spec.Resolution == networkingapi.ServiceEntry_NONE && (strings.Contains(host, "*") || len(EntryAddresses(e, host)) == 0)
}

func dynamicDNS(e *networkingv1.ServiceEntry) bool {
	return e.Spec.Resolution == networkingapi.ServiceEntry_DYNAMIC_DNS
}

// EntryPorts is Ports for a ServiceEntry.
func EntryPorts(e *networkingv1.ServiceEntry) []Port {
	var out []Port
	for _, p := range e.Spec.Ports {
		if strings.EqualFold(p.Protocol, "UDP") || p.Number == 0 || p.Number > 65535 {
			continue
		}
		// Istio finds the port of a pod by the name of the entry's port.
		sp := Port{Name: p.Name, Port: p.Number, Target: p.TargetPort, ByName: p.Name, Protocol: entryProtocol(p)}
		if sp.Target == 0 {
			sp.Target = p.Number
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

// EntryAddresses are those written, else those allocated for the host.
func EntryAddresses(e *networkingv1.ServiceEntry, host string) []string {
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

// ParseBlock reads an address or a range of addresses.
func ParseBlock(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}

// IsReady reports whether an endpoint takes connections.
func IsReady(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

// Of is the Service that an endpoint slice belongs to.
func Of(k source.Ref, s *discoveryv1.EndpointSlice) source.Ref {
	return k.At(k.Namespace, s.Labels[discoveryv1.LabelServiceName])
}

// PodOf is the pod that an endpoint of a slice stands for.
func PodOf(e *discoveryv1.Endpoint, slice source.Ref) (source.Ref, bool) {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || e.TargetRef.Name == "" {
		return source.Ref{}, false
	}
	if e.TargetRef.Namespace != "" && e.TargetRef.Namespace != slice.Namespace {
		return source.Ref{}, false // an endpoint cannot claim a pod of another namespace
	}
	return slice.At(slice.Namespace, e.TargetRef.Name), true
}

// SlicePort is the port of the endpoints for a service's port, by its name.
func SlicePort(s *discoveryv1.EndpointSlice, name string) uint32 {
	for _, p := range s.Ports {
		own := ""
		if p.Name != nil {
			own = *p.Name
		}
		tcp := p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP
		if own == name && tcp && p.Port != nil && *p.Port > 0 && *p.Port <= 65535 {
			return uint32(*p.Port)
		}
	}
	return 0
}

// ClusterIPs are the addresses of a Service within its cluster; none for a
// headless one.
func ClusterIPs(s *corev1.Service) (out []string) {
	for _, ip := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	return out
}
