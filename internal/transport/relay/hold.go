package relay

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Verdict is what a Hold makes of the first bytes.
type Verdict uint8

// The verdicts.
const (
	Wait   Verdict = iota // for more bytes
	Pass                  // the bytes go on
	Refuse                // the flow ends, and both sides see a reset
)

// Hold decides about the first bytes that come from downstream. They stay in the kernel
// until then.
type Hold struct {
	// Decide gets all bytes that have come, and whether the end of the stream came without
	// any. It is called on the loop. The error is why it refuses.
	Decide func(first []byte, end bool) (Verdict, *reason.Error)
	// Time is how long the rest may take once bytes have come. Late decides after it, and
	// does not wait.
	Time time.Duration
	Late func() (Verdict, *reason.Error)

	timer *poll.Timer
}

// release reports whether the bytes of downstream go on.
func (f *pair) release() bool {
	h := f.hold
	b := f.Loop().Buffer()[:readChunk]
	n, err := poll.Peek(f.down.sock.FD(), b)
	switch {
	case poll.IsAgain(err):
		return false
	case err != nil:
		f.end(f.resetReason(&f.down), err)
		return false
	}
	v, why := h.Decide(b[:n], n == 0)
	switch v {
	case Pass:
		h.timer.Stop()
		f.hold = nil
		return true
	case Refuse:
		f.end(why.Reason, why)
	case Wait:
		if h.timer == nil && n > 0 {
			h.timer = f.Loop().AfterFunc(h.Time, func() {
				if f.hold != h || f.ended {
					return
				}
				if v, why := h.Late(); v == Refuse {
					f.end(why.Reason, why)
					return
				}
				f.hold = nil
				f.move(&f.down, &f.up)
			})
		}
	}
	return false
}
