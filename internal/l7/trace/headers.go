package trace

import (
	"bytes"
	"encoding/hex"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

var (
	keyTraceparent = message.NewKey("traceparent")
	keyTracestate  = message.NewKey("tracestate")
	keyB3          = message.NewKey("b3")
	keyB3Trace     = message.NewKey("x-b3-traceid")
	keyB3Span      = message.NewKey("x-b3-spanid")
	keyB3Parent    = message.NewKey("x-b3-parentspanid")
	keyB3Sampled   = message.NewKey("x-b3-sampled")
	keyB3Flags     = message.NewKey("x-b3-flags")
)

// Extract reads the context of a request. traceparent counts before b3, and that before
// x-b3-traceid. A header that comes twice, or cannot be read, is none. Without a trace,
// there may be a decision.
func Extract(h *message.Head) (c Context) {
	var b3 Context
	var multi b3Fields
	parents, singles := 0, 0
	for i := range h.Fields {
		f := &h.Fields[i]
		switch {
		case f.ID == message.Traceparent:
			if parents++; parents == 1 {
				c, _ = parseTraceparent(f.Value)
			} else {
				c = Context{}
			}
		case f.ID != message.Other:
		case keyB3.Is(f):
			if singles++; singles == 1 {
				b3, _ = parseB3(f.Value)
			} else {
				b3 = Context{}
			}
		case len(f.Name) > len(prefixB3) && message.EqualFold(f.Name[:len(prefixB3)], prefixB3):
			multi.take(f)
		}
	}
	forms := Forms(0)
	if singles > 0 {
		forms |= B3Single
	}
	if multi.any {
		forms |= B3Multi
	}
	if !c.Valid() {
		c = b3
	}
	if !c.Valid() {
		if m := multi.context(); m.Valid() || c.Decision == Undecided {
			c = m
		}
	}
	c.Forms |= forms
	return c
}

const prefixB3 = "x-b3-"

// b3Fields are the headers of B3, one for each part.
type b3Fields struct {
	trace, span, sampled, flags []byte
	twice, any                  bool
}

func (m *b3Fields) take(f *message.Field) {
	var at *[]byte
	switch {
	case keyB3Trace.Is(f):
		at = &m.trace
	case keyB3Span.Is(f):
		at = &m.span
	case keyB3Sampled.Is(f):
		at = &m.sampled
	case keyB3Flags.Is(f):
		at = &m.flags
	default:
		return
	}
	m.any = true
	m.twice = m.twice || *at != nil
	*at = f.Value
}

func (m *b3Fields) context() (c Context) {
	if m.twice || !m.any {
		return Context{}
	}
	if c.Decision = b3Decision(m.sampled); string(m.flags) == "1" {
		c.Decision = Sampled
	}
	if m.trace == nil && m.span == nil {
		return c
	}
	if !parseB3ID(&c.Trace, m.trace) || !parseB3Span(&c.Span, m.span) {
		return Context{}
	}
	return c
}

// Inject puts a context into the headers of a request: traceparent, and the forms of B3
// that the request came with. fresh: the trace begins here, so that tracestate, which is
// of another one, goes.
func Inject(h *message.Head, c *Context, fresh bool) {
	var w [lenTraceparent]byte
	if fresh {
		h.Remove(keyTracestate)
	}
	h.Set(keyTraceparent, c.Traceparent(&w))
	if c.Forms&B3Single != 0 {
		var b [lenB3]byte
		h.Set(keyB3, c.b3(&b))
	}
	if c.Forms&B3Multi != 0 {
		var t [2 * len(c.Trace)]byte
		var s [2 * len(c.Span)]byte
		hex.Encode(t[:], c.Trace[:])
		hex.Encode(s[:], c.Span[:])
		h.Set(keyB3Trace, t[:])
		h.Set(keyB3Span, s[:])
		h.Remove(keyB3Parent)
		h.Remove(keyB3Flags)
		sampled := zero
		if c.Decision == Sampled {
			sampled = one
		}
		h.Set(keyB3Sampled, sampled)
	}
}

var zero, one = []byte("0"), []byte("1")

// Strip removes every context from the headers.
func Strip(h *message.Head) {
	h.RemoveFunc(func(_ int, f *message.Field) bool {
		return f.ID == message.Traceparent || f.ID == message.Tracestate || keyB3.Is(f) ||
			f.ID == message.Other && len(f.Name) > len(prefixB3) && message.EqualFold(f.Name[:len(prefixB3)], prefixB3)
	})
}

// maxState bounds the tracestate that a span keeps, in bytes (W3C Trace Context, 3.3.1.5).
const maxState = 512

// State returns the tracestate of a request for a span, nil when it has none or cannot be
// kept.
func State(h *message.Head) []byte {
	i := h.Index(message.Tracestate, 0)
	if i < 0 || h.Index(message.Tracestate, i+1) >= 0 {
		return nil
	}
	v := h.Fields[i].Value
	if len(v) > maxState || bytes.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil
	}
	return v
}
