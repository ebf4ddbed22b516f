package logline

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

func values() *Values {
	h := &message.Head{}
	for k, v := range map[string]string{"x-forwarded-for": "10.0.0.1", "user-agent": "curl/8", "x-request-id": "id-1", "x-a": "b"} {
		h.Add(message.NewKey(k), []byte(v))
	}
	return &Values{
		Start: time.Date(2026, 3, 1, 12, 0, 0, 7e6, time.UTC), Duration: 12 * time.Millisecond, FirstByte: 5 * time.Millisecond, Answered: true,
		Method: []byte("GET"), Path: []byte("/a?b=c"), Authority: []byte("front"), Head: h, Protocol: "HTTP/1.1", Status: 200, Flags: "-", Details: "via_upstream",
		Received: 3, Sent: 42, Upstream: netip.MustParseAddrPort("10.0.0.2:8080"), ClusterKind: "http", ClusterHost: "v1.shop.svc.cluster.local", ClusterPort: 80,
		Called: netip.MustParseAddrPort("10.96.0.1:80"), Client: netip.MustParseAddrPort("10.0.0.1:4000"), Route: "default", GRPCStatus: -1,
		Source: "spiffe://cluster.local/ns/shop/sa/far", Reason: "OK", TraceID: []byte("4bf92f3577b34da6a3ce929d0e0e4736"),
	}
}

// TestDefault is Istio's default format, byte for byte.
func TestDefault(t *testing.T) {
	f, err := Text("")
	if err != nil {
		t.Fatal(err)
	}
	const want = `[2026-03-01T12:00:00.007Z] "GET /a?b=c HTTP/1.1" 200 - via_upstream - "-" 3 42 12 5 "10.0.0.1" "curl/8" "id-1" "front" "10.0.0.2:8080" ` +
		`inbound-vip|80|http|v1.shop.svc.cluster.local - 10.96.0.1:80 10.0.0.1:4000 - default` + "\n"
	if got := string(f.Append(nil, values())); got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
	const none = `[0001-01-01T00:00:00.000Z] "- - -" 0 - - - "-" 0 0 0 - "-" "-" "-" "-" "-" - - - - - -` + "\n"
	if got := string(f.Append(nil, &Values{Flags: "-"})); got != none {
		t.Errorf("\ngot  %s\nwant %s", got, none)
	}
}

// TestFormats: what each operator writes, as text and as the only value of a key.
func TestFormats(t *testing.T) {
	for _, tt := range []struct{ format, text, json string }{
		{"%REQ(X-A)%", "b", `"b"`}, {"%REQ(x-none)%", "-", "null"}, {"%REQ(x-none?x-a)%", "b", `"b"`}, {"%REQ(:PATH):4%", "/a?b", `"/a?b"`},
		{"%RESPONSE_CODE%", "200", "200"}, {"%GRPC_STATUS_NUMBER%", "-", "null"}, {"%RESPONSE_FLAGS%", "-", "null"},
		{"100%%", "100%", `"100%"`}, {"%DURATION%ms", "12ms", `"12ms"`}, {"a-%REQ(none)%", "a--", `"a--"`},
		{"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1", `"10.0.0.1"`}, {"%DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/shop/sa/far", `"spiffe://cluster.local/ns/shop/sa/far"`},
		{"%TRACE_ID%", "4bf92f3577b34da6a3ce929d0e0e4736", `"4bf92f3577b34da6a3ce929d0e0e4736"`}, {"%AMBIT(reason)%", "OK", `"OK"`}, {"", "", `""`},
		{"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%", "-", "null"}, {"%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%", "-", "null"},
	} {
		f, err := Text(tt.format + "|")
		if err != nil {
			t.Fatalf("%s: %v", tt.format, err)
		}
		if got := string(f.Append(nil, values())); got != tt.text+"|\n" {
			t.Errorf("%s: %q, want %q", tt.format, got, tt.text)
		}
		if f, err = JSON([]Label{{"k", tt.format}}, false); err != nil {
			t.Fatal(err)
		}
		if got := string(f.Append(nil, values())); got != `{"k":`+tt.json+"}\n" {
			t.Errorf("%s: %q, want %q", tt.format, got, tt.json)
		}
	}
	f, err := JSON([]Label{{"a", "%REQ(none)%"}, {"b\"", "x"}, {"c", "%REQ(none)%"}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Append(nil, values())); got != `{"b\"":"x"}`+"\n" {
		t.Errorf("%s", got)
	}
}

// TestMistakes: a format that means nothing, or that a waypoint does not have, is refused.
func TestMistakes(t *testing.T) {
	for _, bad := range []string{
		"%", "%RESPONSE_CODE", "%NOTHING%", "%REQ%", "%REQ(a%", "%REQ(a b)%", "%REQ(:status)%", "%RESPONSE_CODE(x)%", "%REQ(a):x%", "%REQ(a):0%", "%REQ(a)5%", "%RESP(server)%",
		"%START_TIME(%s)%", "%DYNAMIC_METADATA(a)%", "%DYNAMIC_METADATA%", "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:a)%", "%AMBIT(secret)%", "a\nb", strings.Repeat("a", maxFormat+1), strings.Repeat("%DURATION%", maxParts+1),
	} {
		if _, err := Text(bad); err == nil {
			t.Errorf("%.40q is accepted", bad)
		}
	}
	if _, err := JSON([]Label{{"a", "x"}, {"a", "y"}}, false); err == nil {
		t.Error("a label twice is accepted")
	}
}

func TestLinesAllocateNothing(t *testing.T) {
	text, _ := Text("")
	object, _ := JSON(nil, true)
	v, b := values(), make([]byte, 0, 8192)
	v.Path = []byte("/\"\n\xff")
	if n := testing.AllocsPerRun(100, func() { b = object.Append(text.Append(b[:0], v), v) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
}

func BenchmarkLine(b *testing.B) {
	f, _ := Text("")
	v, line := values(), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		line = f.Append(line[:0], v)
	}
}

// FuzzFormat: whatever a user writes and a client sends, a line stays one line, and JSON
// stays JSON.
func FuzzFormat(f *testing.F) {
	f.Add(DefaultText, []byte("/a\n"))
	f.Add("%REQ(x-a?:path):3% %%", []byte("\"\xff"))
	f.Fuzz(func(t *testing.T, format string, sent []byte) {
		v := values()
		v.Path, v.Authority, v.Route, v.Details = sent, sent, string(sent), string(sent)
		v.Head.Set(message.NewKey("x-a"), sent)
		if c, err := Text(format); err == nil {
			if got := c.Append(nil, v); bytes.IndexByte(got, '\n') != len(got)-1 {
				t.Errorf("%q: %q", format, got)
			}
		}
		if c, err := JSON([]Label{{format, format}, {"b", "%REQ(x-a)%"}}, false); err == nil {
			if got := c.Append(nil, v); bytes.IndexByte(got, '\n') != len(got)-1 || !json.Valid(got) {
				t.Errorf("%q: %q", format, got)
			}
		}
	})
}
