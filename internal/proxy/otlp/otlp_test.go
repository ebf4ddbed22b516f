package otlp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func example() *Span {
	return &Span{
		Trace: [16]byte{1, 2}, ID: [8]byte{3}, Parent: [8]byte{4}, State: []byte("a=b"), Name: []byte("front:80/*"), Kind: KindServer,
		Start: time.Unix(5, 6), End: time.Unix(7, 8), RemoteParent: true,
	}
}

func encode(e *Encoder, long string) []byte {
	e.Begin(example())
	String(e, "http.request.method", "GET")
	String(e, "empty", "")
	String(e, "long", long)
	e.Int("code", -3)
	e.Bool("yes", true)
	e.Double("half", 0.5)
	e.Link([16]byte{9}, [8]byte{8})
	e.Fail("it \xff failed")
	return e.Bytes()
}

// TestSpan: what is encoded is what OpenTelemetry's own code reads.
func TestSpan(t *testing.T) {
	for _, long := range []string{"x", strings.Repeat("y", 127), strings.Repeat("z", maxText+1), strings.Repeat("\xff", maxText)} {
		var s tracepb.Span
		if err := proto.Unmarshal(encode(&Encoder{}, long), &s); err != nil {
			t.Fatal(err)
		}
		if s.Name != "front:80/*" || s.Kind != tracepb.Span_SPAN_KIND_SERVER || s.StartTimeUnixNano != 5e9+6 || s.EndTimeUnixNano != 7e9+8 ||
			s.TraceState != "a=b" || s.TraceId[1] != 2 || s.SpanId[0] != 3 || s.ParentSpanId[0] != 4 || s.Flags != 0x301 {
			t.Errorf("%v", &s)
		}
		if s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || s.Status.Message != "it \ufffd failed" {
			t.Errorf("status %v", s.Status)
		}
		if len(s.Links) != 1 || s.Links[0].TraceId[0] != 9 || s.Links[0].SpanId[0] != 8 {
			t.Errorf("links %v", s.Links)
		}
		if got := attributes(s.Attributes); got["http.request.method"] != "GET" || got["code"] != "-3" || got["yes"] != "true" || got["half"] != "0.5" || len(got) != 5 {
			t.Errorf("attributes %v", got)
		}
	}
}

func attributes(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range list {
		switch v := a.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.Key] = fmt.Sprint(v.IntValue)
		case *common.AnyValue_BoolValue:
			out[a.Key] = fmt.Sprint(v.BoolValue)
		case *common.AnyValue_DoubleValue:
			out[a.Key] = fmt.Sprint(v.DoubleValue)
		}
	}
	return out
}

// TestLog: what is encoded of a line is what OpenTelemetry's own code reads.
func TestLog(t *testing.T) {
	var e Encoder
	e.Begin(example())
	e.BeginLog(time.Unix(1, 2), time.Unix(3, 4), SeverityError, []byte("a\xffb"), []byte("4bf92f3577b34da6a3ce929d0e0e4736"))
	String(&e, "code", "200")
	var l logspb.LogRecord
	if err := proto.Unmarshal(e.Bytes(), &l); err != nil {
		t.Fatal(err)
	}
	if l.TimeUnixNano != 1e9+2 || l.ObservedTimeUnixNano != 3e9+4 || l.SeverityNumber != 17 || l.Body.GetStringValue() != "a\ufffdb" || l.TraceId[0] != 0x4b || attributes(l.Attributes)["code"] != "200" {
		t.Errorf("%v", &l)
	}
}

// TestRequest: a request has the process and all messages, also as a frame of gRPC.
func TestRequest(t *testing.T) {
	p := NewPrefix("waypoint", "v1", []Attribute{{"service.name", "w.shop"}, {"none", ""}})
	var messages []byte
	for range 3 {
		messages = Message(messages, encode(&Encoder{}, "a"))
	}
	framed := p.Request([]byte("before"), messages, true)[len("before"):]
	if n := binary.BigEndian.Uint32(framed[1:]); framed[0] != 0 || int(n) != len(framed)-5 {
		t.Errorf("a frame of %d bytes says %d", len(framed), n)
	}
	if !bytes.Equal(framed[5:], p.Request(nil, messages, false)) {
		t.Error("the frame has another request")
	}
	var r collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(framed[5:], &r); err != nil {
		t.Fatal(err)
	}
	if len(r.ResourceSpans) != 1 || len(r.ResourceSpans[0].ScopeSpans) != 1 || len(r.ResourceSpans[0].ScopeSpans[0].Spans) != 3 {
		t.Fatalf("%v", &r)
	}
	if got := attributes(r.ResourceSpans[0].Resource.Attributes); len(got) != 1 || got["service.name"] != "w.shop" {
		t.Errorf("%v", got)
	}
	if s := r.ResourceSpans[0].ScopeSpans[0].Scope; s.Name != "waypoint" || s.Version != "v1" {
		t.Errorf("%v", s)
	}
}

// TestSpansAllocateNothing: an encoder and a queue that have grown need no memory.
func TestSpansAllocateNothing(t *testing.T) {
	var e Encoder
	s := example()
	q := NewQueue(1<<20, func(int) {})
	var m, out []byte
	if n := testing.AllocsPerRun(1000, func() {
		for range 4 {
			e.Begin(s)
			String(&e, "key", "value")
			e.Int("code", 200)
			e.Link([16]byte{9}, [8]byte{8})
			e.Fail("no")
			m = Message(m[:0], e.Bytes())
			q.Add("shop", m)
		}
		out, _ = q.Take(out[:0], 1<<16)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestFlood: a party that fills the queue loses its own messages, and no other does.
func TestFlood(t *testing.T) {
	lost := 0
	q := NewQueue(10_000, func(n int) { lost += n })
	for range 1000 {
		q.Add("flood", make([]byte, 100))
	}
	if lost != 900 || q.Size() != 10_000 {
		t.Errorf("%d lost, %d bytes", lost, q.Size())
	}
	for i := range 40 {
		if !q.Add("quiet", bytes.Repeat([]byte{byte(i + 1)}, 100)) {
			t.Fatalf("message %d of the quiet party was dropped", i)
		}
		q.Add("flood", make([]byte, 100))
	}
	got := 0
	for q.Size() > 0 {
		b, _ := q.Take(nil, 500)
		for ; len(b) > 0; b = b[100:] {
			if b[0] != 0 {
				got++
			}
		}
	}
	if got != 40 {
		t.Errorf("%d of 40 messages of the quiet party were sent", got)
	}
}

// TestQueueIsFair: whatever is added and taken, no message is changed, the bound holds,
// each party's messages come in order, and a party below its equal share loses nothing.
func TestQueueIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lost := 0
		const room, parties = 2000, 4
		q := NewQueue(room, func(n int) { lost += n })
		next, last := map[string]uint32{}, map[string]uint32{}
		added, taken := 0, 0
		check := func(b []byte) {
			for len(b) > 0 {
				n := int(b[0])
				name, seq := string(b[1:2]), binary.BigEndian.Uint32(b[2:6])
				if seq <= last[name] {
					t.Fatalf("%s: %d after %d", name, seq, last[name])
				}
				last[name] = seq
				b = b[n:]
				taken++
			}
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if rapid.IntRange(0, 5).Draw(t, "take") == 0 {
				b, n := q.Take(nil, 500)
				before := taken
				check(b)
				if taken-before != n {
					t.Fatalf("%d messages, said %d", taken-before, n)
				}
				continue
			}
			name := string(rune('a' + rapid.IntRange(0, parties-1).Draw(t, "party")))
			m := make([]byte, rapid.IntRange(6, 100).Draw(t, "size"))
			m[0], m[1] = byte(len(m)), name[0]
			next[name]++
			binary.BigEndian.PutUint32(m[2:], next[name])
			held := 0
			if p := q.parties[name]; p != nil {
				held = p.size()
			}
			added++
			if kept := q.Add(name, m); !kept && held+len(m) <= room/parties-100 {
				t.Fatalf("%s has %d bytes and could not add %d", name, held, len(m))
			}
			if q.Size() > room {
				t.Fatalf("%d bytes", q.Size())
			}
		}
		for q.Size() > 0 {
			b, _ := q.Take(nil, 500)
			check(b)
		}
		if added != taken+lost {
			t.Fatalf("%d added, %d taken, %d lost", added, taken, lost)
		}
	})
}

func BenchmarkSpan(b *testing.B) {
	var e Encoder
	q := NewQueue(1<<20, func(int) {})
	var m, out []byte
	b.ReportAllocs()
	for b.Loop() {
		m = Message(m[:0], encode(&e, "value"))
		if !q.Add("shop", m) || q.Size() > 1<<16 {
			out, _ = q.Take(out[:0], 1<<20)
		}
	}
}

// FuzzText: whatever others send becomes valid protobuf.
func FuzzText(f *testing.F) {
	f.Add([]byte("a\xffb"))
	f.Fuzz(func(t *testing.T, v []byte) {
		e := &Encoder{}
		s := example()
		s.Name = v
		e.Begin(s)
		String(e, "v", v)
		e.Fail(string(v))
		var got tracepb.Span
		if err := proto.Unmarshal(e.Bytes(), &got); err != nil {
			t.Errorf("%q: %v", v, err)
		}
	})
}
