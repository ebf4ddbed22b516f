package gateway

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

// destination is what a client called: a port of a service, or of a workload.
type destination struct {
	service  *workload.Service // nil: a workload was called
	workload *workload.Workload
	addr     netip.Addr // that was called; invalid for a name
	port     uint16
	key      route.PortKey // of the service port
	app      workload.App  // what the port declares
}

// called returns the address and port that the client called, invalid for a name.
func (d *destination) called() netip.AddrPort {
	if !d.addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(d.addr, d.port)
}

// hostname returns the name of the service that was called, "" for a workload.
func (d *destination) hostname() string {
	if d.service == nil {
		return ""
	}
	return d.service.Hostname
}

// whereabouts is what a decision about a destination depends on.
type whereabouts struct {
	snapshot *workload.Snapshot
	network  string
	self     *workload.Workload
	source   netip.Addr // of this gateway's tunnels
	// namespace of the client: it looked the address up as that namespace does.
	namespace string
}

// find returns what a CONNECT's authority names. Only services and workloads whose
// waypoint this gateway is are reached through it: its identity must not open doors
// for anyone who has a certificate of the mesh.
func (w *whereabouts) find(t connect.Target) (destination, *reason.Error) {
	var at workload.Destination
	if t.IsHost() {
		at.Service = w.snapshot.ServiceByHostname(t.Host, w.namespace)
	} else {
		at = w.snapshot.Find(w.network, t.Addr.Addr(), w.namespace)
	}
	port := t.TargetPort()
	switch {
	case at.Service != nil:
		if !w.serves(at.Service) {
			return destination{}, reason.Errorf(reason.AddressMismatch, "service %s does not use this waypoint", at.Service.Key())
		}
		if _, ok := at.Service.TargetPort(port); !ok {
			return destination{}, reason.Errorf(reason.NoHealthyUpstream, "service %s has no port %d", at.Service.Key(), port)
		}
		return destination{
			service: at.Service, addr: t.Addr.Addr(), port: port, app: at.Service.App(port),
			key: keyOf(at.Service, port),
		}, nil
	case at.Workload != nil:
		if !w.servesAt(at.Workload, port) {
			return destination{}, reason.Errorf(reason.AddressMismatch, "workload %s does not use this waypoint", at.Workload.UID)
		}
		return destination{workload: at.Workload, addr: t.Addr.Addr(), port: port, app: w.snapshot.Declared(at.Workload, port)}, nil
	}
	return destination{}, reason.Errorf(reason.UnknownDestination, "%s", t)
}

func keyOf(s *workload.Service, port uint16) route.PortKey {
	return route.PortKey{Namespace: s.Namespace, Hostname: s.Hostname, Port: port}
}

// is reports whether an address is that of this gateway.
func (w *whereabouts) is(g workload.GatewayAddress) bool {
	return w.snapshot.IsGateway(g, w.self.Identity(), w.source)
}

// serves reports whether this gateway is a waypoint of a service.
func (w *whereabouts) serves(s *workload.Service) bool {
	return w.is(s.Waypoint) || slices.ContainsFunc(s.WeightedWaypoints, func(o workload.WeightedWaypoint) bool { return w.is(o.Destination) })
}

// servesAt reports whether this gateway is the waypoint of a port of a workload: that of
// the workload itself, else one of a service that the port is an endpoint of. Clients
// reach the port through the service as well.
func (w *whereabouts) servesAt(at *workload.Workload, port uint16) bool {
	if !at.Waypoint.IsZero() {
		return w.is(at.Waypoint)
	}
	for svc := range w.snapshot.Backed(at, port) {
		if svc.EndpointsTaken && w.serves(svc) {
			return true
		}
	}
	return false
}

// moved reports whether a port of a workload has a waypoint, and not this gateway.
func (w *whereabouts) moved(at *workload.Workload, port uint16) bool {
	bound := !at.Waypoint.IsZero()
	for svc := range w.snapshot.Backed(at, port) {
		bound = bound || svc.EndpointsBehind
	}
	return bound && !w.servesAt(at, port)
}

// standing is what this gateway is to a destination of a connection.
type standing uint8

const (
	used     standing = iota // clients are sent here, or the destination has no waypoint at all
	left                     // it still takes the traffic, and clients are on their way to another
	replaced                 // another has taken over, and gets the policies
)

// standing returns what this gateway is to a destination, which used it once.
func (w *whereabouts) standing(d *destination) standing {
	if d.service == nil {
		if now := w.snapshot.WorkloadByUID(d.workload.UID); now != nil && w.moved(now, d.port) {
			return replaced
		}
		return used
	}
	now := w.snapshot.ServiceByName(d.service.Namespace, d.service.Hostname)
	switch {
	case now == nil, now.Waypoint.IsZero(), w.is(now.Waypoint):
		return used
	case !w.serves(now):
		return replaced
	case slices.ContainsFunc(now.WeightedWaypoints, func(o workload.WeightedWaypoint) bool { return o.Weight > 0 && w.is(o.Destination) }):
		return used
	}
	return left
}

// carries is how a connection is read.
type carries uint8

const (
	carriesUnknown carries = iota // its first bytes decide
	carriesHTTP
	carriesTCP
)

func (d *destination) carries() carries {
	switch d.app {
	case workload.AppHTTP1, workload.AppHTTP2, workload.AppGRPC:
		return carriesHTTP
	case workload.AppTCP, workload.AppTLS:
		return carriesTCP
	}
	return carriesUnknown
}
