package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func request() *Request {
	return &Request{
		Start: time.Date(2026, 3, 1, 12, 0, 0, 7e6, time.UTC), Duration: 12 * time.Millisecond, FirstByte: 5 * time.Millisecond,
		Method: []byte("GET"), Path: []byte("/a?b=c"), Authority: []byte("front"), Protocol: "HTTP/1.1", Status: 200, Received: 3, Sent: 42,
		ForwardedFor: []byte("10.0.0.1"), UserAgent: []byte("curl/8"), ID: []byte("id-1"), TraceID: []byte("4bf92f3577b34da6a3ce929d0e0e4736"), Tries: 2, Answered: true,
		Upstream: netip.MustParseAddrPort("10.0.0.2:8080"), ClusterKind: "http", ClusterHost: "v1.shop.svc.cluster.local", ClusterPort: 80,
		Called: netip.MustParseAddrPort("10.96.0.1:80"), Client: netip.MustParseAddrPort("10.0.0.1:4000"), Route: "HTTPRoute shop/split, rule 1",
		Src: Party{Workload: "far", Namespace: "shop", Identity: "spiffe://cluster.local/ns/shop/sa/far"}, Dst: Party{Workload: "v1", Namespace: "shop"},
	}
}

func TestRequestText(t *testing.T) {
	const want = `[2026-03-01T12:00:00.007Z] "GET /a?b=c HTTP/1.1" 200 - via_upstream - "-" 3 42 12 5 "10.0.0.1" "curl/8" "id-1" "front" "10.0.0.2:8080" ` +
		`inbound-vip|80|http|v1.shop.svc.cluster.local - 10.96.0.1:80 10.0.0.1:4000 - "HTTPRoute shop/split, rule 1" ` +
		`tries=2 src.workload="far" src.namespace="shop" src.identity="spiffe://cluster.local/ns/shop/sa/far" dst.workload="v1" dst.namespace="shop" ` +
		`trace_id="4bf92f3577b34da6a3ce929d0e0e4736"` + "\n"
	if got := string(request().AppendText(nil)); got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
	e := &Request{Start: request().Start, Reason: reason.ConnectFailure, Err: errors.New("no way\n\"in\""), Status: 503, Protocol: "HTTP/2", Method: []byte("POST"), Path: []byte("/\"\n\xff")}
	const failed = `[2026-03-01T12:00:00.007Z] "POST /\"\x0a\xff HTTP/2" 503 UF upstream_reset_before_response_started{remote_connection_failure} - "no way\x0a\"in\"" 0 0 0 - ` +
		`"-" "-" "-" "-" "-" - - - - - - reason="CONNECT_FAILURE" error="no way\x0a\"in\"" hint="`
	if got := string(e.AppendText(nil)); !strings.HasPrefix(got, failed) {
		t.Errorf("\ngot  %s\nwant %s", got, failed)
	}
}

func TestRequestJSON(t *testing.T) {
	e := request()
	e.Path, e.UserAgent = []byte("/\"\\\n\xffé"), nil
	var m map[string]any
	if err := json.Unmarshal(e.AppendJSON(nil), &m); err != nil {
		t.Fatalf("%v in %s", err, e.AppendJSON(nil))
	}
	for k, want := range map[string]any{
		"path": "/\"\\\n\ufffdé", "user_agent": nil, "response_code": 200.0, "bytes_sent": 42.0, "upstream_service_time": "5", "response_flags": "-",
		"upstream_host": "10.0.0.2:8080", "upstream_cluster": "inbound-vip|80|http|v1.shop.svc.cluster.local", "src.workload": "far", "tries": 2.0,
		"route_name": "HTTPRoute shop/split, rule 1", "start_time": "2026-03-01T12:00:00.007Z", "duration": 12.0,
	} {
		if got, ok := m[k]; !ok || got != want {
			t.Errorf("%s is %v, want %v", k, got, want)
		}
	}
}

// TestEveryReplyHasDetails: a reason that a client is answered for has a word of Envoy's
// for it, but for those that Envoy cannot have.
func TestEveryReplyHasDetails(t *testing.T) {
	own := map[reason.Reason]bool{
		reason.UnknownSource: true, reason.UnknownDestination: true, reason.RecursiveCall: true, reason.AddressMismatch: true, reason.BadRequest: true,
		reason.Draining: true, reason.WorkloadRemoved: true, reason.Internal: true, reason.OK: true,
		reason.WaypointRequired: true, // of node proxies
		reason.WaypointLoop:     true,
		reason.NotInRegistry:    true, // of node proxies
		reason.EgressDenied:     true, // of node proxies
		reason.RateLimited:      true, // of node proxies
	}
	for _, r := range reason.All() {
		if (Details(r) == "") != own[r] {
			t.Errorf("%s has the details %q", r, Details(r))
		}
	}
}

func TestRequestLinesAllocateNothing(t *testing.T) {
	e, b := request(), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { b = e.AppendJSON(e.AppendText(b[:0])) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
}

// TestRequestLevel: the level of the scope turns the lines off.
func TestRequestLevel(t *testing.T) {
	var out bytes.Buffer
	logs, err := logging.New(&out, logging.Plain, "access=error")
	if err != nil {
		t.Fatal(err)
	}
	if r := NewRequests(logs.Lines(Scope)); r.Enabled() {
		t.Error("lines of info are written at level error")
	}
	if err := logs.Levels.Set("access=info"); err != nil {
		t.Fatal(err)
	}
	r := NewRequests(logs.Lines(Scope))
	if r.Write(request()); !r.Enabled() || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("%q", out.String())
	}
}

// FuzzRequestLine: whatever a client sends, a line stays one line, and JSON stays JSON.
func FuzzRequestLine(f *testing.F) {
	f.Add([]byte("/a\n"), "x\"\x00")
	f.Fuzz(func(t *testing.T, path []byte, route string) {
		e := request()
		e.Path, e.UserAgent, e.Route = path, path, route
		if got := e.AppendText(nil); bytes.IndexByte(got, '\n') != len(got)-1 {
			t.Errorf("%q", got)
		}
		if got := e.AppendJSON(nil); bytes.IndexByte(got, '\n') != len(got)-1 || !json.Valid(got) {
			t.Errorf("%q", got)
		}
	})
}
