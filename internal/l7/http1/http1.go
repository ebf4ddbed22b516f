// Package http1 is an HTTP/1.1 connection (RFC 9112) as a state machine
// without IO: bytes from the peer go in by Conn.Receive, what they mean comes
// out through a Handler. The writers append bytes for the peer to a buffer of
// the caller.
//
// A Conn has no goroutines, locks, timers or clock. One goroutine at a time may
// use it. Bodies are never copied on the way in, and a head is copied only when
// it arrives in pieces.
//
// The parser is strict: what two programs could read in two ways is a fault,
// and nothing of such a connection is used after it. A Conn holds at most
// MaxHead bytes. A server reads one request at a time: what follows waits with
// the caller until the answer is complete, so pipelining costs no memory here.
package http1

import "github.com/ambit-mesh/ambit/internal/l7/message"

// Limits of what a peer may send.
const (
	// MaxHead bounds a head, in bytes. Servers commonly accept 8 to 64 KiB.
	MaxHead = 60 << 10
	// MaxStartLine bounds a start line, in bytes: RFC 9112, 3 asks for at least 8000.
	MaxStartLine = 8 << 10
	// MaxFields bounds the fields of a head: look-ups walk over them.
	MaxFields = 100
	// MaxTrailers bounds a trailer section, in bytes. gRPC's status message is the longest known use.
	MaxTrailers = 16 << 10
	// MaxExtension bounds the extensions of one chunk, in bytes. No known program uses more than a signature.
	MaxExtension = 256
	// MaxExtensions bounds the extensions of one body, in bytes: they cost work and carry nothing.
	MaxExtensions = 4 << 10
	// MaxInforms bounds the 1xx responses before the final one.
	MaxInforms = 32
)

// Lengths of a body that is not a count of bytes.
const (
	Chunked    = -1 // until the last chunk
	UntilClose = -2 // until the peer closes: responses only
	Raw        = -3 // no HTTP follows: after CONNECT or a switch of protocols
)

// Body is how a message goes on after its head.
type Body struct {
	Length int64 // of bytes, or Chunked, UntilClose, Raw
	Expect bool  // the client waits for 100 Continue before it sends the body
}

// Handler receives what a peer's bytes mean. Its methods are called from
// Receive and End and may call the writers of the Conn.
type Handler interface {
	// OnHead delivers a request (server) or a response (client), 1xx included.
	// h and its bytes are valid during the call. A head that may switch the
	// protocol (CONNECT, Upgrade) has h.Method or h.Protocol set. Its OnEnd
	// comes only when the raw bytes end.
	OnHead(h *message.Head, body Body)
	// OnData delivers the next bytes of the body, or of the raw stream. p is
	// valid during the call and never empty.
	OnData(p []byte)
	// OnTrailers delivers the trailers of a chunked body, if it has any.
	OnTrailers(h *message.Head)
	// OnEnd reports the end of the message, or of the raw bytes.
	OnEnd()
}

// Why a message is refused beside the faults of package message.
var (
	ErrBareLF       = message.NewFault(400, "line ends without a carriage return")
	ErrFold         = message.NewFault(400, "folded field line")
	ErrNoColon      = message.NewFault(400, "field line without a colon")
	ErrStartLine    = message.NewFault(400, "malformed start line")
	ErrVersion      = message.NewFault(505, "version of HTTP is neither 1.0 nor 1.1")
	ErrLineTooLong  = message.NewFault(414, "start line too long")
	ErrHeadTooLarge = message.NewFault(431, "head too large")
	ErrLength       = message.NewFault(400, "invalid Content-Length")
	ErrTwoLengths   = message.NewFault(400, "more than one Content-Length")
	ErrBothLengths  = message.NewFault(400, "both Content-Length and Transfer-Encoding")
	ErrCoding       = message.NewFault(400, "invalid Transfer-Encoding")
	ErrCodingOther  = message.NewFault(501, "transfer coding other than chunked")
	ErrCodingOld    = message.NewFault(400, "Transfer-Encoding in HTTP/1.0")
	ErrUnwantedBody = message.NewFault(400, "message must not have a body")
	ErrExpect       = message.NewFault(417, "expectation other than 100-continue")
	ErrChunk        = message.NewFault(400, "malformed chunk")
	ErrChunkExt     = message.NewFault(400, "chunk extensions too long")
	ErrTruncated    = message.NewFault(400, "connection closed within a message")
	ErrUnasked      = message.NewFault(400, "bytes after the response, or a response to nothing")
	ErrSwitch       = message.NewFault(400, "protocol switched without a request for it")
	ErrInforms      = message.NewFault(400, "too many interim responses")
)
