package upstream

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/outlier"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Place is one port of an endpoint: the other ones may work.
type Place struct {
	UID  string
	Port uint16 // of the service, or of the endpoint without one
}

// Unreached is when an endpoint is left out: it could not be reached several times in a
// row. What programs answer does not count, as in Istio without a DestinationRule. At
// least half of the endpoints of a service stay.
var Unreached = outlier.Settings{Consecutive: 5, Base: 30 * time.Second, Max: 5 * time.Minute, MaxPercent: 50}

// Unreachable reports whether a reason says that an endpoint could not be reached.
func Unreachable(why reason.Reason) bool {
	switch why {
	case reason.ConnectFailure, reason.ConnectTimeout, reason.TunnelHandshake, reason.TunnelRefused, reason.TLSFailure, reason.PeerIdentityMismatch:
		return true
	default:
		return false
	}
}

// maxPlaces bounds the places that have failed; all are forgotten beyond it.
const maxPlaces = 4096

// Outliers is what one owner has seen of places that failed. A place without an entry is
// healthy. It belongs to one goroutine.
type Outliers struct {
	of map[Place]outlier.Health
	// Of the choice under way: see leftOut.
	port    uint16
	failed  func(uid string) bool
	now     time.Time
	leftOut func(uid string) bool
}

// NewOutliers returns Outliers that have seen nothing.
func NewOutliers() *Outliers {
	o := &Outliers{of: map[Place]outlier.Health{}}
	o.leftOut = func(uid string) bool {
		return o.failed != nil && o.failed(uid) || o.of[Place{uid, o.port}].Ejected(o.now)
	}
	return o
}

// Empty reports whether no place has failed.
func (o *Outliers) Empty() bool { return len(o.of) == 0 }

// Excluding returns the endpoints that a choice avoids: those that failed reports, and
// those that are ejected. It holds until the next call, and is nil when there are none.
func (o *Outliers) Excluding(port uint16, failed func(string) bool, now time.Time) func(uid string) bool {
	if o.Empty() {
		return failed
	}
	o.port, o.failed, o.now = port, failed, now
	return o.leftOut
}

// Worked notes that a place could be used.
func (o *Outliers) Worked(at Place) { delete(o.of, at) }

// Failed notes that a place could not be used, and reports whether it is ejected by that.
// ejected and total count the places that serve the same.
func (o *Outliers) Failed(at Place, by outlier.Settings, now time.Time, ejected, total int) bool {
	if len(o.of) >= maxPlaces {
		clear(o.of)
	}
	before := o.of[at]
	after := before.Result(by, true, now, ejected, total)
	o.of[at] = after
	return after.Ejected(now) && !before.Ejected(now)
}

// Ejected reports whether a place is left out now.
func (o *Outliers) Ejected(at Place, now time.Time) bool { return o.of[at].Ejected(now) }

// Forget drops what was seen of an endpoint that was removed.
func (o *Outliers) Forget(uid string) {
	for at := range o.of {
		if at.UID == uid {
			delete(o.of, at)
		}
	}
}

// All calls f with each place that is ejected now.
func (o *Outliers) All(now time.Time, f func(Place)) {
	for at, h := range o.of {
		if h.Ejected(now) {
			f(at)
		}
	}
}
