package route

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// Unknown lists what Outbound needs to know of and the directory does not
// have, as names for the control plane: an address as network/ip, a service or
// workload as namespace/hostname. It is for directories that are filled on
// demand. What was asked for may need more: ask again until nothing is new.
func Unknown(s *workload.Snapshot, network string, dst netip.Addr, namespace string, host hosts.Match) []string {
	at := host.At(s, network, dst, namespace)
	var names []string
	if !s.Certain(network, dst, namespace) {
		// A claim on the address is known, or nothing is. Its owner may be known
		// to the control plane.
		names = append(names, workload.AddressName(network, dst))
	}
	switch {
	case at.Service != nil:
		names = unknownNetworks(names, s, network, at.Service)
		if at.Service.Waypoint.IsZero() {
			names = unknownWaypoints(names, s, network, at.Service)
		}
		names = unknownWaypoint(names, s, network, at.Service.Waypoint)
		for _, w := range at.Service.WeightedWaypoints {
			names = unknownWaypoint(names, s, network, w.Destination)
		}
	case at.Workload != nil:
		names = unknownGateway(names, s, at.Workload.Waypoint)
		if at.Workload.Waypoint.IsZero() {
			names = unknownServices(names, s, network, at.Workload)
		}
	}
	return names
}

// unknownServices adds the services of a workload, which may have its connections go to
// a waypoint, and these waypoints.
func unknownServices(names []string, s *workload.Snapshot, network string, w *workload.Workload) []string {
	for i := range w.Services {
		k := w.Services[i].Service
		switch svc := s.ServiceByName(k.Namespace, k.Hostname); {
		case svc == nil:
			if !slices.Contains(names, k.String()) {
				names = append(names, k.String())
			}
		case svc.EndpointsBehind:
			n := len(names)
			if names = unknownWaypoint(names, s, network, svc.Waypoint); len(names) > n && slices.Contains(names[:n], names[n]) {
				names = names[:n]
			}
		}
	}
	return names
}

// UnknownInbound does so for a connection into local: its services and the
// client, which are wanted for telemetry. An invalid client is not asked for.
func UnknownInbound(s *workload.Snapshot, network string, local *workload.Workload, client netip.Addr) []string {
	var names []string
	for i := range local.Services {
		if k := local.Services[i].Service; s.ServiceByName(k.Namespace, k.Hostname) == nil {
			names = append(names, k.String())
		}
	}
	if client.IsValid() && s.WorkloadByAddr(network, client) == nil {
		names = append(names, workload.AddressName(network, client))
	}
	return names
}

// unknownWaypoint is unknownGateway and, once the waypoint is known, what leads
// to it.
func unknownWaypoint(names []string, s *workload.Snapshot, network string, gw workload.GatewayAddress) []string {
	if gw.ByHostname() {
		if svc := s.FindHostname(gw.Hostname).Service; svc != nil {
			names = unknownNetworks(names, s, network, svc)
		}
	}
	return unknownGateway(names, s, gw)
}

// unknownWaypoints adds the waypoints of a service's endpoints in this network.
func unknownWaypoints(names []string, s *workload.Snapshot, network string, svc *workload.Service) []string {
	for w := range s.Endpoints(svc) {
		if w.Network != network {
			continue
		}
		if w.Waypoint.IsZero() {
			names = unknownServices(names, s, network, w)
			continue
		}
		n := len(names)
		if names = unknownGateway(names, s, w.Waypoint); len(names) > n && slices.Contains(names[:n], names[n]) {
			names = names[:n]
		}
	}
	return names
}

// unknownNetworks adds the gateways to the endpoints in other networks.
func unknownNetworks(names []string, s *workload.Snapshot, network string, svc *workload.Service) []string {
	for w := range s.Endpoints(svc) {
		if w.Network == network || w.NetworkGateway.IsZero() {
			continue
		}
		n := len(names)
		if names = unknownGateway(names, s, w.NetworkGateway); len(names) > n && slices.Contains(names[:n], names[n]) {
			names = names[:n]
		}
	}
	return names
}

func unknownGateway(names []string, s *workload.Snapshot, gw workload.GatewayAddress) []string {
	_, unavailable := gw.Unavailable()
	switch {
	case gw.IsZero(), unavailable:
	case gw.ByHostname():
		if s.FindHostname(gw.Hostname) == (workload.Destination{}) {
			names = append(names, gw.Hostname.String())
		}
	case s.Find(gw.Address.Network, gw.Address.Addr, "") == (workload.Destination{}):
		names = append(names, workload.AddressName(gw.Address.Network, gw.Address.Addr))
	}
	return names
}

// UnknownBackends lists what a route needs of the services that it sends connections to.
func UnknownBackends(s *workload.Snapshot, network string, t *traffic.Node, dst netip.AddrPort, namespace string, first traffic.First, host hosts.Match) (names []string) {
	svc := host.At(s, network, dst.Addr(), namespace).Service
	if svc == nil || behindWaypoint(svc) {
		return nil
	}
	for _, b := range t.Backends(traffic.Call{Client: namespace, Service: svc, Port: dst.Port(), First: first}) {
		to := s.ServiceByName(b.Namespace, b.Hostname)
		if to == nil {
			names = append(names, b.Namespace+"/"+b.Hostname)
			continue
		}
		if names = unknownNetworks(names, s, network, to); to.Waypoint.IsZero() {
			names = unknownWaypoints(names, s, network, to)
		}
		names = unknownWaypoint(names, s, network, to.Waypoint)
	}
	return names
}
