// Package h2 is the HTTP/2 connection (RFC 9113) as a state machine without IO:
// bytes from the peer go in by Conn.Receive, what they mean comes out through a
// Handler, and bytes for the peer collect in Conn.Output.
//
// A Conn has no goroutines, locks, timers or clock. One goroutine at a time may
// use a Conn and its Streams; the event loop that owns the tunnel is that
// goroutine. Time enters through Receive alone. DATA is never copied on the way
// in: payloads are handed over as slices of what Receive was given.
//
// Flow control is arranged so that one slow reader harms nobody else: the
// connection's credit returns as soon as bytes arrive, a stream's credit only
// when its owner has consumed them, and the memory a peer can make the owner
// hold is bounded by Config.MaxStreams windows of Config.StreamWindow plus
// Config.Budget for the windows that grew.
package h2

// Config fixes the limits of a connection. The zero value of a field means the
// default named beside it. A Config is read once, by New.
type Config struct {
	// Server selects the role: true waits for a client's preface.
	Server bool

	// MaxStreams bounds the streams open at once: those the peer may open on
	// a server, those Open permits on a client (where the peer's own limit
	// applies as well). Default 100.
	MaxStreams uint32

	// StreamWindow is what a new stream may receive before its owner
	// consumes, in bytes. Default 64 KiB.
	StreamWindow uint32

	// MaxStreamWindow bounds the growth of the window of a stream that is
	// drained as fast as it fills, in bytes. Default 4 MiB.
	MaxStreamWindow uint32

	// ConnWindow is what may be on the way for all streams together, in
	// bytes. It bounds no memory (see the package comment), so it is large.
	// Default 16 MiB.
	ConnWindow uint32

	// Budget bounds, in bytes, by how much all windows together may exceed
	// StreamWindow each, and how much of closed streams may wait for its
	// owner before new streams are refused. Default 16 MiB.
	Budget uint32

	// MaxFrame is the largest frame payload accepted, in bytes, 16 KiB to
	// 16 MiB-1. Default 64 KiB.
	MaxFrame uint32

	// MaxHeaderList bounds the decoded header list (RFC 9113, 6.5.2) and the
	// encoded header block, in bytes. Default 16 KiB.
	MaxHeaderList uint32

	// ExtendedConnect lets a server's clients use RFC 8441 (:protocol).
	ExtendedConnect bool

	// Informational delivers 1xx responses by OnHeaders; otherwise a client
	// skips them.
	Informational bool

	// NewStream, if set, returns the memory of a stream, all zero but for User: a part of
	// what its owner keeps of it.
	NewStream func() *Stream

	// Transient has the strings of a Header be valid during OnHeaders only. Otherwise they
	// may be kept, and each one is an allocation.
	Transient bool

	// Abuse sets what a peer may demand without getting anything done.
	Abuse AbuseLimits
}

// AbuseLimits bounds what costs us work and the peer next to nothing. A peer
// that exceeds one loses the connection with ENHANCE_YOUR_CALM.
type AbuseLimits struct {
	// Resets is how many streams in a row a peer may cancel before they were
	// answered, or have reset for breaking the protocol; ResetsPerSecond is
	// how fast that allowance returns. Defaults 1000 and 100.
	Resets, ResetsPerSecond int

	// EmptyData is the same for DATA frames without payload or END_STREAM.
	// Defaults 1000 and 100.
	EmptyData, EmptyDataPerSecond int

	// Noise is the same for frames that carry no application bytes: PING,
	// SETTINGS, PRIORITY, unknown types, small WINDOW_UPDATEs, 1xx. Each DATA
	// frame with payload, in either direction, gives one back.
	// Defaults 20000 and 10000.
	Noise, NoisePerSecond int

	// Unsent is how many control frames may wait in Output because the peer
	// does not read. Default 4096.
	Unsent int

	// Continuations is how many CONTINUATION frames may follow one HEADERS.
	// Default 16.
	Continuations int
}

// Handler receives what a peer's bytes mean. Its methods are called inline,
// from Receive (OnReset also from GoAway and Close), and may call every method
// of the Conn except Receive and New. They must not block.
type Handler interface {
	// OnHeaders delivers a request (server), a response (client), or trailers
	// (h.Trailer). h is valid during the call; its strings may be kept, but for
	// Config.Transient. end tells that the peer sends nothing more on s.
	OnHeaders(s *Stream, h *Header, end bool)

	// OnData delivers the next bytes of s, any part of a DATA frame. p is
	// valid during the call. It may be empty when end is true. The stream's
	// credit returns only by Consumed (or Release).
	OnData(s *Stream, p []byte, end bool)

	// OnReset tells that s is gone other than by the end of both directions
	// or by the owner's own Reset: the peer reset it, it broke the protocol,
	// or the connection ended. What was delivered before may still be used
	// up; call Consumed for it or Release. code.Retriable tells a client that
	// the request was not processed.
	OnReset(s *Stream, code ErrCode)

	// OnWritable tells that s, for which SendQuota had answered 0, may send.
	OnWritable(s *Stream)

	// OnGoAway tells that the peer accepts no new streams. Streams above last
	// have had OnReset(s, RefusedStream) before. debug is valid during the
	// call.
	OnGoAway(last uint32, code ErrCode, debug []byte)

	// OnSettings tells that the peer's settings arrived or changed: see
	// Available.
	OnSettings()

	// OnPong delivers the answer to a Ping of the owner.
	OnPong(data [8]byte)
}

// MalformedHandler is implemented by the Handler of a server that answers requests
// which must not be served, or logs them. Without it they are reset, and the Handler
// does not see them.
type MalformedHandler interface {
	// OnMalformed delivers a request that breaks RFC 9113 (status 400), or whose
	// header list is larger than Config.MaxHeaderList (status 431). h has the fields
	// before the fault, and is valid as in OnHeaders. The handler may answer on s by
	// Respond, Trailers and AppendData. The stream ends with the call: an answer that
	// is not complete is dropped.
	OnMalformed(s *Stream, h *Header, status int, why string)
}
