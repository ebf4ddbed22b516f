// Package place decides where a CONNECT leads: which service or workload it names, whether
// this gateway is its waypoint, and what of that the directory does not have yet.
package place

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
)

// Destination is what a client called: a port of a service, or of a workload.
type Destination struct {
	Service  *workload.Service // nil: a workload was called
	Workload *workload.Workload
	Addr     netip.Addr // that was called; invalid for a name
	Port     uint16
	Key      route.PortKey // of the service port
	App      workload.App  // what the port declares
	// Named is the name that the client has called, where a service is found by it.
	Named string
}

// ByName reports whether connections go to the name that the client calls.
func (d *Destination) ByName() bool { return d.Service != nil && (d.Named != "" || d.Service.ByName) }

// Called returns the address and port that the client called, invalid for a name.
func (d *Destination) Called() netip.AddrPort {
	if !d.Addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(d.Addr, d.Port)
}

// Hostname returns the name of the service that was called, "" for a workload.
func (d *Destination) Hostname() string {
	if d.Service == nil {
		return ""
	}
	return d.Service.Hostname
}

// Whereabouts is what a decision about a destination depends on.
type Whereabouts struct {
	Snapshot *workload.Snapshot
	Network  string
	Self     *workload.Workload
	Source   netip.Addr // of this gateway's tunnels
	// Namespace of the client: it looked the address up as that namespace does.
	Namespace string
	// Hosts are services that are found by names.
	Hosts *hosts.Table
	// Answered reports whether the directory has what there is of an address, by the name
	// of its resource. nil: it has everything.
	Answered func(name string) bool
}

// Has reports whether the directory has what there is of an address, by the name of its
// resource.
func (w *Whereabouts) Has(name string) bool { return w.Answered == nil || w.Answered(name) }

// Find returns what a CONNECT's authority names. Only services and workloads whose
// waypoint this gateway is are reached through it: its identity must not open doors
// for anyone who has a certificate of the mesh.
func (w *Whereabouts) Find(t connect.Target) (Destination, *reason.Error) {
	at, named := w.at(t)
	port := t.TargetPort()
	switch {
	case at.Service != nil:
		if !w.Serves(at.Service) {
			return Destination{}, reason.Errorf(reason.AddressMismatch, "service %s does not use this waypoint", at.Service.Key())
		}
		if _, ok := at.Service.TargetPort(port); !ok {
			return Destination{}, reason.Errorf(reason.NoHealthyUpstream, "service %s has no port %d", at.Service.Key(), port)
		}
		return Destination{
			Service: at.Service, Addr: t.Addr.Addr(), Port: port, App: at.Service.App(port),
			Key: keyOf(at.Service, port), Named: named,
		}, nil
	case at.Workload != nil:
		if !w.ServesAt(at.Workload, port) {
			return Destination{}, reason.Errorf(reason.AddressMismatch, "workload %s does not use this waypoint", at.Workload.UID)
		}
		return Destination{Workload: at.Workload, Addr: t.Addr.Addr(), Port: port, App: w.Snapshot.Declared(at.Workload, port)}, nil
	}
	return Destination{}, reason.Errorf(reason.UnknownDestination, "%s", t)
}

// at returns what stands at a target. named is the name that was called, for a service that
// is found by names.
func (w *Whereabouts) at(t connect.Target) (at workload.Destination, named string) {
	if !t.IsHost() {
		at = w.Snapshot.Find(w.Network, t.Addr.Addr(), w.Namespace)
		if at == (workload.Destination{}) && w.Has(workload.AddressName(w.Network, t.Addr.Addr())) { // else it may be a pod's
			at.Service = w.Hosts.Around(t.Addr.Addr(), w.Network, w.Namespace, t.Addr.Port())
		}
		return at, ""
	}
	at.Service = w.Snapshot.ServiceByHostname(t.Host, w.Namespace)
	if svc := w.Hosts.Named(t.Host, w.Namespace, t.Port); svc != nil && (at.Service == nil || at.Service.Mode == workload.Passthrough) {
		return workload.Destination{Service: svc}, t.Host
	}
	return at, ""
}

// Client returns the workload at an address that opened a tunnel; nil when it is unknown,
// or when the certificate is another's: that proves who it is, and the address does not.
// What a client that is not in the directory has in its baggage counts for the namespace
// that it has proven.
func (w *Whereabouts) Client(peer identity.Identity, at netip.Addr, baggage string) (*workload.Workload, connect.Baggage) {
	c := w.Snapshot.WorkloadByAddr(w.Network, at)
	switch {
	case c != nil && (peer.IsZero() || c.Identity() == peer):
		return c, connect.Baggage{}
	case c != nil:
		return nil, connect.Baggage{}
	}
	b, err := connect.ParseBaggage(baggage)
	if err != nil || b.Namespace != peer.Namespace {
		return nil, connect.Baggage{}
	}
	return nil, b
}

func keyOf(s *workload.Service, port uint16) route.PortKey {
	return route.PortKey{Namespace: s.Namespace, Hostname: s.Hostname, Port: port}
}

// is reports whether an address is that of this gateway.
func (w *Whereabouts) is(g workload.GatewayAddress) bool {
	return w.Snapshot.IsGateway(g, w.Self.Identity(), w.Source)
}

// Serves reports whether this gateway is a waypoint of a service.
func (w *Whereabouts) Serves(s *workload.Service) bool {
	return w.is(s.Waypoint) || slices.ContainsFunc(s.WeightedWaypoints, func(o workload.WeightedWaypoint) bool { return w.is(o.Destination) })
}

// ServesAt reports whether this gateway is the waypoint of a port of a workload: that of
// the workload itself, else one of a service that the port is an endpoint of. Clients
// reach the port through the service as well.
func (w *Whereabouts) ServesAt(at *workload.Workload, port uint16) bool {
	if !at.Waypoint.IsZero() {
		return w.is(at.Waypoint)
	}
	for svc := range w.Snapshot.Backed(at, port) {
		if svc.EndpointsTaken && w.Serves(svc) {
			return true
		}
	}
	return false
}

// moved reports whether a port of a workload has a waypoint, and not this gateway.
func (w *Whereabouts) moved(at *workload.Workload, port uint16) bool {
	bound := !at.Waypoint.IsZero()
	for svc := range w.Snapshot.Backed(at, port) {
		bound = bound || svc.EndpointsBehind
	}
	return bound && !w.ServesAt(at, port)
}

// Standing is what this gateway is to a destination of a connection.
type Standing uint8

// The standings.
const (
	Used     Standing = iota // clients are sent here, or the destination has no waypoint at all
	Left                     // it still takes the traffic, and clients are on their way to another
	Replaced                 // another has taken over, and gets the policies
)

// Standing returns what this gateway is to a destination, which used it once.
func (w *Whereabouts) Standing(d *Destination) Standing {
	if d.Service == nil {
		if now := w.Snapshot.WorkloadByUID(d.Workload.UID); now != nil && w.moved(now, d.Port) {
			return Replaced
		}
		return Used
	}
	now := w.Snapshot.ServiceByName(d.Service.Namespace, d.Service.Hostname)
	switch {
	case now == nil, now.Waypoint.IsZero(), w.is(now.Waypoint):
		return Used
	case !w.Serves(now):
		return Replaced
	case slices.ContainsFunc(now.WeightedWaypoints, func(o workload.WeightedWaypoint) bool { return o.Weight > 0 && w.is(o.Destination) }):
		return Used
	}
	return Left
}

// Reading is how a connection is read.
type Reading uint8

// The readings.
const (
	CarriesUnknown Reading = iota // its first bytes decide
	CarriesHTTP
	CarriesTCP
)

// Carries returns how connections to the destination are read.
func (d *Destination) Carries() Reading {
	switch d.App {
	case workload.AppHTTP1, workload.AppHTTP2, workload.AppGRPC:
		return CarriesHTTP
	case workload.AppTCP, workload.AppTLS:
		return CarriesTCP
	case workload.AppUnknown:
	}
	return CarriesUnknown
}

// Target returns what policies take for the destination of a connection: the address
// that the client called. A name has that of the service, if there is one.
func (d *Destination) Target() netip.AddrPort {
	a := d.Addr
	if !a.IsValid() && d.Service != nil {
		if len(d.Service.VIPs) > 0 {
			a = d.Service.VIPs[0].Addr
		}
	}
	return netip.AddrPortFrom(a, d.Port)
}

// Services returns those whose policies are for a destination: the service that was
// called, or every service that the workload backs at this port. A service that the
// directory does not have may be one of them.
func (d *Destination) Services(s *workload.Snapshot) []authz.Service {
	if d.Service != nil {
		return []authz.Service{{Namespace: d.Service.Namespace, Hostname: d.Service.Hostname}}
	}
	w := d.Workload
	if now := s.WorkloadByUID(w.UID); now != nil {
		w = now
	}
	var out []authz.Service
	for i := range w.Services {
		m := &w.Services[i]
		svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
		if svc == nil || slices.ContainsFunc(svc.Ports, func(p workload.Port) bool { return m.Target(p) == d.Port }) {
			out = append(out, authz.Service{Namespace: m.Service.Namespace, Hostname: m.Service.Hostname})
		}
	}
	return out
}

// Concerns reports whether the destination is a service, or an endpoint of it.
func (d *Destination) Concerns(name workload.NamespacedName) bool {
	if d.Service != nil {
		return d.Service.Key() == name
	}
	return d.Workload.ServesAs(name) != nil
}
