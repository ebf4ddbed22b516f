// Package codec makes messages of the bytes of a stream.Conn, and bytes of
// messages. HTTP/1 and HTTP/2 look alike to what is above: one exchange is a
// Response on the server's side and a Request on the client's side, and a Receiver
// gets what the peer sends.
//
// Everything of a connection happens on its loop. What is written gathers until
// the end of the loop's turn.
package codec

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Lengths of a body that is not a count of bytes.
const (
	Chunked = http1.Chunked // until the sender ends it
	Raw     = http1.Raw     // no HTTP follows: after CONNECT or a switch of protocols
)

// Receiver gets one message: a request on the server's side, a response on the
// client's. Its methods run on the loop and may call every method of the stream.
type Receiver interface {
	// OnHead delivers the head; of a response also each 1xx before it. h is valid
	// during the call and may be changed. A request that may switch the protocol
	// (CONNECT, or h.Protocol is set) has no body. Its OnEnd comes when the raw
	// bytes end, or not at all if the response does not switch.
	OnHead(h *message.Head, body http1.Body)
	// OnData delivers bytes of the body, or raw bytes. p is valid during the call,
	// and never empty. Credit for it comes back by Consumed alone.
	OnData(p []byte)
	// OnTrailers delivers the trailers, if there are any. OnEnd follows.
	OnTrailers(h *message.Head)
	// OnEnd reports the end of the message.
	OnEnd()
	// OnWritable follows a Data that reported false, once there is room.
	OnWritable()
	// OnAbort is the last call: the stream was cut.
	OnAbort(Cut)
}

// Cut is how a stream ended before its time.
type Cut struct {
	Reason reason.Reason
	Err    error // may be nil
	// Unprocessed: the peer has certainly done nothing with the request.
	Unprocessed bool
	// Lost: the connection ended, and nothing of a response to this request arrived.
	Lost bool
	// Stale: the connection had carried requests before, and nothing of a response
	// to this one arrived. The peer may have closed it before it got the request.
	Stale bool
}

// Stream is what both ends of an exchange have.
type Stream interface {
	// Data sends bytes of the body, or raw bytes. It takes all of p, and reports
	// false when the receiver should get no more until OnWritable.
	Data(p []byte) bool
	// Finish ends the message, with trailers or nil. Of raw bytes the other
	// direction goes on. After that of a response, its Receiver is not called any
	// more, though the request may not have ended.
	Finish(trailers *message.Head)
	// Abort cuts the exchange. The Receiver is not called any more.
	Abort(reason.Reason)
	// Consumed gives credit back for n bytes that OnData delivered.
	Consumed(n int)
	// Release is the last call: the caller keeps no reference, and the memory of the
	// exchange may be used for another one from the next turn on. It does not end the
	// exchange. A caller may leave it out.
	Release()
}

// Response is the server's end of an exchange.
type Response interface {
	Stream
	// Inform sends a 1xx response, but for 101.
	Inform(h *message.Head)
	// Respond sends the head of the final response, with a body of length bytes or
	// Chunked. Of the answer to HEAD and of 304 it is the length that would have
	// been. A response that switches protocols makes both directions raw; length is
	// Raw then. It reports false when h cannot be sent: then nothing was.
	Respond(h *message.Head, length int64) bool
}

// Request is the client's end of an exchange.
type Request interface {
	Stream
	// Send sends the head of the request, with a body of length bytes or Chunked.
	// It is called once, first. An error is one of h, and nothing was sent.
	Send(h *message.Head, length int64, r Receiver) error
}

// Timeouts of a server's connection. Zero is none.
type Timeouts struct {
	Idle time.Duration // without a request
	Head time.Duration // from the first byte of a head to its last
}

// ServerConfig is what the server connections of one kind share.
type ServerConfig struct {
	// Accept returns who gets a request, before OnHead.
	Accept func(Response) Receiver
	// Refused is called for a request whose head was refused. It may be nil.
	Refused func(status int, err error)
	// Closed is called on the loop when the connection has ended. It may be nil.
	Closed   func(reason.Reason)
	Timeouts Timeouts
	// MaxStreams bounds the requests of an HTTP/2 connection (default 100).
	MaxStreams uint32
}

// Server is a connection that gets requests.
type Server interface {
	stream.Sink
	// Last makes the request under way the last one, or the next one when the client
	// cannot learn it from this answer. A connection that is idle stays until then.
	Last()
	// Drain makes the request under way the last one; without one the connection
	// ends.
	Drain()
	// Close cuts the connection. ServerConfig.Closed is called.
	Close(reason.Reason)
}

// Client is a connection that sends requests.
type Client interface {
	// Room is how many requests can be sent now.
	Room() int
	// Open returns a new exchange. Room must not be 0.
	Open() Request
	// Active is how many exchanges are under way.
	Active() int
	// Close ends the connection: at once when nothing is under way, else behind it.
	Close()
	// Fail cuts the connection.
	Fail(reason.Reason)
}

// ClientOwner is what a Client reports to. Its methods run on the loop.
type ClientOwner interface {
	// OnRoom reports that Room may have grown.
	OnRoom(Client)
	// OnGone reports that the connection takes no requests any more. It comes once.
	// Exchanges under way go on.
	OnGone(Client)
}

// since reports whether d has passed after at, and how much is left.
func since(l *poll.Loop, at time.Time, d time.Duration) (left time.Duration, over bool) {
	left = d - l.Now().Sub(at)
	return left, left <= 0
}
