// Package relay carries one application connection: its byte counts, its end
// and the reason for it; and, for a connection that crosses no tunnel, the
// bytes themselves, from one socket to the other.
package relay

import (
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Flow is one relayed application connection, over a tunnel or plain. Its
// methods may be called from any goroutine.
type Flow struct {
	loop     *poll.Loop
	carrier  Carrier
	sent     atomic.Uint64
	received atomic.Uint64
}

// Carrier is what moves a Flow's bytes.
type Carrier interface {
	// Abort ends the flow with a reset of both sides. It is called on the
	// flow's loop, perhaps after the flow has ended.
	Abort(r reason.Reason)
}

// Result is how a Flow ended.
type Result struct {
	// Sent counts bytes from the downstream side (the one that initiated the
	// connection) to upstream; Received the other way. Both count what was
	// taken from its source.
	Sent, Received uint64
	// Reason is OK when both sides sent their end of stream.
	Reason reason.Reason
	// Err has the detail, if any.
	Err error
}

// Init prepares a Flow that is part of its carrier.
func (f *Flow) Init(l *poll.Loop, c Carrier) { f.loop, f.carrier = l, c }

// Loop is where the flow's bytes run and its callbacks are called.
func (f *Flow) Loop() *poll.Loop { return f.loop }

// measured is the carrier of a flow whose end is looked at: few are, so that others have
// no room for it.
type measured struct {
	Carrier
	ending func(down, up int)
}

// OnEnding has fn called on the loop before the flow lets go of its sockets: those that
// bytes come from and go to, each -1 where there is none, or it is gone. It is called on the
// loop, once, before bytes run or while they do.
func (f *Flow) OnEnding(fn func(down, up int)) { f.carrier = &measured{f.carrier, fn} }

// Ending calls what OnEnding has set; only the carrier calls it, on the loop.
func (f *Flow) Ending(down, up int) {
	if m, is := f.carrier.(*measured); is {
		m.ending(down, up)
	}
}

// Bytes returns how many bytes went from downstream to upstream so far, and
// back.
func (f *Flow) Bytes() (sent, received uint64) { return f.sent.Load(), f.received.Load() }

// Abort resets both sides; OnClose gets r as the reason. It returns at once
// and does nothing to a flow that has ended.
func (f *Flow) Abort(r reason.Reason) {
	f.loop.Post(func() { f.carrier.Abort(r) })
}

// AddSent counts; only the carrier calls it, on the loop.
func (f *Flow) AddSent(n int) { f.sent.Store(f.sent.Load() + uint64(n)) }

// AddReceived counts; only the carrier calls it, on the loop.
func (f *Flow) AddReceived(n int) { f.received.Store(f.received.Load() + uint64(n)) }
