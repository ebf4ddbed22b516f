package connect

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// Trace is a W3C trace context: it joins the log lines of one connection on both nodes,
// and its spans. The zero value is none. Comparable.
type Trace struct {
	ID   [16]byte
	Span [8]byte
	// Decision is what the beginning of the trace has decided about its sampling.
	Decision Decision
}

// Decision is whether a trace is sampled.
type Decision uint8

// The decisions.
const (
	Undecided Decision = iota // whoever sends spans decides
	Dropped
	Sampled
)

// Flags of a traceparent. Upstream's node proxies send none of them, and decide nothing.
// A proxy that has decided against a trace sends that its ID is random (W3C Trace Context,
// level 2), and not that it is sampled.
const (
	flagSampled = 0x01
	flagRandom  = 0x02
)

// NewTrace draws a random one, about which nothing is decided.
func NewTrace() Trace {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	var t Trace
	copy(t.ID[:], b[:16])
	copy(t.Span[:], b[16:])
	return t
}

// IsZero reports whether there is none.
func (t Trace) IsZero() bool { return t == Trace{} }

// traceparentLen is version-id-span-flags: 2+1+32+1+16+1+2.
const traceparentLen = 55

// String renders the traceparent header.
func (t Trace) String() string {
	b := make([]byte, 0, traceparentLen)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.ID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, t.Span[:])
	flags := byte(0)
	switch t.Decision {
	case Undecided:
	case Dropped:
		flags = flagRandom
	case Sampled:
		flags = flagSampled
	}
	return string(append(b, '-', '0', '0'+flags))
}

// TraceID is the 32 hex digits that a log line carries.
func (t Trace) TraceID() string {
	if t.IsZero() {
		return ""
	}
	return hex.EncodeToString(t.ID[:])
}

// ParseTrace reads a traceparent header (W3C Trace Context, section 3.2):
// version 00, lower case, neither id all zero.
func ParseTrace(s string) (Trace, error) {
	var t Trace
	bad := fmt.Errorf("%w: traceparent %.60q", ErrMalformed, s)
	if len(s) != traceparentLen || s[:3] != "00-" || s[35] != '-' || s[52] != '-' || strings.ToLower(s) != s {
		return Trace{}, bad
	}
	if _, err := hex.Decode(t.ID[:], []byte(s[3:35])); err != nil {
		return Trace{}, bad
	}
	if _, err := hex.Decode(t.Span[:], []byte(s[36:52])); err != nil {
		return Trace{}, bad
	}
	var flags [1]byte
	if _, err := hex.Decode(flags[:], []byte(s[53:])); err != nil || t.ID == [16]byte{} || t.Span == [8]byte{} {
		return Trace{}, bad
	}
	switch {
	case flags[0]&flagSampled != 0:
		t.Decision = Sampled
	case flags[0]&flagRandom != 0:
		t.Decision = Dropped
	}
	return t, nil
}
