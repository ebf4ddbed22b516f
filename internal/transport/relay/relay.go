package relay

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Pair is two connected, non-blocking TCP sockets and what to do with them.
type Pair struct {
	// Down is the socket of the side that initiated the connection, Up the
	// other. Both belong to the flow from Start on.
	Down, Up int
	// Prefix is sent to Up first (a PROXY protocol header). It is not counted.
	Prefix []byte
	// OnClose is called on the loop exactly once, when both sockets are closed.
	OnClose func(*Flow, Result)
}

// Start relays bytes both ways until both sides have ended, carrying end of
// stream and reset from each to the other. It is called on the loop's
// goroutine. OnClose is never called inline.
func Start(l *poll.Loop, p Pair) *Flow { panic("not yet") }

// Connect connects the non-blocking socket fd to an address. It is called on
// the loop's goroutine; done is called there, never inline, with nil or a
// *reason.Error (ConnectTimeout, ConnectFailure). The socket stays the
// caller's in every case and must not be closed before done.
func Connect(l *poll.Loop, fd int, to netip.AddrPort, timeout time.Duration, done func(error)) {
	panic("not yet")
}
