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
	owed  []owed
	new   int // of owed, at its end: this turn's
	timer *poll.Timer
}

type owed struct {
	s *Stream
	h *h2.Header
}

// Respond answers the request of a stream that runs, now or within answerWithin.
func (s *Stream) Respond(h *h2.Header) {
	a := &s.t.hub.answers
	a.owed = append(a.owed, owed{s, h})
	a.new++
	s.owes = true
	s.t.Touch() // the end of the turn judges
}

// hasMore reports whether the client may have more to send than what leaves early.
func (s *Stream) hasMore() bool {
	n, _ := s.Bytes()
	return n >= maxEarly || s.peerEnd
}

// judge decides which answers of this turn wait.
func (a *answers) judge() {
	for i := len(a.owed) - a.new; i < len(a.owed); {
		s := a.owed[i].s
		if n, _ := s.Bytes(); n == 0 || s.hasMore() {
			s.answer() // takes it out of the list
		} else {
			i++
		}
	}
	a.new = 0
	switch {
	case len(a.owed) == 0:
	case a.timer == nil:
		a.timer = a.owed[0].s.Loop().AfterFunc(answerWithin, a.all)
	case !a.timer.Active():
		a.timer.Reset(answerWithin)
	}
}

// all has every answer leave.
func (a *answers) all() {
	for len(a.owed) > 0 {
		a.owed[len(a.owed)-1].s.answer()
	}
}

// answer has the answer leave. It reports whether the stream goes on.
func (s *Stream) answer() bool {
	h := s.forgive()
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

// forgive drops the answer, and returns it.
func (s *Stream) forgive() *h2.Header {
	s.owes = false
	a := &s.t.hub.answers
	i := slices.IndexFunc(a.owed, func(o owed) bool { return o.s == s })
	h := a.owed[i].h
	if i >= len(a.owed)-a.new {
		a.new--
	}
	a.owed = slices.Delete(a.owed, i, i+1)
	if len(a.owed) == 0 {
		a.timer.Stop()
	}
	return h
}
