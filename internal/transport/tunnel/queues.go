package tunnel

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

const (
	// queueUnit is what a queue is counted in: its smallest chunk, in bytes.
	queueUnit = 4 << 10
	// freeQueues is how many bytes a tunnel may have in queues while others leave
	// little room: a few streams with full windows.
	freeQueues = 256 << 10
)

// ErrQueues is why a stream is reset whose program does not read.
var ErrQueues = errors.New("the program does not read, and the pod's budget of queued bytes is used up, most of it by this tunnel")

// enqueue has p wait for the program. When the budget does not permit that, the
// stream ends: its window was given already and cannot be taken back.
func (s *Stream) enqueue(p []byte) bool {
	if !s.t.hold(&s.held, units(s.sock.Queued()+len(p))) {
		s.t.h2.Consumed(s.hs, len(p))
		s.overflow()
		return false
	}
	s.sock.Queue(p)
	return true
}

// hold takes what the queues of one stream need, which hold have of it already.
func (t *Tunnel) hold(have *int64, need int64) bool {
	if t.queues == nil {
		return true
	}
	more := need - *have
	if more <= 0 {
		return true
	}
	// A tunnel gets no more than it leaves to others: so a few tunnels whose
	// programs do not read cannot use up what the others need.
	if all := t.held + more; all > freeQueues && all > t.queues.Room() || !t.queues.Take(more) {
		return false
	}
	*have += more
	t.held += more
	return true
}

// release gives back what the queues of one stream do not need any more.
func (t *Tunnel) release(have *int64, need int64) {
	if less := *have - need; less > 0 {
		*have -= less
		t.held -= less
		t.queues.Give(less)
	}
}

// units rounds bytes up to what their chunks take.
func units(n int) int64 { return (int64(n) + queueUnit - 1) / queueUnit * queueUnit }

// overflow ends a stream for which there is no room.
func (s *Stream) overflow() {
	s.t.h2.Reset(s.hs, h2.EnhanceYourCalm)
	s.t.Touch()
	if s.phase == opening {
		s.Fail(reason.ResourceExhausted, ErrQueues, false)
		return
	}
	s.end(reason.ResourceExhausted, ErrQueues, resetApp)
}
