// Package otlp is the export of spans and log records in the protocol of OpenTelemetry:
// their encoding, and the queue of a loop in which senders share the room fairly. It
// does no IO.
package otlp

import (
	"encoding/binary"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Kind is the kind of a span, with OTLP's numbers.
type Kind uint8

// The kinds.
const (
	KindServer Kind = 2
	KindClient Kind = 3
)

// Status is the outcome of a span, with OTLP's numbers.
type Status uint8

// The outcomes. A span without an error has none.
const (
	StatusUnset Status = 0
	StatusError Status = 2
)

// Numbers of fields (opentelemetry/proto/trace/v1/trace.proto, common/v1/common.proto).
const (
	spanTraceID    = 1
	spanID         = 2
	spanState      = 3
	spanParent     = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanLinks      = 13
	spanStatus     = 15
	spanFlags      = 16

	linkTraceID = 1
	linkSpanID  = 2

	statusMessage = 2
	statusCode    = 3

	keyValueKey   = 1
	keyValueValue = 2

	valueString = 1
	valueBool   = 2
	valueInt    = 3
	valueDouble = 4
)

// Encoder makes one message of nested fields after the other. It keeps its memory.
type Encoder struct {
	b []byte
	// attributes is the field that attributes go to.
	attributes protowire.Number
}

// Span is the part of a span that every one has.
type Span struct {
	Trace        [16]byte
	ID, Parent   [8]byte // no parent: zeros
	State        []byte  // tracestate
	Name         []byte
	Kind         Kind
	Start, End   time.Time
	RemoteParent bool
}

// Flags of a span: the lowest bits are those of traceparent.
const (
	flagSampled   = 0x01
	flagHasRemote = 0x100
	flagIsRemote  = 0x200
)

// Begin starts a span; what it had before is gone.
func (e *Encoder) Begin(s *Span) {
	e.b, e.attributes = e.b[:0], spanAttributes
	e.bytes(spanTraceID, s.Trace[:])
	e.bytes(spanID, s.ID[:])
	if len(s.State) > 0 {
		e.bytes(spanState, s.State)
	}
	flags := uint32(flagSampled | flagHasRemote)
	if s.Parent != [8]byte{} {
		e.bytes(spanParent, s.Parent[:])
	}
	if s.RemoteParent {
		flags |= flagIsRemote
	}
	e.b = appendText(protowire.AppendTag(e.b, spanName, protowire.BytesType), s.Name)
	e.varint(spanKind, uint64(s.Kind))
	e.fixed(spanStart, nanos(s.Start))
	e.fixed(spanEnd, nanos(s.End))
	e.b = protowire.AppendFixed32(protowire.AppendTag(e.b, spanFlags, protowire.Fixed32Type), flags)
}

// Link adds a span of another trace that this one has to do with.
func (e *Encoder) Link(trace [16]byte, span [8]byte) {
	const size = 2 + len(trace) + 2 + len(span)
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, spanLinks, protowire.BytesType), uint64(size))
	e.bytes(linkTraceID, trace[:])
	e.bytes(linkSpanID, span[:])
}

// Fail gives the span the status of an error.
func (e *Encoder) Fail(message string) {
	at := e.open(spanStatus)
	if message != "" {
		e.b = appendText(protowire.AppendTag(e.b, statusMessage, protowire.BytesType), message)
	}
	e.varint(statusCode, uint64(StatusError))
	e.close(at)
}

// Bytes returns what was made since Begin. It is valid until the next Begin.
func (e *Encoder) Bytes() []byte { return e.b }

func nanos(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }

func (e *Encoder) bytes(n protowire.Number, v []byte) {
	e.b = protowire.AppendBytes(protowire.AppendTag(e.b, n, protowire.BytesType), v)
}

func (e *Encoder) varint(n protowire.Number, v uint64) {
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, n, protowire.VarintType), v)
}

func (e *Encoder) fixed(n protowire.Number, v uint64) {
	e.b = protowire.AppendFixed64(protowire.AppendTag(e.b, n, protowire.Fixed64Type), v)
}

// open begins a nested message, whose length close fills in. Two bytes are left for the
// length, which is what nearly all need.
func (e *Encoder) open(n protowire.Number) (at int) {
	e.b = append(protowire.AppendTag(e.b, n, protowire.BytesType), 0, 0)
	return len(e.b)
}

// twoBytes is the longest length in two bytes.
const twoBytes = 1<<14 - 1

func (e *Encoder) close(at int) {
	n := len(e.b) - at
	if n <= twoBytes {
		// A varint may be longer than it need be.
		e.b[at-2], e.b[at-1] = byte(n)|0x80, byte(n>>7)
		return
	}
	var size [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(size[:], uint64(n))
	e.b = append(e.b, size[:k-2]...) // room
	copy(e.b[at+k-2:], e.b[at:at+n])
	copy(e.b[at-2:], size[:k])
}

// String adds an attribute, unless its value is empty.
func String[T []byte | string](e *Encoder, key string, v T) {
	if len(v) == 0 {
		return
	}
	at := e.open(e.attributes)
	e.key(key)
	value := e.open(keyValueValue)
	e.b = appendText(protowire.AppendTag(e.b, valueString, protowire.BytesType), cutText(v))
	e.close(value)
	e.close(at)
}

// Int adds an attribute that is a number.
func (e *Encoder) Int(key string, v int64) {
	at := e.open(e.attributes)
	e.key(key)
	value := e.open(keyValueValue)
	e.varint(valueInt, uint64(v))
	e.close(value)
	e.close(at)
}

// Bool adds an attribute that is true or false.
func (e *Encoder) Bool(key string, v bool) {
	at := e.open(e.attributes)
	e.key(key)
	value := e.open(keyValueValue)
	e.varint(valueBool, protowire.EncodeBool(v))
	e.close(value)
	e.close(at)
}

// Double adds an attribute that is a fraction.
func (e *Encoder) Double(key string, v float64) {
	at := e.open(e.attributes)
	e.key(key)
	value := e.open(keyValueValue)
	e.fixed(valueDouble, math.Float64bits(v))
	e.close(value)
	e.close(at)
}

func (e *Encoder) key(k string) {
	e.b = protowire.AppendString(protowire.AppendTag(e.b, keyValueKey, protowire.BytesType), k)
}
