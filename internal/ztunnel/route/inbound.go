package route

import (
	"net/http"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

// In is one request of a tunnel that ends at a pod.
type In struct {
	Snapshot *workload.Snapshot
	// Network of this node.
	Network string
	// Local is the pod's workload.
	Local *workload.Workload
	// At is the address the tunnel itself was dialled at: the pod's, and the
	// proxy's port.
	At netip.AddrPort
	// Method and Authority of the request.
	Method, Authority string
	// Host is the service that the client says it called; may be empty.
	Host string
	// LocalhostTunnel hands PROXY tunnels to the application's loopback.
	LocalhostTunnel bool
}

// Plan says what to do with a connection into a pod.
type Plan struct {
	// Target is what was asked for.
	Target connect.Target
	// Upstream is where the application listens; policies see it as the
	// destination.
	Upstream netip.AddrPort
	// Connect is where to connect to: Upstream, or loopback with its port.
	Connect netip.AddrPort
	// KeepSource tells to connect from the client's address.
	KeepSource bool
	// Proxy, if valid, is the destination to name in a PROXY header in front.
	Proxy netip.AddrPort
	// Service is the one that was called, as far as can be told; may be nil.
	Service *workload.Service
}

// Inbound decides what happens to a request of a tunnel: a plan, or the
// status to refuse it with and why. Policies are asked afterwards, with the
// plan's Upstream.
func Inbound(in In) (Plan, int, *reason.Error) {
	if in.Method != http.MethodConnect {
		return Plan{}, http.StatusBadRequest, reason.Errorf(reason.BadRequest, "method %.20q instead of CONNECT", in.Method)
	}
	target, perr := connect.ParseTarget(in.Authority)
	if perr != nil {
		return Plan{}, http.StatusBadRequest, reason.Errorf(reason.BadRequest, "%w", perr)
	}
	if in.Local == nil {
		return Plan{}, http.StatusServiceUnavailable, reason.Errorf(reason.UnknownSource, "no workload at %s", in.At.Addr())
	}
	if err := in.addressed(target); err != nil {
		return Plan{}, http.StatusBadRequest, err
	}
	p, err := in.plan(target)
	if err != nil {
		return Plan{}, http.StatusServiceUnavailable, err
	}
	return p, http.StatusOK, nil
}

// addressed checks that the request is for this pod, or for somebody it may
// answer for.
func (in *In) addressed(t connect.Target) *reason.Error {
	if t.IsHost() || t.Addr.Addr() == in.At.Addr() || in.Local.ApplicationTunnel.Present {
		return nil
	}
	// A waypoint behind this proxy gets requests for what it stands for.
	var gw workload.GatewayAddress
	switch at := in.Snapshot.Find(in.Network, t.Addr.Addr(), ""); {
	case at.Service != nil:
		if in.standsFor(at.Service) {
			return nil
		}
	case at.Workload != nil && at.Workload.Waypoint.IsZero():
		for svc := range in.Snapshot.Backed(at.Workload, t.TargetPort()) {
			if svc.EndpointsTaken && in.standsFor(svc) {
				return nil
			}
		}
	case at.Workload != nil:
		gw = at.Workload.Waypoint
	}
	if IsGateway(in.Snapshot, gw, in.Local.Identity(), in.At.Addr()) {
		return nil
	}
	return reason.Errorf(reason.AddressMismatch, "ip mismatch: the tunnel is at %s and asks for %s", in.At.Addr(), t.Addr.Addr())
}

// standsFor reports whether this pod is a waypoint of a service.
func (in *In) standsFor(svc *workload.Service) bool {
	is := func(gw workload.GatewayAddress) bool {
		return IsGateway(in.Snapshot, gw, in.Local.Identity(), in.At.Addr())
	}
	return is(svc.Waypoint) || slices.ContainsFunc(svc.WeightedWaypoints, func(ww workload.WeightedWaypoint) bool { return is(ww.Destination) })
}

func (in *In) plan(t connect.Target) (Plan, *reason.Error) {
	p := Plan{Target: t, KeepSource: true}
	port := t.TargetPort()
	if t.IsHost() {
		p.Service = in.Snapshot.ServiceByHostname(t.Host, in.Local.Namespace)
		if p.Service == nil {
			return Plan{}, reason.Errorf(reason.NoHealthyUpstream, "no service or workload for hostname: %s", t.Host)
		}
		if port = in.targetPort(p.Service, t.Port); port == 0 {
			return Plan{}, reason.Errorf(reason.NoHealthyUpstream, "service %s has no port %d", t.Host, t.Port)
		}
	}
	if Recursive(port) {
		return Plan{}, reason.Errorf(reason.RecursiveCall, "to %s", t)
	}
	p.Upstream = netip.AddrPortFrom(in.At.Addr(), port)
	if p.Service == nil {
		p.Service = CalledService(in.Snapshot, in.Local, port, in.Host)
	}
	p.Connect = p.Upstream
	tun := in.Local.ApplicationTunnel
	if !tun.Present {
		return p, nil
	}
	if tun.Port != 0 {
		p.Upstream = netip.AddrPortFrom(in.At.Addr(), tun.Port)
		p.Connect = p.Upstream
	}
	if tun.Protocol != workload.ProxyTunnel {
		return p, nil
	}
	if p.Proxy = t.Addr; t.IsHost() {
		vip := serviceVIP(p.Service, in.Network)
		if !vip.IsValid() {
			return Plan{}, reason.Errorf(reason.NoHealthyUpstream, "service %s has no address to name in a PROXY header", t.Host)
		}
		p.Proxy = netip.AddrPortFrom(vip, t.Port)
	}
	if in.LocalhostTunnel {
		// The header carries the source; loopback accepts no other's.
		p.Connect = netip.AddrPortFrom(loopback(in.At.Addr()), p.Upstream.Port())
		p.KeepSource = false
	}
	return p, nil
}

// targetPort asks the endpoint first: with named ports only it knows.
func (in *In) targetPort(svc *workload.Service, port uint16) uint16 {
	if m := in.Local.ServesAs(svc.Key()); m != nil {
		for _, p := range m.Ports {
			if p.Service == port && p.Target != 0 {
				return p.Target
			}
		}
	}
	target, _ := svc.TargetPort(port)
	return target
}

func loopback(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// serviceVIP prefers an IPv4 address of the network.
func serviceVIP(svc *workload.Service, network string) netip.Addr {
	var best netip.Addr
	for _, v := range svc.VIPs {
		if v.Network == network && (!best.IsValid() || v.Addr.Is4() && !best.Is4()) {
			best = v.Addr
		}
	}
	if !best.IsValid() && len(svc.VIPs) > 0 {
		best = svc.VIPs[0].Addr
	}
	return best
}

// CalledService guesses which of a workload's services a connection to its
// port was for: the one the client named if it is one of them, else the first
// that has the port as its target. It is for telemetry only.
func CalledService(s *workload.Snapshot, w *workload.Workload, port uint16, host string) *workload.Service {
	var byPort *workload.Service
	for i := range w.Services {
		m := &w.Services[i]
		if host != "" && m.Service.Hostname == host {
			if svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname); svc != nil {
				return svc
			}
		}
		if byPort != nil {
			continue
		}
		svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
		if svc != nil && servesPort(svc, m, port) {
			byPort = svc
		}
	}
	return byPort
}

func servesPort(svc *workload.Service, m *workload.Membership, port uint16) bool {
	for _, p := range m.Ports {
		if p.Target == port {
			return true
		}
	}
	for _, p := range svc.Ports {
		if p.Target == port {
			return true
		}
	}
	return false
}
