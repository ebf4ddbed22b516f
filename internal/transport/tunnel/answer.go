package tunnel

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

// answerWithin is how long the answer to a request may wait for the application's first
// bytes, with which it leaves. It waits only where the client's first bytes came with the
// request: a client that has sent them does not need the answer for anything but what follows.
const answerWithin = 2 * time.Millisecond

// answers are those of a loop that wait.
type answers struct {
	waiting []answer
	new     int // of waiting, at its end: this turn's
	timer   *poll.Timer
}

// answer is one that waits.
type answer struct {
	s *Stream
	h *h2.Header
}

// Respond answers the request of a stream that runs, now or within answerWithin.
func (s *Stream) Respond(h *h2.Header) {
	a := &s.t.hub.answers
	a.waiting = append(a.waiting, answer{s, h})
	a.new++
	s.unanswered = true
	s.t.Touch() // the end of the turn judges
}

// hasMore reports whether the client may have more to send than what leaves early.
func (s *Stream) hasMore() bool {
	n, _ := s.Bytes()
	return n >= maxEarly || s.peerEnd
}

// judge decides which answers of this turn wait.
func (a *answers) judge() {
	for i := len(a.waiting) - a.new; i < len(a.waiting); {
		s := a.waiting[i].s
		if n, _ := s.Bytes(); n == 0 || s.hasMore() {
			s.answer() // takes it out of the list
		} else {
			i++
		}
	}
	a.new = 0
	switch {
	case len(a.waiting) == 0:
	case a.timer == nil:
		a.timer = a.waiting[0].s.Loop().AfterFunc(answerWithin, a.all)
	case !a.timer.Active():
		a.timer.Reset(answerWithin)
	}
}

// all has every answer leave.
func (a *answers) all() {
	for len(a.waiting) > 0 {
		a.waiting[len(a.waiting)-1].s.answer()
	}
}

// answer has the answer leave. It reports whether the stream goes on.
func (s *Stream) answer() bool {
	h := s.withdraw()
	err := s.t.h2.Respond(s.hs, h, false)
	s.t.Touch()
	if err == nil {
		return true
	}
	s.t.h2.Reset(s.hs, h2.InternalError)
	if s.phase == running {
		s.end(reason.ResourceExhausted, err, resetApp)
	}
	return false
}

// withdraw drops the answer, and returns it.
func (s *Stream) withdraw() *h2.Header {
	s.unanswered = false
	a := &s.t.hub.answers
	i := slices.IndexFunc(a.waiting, func(o answer) bool { return o.s == s })
	h := a.waiting[i].h
	if i >= len(a.waiting)-a.new {
		a.new--
	}
	a.waiting = slices.Delete(a.waiting, i, i+1)
	if len(a.waiting) == 0 {
		a.timer.Stop()
	}
	return h
}
