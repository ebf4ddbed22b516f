package workload

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Rand is the source of choice: a number in [0, n), n > 0.
// math/rand/v2.Uint64N is one.
type Rand func(n uint64) uint64

// Query asks for an endpoint of a service.
type Query struct {
	Service *Service
	// Client is the workload that connects.
	Client *Workload
	// Dialled is the address the client used; it decides the address family.
	// Invalid is no preference.
	Dialled netip.Addr
	// Port of the service.
	Port uint16
	// Waypoint: the service is a waypoint, whose endpoints need not name the
	// port when they have an application tunnel.
	Waypoint bool
	// Excluded endpoints (by UID) have failed this connection already. May be nil.
	Excluded func(uid string) bool
	// Load returns the connections in flight to an endpoint (by UID): of two
	// candidates the one with the lower load per capacity is taken. nil makes
	// the choice random.
	Load func(uid string) int
	Rand Rand
}

// Upstream is where a connection goes.
type Upstream struct {
	Workload *Workload
	// Addr is invalid when the workload has none that fits: then its Hostname
	// is to be resolved, or its NetworkGateway used.
	Addr    netip.Addr
	Port    uint16
	Service *Service // nil when a workload was dialled directly
	// Direct: the service does not choose (PASSTHROUGH); Workload is nil and
	// the address dialled is the address to use.
	Direct bool
}

// Pick chooses an endpoint. The error has reason NoHealthyUpstream and says
// what kept the endpoints out.
func (s *Snapshot) Pick(q Query) (Upstream, *reason.Error) {
	return Upstream{}, reason.Errorf(reason.NoHealthyUpstream, "no endpoints")
}

// PickWaypoint chooses among a service's weighted waypoints, else its single
// one; the zero value when it has none.
func PickWaypoint(svc *Service, r Rand) GatewayAddress { return svc.Waypoint }
