package gateway

import (
	"cmp"
	"math/rand/v2"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/gateway/outside"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// endpoint is where a try or a connection goes.
type endpoint struct {
	target   pool.Target
	workload *workload.Workload
	service  *workload.Service // nil: a workload was called
	protocol route.Protocol
	app      workload.App
	upstream *route.Upstream // nil without a route
	port     uint16          // of the service, or of the workload without one
	// waypoint is set when workload is a proxy of the waypoint that stands before the
	// service or its endpoint. unknown names one that the directory does not have.
	waypoint bool
	unknown  []string
}

// http2 reports whether requests go there by HTTP/2. A port that declares neither
// version gets the client's.
func (e *endpoint) http2(client bool) bool {
	switch e.protocol {
	case route.HTTP1:
		return false
	case route.HTTP2:
		return true
	case route.Declared:
	}
	return client || e.app == workload.AppHTTP2 || e.app == workload.AppGRPC
}

// pick chooses an endpoint: of the backend, or without one of what was called. The
// rules are those of the node proxy. last is the address that has failed before, if one
// did: one of the other family is preferred. keep is the endpoint of the request's session.
func (s *shard) pick(c *session, cfg *route.Config, b *route.Backend, keep string, failed func(string) bool, last netip.Addr) (endpoint, *reason.Error) {
	where, err := s.whereabouts(c.peer.Namespace)
	if err != nil {
		return endpoint{}, err
	}
	e := endpoint{service: c.dest.Service}
	port := c.dest.Port
	dialled := c.dest.Addr
	if b != nil {
		up := cfg.Upstreams[b.Name]
		if up == nil {
			return e, reason.Errorf(reason.NoBackend, "upstream %q is not configured", b.Name)
		}
		e.protocol, port, e.upstream = up.Protocol, up.Service.Port, up
		if n := up.Limits.Requests; n > 0 && s.requests[up] >= int(n) {
			return e, reason.Errorf(reason.ResourceExhausted, "upstream %q has %d requests under way", b.Name, n)
		}
		if up.Service != c.dest.Key {
			dialled = netip.Addr{}
		}
		if e.service = where.Snapshot.ServiceByName(up.Service.Namespace, up.Service.Hostname); e.service == nil {
			return e, reason.Errorf(reason.NoHealthyUpstream, "service %s/%s is not known", up.Service.Namespace, up.Service.Hostname)
		}
	} else if e.service != nil {
		// The directory may have changed since the connection began.
		if now := where.Snapshot.ServiceByName(e.service.Namespace, e.service.Hostname); now != nil {
			e.service = now
		}
	}
	if e.port = port; last.IsValid() {
		dialled = hop.OtherFamily(last)
	}
	if e.service == nil {
		w := where.Snapshot.WorkloadByUID(c.dest.Workload.UID)
		if w == nil {
			return e, reason.Errorf(reason.WorkloadRemoved, "workload %s", c.dest.Workload.UID)
		}
		e.app, e.workload = c.dest.App, w
		return e, s.complete(&e, workload.Upstream{Workload: w, Addr: c.dest.Addr, Port: port}, where.Self, c.says)
	}
	e.app = e.service.App(port)
	if gw := s.before(&where, e.service); !gw.IsZero() {
		like := cmp.Or(dialled, c.dest.Addr) // of the client's family
		err := s.through(&e, &where, gw, netip.AddrPortFrom(hop.Address(e.service, where.Network, like), port), c, failed)
		return e, err
	}
	q := workload.Query{
		Service: e.service, Client: where.Self, Affine: c.affine(e.service), Keep: keep, Dialled: dialled, Port: port,
		Excluded: s.health.Excluding(port, failed, s.loop.Now()), Load: s.loadFn, Rand: random,
	}
	up, err := hop.Near(where.Snapshot, q)
	if err != nil && !s.health.Empty() {
		q.Excluded = failed // those that are ejected are better than none
		up, err = hop.Near(where.Snapshot, q)
	}
	if err != nil {
		return e, err
	}
	own := b == nil || e.upstream.Service == c.dest.Key
	if e.unknown, err = s.outside.Locate(&up, &c.dest, outside.Call{Service: e.service, Own: own, Port: port, Where: &where, Like: cmp.Or(dialled, c.remote.Addr()), Random: random}); err != nil {
		return e, err
	}
	if gw := s.behind(&where, e.service, &up); !gw.IsZero() {
		err := s.through(&e, &where, gw, netip.AddrPortFrom(up.Addr, up.Port), c, failed)
		return e, err
	}
	e.workload = up.Workload
	return e, s.complete(&e, up, where.Self, c.says)
}

func random(n uint64) uint64 { return rand.Uint64N(n) }

func (s *shard) loadOf(uid string) int { return s.load[uid] }

// complete fills in how the endpoint is reached.
func (s *shard) complete(e *endpoint, up workload.Upstream, self *workload.Workload, says pool.Client) *reason.Error {
	w := up.Workload
	switch {
	case w.Network != self.Network:
		return reason.Errorf(reason.UnknownGateway, "workload %s is in network %q", w.UID, w.Network)
	case !up.Addr.IsValid():
		return reason.Errorf(reason.NoHealthyUpstream, "workload %s has no address", w.UID)
	}
	k := targetKey{w: w, svc: e.service, addr: up.Addr, port: up.Port}
	t, ok := s.targets[k]
	if !ok {
		t = pool.Target{App: netip.AddrPortFrom(up.Addr, up.Port), UID: w.UID}
		if w.Protocol == workload.HBONE {
			t.Tunnel = netip.AddrPortFrom(up.Addr, wellknown.PortHBONE)
			t.Identities = hop.Identities(w, e.service)
		}
		s.keep(k, t)
	}
	if t.Tunnel.IsValid() {
		t.Client = says
	}
	e.target = t
	return nil
}

// targetKey is what a target is made of. Workloads and services are immutable.
type targetKey struct {
	w    *workload.Workload
	svc  *workload.Service
	addr netip.Addr
	port uint16
	app  netip.AddrPort // what a waypoint is asked for
}

// maxTargets bounds the targets that a loop keeps so that they need not be made for
// each request.
const maxTargets = 4096
