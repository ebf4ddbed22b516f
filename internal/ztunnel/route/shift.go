package route

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// call is the connection as routes of a service see it.
func (o *Out) call(svc *workload.Service) traffic.Call {
	return traffic.Call{Client: o.Source.Namespace, Service: svc, Port: o.Dst.Port(), First: o.First}
}

// Reads reports whether the first bytes of a connection decide about it and have not been
// read. plain: what is not TLS may go on.
func Reads(o Out) (plain, reads bool) {
	svc := o.Host.At(o.Snapshot, o.Network, o.Dst.Addr(), o.Source.Namespace).Service
	switch {
	case svc == nil:
		return false, false
	case svc == o.Host.Service && o.Host.Reads:
		return true, true
	case behindWaypoint(svc):
		return false, false
	}
	routes := o.Traffic.Reads(o.call(svc))
	return routes != nil && routes.Plain() != nil, routes != nil
}

// behindWaypoint reports whether connections to a service may go to a waypoint.
func behindWaypoint(svc *workload.Service) bool {
	return !workload.PickWaypoint(svc, func(uint64) uint64 { return 0 }).IsZero()
}

// shift goes to the backend that a route has chosen, as a program that calls it would:
// through its waypoint, when it has one. Routes of the backend itself do not follow.
func (o *Out) shift(s *traffic.Shift) (Route, *reason.Error) {
	if s.Failure != nil {
		return Route{}, s.Failure
	}
	svc := o.Snapshot.ServiceByName(s.To.Namespace, s.To.Hostname)
	if svc == nil {
		return Route{}, reason.Errorf(reason.NoBackend, "%s: backend %s is not in the directory", s.Origin, s.To.UpstreamName())
	}
	at, named := called(svc, o.Network, o.Dst.Addr(), s.To.Port)
	to := *o
	to.Dst = at
	gw := workload.PickWaypoint(svc, o.Rand)
	if gw.IsZero() || o.fromGateway(gw) {
		r, err := to.toEndpoints(svc)
		if err == nil && r.Via == Passthrough {
			return Route{}, reason.Errorf(reason.NoBackend, "%s: backend %s has no endpoints of its own", s.Origin, svc.Key())
		}
		return r, err
	}
	r, err := to.toWaypoint(gw, svc, to.Dst, ServiceWaypoint)
	if err == nil && named && r.Protocol == connect.HBONE {
		r.Target = connect.Target{Host: svc.Hostname, Port: s.To.Port}
	}
	return r, err
}

// called returns the address by which a service is called, of the family that the program
// has dialled if there is one. A service without an address is named.
func called(svc *workload.Service, network string, like netip.Addr, port uint16) (at netip.AddrPort, named bool) {
	var best netip.Addr
	for _, a := range svc.VIPs {
		if a.Network == network && (!best.IsValid() || a.Addr.Is4() == like.Unmap().Is4() && best.Is4() != like.Unmap().Is4()) {
			best = a.Addr
		}
	}
	if !best.IsValid() {
		return netip.AddrPortFrom(like, port), true // for its family alone
	}
	return netip.AddrPortFrom(best, port), false
}

// Outcome has the group of a route learn that its endpoint took the connection, or did not,
// and reports whether the endpoint is ejected by that. Waypoints and gateways are not
// endpoints of the service.
func (r *Route) Outcome(s *workload.Snapshot, why reason.Reason, status int) bool {
	if r.Group == nil || r.Via != Direct || r.Protocol == connect.DoubleHBONE || r.Workload == nil {
		return false
	}
	if why == reason.OK {
		r.Group.Worked(r.Workload.UID)
		return false
	}
	return Retryable(why, status) && r.Group.Failed(s, r.Service, r.Workload.UID)
}
