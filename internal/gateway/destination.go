package gateway

import (
	"net/netip"

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
		return destination{workload: at.Workload, addr: t.Addr.Addr(), port: port, app: declared(w.snapshot, at.Workload, port)}, nil
	}
	return destination{}, reason.Errorf(reason.UnknownDestination, "%s", t)
}

func keyOf(s *workload.Service, port uint16) route.PortKey {
	return route.PortKey{Namespace: s.Namespace, Hostname: s.Hostname, Port: port}
}

// serves reports whether this gateway is a waypoint of a service.
func (w *whereabouts) serves(s *workload.Service) bool {
	is := func(g workload.GatewayAddress) bool { return w.snapshot.IsGateway(g, w.self.Identity(), w.source) }
	if is(s.Waypoint) {
		return true
	}
	for i := range s.WeightedWaypoints {
		if is(s.WeightedWaypoints[i].Destination) {
			return true
		}
	}
	return false
}

// servesAt reports whether this gateway is the waypoint of a port of a workload: that of
// the workload itself, else one of a service that the port is an endpoint of. Clients
// reach the port through the service as well.
func (w *whereabouts) servesAt(at *workload.Workload, port uint16) bool {
	if !at.Waypoint.IsZero() {
		return w.snapshot.IsGateway(at.Waypoint, w.self.Identity(), w.source)
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

// uses reports whether this gateway is the waypoint that clients of a destination are
// sent to, or one of several.
func (w *whereabouts) uses(d *destination) bool {
	is := func(g workload.GatewayAddress) bool { return w.snapshot.IsGateway(g, w.self.Identity(), w.source) }
	if d.service == nil {
		now := w.snapshot.WorkloadByUID(d.workload.UID)
		return now == nil || !w.moved(now, d.port)
	}
	now := w.snapshot.ServiceByName(d.service.Namespace, d.service.Hostname)
	if now == nil || now.Waypoint.IsZero() || is(now.Waypoint) {
		return true
	}
	for i := range now.WeightedWaypoints {
		if o := &now.WeightedWaypoints[i]; o.Weight > 0 && is(o.Destination) {
			return true
		}
	}
	return false
}

// declared returns what the services of a workload declare of one of its own ports,
// unknown when they disagree.
func declared(s *workload.Snapshot, w *workload.Workload, port uint16) workload.App {
	found := workload.AppUnknown
	for i := range w.Services {
		m := &w.Services[i]
		svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
		if svc == nil {
			continue
		}
		for _, p := range svc.Ports {
			if m.Target(p) != port || p.App == workload.AppUnknown {
				continue
			}
			if found != workload.AppUnknown && found != p.App {
				return workload.AppUnknown
			}
			found = p.App
		}
	}
	return found
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
