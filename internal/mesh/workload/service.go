package workload

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Mode is how an endpoint of a service is chosen.
type Mode uint8

// The modes.
const (
	Standard    Mode = iota // any endpoint
	Strict                  // only endpoints that share every scope with the client
	Failover                // endpoints that share the longest prefix of the scopes
	Passthrough             // no choice: the address dialled is the address used
)

// Scope is a level of locality in which client and endpoint may agree.
type Scope uint8

// The scopes, with the numbers of the wire.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Families restricts the address families of a service.
type Families uint8

// The families, with the numbers of the wire.
const (
	AnyFamily Families = iota
	IPv4Only
	IPv6Only
	DualStack
)

// Accepts reports whether the restriction lets a through.
func (f Families) Accepts(a netip.Addr) bool {
	switch f {
	case IPv4Only:
		return a.Is4()
	case IPv6Only:
		return a.Is6()
	case AnyFamily, DualStack:
	}
	return true
}

// WeightedWaypoint is one of several waypoints that share a service's
// connections in proportion to their weights.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// NetworkPrefix is a range of virtual addresses within a network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// Service is a name with virtual addresses in front of workloads. It is
// immutable; its endpoints are found through a Snapshot.
type Service struct {
	Name      string
	Namespace string
	Hostname  string
	VIPs      []NetworkAddress
	CIDRs     []NetworkPrefix
	Ports     []Port
	// SANs are identities accepted from endpoints beside their own.
	SANs              []string
	Waypoint          GatewayAddress
	WeightedWaypoints []WeightedWaypoint
	// EndpointsBehind sends what is for an endpoint's own address to the waypoint as
	// well. The identities in Beside go there directly.
	EndpointsBehind bool
	// EndpointsTaken has waypoints take it.
	EndpointsTaken bool
	Beside         []identity.Identity

	// Race tries all addresses of an endpoint's name at once.
	Race bool
	// ByName leads to the name that the client has called.
	ByName bool

	HasLoadBalancing bool // whether the control plane said anything about it
	Mode             Mode
	Scopes           []Scope
	// ClientAffinity keeps each client on one endpoint, for as long as that one
	// can be used.
	ClientAffinity bool
	// AllowUnhealthy keeps endpoints that are not ready in rotation.
	AllowUnhealthy bool

	Families Families
	// Canonical services win over others of the same host name.
	Canonical bool
	// NamespaceOnly hides the service from clients of other namespaces.
	NamespaceOnly bool
	// IngressUseWaypoint sends traffic of ingress gateways through the waypoint.
	IngressUseWaypoint bool
}

// Key returns the service's unique name.
func (s *Service) Key() NamespacedName { return NamespacedName{s.Namespace, s.Hostname} }

// VisibleTo reports whether clients of namespace ns may resolve and reach it.
func (s *Service) VisibleTo(ns string) bool { return !s.NamespaceOnly || s.Namespace == ns }

// TargetPort returns the target port of a service port, and whether the
// service has that port at all. A target of 0 leaves the answer to endpoints.
func (s *Service) TargetPort(port uint16) (target uint16, ok bool) { return findPort(s.Ports, port) }

// App returns what a service port declares that it carries.
func (s *Service) App(port uint16) App {
	for _, p := range s.Ports {
		if p.Service == port {
			return p.App
		}
	}
	return AppUnknown
}

func findPort(ports []Port, port uint16) (uint16, bool) {
	for _, p := range ports {
		if p.Service == port {
			return p.Target, true
		}
	}
	return 0, false
}

// isKubernetes reports whether the service is a Kubernetes Service, and no
// ServiceEntry that has its form. The host name of a ServiceEntry is free, but
// only Kubernetes Services have IP families on the wire.
func (s *Service) isKubernetes() bool {
	return s.Families != AnyFamily && strings.HasPrefix(s.Hostname, s.Name+"."+s.Namespace+".svc.")
}

func (s *Service) hasVIP(network string, a netip.Addr) bool {
	return slices.Contains(s.VIPs, NetworkAddress{network, a})
}
