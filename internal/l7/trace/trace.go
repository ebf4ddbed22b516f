// Package trace is the context of distributed traces: how it comes in the headers of a
// request and leaves in them, in the forms of W3C Trace Context and B3, and which
// requests are sampled. Values in, values out.
package trace

import (
	"encoding/binary"
	"encoding/hex"
)

// IDs of traces and spans. All zeros is none.
type (
	// ID names a trace.
	ID [16]byte
	// SpanID names one span of a trace.
	SpanID [8]byte
)

// Decision is what the sender of a request has decided about its sampling.
type Decision uint8

// The decisions.
const (
	Undecided Decision = iota
	Dropped
	Sampled
)

// Forms are the headers that a context came in, as a set.
type Forms uint8

// The forms.
const (
	W3C      Forms = 1 << iota // traceparent
	B3Single                   // b3
	B3Multi                    // x-b3-traceid and others
)

// Context is where a request stands in a trace.
type Context struct {
	Trace    ID
	Span     SpanID // of the sender; zero without one
	Decision Decision
	Forms    Forms
}

// Valid reports whether there is a trace.
func (c *Context) Valid() bool { return c.Trace != ID{} }

const (
	lenTraceparent = 55 // version-trace-span-flags: 2+1+32+1+16+1+2
	flagSampled    = 1
)

// parseTraceparent reads a traceparent (W3C Trace Context, 3.2). Of a version that is not
// known, it reads the part that all versions have.
func parseTraceparent(v []byte) (c Context, ok bool) {
	if len(v) < lenTraceparent || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return Context{}, false
	}
	var version, flags [1]byte
	if !lowerHex(version[:], v[:2]) || !lowerHex(c.Trace[:], v[3:35]) || !lowerHex(c.Span[:], v[36:52]) || !lowerHex(flags[:], v[53:55]) {
		return Context{}, false
	}
	switch {
	case version[0] == 0xff, version[0] == 0 && len(v) != lenTraceparent, len(v) > lenTraceparent && v[lenTraceparent] != '-':
		return Context{}, false
	case c.Trace == ID{}, c.Span == SpanID{}:
		return Context{}, false
	}
	c.Decision, c.Forms = Dropped, W3C
	if flags[0]&flagSampled != 0 {
		c.Decision = Sampled
	}
	return c, true
}

// lowerHex decodes hexadecimal digits of which the letters are small.
func lowerHex(dst, src []byte) bool {
	for _, c := range src {
		if (c < '0' || '9' < c) && (c < 'a' || 'f' < c) {
			return false
		}
	}
	_, err := hex.Decode(dst, src)
	return err == nil
}

// parseB3 reads the header b3: a decision alone, or trace-span, which a decision and the
// parent's span may follow. The parent's is not looked at.
func parseB3(v []byte) (c Context, ok bool) {
	c.Forms = B3Single
	if len(v) == 1 {
		c.Decision = b3Decision(v)
		return c, c.Decision != Undecided
	}
	trace, rest, found := cut(v)
	if !found {
		return Context{}, false
	}
	span, rest, more := cut(rest)
	if !parseB3ID(&c.Trace, trace) || !parseB3Span(&c.Span, span) {
		return Context{}, false
	}
	if more {
		decision, parent, last := cut(rest)
		var p SpanID
		if c.Decision = b3Decision(decision); c.Decision == Undecided || last && !parseB3Span(&p, parent) {
			return Context{}, false
		}
	}
	return c, true
}

// cut divides at the first hyphen.
func cut(v []byte) (before, after []byte, found bool) {
	for i, c := range v {
		if c == '-' {
			return v[:i], v[i+1:], true
		}
	}
	return v, nil, false
}

// b3Decision reads what B3 has for a decision; d is one for debugging.
func b3Decision(v []byte) Decision {
	switch string(v) {
	case "1", "d", "true":
		return Sampled
	case "0", "false":
		return Dropped
	}
	return Undecided
}

// parseB3ID reads a trace of 128 or 64 bits.
func parseB3ID(id *ID, v []byte) bool {
	switch len(v) {
	case 2 * len(id):
		_, err := hex.Decode(id[:], v)
		return err == nil && *id != ID{}
	case len(id):
		_, err := hex.Decode(id[len(id)/2:], v)
		return err == nil && *id != ID{}
	}
	return false
}

func parseB3Span(id *SpanID, v []byte) bool {
	if len(v) != 2*len(id) {
		return false
	}
	_, err := hex.Decode(id[:], v)
	return err == nil && *id != SpanID{}
}

// Traceparent renders the header.
func (c *Context) Traceparent(dst *[lenTraceparent]byte) []byte {
	copy(dst[:], "00-")
	hex.Encode(dst[3:], c.Trace[:])
	dst[35] = '-'
	hex.Encode(dst[36:], c.Span[:])
	copy(dst[52:], "-00")
	if c.Decision == Sampled {
		dst[54] = '1'
	}
	return dst[:]
}

// lenB3 is trace-span-decision.
const lenB3 = 51

// b3 renders the header.
func (c *Context) b3(dst *[lenB3]byte) []byte {
	hex.Encode(dst[:], c.Trace[:])
	dst[32] = '-'
	hex.Encode(dst[33:], c.Span[:])
	dst[49], dst[50] = '-', '0'
	if c.Decision == Sampled {
		dst[50] = '1'
	}
	return dst[:]
}

// NewID makes an ID of random numbers, NewSpanID one of a span.
func NewID(a, b uint64) (id ID) {
	binary.BigEndian.PutUint64(id[:8], a)
	binary.BigEndian.PutUint64(id[8:], b|1) // never all zeros
	return id
}

// NewSpanID makes the ID of a span of a random number.
func NewSpanID(a uint64) (id SpanID) {
	binary.BigEndian.PutUint64(id[:], max(a, 1))
	return id
}

// Share is how many of the requests are sampled about which nothing is decided.
type Share struct {
	below uint64
	all   bool
}

// Percent returns a share.
func Percent(p float64) Share {
	const whole = 1 << 63
	switch {
	case p >= 100:
		return Share{all: true}
	case p > 0:
		return Share{below: uint64(p / 100 * whole)}
	}
	return Share{}
}

// Take reports whether a request is sampled: as its sender has decided, else by a random
// number.
func (s Share) Take(d Decision, random uint64) bool {
	switch d {
	case Sampled:
		return true
	case Dropped:
		return false
	case Undecided:
	}
	return s.all || random>>1 < s.below
}

// IDOf returns the trace in a traceparent, nil when it is none: what stands in a log is
// what a search would find.
func IDOf(traceparent []byte) []byte {
	if c, ok := parseTraceparent(traceparent); !ok || !c.Valid() {
		return nil
	}
	return traceparent[3:35]
}
