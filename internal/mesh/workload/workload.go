// Package workload is the directory of the mesh: who is at which address,
// which service stands in front of which workload, and which endpoint a connection
// takes. It holds values only: a Directory turns resources from the control
// plane into immutable Snapshots, and every question is answered from one.
package workload

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Protocol is how a workload wants to be reached.
type Protocol uint8

// The protocols.
const (
	TCP   Protocol = iota // as is
	HBONE                 // through a mutual TLS tunnel to port 15008
)

// Tunnel is how the proxy hands a connection to an application that wants to
// know who is calling.
type Tunnel uint8

// The application tunnels. NoTunnel with a port is a tunnel without preamble.
const (
	NoTunnel    Tunnel = iota
	ProxyTunnel        // PROXY protocol in front of the bytes
)

// ApplicationTunnel is set on workloads (waypoints) whose application is
// given all connections, whatever their destination.
type ApplicationTunnel struct {
	Present  bool
	Protocol Tunnel
	Port     uint16 // 0: the port of the request
}

// Locality is where a workload runs, widest first.
type Locality struct {
	Region, Zone, Subzone string
}

// NamespacedName names a service: its namespace and fully qualified host name.
type NamespacedName struct {
	Namespace, Hostname string
}

// String renders namespace/hostname, the name of the service's resource.
func (n NamespacedName) String() string { return n.Namespace + "/" + n.Hostname }

// NetworkAddress is an address within a network of the mesh.
type NetworkAddress struct {
	Network string
	Addr    netip.Addr
}

// String renders network/address.
func (a NetworkAddress) String() string { return a.Network + "/" + a.Addr.String() }

// GatewayAddress is where a waypoint or the gateway of a network is found:
// by host name when Hostname is set, else by address. The zero value means
// that there is none.
type GatewayAddress struct {
	Hostname  NamespacedName
	Address   NetworkAddress
	HBONEPort uint16
}

// IsZero reports whether there is no gateway.
func (g GatewayAddress) IsZero() bool { return g == GatewayAddress{} }

// ByHostname tells which of the two forms is used.
func (g GatewayAddress) ByHostname() bool { return g.Hostname.Hostname != "" }

// Unavailable reports whether the address stands for a waypoint that cannot be used,
// and which one and why.
func (g GatewayAddress) Unavailable() (which string, unavailable bool) {
	return strings.CutSuffix(g.Hostname.Hostname, wellknown.UnavailableWaypoint)
}

// Port maps a port of a service to the port of its endpoints.
type Port struct {
	Service uint16
	Target  uint16 // 0: the endpoint says
	// App is what the port declares that it carries.
	App App
}

// App is the application protocol of a port.
type App uint8

// The application protocols, with the numbers of the wire.
const (
	AppUnknown App = iota // nothing declared, or nothing of the others
	AppHTTP1
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// Membership is one service that a workload is an endpoint of.
type Membership struct {
	Service NamespacedName
	Ports   []Port
}

// Workload is one endpoint of the mesh. It is immutable. What the replicas of
// one deployment have in common lives in Traits, once for all of them.
type Workload struct {
	UID  string
	Name string
	Node string
	*Traits

	addrs   []netip.Addr
	Healthy bool
	Ending  ending.Phase
}

// Traits are the parts of a Workload that its replicas share. Immutable.
type Traits struct {
	Namespace      string
	TrustDomain    string
	ServiceAccount string
	Network        string
	ClusterID      string
	Locality       Locality

	WorkloadName      string
	WorkloadType      string // deployment, cronjob, pod, job
	CanonicalName     string
	CanonicalRevision string

	// Hostname is resolved by the client when there is no address.
	Hostname string
	Protocol Protocol
	// HostNetwork workloads share their node's addresses and are never found
	// by address.
	HostNetwork bool
	// NativeTunnel workloads terminate HBONE themselves.
	NativeTunnel      bool
	ApplicationTunnel ApplicationTunnel
	Waypoint          GatewayAddress
	NetworkGateway    GatewayAddress
	// Capacity is the weight in load balancing; never 0 unless the control
	// plane said so, which takes the workload out of rotation.
	Capacity uint32
	// Outbound is what the workload may call.
	Outbound egress.Mode
	// Egress are the EgressPolicies that select it, as namespace/name.
	Egress []string

	// Policies are the selector policies that apply, as namespace/name.
	Policies []string
	Services []Membership

	hash uint64 // of all the above, for sharing
	refs int    // owned by the Directory's writer
}

// Addrs returns the workload's addresses; not to be changed.
func (w *Workload) Addrs() []netip.Addr { return w.addrs }

// HasAddr reports whether a is one of the workload's addresses.
func (w *Workload) HasAddr(a netip.Addr) bool { return slices.Contains(w.addrs, a) }

// OtherFamily returns the workload's first address of the family that at, which must be one of
// its addresses, does not have.
func (w *Workload) OtherFamily(at netip.Addr) (netip.Addr, bool) {
	if w.HasAddr(at) {
		for _, a := range w.addrs {
			if a.Is4() != at.Is4() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// Identity returns who the workload is in its certificate.
func (w *Workload) Identity() identity.Identity {
	return identity.Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// IsPod reports whether the workload is a pod. UIDs are the control plane's,
// cluster/group/kind/namespace/name; a pod's group is empty.
func (w *Workload) IsPod() bool {
	_, rest, _ := strings.Cut(w.UID, "/")
	return strings.HasPrefix(rest, "/Pod/")
}

// ServesAs returns the workload's membership in a service, or nil.
func (w *Workload) ServesAs(name NamespacedName) *Membership {
	for i := range w.Services {
		if w.Services[i].Service == name {
			return &w.Services[i]
		}
	}
	return nil
}
