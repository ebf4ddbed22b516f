package h2

import (
	"errors"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113, section 7).
type ErrCode uint32

// The error codes of RFC 9113, section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var errCodeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
	"CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String is the code's name in RFC 9113.
func (c ErrCode) String() string {
	if int(c) < len(errCodeNames) {
		return errCodeNames[c]
	}
	return fmt.Sprintf("unknown error code 0x%x", uint32(c))
}

// Retriable tells that the peer did nothing with the request: it may be sent
// again, on another connection.
func (c ErrCode) Retriable() bool { return c == RefusedStream }

// ConnError ends a connection: the peer broke the protocol or a limit. The
// GOAWAY that says so is in Output.
type ConnError struct {
	Code   ErrCode
	Reason string
}

// Error implements error.
func (e *ConnError) Error() string {
	return fmt.Sprintf("HTTP/2 connection error %s: %s", e.Code, e.Reason)
}

// What Open, Respond and Trailers can fail with.
var (
	// ErrTooManyStreams: Open would exceed the peer's limit or our own.
	ErrTooManyStreams = errors.New("no more streams on this HTTP/2 connection now")
	// ErrGoingAway: the connection takes no new streams: GOAWAY was sent or
	// received, or stream numbers are used up.
	ErrGoingAway = errors.New("HTTP/2 connection is going away")
	// ErrClosed: the connection or stream has ended.
	ErrClosed = errors.New("HTTP/2 connection or stream is closed")
	// ErrHeaderList: the header list is larger than the peer accepts.
	ErrHeaderList = errors.New("header list exceeds the peer's SETTINGS_MAX_HEADER_LIST_SIZE")
	// ErrMalformed: the header list must not be sent (RFC 9113, 8.2 and 8.3).
	ErrMalformed = errors.New("malformed HTTP/2 header list")
	// ErrState: headers at a moment when the stream permits none.
	ErrState = errors.New("HTTP/2 stream permits no headers now")
)
