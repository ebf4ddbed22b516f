package route

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

// maxNetworks bounds the endpoints of other networks that one decision looks
// at because no gateway led to those before.
const maxNetworks = 4

// toNetwork goes to a service whose chosen endpoint is in another network. An
// endpoint that no gateway leads to is skipped for another one.
func (o *Out) toNetwork(up workload.Upstream, svc *workload.Service) (Route, *reason.Error) {
	r, first := o.throughGateway(up, svc, Direct)
	if first == nil {
		return r, nil
	}
	again := *o
	var closed []string
	again.Excluded = func(uid string) bool {
		return slices.Contains(closed, uid) || o.Excluded != nil && o.Excluded(uid)
	}
	for range maxNetworks {
		closed = append(closed, up.Workload.UID)
		var err *reason.Error
		if up, err = again.pick(svc); err != nil {
			break
		}
		if up.Workload.Network == o.Source.Network {
			return o.toEndpoint(up, svc, true)
		}
		if r, err := o.throughGateway(up, svc, Direct); err == nil {
			return r, nil
		}
	}
	return Route{}, first
}

// throughGateway tunnels to an endpoint or waypoint of another network: to that
// network's gateway, and inside that tunnel to whoever the gateway chooses.
// Only a service has a name on both sides; addresses mean nothing on the other.
func (o *Out) throughGateway(up workload.Upstream, svc *workload.Service, via Via) (Route, *reason.Error) {
	w := up.Workload
	switch {
	case svc == nil:
		return Route{}, reason.Errorf(reason.UnknownGateway, "workload %s is in network %q: only services can be called across networks", w.UID, w.Network)
	case w.NetworkGateway.IsZero():
		return Route{}, reason.Errorf(reason.UnknownGateway, "workload %s is in network %q, which has no gateway", w.UID, w.Network)
	}
	gw, err := o.gateway(w.NetworkGateway, false)
	if err != nil {
		return Route{}, err
	}
	if o.Excluded != nil && o.Excluded(gw.Workload.UID) {
		return Route{}, reason.Errorf(reason.UnknownGateway, "the gateway %s of network %q was tried already", gw.Workload.UID, w.Network)
	}
	// Who answers behind the gateway is not known, only who may.
	inner := vouched(nil, up.Service)
	if len(inner) == 0 {
		return Route{}, reason.Errorf(reason.NoHealthyUpstream,
			"workload %s is in network %q, and its service names no identity that its endpoints there may have", w.UID, w.Network)
	}
	r := Route{
		Protocol: connect.DoubleHBONE, Via: via,
		Next:     netip.AddrPortFrom(gw.Addr, gw.Port),
		Target:   connect.Target{Host: strings.ToLower(svc.Hostname), Port: o.Dst.Port()},
		Workload: gw.Workload, Service: svc,
		Identities: expected(gw.Workload, gw.Service), Inner: inner,
		Balanced: true,
	}
	if !gw.Addr.IsValid() {
		if gw.Workload.Hostname == "" {
			return Route{}, reason.Errorf(reason.NoHealthyUpstream, "gateway %s of network %q has no address", gw.Workload.UID, w.Network)
		}
		r.Hostname = gw.Workload.Hostname
	}
	return r, nil
}

// FromGateway reports whether a request at a pod can have come through the gateway
// of this network, from another one: what a tunnel says of its client is believed
// only then. The gateway passes the client's own tunnel on, so the tunnel has the
// gateway's address and the client's identity. The directory names the gateway as
// that of the pod's network. When it names none, the address must be that of a
// workload which speaks HBONE, as gateways do, and is not the client itself.
func FromGateway(s *workload.Snapshot, network string, local *workload.Workload, at netip.Addr, client identity.Identity) bool {
	w := s.WorkloadByAddr(network, at)
	switch {
	case w == nil || client.IsZero():
		return false
	case !local.NetworkGateway.IsZero():
		return IsGateway(s, local.NetworkGateway, w.Identity(), at)
	}
	return w.Protocol == workload.HBONE && w.Identity() != client
}
