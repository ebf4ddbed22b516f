package gateway

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// outlier is when an endpoint is left out: it could not be reached several times in a
// row. What programs answer does not count, as in Istio without a DestinationRule. At
// least half of the endpoints of a service stay.
var outlier = upstream.Outlier{Consecutive: 5, Base: 30 * time.Second, Max: 5 * time.Minute, MaxPercent: 50}

// maxHealth bounds the endpoints of a loop that have failed; all are forgotten beyond it.
const maxHealth = 4096

// place is one port of an endpoint: the other ones may work.
type place struct {
	uid  string
	port uint16 // of the service, or of the workload without one
}

// healths is what one loop has seen of endpoints that failed. An endpoint without an
// entry is healthy.
type healths struct {
	of map[place]upstream.Health
	// Of the pick under way: see leftOut.
	port    uint16
	failed  func(uid string) bool
	now     time.Time
	leftOut func(uid string) bool
}

func newHealths() *healths {
	h := &healths{of: map[place]upstream.Health{}}
	h.leftOut = func(uid string) bool {
		return h.failed != nil && h.failed(uid) || h.of[place{uid, h.port}].Ejected(h.now)
	}
	return h
}

// excluding returns the endpoints that a pick avoids: those that failed says, and those
// that are ejected. It holds until the next call, and is nil when there are none.
func (h *healths) excluding(port uint16, failed func(string) bool, now time.Time) func(uid string) bool {
	if len(h.of) == 0 {
		return failed
	}
	h.port, h.failed, h.now = port, failed, now
	return h.leftOut
}

// unreachable reports whether a reason says that an endpoint could not be reached.
func unreachable(why reason.Reason) bool {
	switch why {
	case reason.ConnectFailure, reason.ConnectTimeout, reason.TunnelHandshake, reason.TunnelRefused, reason.TLSFailure, reason.PeerIdentityMismatch:
		return true
	}
	return false
}

// outcome notes whether an endpoint could be reached.
func (s *shard) outcome(e *endpoint, why reason.Reason) {
	h := s.health
	if e.workload == nil || why == reason.OK && len(h.of) == 0 {
		return
	}
	at := place{e.workload.UID, e.port}
	switch {
	case why == reason.OK:
		delete(h.of, at)
		return
	case !unreachable(why):
		return
	}
	if len(h.of) >= maxHealth {
		clear(h.of)
	}
	now := s.loop.Now()
	before := h.of[at]
	total, ejected := s.endpoints(e, now)
	after := before.Result(outlier, true, now, ejected, total)
	h.of[at] = after
	if after.Ejected(now) && !before.Ejected(now) {
		s.g.opts.Log.Warn("an endpoint is left out for a time: it could not be reached", "workload", e.workload.UID, "port", e.port,
			"failures", outlier.Consecutive, "reason", why.String())
	}
}

// endpoints counts the endpoints of a service, and those that are ejected.
func (s *shard) endpoints(e *endpoint, now time.Time) (total, ejected int) {
	if e.service == nil {
		return 1, 0
	}
	for w := range s.g.opts.Directory().Endpoints(e.siblings(s.g.opts.Directory())) {
		total++
		if s.health.of[place{w.UID, e.port}].Ejected(now) {
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

// forget drops what was seen of a workload that was removed.
func (h *healths) forget(uid string) {
	for at := range h.of {
		if at.uid == uid {
			delete(h.of, at)
		}
	}
}

// otherFamily returns an address of the family that a does not have, to prefer it; a when
// it is invalid.
func otherFamily(a netip.Addr) netip.Addr {
	switch {
	case !a.IsValid():
		return a
	case a.Unmap().Is4():
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
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
