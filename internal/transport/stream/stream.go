// Package stream is the bytes of one connection on an event loop, whatever
// carries them: a socket, TLS over another stream, or one stream of an HTTP/2
// connection.
//
// A Conn pushes: its Sink gets bytes as they arrive, and gives credit back when it
// no longer holds them. What is written waits, within a bound, until the carrier
// takes it. Nothing here blocks, and nothing has a lock: a Conn belongs to its loop.
package stream

import (
	"crypto/tls"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Conn is one open stream of bytes in both directions. Its methods are called on
// the goroutine of Loop, and none of them calls the Sink: what they cause is
// reported later, in the same turn of the loop or the next one.
//
//	          CloseWrite                       end of the peer
//	open ────────────────► write side closed ──────────────────► closed: OnClose(OK)
//	 │ end of the peer                         CloseWrite
//	 ├────────────────► read side closed ───────────────────────► closed: OnClose(OK)
//	 ├── the peer resets, the carrier fails ────────────────────► closed: OnClose(why)
//	 └── Abort ─────────────────────────────────────────────────► closed, no OnClose
type Conn interface {
	// Loop is the loop that owns the stream.
	Loop() *poll.Loop
	// Bind sets who receives. Before the first Bind nothing is delivered. A later
	// one hands the stream over: the former Sink is not called any more.
	Bind(Sink)
	// Write takes all of p, which the caller may use again afterwards. It reports
	// false when more waits than the carrier wants to hold: the caller should
	// write no more until OnWritable. After CloseWrite, and on a closed stream, p
	// is dropped.
	Write(p []byte) bool
	// CloseWrite sends the end of this direction behind what was written. The other
	// direction goes on.
	CloseWrite()
	// Abort ends both directions now. The peer sees a reset, with what comes
	// closest to why on this carrier. The Sink is not called any more.
	Abort(why reason.Reason)
	// Pause stops OnData, Resume allows it again. A carrier that is paused, or
	// lacks credit, lets its peer wait.
	Pause()
	Resume()
	// Consumed gives back credit for n bytes that OnData delivered. A Sink that holds
	// at most half of Window always gets more; one that holds more may have to give
	// some back first.
	Consumed(n int)
	// Info returns what is constant about the stream.
	Info() *Info
}

// Sink receives what happens on a Conn. Its methods run on the loop of the Conn and
// may call every method of the Conn.
type Sink interface {
	// OnData delivers bytes. p is valid during the call, and empty only when end is
	// true. end says that the peer sends no more. The credit for p comes back by
	// Consumed alone.
	OnData(p []byte, end bool)
	// OnWritable follows a Write that reported false, once there is room.
	OnWritable()
	// OnClose is the last call: both directions have ended (reason.OK), or the
	// stream was cut. err may add a detail, and may be nil.
	OnClose(why reason.Reason, err error)
}

// Info is what is constant about a Conn.
type Info struct {
	Local, Remote netip.AddrPort
	// Dialed is set on the side that opened the stream. A reset by the peer is
	// UpstreamReset there, and DownstreamReset on the side that accepted it.
	Dialed bool
	// Peer is the identity that the carrier has authenticated; zero without one.
	Peer identity.Identity
	// TLS is the state of the carrier's TLS; nil without one. It is shared.
	TLS *tls.ConnectionState
}

// ResetReason returns the reason of a reset by the peer.
func (i *Info) ResetReason() reason.Reason {
	if i.Dialed {
		return reason.UpstreamReset
	}
	return reason.DownstreamReset
}
