package ratelimit

import (
	"errors"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// scripted answers with what it has, and counts the questions.
type scripted struct {
	answer []byte
	err    error
	asked  int
}

func (s *scripted) Ask(_ *poll.Loop, _ *ratelimit.Service, _ string, _ []byte, done func([]byte, error)) {
	s.asked++
	done(s.answer, s.err)
}

// TestAsk: a service decides about what the rates permit. Without a usable answer the mode
// does, and a dry run refuses none.
func TestAsk(t *testing.T) {
	room, over := []byte{0, 0, 0, 0, 2, 8, 1}, []byte{0, 0, 0, 0, 2, 8, 2}
	for name, tt := range map[string]struct {
		script    scripted
		open, dry bool
		refused   bool
		counts    [4]uint64 // allowed, refused, reported, unanswered
	}{
		"room":             {scripted{answer: room}, false, false, false, [4]uint64{1, 0, 0, 0}},
		"over":             {scripted{answer: over}, true, false, true, [4]uint64{0, 1, 0, 0}},
		"over, dry":        {scripted{answer: over}, false, true, false, [4]uint64{0, 0, 1, 0}},
		"error":            {scripted{err: errors.New("late")}, false, false, true, [4]uint64{0, 1, 0, 1}},
		"error, open":      {scripted{err: errors.New("late")}, true, false, false, [4]uint64{1, 0, 0, 1}},
		"error, dry":       {scripted{err: errors.New("late")}, false, true, false, [4]uint64{0, 0, 1, 1}},
		"no answer of use": {scripted{answer: []byte("x")}, false, false, true, [4]uint64{0, 1, 0, 1}},
	} {
		var now int64
		n := fixed(&now)
		n.Asker = &tt.script
		l := limit("one", 9, ratelimit.Destination, "web")
		l.DryRun = tt.dry
		l.Service = &ratelimit.Service{Namespace: "shop", Hostname: "limiter", Port: 1, Domain: "d", Timeout: time.Second, Open: tt.open, Descriptors: [][]ratelimit.Entry{{ratelimit.EntrySourceAddress}}}
		apply(t, n, l)
		web, src := pod("shop", "web"), from("a")
		if err := n.Take(web, 80, src); err != nil || !n.Asks(web, 80) || n.Asks(pod("shop", "other"), 80) {
			t.Fatalf("%s: %v", name, err)
		}
		var got *reason.Error
		called := 0
		n.Ask(nil, web, 80, src, func(err *reason.Error) { got = err; called++ })
		d := n.Dump()[0]
		if (got != nil) != tt.refused || got != nil && got.Reason != reason.RateLimited || called != 1 || tt.script.asked != 1 || [4]uint64{d.Allowed, d.Refused, d.Reported, d.Unanswered} != tt.counts {
			t.Errorf("%s: %v, called %d times, %+v", name, got, called, d)
		}
	}
}
