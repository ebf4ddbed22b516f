// Package binding decides what it means that traffic is bound to a waypoint: what
// clients are sent, and which peers destinations admit. It is pure.
package binding

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Target is where the traffic of one object has to go: of a Service or ServiceEntry,
// or of a workload that is called at its own address. The zero Target is no waypoint.
type Target struct {
	// Namespace and Name are the waypoint's.
	Namespace, Name string
	// Address is nil while the waypoint cannot be used. Why says so then, in a word.
	Address *workloadpb.GatewayAddress
	Why     string
	// Admitted are the principals that destinations admit, sorted: the waypoint's own
	// and those that are exempt. Without an Address it is those that are exempt.
	Admitted []string
	// Bypass lets traffic go around: destinations admit everybody, and clients do
	// without a waypoint that cannot be used.
	Bypass bool
}

// Bound reports whether there is a waypoint.
func (t Target) Bound() bool { return t.Name != "" }

// Equal reports whether two targets are the same.
func (t Target) Equal(o Target) bool {
	return t.Namespace == o.Namespace && t.Name == o.Name && t.Why == o.Why && t.Bypass == o.Bypass &&
		proto.Equal(t.Address, o.Address) && slices.Equal(t.Admitted, o.Admitted)
}

// State is what is in effect for one object. The zero State is no waypoint.
type State struct {
	// Waypoint is where clients go; nil is straight to the destination.
	Waypoint *workloadpb.GatewayAddress
	// Accepts are other waypoints that take the traffic when it comes to them.
	Accepts []*workloadpb.GatewayAddress
	// Closed destinations admit only the principals in Admitted, which are sorted.
	Closed   bool
	Admitted []string
	// Endpoints has clients go to Waypoint also when they call an endpoint of a service
	// at its own address, but for the principals in Beside, which are sorted.
	Endpoints bool
	Beside    []string
	// Taken has the waypoints take such connections, whether clients send them or not.
	Taken bool
}

// Equal reports whether two states are the same.
func (s State) Equal(o State) bool {
	return s.Closed == o.Closed && slices.Equal(s.Admitted, o.Admitted) &&
		s.Endpoints == o.Endpoints && s.Taken == o.Taken && slices.Equal(s.Beside, o.Beside) && proto.Equal(s.Waypoint, o.Waypoint) &&
		slices.EqualFunc(s.Accepts, o.Accepts, func(a, b *workloadpb.GatewayAddress) bool { return proto.Equal(a, b) })
}

// Refuses reports whether clients refuse connections, for want of the waypoint.
func (s State) Refuses() bool {
	return strings.HasSuffix(s.Waypoint.GetHostname().GetHostname(), wellknown.UnavailableWaypoint)
}

// Final returns the state in which a target is in full effect.
func Final(t Target) State {
	switch {
	case !t.Bound(), t.Address == nil && t.Bypass:
		return State{}
	case t.Address == nil:
		return closed(refusal(t.Namespace, t.Name, t.Why), t.Admitted)
	case t.Bypass:
		return State{Waypoint: t.Address}
	}
	return closed(t.Address, t.Admitted)
}

// closed is the state of an object whose traffic has to pass a waypoint.
func closed(waypoint *workloadpb.GatewayAddress, admitted []string) State {
	return State{Waypoint: waypoint, Closed: true, Admitted: admitted, Endpoints: true, Beside: admitted, Taken: true}
}

// refusal is an address at which there is no waypoint, so that clients refuse
// connections and say why.
func refusal(namespace, name, why string) *workloadpb.GatewayAddress {
	return &workloadpb.GatewayAddress{
		Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{
			Namespace: namespace, Hostname: name + "." + namespace + "." + why + wellknown.UnavailableWaypoint,
		}},
		HboneMtlsPort: wellknown.PortHBONE,
	}
}
