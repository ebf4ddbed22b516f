package trace

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

const (
	aTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	aSpan  = "00f067aa0ba902b7"
	parent = "00-" + aTrace + "-" + aSpan + "-01"
)

// head makes one of names and values.
func head(fields ...string) *message.Head {
	h := &message.Head{}
	for i := 0; i+1 < len(fields); i += 2 {
		h.Add(message.NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

// TestExtract: what each form of a context says, and what is none.
func TestExtract(t *testing.T) {
	long := strings.Repeat("f", 100_000)
	for _, tt := range []struct {
		name     string
		fields   []string
		trace    string // "" for none
		span     string
		decision Decision
		forms    Forms
	}{
		{"nothing", nil, "", "", Undecided, 0},
		{"sampled", []string{"traceparent", parent}, aTrace, aSpan, Sampled, W3C},
		{"dropped", []string{"Traceparent", strings.TrimSuffix(parent, "1") + "0"}, aTrace, aSpan, Dropped, W3C},
		{"other flags", []string{"traceparent", strings.TrimSuffix(parent, "01") + "fe"}, aTrace, aSpan, Dropped, W3C},
		{"a later version", []string{"traceparent", "cc" + parent[2:] + "-what-comes"}, aTrace, aSpan, Sampled, W3C},
		{"a later version without a hyphen", []string{"traceparent", "cc" + parent[2:] + "."}, "", "", Undecided, 0},
		{"this version, longer", []string{"traceparent", parent + "-x"}, "", "", Undecided, 0},
		{"version ff", []string{"traceparent", "ff" + parent[2:]}, "", "", Undecided, 0},
		{"capitals", []string{"traceparent", strings.ToUpper(parent)}, "", "", Undecided, 0},
		{"no trace", []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-" + aSpan + "-01"}, "", "", Undecided, 0},
		{"no span", []string{"traceparent", "00-" + aTrace + "-" + strings.Repeat("0", 16) + "-01"}, "", "", Undecided, 0},
		{"twice", []string{"traceparent", parent, "traceparent", parent}, "", "", Undecided, 0},
		{"huge", []string{"traceparent", parent + long, "b3", long, "x-b3-traceid", long, "x-b3-spanid", long}, "", "", Undecided, B3Single | B3Multi},
		{"b3", []string{"b3", aTrace + "-" + aSpan + "-1-05e3ac9a4f6e3b90"}, aTrace, aSpan, Sampled, B3Single},
		{"b3, debug", []string{"b3", aTrace + "-" + aSpan + "-d"}, aTrace, aSpan, Sampled, B3Single},
		{"b3, undecided", []string{"b3", aTrace + "-" + aSpan}, aTrace, aSpan, Undecided, B3Single},
		{"b3 of 64 bits", []string{"b3", aSpan + "-" + aSpan + "-0"}, strings.Repeat("0", 16) + aSpan, aSpan, Dropped, B3Single},
		{"b3, a decision", []string{"B3", "0"}, "", "", Dropped, B3Single},
		{"b3, nonsense", []string{"b3", aTrace + "-" + aSpan + "-2"}, "", "", Undecided, B3Single},
		{"b3, a parent that is none", []string{"b3", aTrace + "-" + aSpan + "-1-xyz"}, "", "", Undecided, B3Single},
		{"headers of b3", []string{"X-B3-TraceId", aTrace, "X-B3-SpanId", aSpan, "X-B3-Sampled", "1"}, aTrace, aSpan, Sampled, B3Multi},
		{"headers of b3, debug", []string{"X-B3-TraceId", aTrace, "X-B3-SpanId", aSpan, "X-B3-Flags", "1"}, aTrace, aSpan, Sampled, B3Multi},
		{"headers of b3, old decision", []string{"X-B3-TraceId", aTrace, "X-B3-SpanId", aSpan, "X-B3-Sampled", "false"}, aTrace, aSpan, Dropped, B3Multi},
		{"headers of b3, a decision", []string{"X-B3-Sampled", "0"}, "", "", Dropped, B3Multi},
		{"headers of b3, twice", []string{"X-B3-TraceId", aTrace, "X-B3-TraceId", aTrace, "X-B3-SpanId", aSpan}, "", "", Undecided, B3Multi},
		{"headers of b3, no span", []string{"X-B3-TraceId", aTrace, "X-B3-Sampled", "1"}, "", "", Undecided, B3Multi},
		{"all: traceparent counts", []string{"b3", "1" + aTrace[1:] + "-" + aSpan + "-0", "traceparent", parent, "X-B3-Sampled", "0"}, aTrace, aSpan, Sampled, W3C | B3Single | B3Multi},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Extract(head(tt.fields...))
			trace, span := "", ""
			if got.Valid() {
				trace, span = hex.EncodeToString(got.Trace[:]), hex.EncodeToString(got.Span[:])
			}
			if trace != tt.trace || span != tt.span || got.Decision != tt.decision || got.Forms != tt.forms {
				t.Errorf("%s %s, decision %v, forms %v", trace, span, got.Decision, got.Forms)
			}
		})
	}
}

// TestInject: a context leaves in traceparent, and in the forms that it came in.
func TestInject(t *testing.T) {
	h := head("traceparent", "bad", "tracestate", "a=b", "X-B3-TraceId", "x", "X-B3-ParentSpanId", "y", "X-B3-Flags", "1", "b3", "z", "keep", "me")
	c := Extract(h)
	c.Trace, c.Span, c.Decision = NewID(1, 2), NewSpanID(3), Sampled
	Inject(h, &c, true)
	want := map[string]string{
		"traceparent":  "00-00000000000000010000000000000003-0000000000000003-01",
		"b3":           "00000000000000010000000000000003-0000000000000003-1",
		"X-B3-TraceId": "00000000000000010000000000000003", "X-B3-SpanId": "0000000000000003", "X-B3-Sampled": "1", "keep": "me",
	}
	if len(h.Fields) != len(want) {
		t.Errorf("%d fields: %+v", len(h.Fields), h.Fields)
	}
	for name, v := range want {
		if i := h.Find(message.NewKey(name), 0); i < 0 || string(h.Fields[i].Value) != v {
			t.Errorf("%s is not %s: %+v", name, v, h.Fields)
		}
	}
	h = head("traceparent", parent, "tracestate", "a=b")
	c = Extract(h)
	Inject(h, &c, false)
	if string(h.Get(message.Traceparent)) != parent || string(h.Get(message.Tracestate)) != "a=b" || len(h.Fields) != 2 {
		t.Errorf("%+v", h.Fields)
	}
	Strip(h)
	if len(h.Fields) != 0 {
		t.Errorf("%+v", h.Fields)
	}
}

// TestShare: the sender's decision counts, and without one the share.
func TestShare(t *testing.T) {
	for _, p := range []float64{-1, 0, 0.01, 50, 100, 101} {
		if s := Percent(p); !s.Take(Sampled, 1<<64-1) || s.Take(Dropped, 0) {
			t.Errorf("%v: the decision of the sender does not count", p)
		}
	}
	none, all, half := Percent(0), Percent(100), Percent(50)
	if none.Take(Undecided, 0) || !all.Take(Undecided, 1<<64-1) || !half.Take(Undecided, 1<<63-1) || half.Take(Undecided, 1<<63) {
		t.Error("the share is another")
	}
}

// TestState: a tracestate that could harm a collector is left out.
func TestState(t *testing.T) {
	for v, ok := range map[string]bool{"a=b": true, strings.Repeat("x", 512): true, strings.Repeat("x", 513): false, "a=\xff": false, "a=\x00": false} {
		if got := State(head("tracestate", v)); (got != nil) != ok {
			t.Errorf("%.20q: %q", v, got)
		}
	}
	if State(head("tracestate", "a=b", "tracestate", "c=d")) != nil {
		t.Error("two of them are one")
	}
}

// TestHeadersAllocateNothing: reading and writing a context costs no memory.
func TestHeadersAllocateNothing(t *testing.T) {
	in, h := head("b3", aTrace+"-"+aSpan+"-1", "x-b3-traceid", "x", "a", "b"), &message.Head{}
	h.CopyFrom(in)
	if n := testing.AllocsPerRun(100, func() {
		h.CopyFrom(in)
		c := Extract(h)
		Inject(h, &c, false)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHeaders(b *testing.B) {
	in, h := head("traceparent", parent, "tracestate", "a=b", "user-agent", "curl"), &message.Head{}
	b.ReportAllocs()
	for b.Loop() {
		h.CopyFrom(in)
		c := Extract(h)
		c.Span = NewSpanID(7)
		Inject(h, &c, false)
	}
}

// FuzzContext: whatever comes, what leaves is valid and means what was read.
func FuzzContext(f *testing.F) {
	f.Add([]byte(parent), []byte("1"), []byte(aTrace))
	f.Add([]byte("00-"), []byte(aTrace+"-"+aSpan+"-d"), []byte{0xff})
	f.Fuzz(func(t *testing.T, traceparent, b3, id []byte) {
		h := &message.Head{}
		for name, v := range map[string][]byte{"traceparent": traceparent, "b3": b3, "x-b3-traceid": id, "x-b3-spanid": id} {
			if len(v) > 0 {
				h.Add(message.NewKey(name), v)
			}
		}
		c := Extract(h)
		if !c.Valid() {
			c.Trace, c.Span = NewID(1, 1), NewSpanID(1)
		}
		if c.Decision == Undecided {
			c.Decision = Dropped
		}
		Inject(h, &c, false)
		if got := Extract(h); got.Trace != c.Trace || got.Span != c.Span || got.Decision != c.Decision {
			t.Errorf("%+v became %+v in %+v", c, got, h.Fields)
		}
		if v := h.Get(message.Traceparent); len(v) != lenTraceparent || !bytes.HasPrefix(v, []byte("00-")) {
			t.Errorf("%q", v)
		}
	})
}
