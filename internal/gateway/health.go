package gateway

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// outcome notes whether an endpoint could be reached.
func (s *shard) outcome(e *endpoint, why reason.Reason) {
	h := s.health
	if e.workload == nil || why == reason.OK && h.Empty() {
		return
	}
	at := upstream.Place{UID: e.workload.UID, Port: e.port}
	switch {
	case why == reason.OK:
		h.Worked(at)
		return
	case !upstream.Unreachable(why):
		return
	}
	now := s.loop.Now()
	total, ejected := s.endpoints(e, now)
	if h.Failed(at, upstream.Unreached, now, ejected, total) {
		s.g.opts.Log.Warn("an endpoint is left out for a time: it could not be reached", "workload", e.workload.UID, "port", e.port,
			"failures", upstream.Unreached.Consecutive, "reason", why.String())
		if f := s.g.opts.Telemetry.LeftOut; f != nil {
			f()
		}
	}
}

// endpoints counts the endpoints of a service, and those that are ejected.
func (s *shard) endpoints(e *endpoint, now time.Time) (total, ejected int) {
	if e.service == nil {
		return 1, 0
	}
	for w := range s.g.opts.Directory().Endpoints(e.siblings(s.g.opts.Directory())) {
		total++
		if s.health.Ejected(upstream.Place{UID: w.UID, Port: e.port}, now) {
			ejected++
		}
	}
	return total, ejected
}

// siblings returns the service that an endpoint was chosen from: that of its waypoint if
// it is a proxy of one.
func (e *endpoint) siblings(d *workload.Snapshot) *workload.Service {
	if e.workload.ServesAs(e.service.Key()) == nil {
		if at := hop.Lookup(d, e.service.Waypoint); at.Service != nil {
			return at.Service
		}
	}
	return e.service
}

// affine returns the name of a session's client where a service has affinity to clients:
// that by which the client's own node proxy chooses.
func (c *session) affine(w *workload.Service) string {
	switch {
	case !w.ClientAffinity:
		return ""
	case c.client != nil:
		return c.client.UID
	}
	return c.remote.Addr().String()
}
