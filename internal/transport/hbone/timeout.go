package hbone

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// begin returns an attempt, whose time runs from now on.
func begin(o *Open) *attempt {
	a := &attempt{Open: o}
	if o.Timeout > 0 {
		a.until = time.Now().Add(o.Timeout)
	}
	return a
}

// left returns how long the attempt may take of a time that the pool gives.
func (o *attempt) left(most time.Duration) time.Duration {
	if o.until.IsZero() {
		return most
	}
	return min(most, max(time.Until(o.until), time.Millisecond))
}

// expire fails an attempt that waits for a tunnel of an entry, once its time is over.
func (s *shard) expire(e *entry, o *attempt) {
	if o.until.IsZero() {
		return
	}
	s.loop.AfterFunc(o.left(o.Timeout), func() {
		i := slices.Index(e.waiting, o)
		if i < 0 {
			return
		}
		e.waiting = slices.Delete(e.waiting, i, i+1)
		s.waiting--
		o.OnFail(reason.Errorf(reason.ConnectTimeout, "no tunnel to %s in %s", e.key.Dst, o.Timeout), 0)
		s.forget(e)
	})
}
