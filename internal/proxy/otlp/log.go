package otlp

import (
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Numbers of fields of a log record (opentelemetry/proto/logs/v1/logs.proto). A request
// of them has the same form as one of spans.
const (
	logTime       = 1
	logSeverity   = 2
	logBody       = 5
	logAttributes = 6
	logTraceID    = 9
	logObserved   = 11
)

// Severities, with OTLP's numbers.
const (
	SeverityInfo  = 9
	SeverityError = 17
)

// BeginLog starts a log record; what the encoder had before is gone. trace is in
// hexadecimal digits, empty for none.
func (e *Encoder) BeginLog(at, observed time.Time, severity int, body, trace []byte) {
	e.b, e.attributes = e.b[:0], logAttributes
	e.fixed(logTime, nanos(at))
	e.fixed(logObserved, nanos(observed))
	e.varint(logSeverity, uint64(severity))
	value := e.open(logBody)
	e.b = appendText(protowire.AppendTag(e.b, valueString, protowire.BytesType), body)
	e.close(value)
	var id [16]byte
	if len(trace) == hex.EncodedLen(len(id)) {
		if _, err := hex.Decode(id[:], trace); err == nil {
			e.bytes(logTraceID, id[:])
		}
	}
}
