// Package hop decides what comes next on the way of a connection: which endpoint of a
// service, which proxy of a waypoint that stands before it, and which identities may
// answer there. It is the same for a node proxy and for a waypoint.
package hop

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// Gateway chooses a proxy of a waypoint, or with waypoint false of a network's gateway.
// It completes the query, which has the client and what may be chosen.
func Gateway(s *workload.Snapshot, gw workload.GatewayAddress, q workload.Query, waypoint bool) (workload.Upstream, *reason.Error) {
	if !gw.ByHostname() {
		q.Dialled = gw.Address.Addr
	}
	at := Lookup(s, gw)
	switch {
	case at.Service != nil:
		q.Service, q.Port, q.Waypoint = at.Service, gw.HBONEPort, waypoint
		up, err := s.Pick(q)
		if err != nil && waypoint {
			err = reason.Errorf(reason.WaypointUnavailable, "%w", err.Err)
		}
		return up, err
	case at.Workload != nil:
		return workload.Upstream{Workload: at.Workload, Addr: addrFor(at.Workload, q.Dialled), Port: gw.HBONEPort}, nil
	}
	name := gw.Hostname.String()
	if !gw.ByHostname() {
		name = gw.Address.String()
	}
	if !waypoint {
		return workload.Upstream{}, reason.Errorf(reason.UnknownGateway, "nothing is known of the network's gateway %s", name)
	}
	return workload.Upstream{}, reason.Errorf(reason.WaypointUnavailable, "unknown waypoint %s", name)
}

// Lookup finds a gateway. As in Snapshot.IsGateway, what the client's namespace claims is
// no gateway.
func Lookup(s *workload.Snapshot, gw workload.GatewayAddress) workload.Destination {
	if gw.ByHostname() {
		return s.FindHostname(gw.Hostname)
	}
	return s.Find(gw.Address.Network, gw.Address.Addr, "")
}

// addrFor prefers the family that was dialled.
func addrFor(w *workload.Workload, dialled netip.Addr) netip.Addr {
	addrs := w.Addrs()
	for _, a := range addrs {
		if a.Is4() == dialled.Is4() {
			return a
		}
	}
	if len(addrs) > 0 {
		return addrs[0]
	}
	return netip.Addr{}
}

// Sender is the proxy or the pod that a connection comes from.
type Sender struct {
	Identity identity.Identity
	Addr     netip.Addr
}

// Behind returns the waypoint that connections to an endpoint's own address go to: that
// of the endpoint, else that of the services which it backs at this port, if the port
// admits only that. It is zero for services of several waypoints, of which the endpoint
// refuses the connection, and for the waypoint itself.
func Behind(s *workload.Snapshot, w *workload.Workload, at netip.AddrPort, from Sender) (gw workload.GatewayAddress) {
	if !w.Waypoint.IsZero() {
		if s.IsGateway(w.Waypoint, from.Identity, from.Addr) {
			return gw
		}
		return w.Waypoint
	}
	for svc := range s.Backed(w, at.Port()) {
		switch {
		case !svc.EndpointsBehind:
		case slices.Contains(svc.Beside, from.Identity), !gw.IsZero() && gw != svc.Waypoint,
			s.IsGateway(svc.Waypoint, from.Identity, from.Addr), s.IsGateway(svc.Waypoint, w.Identity(), at.Addr()):
			return workload.GatewayAddress{}
		default:
			gw = svc.Waypoint
		}
	}
	return gw
}

// Address returns the virtual address by which a service is called in a network, of the
// preferred address's family if it has one. It is invalid for a service without any.
func Address(svc *workload.Service, network string, preferred netip.Addr) (found netip.Addr) {
	for _, vip := range svc.VIPs {
		if vip.Network != network {
			continue
		}
		if !preferred.IsValid() || vip.Addr.Is4() == preferred.Unmap().Is4() {
			return vip.Addr
		}
		if !found.IsValid() {
			found = vip.Addr
		}
	}
	return found
}

// OtherFamily returns an address of the family that a does not have, to prefer it; a when
// it is invalid.
func OtherFamily(a netip.Addr) netip.Addr {
	switch {
	case !a.IsValid():
		return a
	case a.Unmap().Is4():
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// maxNetworks bounds the endpoints of other networks that one choice looks at.
const maxNetworks = 4

// Near chooses an endpoint, of the client's network if there is one.
func Near(s *workload.Snapshot, q workload.Query) (workload.Upstream, *reason.Error) {
	up, err := s.Pick(q)
	if err != nil || up.Workload == nil || up.Workload.Network == q.Client.Network {
		return up, err
	}
	return other(s, q, up)
}

// other looks for an endpoint of the client's network in the place of one that is not.
func other(s *workload.Snapshot, q workload.Query, up workload.Upstream) (workload.Upstream, *reason.Error) {
	excluded := q.Excluded
	far := []string{up.Workload.UID}
	q.Excluded = func(uid string) bool { return slices.Contains(far, uid) || excluded != nil && excluded(uid) }
	for range maxNetworks {
		next, err := s.Pick(q)
		switch {
		case err != nil || next.Workload == nil:
			return up, nil //nolint:nilerr // the endpoint of another network is taken then
		case next.Workload.Network == q.Client.Network:
			return next, nil
		}
		far = append(far, next.Workload.UID)
	}
	return up, nil
}

// Identities lists those that an endpoint may prove: its own, and those that its service
// vouches for. They are sorted, and joined by commas.
func Identities(w *workload.Workload, svc *workload.Service) string {
	ids := []string{w.Identity().String()}
	if svc != nil {
		for _, san := range svc.SANs {
			if id, err := identity.Parse(san); err == nil && !slices.Contains(ids, id.String()) {
				ids = append(ids, id.String())
			}
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, ",")
}
