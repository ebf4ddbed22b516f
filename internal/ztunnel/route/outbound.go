// Package route decides where a connection goes: out of a pod, and into one.
// The decisions are pure: the directory and the connection's addresses in, a
// route or a reason out.
package route

import (
	"net/http"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// Via says who stands between the proxy and the destination.
type Via uint8

// The ways.
const (
	Direct Via = iota
	// Passthrough is a destination that the mesh does not know.
	Passthrough
	ServiceWaypoint
	WorkloadWaypoint
)

func (v Via) String() string {
	switch v {
	case Passthrough:
		return "passthrough"
	case ServiceWaypoint:
		return "service waypoint"
	case WorkloadWaypoint:
		return "workload waypoint"
	case Direct:
	}
	return "direct"
}

// Out is one captured connection of a program in a pod.
type Out struct {
	Snapshot *workload.Snapshot
	// Network of this node.
	Network string
	// Source is the pod's workload.
	Source *workload.Workload
	// Src and Dst are the addresses the program sees.
	Src, Dst netip.AddrPort
	// Excluded workloads (by UID) have failed this connection already; may
	// be nil.
	Excluded func(uid string) bool
	// Load counts connections in flight per workload; may be nil.
	Load func(uid string) int
	Rand workload.Rand
	// Traffic has the rules and routes of connections; may be nil. Roll is the random number
	// that a route chooses by, First is what the first bytes have shown: the same for each
	// try of one connection.
	Traffic *traffic.Node
	Roll    uint64
	First   traffic.First
	// Host is the service that a look-up of the pod has led from.
	Host hosts.Match
}

// Route is the answer for one connection.
type Route struct {
	Protocol connect.Protocol
	Via      Via
	// Next is where to connect to. Its address is invalid when Hostname has
	// to be resolved first; see Resolved.
	Next     netip.AddrPort
	Hostname string
	// Named is the host that Next's address was looked up for; empty for none.
	Named string
	// Target is the authority of the tunnel; zero for TCP.
	Target connect.Target
	// Workload is the next hop: a waypoint, a network's gateway, or the
	// destination; nil when it is not known.
	Workload *workload.Workload
	// Service is what the program called, when that was a service.
	Service *workload.Service
	// Identities are those the next hop may have.
	Identities []identity.Identity
	// Inner are those the end of the inner tunnel may have; DoubleHBONE only.
	Inner []identity.Identity
	// Balanced tells that the next hop was one of several: another decision
	// with the failed workload excluded may find a better one.
	Balanced bool
	// Group limits the connection, and learns of it which endpoints fail; nil without a
	// rule.
	Group *traffic.Group
}

// Sockets returns how many descriptors a connection of the pod's program takes, by the way
// it goes: its own and, without a tunnel that others share, those on the other side. A
// tunnel inside another one has a pair of local sockets.
func (r *Route) Sockets() int64 {
	switch r.Protocol {
	case connect.HBONE:
		return 1
	case connect.DoubleHBONE:
		return 3
	case connect.TCP:
	}
	return 2
}

// InboundSockets returns how many descriptors a connection to the pod's program takes.
func InboundSockets(p connect.Protocol) int64 {
	if p == connect.HBONE {
		return 1
	}
	return 2
}

// Recursive reports whether a port belongs to the proxy itself, so that a
// connection to it through the proxy would be a loop.
func Recursive(port uint16) bool {
	return port != wellknown.PortDNS && wellknown.IsProxyPort(port)
}

// Outbound decides where a connection of a pod's program goes.
func Outbound(o Out) (Route, *reason.Error) {
	if o.Dst.Addr().IsLoopback() && Recursive(o.Dst.Port()) {
		return Route{}, reason.Errorf(reason.RecursiveCall, "to %s", o.Dst)
	}
	if o.Source == nil {
		return Route{}, reason.Errorf(reason.UnknownSource, "no workload for %s", o.Src)
	}
	found := o.Host.At(o.Snapshot, o.Network, o.Dst.Addr(), o.Source.Namespace)
	switch {
	case found.Service != nil:
		return o.toService(found.Service)
	case found.Workload != nil:
		return o.toWorkload(found.Workload)
	}
	return Route{Via: Passthrough, Next: o.Dst}, nil
}

func (o *Out) toService(svc *workload.Service) (Route, *reason.Error) {
	gw := workload.PickWaypoint(svc, o.Rand)
	// A waypoint that calls the service it stands for must not get itself.
	if !gw.IsZero() && !o.fromGateway(gw) {
		return o.toWaypoint(gw, svc, o.Dst, ServiceWaypoint)
	}
	if gw.IsZero() {
		if s, ok := o.Traffic.Shift(o.call(svc), o.Roll); ok {
			return o.shift(&s)
		}
	}
	return o.toEndpoints(svc)
}

// toEndpoints chooses among the endpoints of a service.
func (o *Out) toEndpoints(svc *workload.Service) (Route, *reason.Error) {
	up, err := o.pick(svc)
	if err != nil {
		return Route{}, err
	}
	if up.Direct {
		r := Route{Via: Passthrough, Next: o.Dst, Service: svc}
		if target, ok := svc.TargetPort(o.Dst.Port()); ok && target != 0 {
			r.Next = netip.AddrPortFrom(o.Dst.Addr(), target)
		}
		return r, nil
	}
	r, err := o.toUpstream(up, svc)
	r.Group = o.group(svc)
	return r, err
}

func (o *Out) toUpstream(up workload.Upstream, svc *workload.Service) (Route, *reason.Error) {
	if up.Workload.Network != o.Source.Network {
		return o.toNetwork(up, svc)
	}
	// The endpoint admits only its own waypoint. One that is the service's waypoint
	// as well has seen the connection already.
	if !up.Addr.IsValid() {
		return o.toEndpoint(up, svc, true)
	}
	at := netip.AddrPortFrom(up.Addr, up.Port)
	if w := o.behind(up.Workload, at); !w.IsZero() {
		return o.toWaypoint(w, svc, at, WorkloadWaypoint)
	}
	return o.toEndpoint(up, svc, true)
}

func (o *Out) pick(svc *workload.Service) (workload.Upstream, *reason.Error) {
	return o.group(svc).Pick(o.Snapshot, workload.Query{
		Service: svc, Client: o.Source, Dialled: o.Dst.Addr(), Port: o.Dst.Port(),
		Excluded: o.Excluded, Load: o.Load, Rand: o.Rand,
	})
}

// group returns the group of connections to the port of a service that was called.
func (o *Out) group(svc *workload.Service) *traffic.Group {
	return o.Traffic.For(o.Source.Namespace, svc, o.Dst.Port())
}

func (o *Out) toWorkload(w *workload.Workload) (Route, *reason.Error) {
	if gw := o.behind(w, o.Dst); !gw.IsZero() {
		return o.toWaypoint(gw, nil, o.Dst, WorkloadWaypoint)
	}
	return o.toEndpoint(workload.Upstream{Workload: w, Addr: o.Dst.Addr(), Port: o.Dst.Port()}, nil, false)
}

// behind returns the waypoint that connections to an endpoint's own address go to.
func (o *Out) behind(w *workload.Workload, at netip.AddrPort) workload.GatewayAddress {
	return hop.Behind(o.Snapshot, w, at, hop.Sender{Identity: o.Source.Identity(), Addr: o.Src.Addr()})
}

// toEndpoint is the last step: the chosen workload itself.
func (o *Out) toEndpoint(up workload.Upstream, svc *workload.Service, balanced bool) (Route, *reason.Error) {
	w := up.Workload
	if w.Network != o.Source.Network {
		return Route{}, reason.Errorf(reason.UnknownGateway, "workload %s is in network %q: only services can be called across networks", w.UID, w.Network)
	}
	r := Route{Workload: w, Service: svc, Balanced: balanced}
	if w.Protocol == workload.HBONE {
		r.Protocol = connect.HBONE
		r.Identities = expected(w, svc)
	}
	if !up.Addr.IsValid() {
		if w.Hostname == "" {
			return Route{}, reason.Errorf(reason.NoHealthyUpstream, "workload %s has no address", w.UID)
		}
		r.Hostname = w.Hostname
	}
	return r.at(up.Addr, up.Port), nil
}

// at completes a route with the address of the endpoint and its own port.
func (r Route) at(a netip.Addr, port uint16) Route {
	app := netip.AddrPortFrom(a, port)
	r.Next = app
	if r.Protocol == connect.HBONE {
		r.Next = netip.AddrPortFrom(a, wellknown.PortHBONE)
		r.Target = connect.AddrTarget(app)
	}
	return r
}

// Resolved completes a route whose Hostname stands for a.
func (r Route) Resolved(a netip.Addr) Route {
	port := r.Next.Port()
	r.Named, r.Hostname = r.Hostname, ""
	switch r.Protocol {
	case connect.DoubleHBONE:
		r.Next = netip.AddrPortFrom(a, port)
		return r
	case connect.HBONE:
		port = r.Target.Addr.Port()
	case connect.TCP:
	}
	return r.at(a, port)
}

// toWaypoint tunnels to a waypoint, which is sent the address that it stands for.
func (o *Out) toWaypoint(gw workload.GatewayAddress, svc *workload.Service, to netip.AddrPort, via Via) (Route, *reason.Error) {
	if why, unavailable := gw.Unavailable(); unavailable {
		return Route{}, reason.Errorf(reason.WaypointUnavailable, "waypoint %s", why)
	}
	up, err := o.gateway(gw, true)
	if err != nil {
		return Route{}, err
	}
	if up.Workload.Network != o.Source.Network {
		return o.throughGateway(up, svc, via)
	}
	target := connect.AddrTarget(to)
	if svc != nil && svc == o.Host.Service {
		target = connect.Target{Host: o.Host.Name, Port: to.Port()}
	}
	r := Route{
		Protocol: connect.HBONE, Via: via,
		Next:     netip.AddrPortFrom(up.Addr, up.Port),
		Target:   target,
		Workload: up.Workload, Service: svc,
		Identities: expected(up.Workload, up.Service),
		Balanced:   up.Service != nil,
	}
	if !up.Addr.IsValid() {
		return Route{}, reason.Errorf(reason.WaypointUnavailable, "waypoint %s has no address", up.Workload.UID)
	}
	return r, nil
}

// gateway chooses an endpoint of a waypoint, or of a network's gateway.
func (o *Out) gateway(gw workload.GatewayAddress, waypoint bool) (workload.Upstream, *reason.Error) {
	return hop.Gateway(o.Snapshot, gw, workload.Query{
		Client: o.Source, Dialled: o.Dst.Addr(), Excluded: o.Excluded, Load: o.Load, Rand: o.Rand,
	}, waypoint)
}

// fromGateway reports whether the connection comes from gw itself: both who it
// is and where it comes from must match.
func (o *Out) fromGateway(gw workload.GatewayAddress) bool {
	return IsGateway(o.Snapshot, gw, o.Source.Identity(), o.Src.Addr())
}

// IsGateway reports whether the workload of an identity at an address is the
// gateway gw or one of its replicas.
func IsGateway(s *workload.Snapshot, gw workload.GatewayAddress, id identity.Identity, a netip.Addr) bool {
	return s.IsGateway(gw, id, a)
}

// expected lists the identities that a next hop may prove: its own, and those
// that its service vouches for.
func expected(w *workload.Workload, svc *workload.Service) []identity.Identity {
	return vouched([]identity.Identity{w.Identity()}, svc)
}

// vouched adds the identities that a service, which may be nil, vouches for.
func vouched(ids []identity.Identity, svc *workload.Service) []identity.Identity {
	if svc == nil {
		return ids
	}
	for _, san := range svc.SANs {
		// What is not a workload identity cannot be proven by a peer.
		if id, err := identity.Parse(san); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Retryable reports whether another endpoint may succeed where one failed. status is what
// it answered, 0 for nothing.
func Retryable(r reason.Reason, status int) bool {
	switch r {
	case reason.ConnectFailure, reason.ConnectTimeout, reason.TunnelHandshake, reason.TunnelClosed,
		reason.TLSFailure, reason.PeerIdentityMismatch, reason.UpstreamReset:
		return true
	case reason.TunnelRefused:
		// 503: no program listens there; 400: the address has another
		// owner meanwhile. A policy (401) says the same at every endpoint.
		return status == http.StatusServiceUnavailable || status == http.StatusBadRequest
	default:
		return false
	}
}
