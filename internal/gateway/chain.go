package gateway

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// before returns the waypoint that stands before a service; zero when there is none, or
// when it is this one.
func (s *shard) before(w *place.Whereabouts, svc *workload.Service) (gw workload.GatewayAddress) {
	if svc.Waypoint.IsZero() && len(svc.WeightedWaypoints) == 0 || s.served.By(w, svc) {
		return gw
	}
	return workload.PickWaypoint(svc, random)
}

// behind returns the waypoint that stands before an endpoint of a service and has not
// seen the request yet.
func (s *shard) behind(w *place.Whereabouts, svc *workload.Service, up *workload.Upstream) (gw workload.GatewayAddress) {
	at := up.Workload
	switch {
	case at == nil || !up.Addr.IsValid() || at.Network != w.Self.Network,
		at.Waypoint.IsZero() && s.served.By(w, svc), w.ServesAt(at, up.Port):
		return gw
	}
	return hop.Behind(w.Snapshot, at, netip.AddrPortFrom(up.Addr, up.Port), hop.Sender{Identity: w.Self.Identity(), Addr: w.Source})
}

// through has a proxy of a waypoint reach what the waypoint stands for: app, or the
// service by its name if it has no address. It never goes around the waypoint.
func (s *shard) through(e *endpoint, w *place.Whereabouts, gw workload.GatewayAddress, app netip.AddrPort, c *session, failed func(string) bool) *reason.Error {
	if c.hops >= connect.MaxHops {
		return reason.Errorf(reason.WaypointLoop, "%d waypoints have sent it on, and another one stands before %s", c.hops, e.service.Key())
	}
	if why, unavailable := gw.Unavailable(); unavailable {
		return reason.Errorf(reason.WaypointUnavailable, "waypoint %s", why)
	}
	q := workload.Query{Client: w.Self, Dialled: app.Addr(), Excluded: s.health.Excluding(e.port, failed, s.loop.Now()), Load: s.loadFn, Rand: random}
	up, err := hop.Gateway(w.Snapshot, gw, q, true)
	if err != nil && !s.health.Empty() {
		q.Excluded = failed
		up, err = hop.Gateway(w.Snapshot, gw, q, true)
	}
	switch {
	case err != nil:
		e.unknown = w.Absent(gw)
		return err
	case up.Workload.Network != w.Self.Network:
		return reason.Errorf(reason.UnknownGateway, "waypoint %s is in network %q", up.Workload.UID, up.Workload.Network)
	case !up.Addr.IsValid():
		return reason.Errorf(reason.WaypointUnavailable, "waypoint %s has no address", up.Workload.UID)
	}
	e.workload, e.waypoint = up.Workload, true
	k := targetKey{w: up.Workload, svc: e.service, addr: up.Addr, port: up.Port, app: app}
	t, ok := s.targets[k]
	if !ok {
		t = pool.Target{
			App: app, UID: up.Workload.UID, Tunnel: netip.AddrPortFrom(up.Addr, up.Port),
			Identities: hop.Identities(up.Workload, up.Service),
		}
		if !app.Addr().IsValid() {
			t.Host = e.service.Hostname
		}
		s.keep(k, t)
	}
	t.Client = c.says
	t.Client.Hops = (c.hops + 1).String()
	e.target = t
	return nil
}

// keep remembers a target.
func (s *shard) keep(k targetKey, t pool.Target) {
	if len(s.targets) >= maxTargets {
		clear(s.targets)
	}
	s.targets[k] = t
}
