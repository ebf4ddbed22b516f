package attributes

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

func example(t testing.TB, texts ...string) (values []observe.Value, e *accesslog.Request, more *More) {
	h := &message.Head{}
	h.Add(message.NewKey("x-agent"), []byte("a1"))
	for _, text := range texts {
		v, err := expr.CompileValue(text)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	return values, &accesslog.Request{Method: []byte("GET"), Path: []byte("/a?b=c"), Authority: []byte("front"), Protocol: "HTTP/1.1", Status: 200}, &More{Head: h, GRPCStatus: -1}
}

// TestTags: each expression is there with its value, and one without a value is unknown.
func TestTags(t *testing.T) {
	values, e, more := example(t, "request.headers['x-agent']", "request.url_path", "response.code", "connection.mtls", "request.headers['none']", "xds.route_name")
	var want telemetry.Tags
	for i, value := range []string{"a1", "/a", "200", "false", "unknown", "unknown"} {
		want += telemetry.Tags(values[i].ID() + "\x00" + value + "\x01")
	}
	if got := Tags(values, e, more); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Tags(nil, e, more); got != "" {
		t.Errorf("%q", got)
	}
	more.Head = nil // a connection
	if got := Tags(values[:1], e, more); got != telemetry.Tags(values[0].ID()+"\x00unknown\x01") {
		t.Errorf("%q", got)
	}
}

// BenchmarkTags is what two labels cost a request. Without labels there is no cost.
func BenchmarkTags(b *testing.B) {
	values, e, more := example(b, "request.host", "request.url_path.startsWith('/a') ? 'a' : 'b'")
	b.ReportAllocs()
	for b.Loop() {
		if Tags(values, e, more) == "" {
			b.Fatal("no tags")
		}
	}
}
