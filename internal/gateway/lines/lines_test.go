package lines

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/gateway/attributes"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/observe/requests"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func example() (*accesslog.Request, *attributes.More) {
	h := &message.Head{}
	for k, v := range map[string]string{"X-Log": "yes", "user-agent": "curl/8", "referer": "r"} {
		h.Add(message.NewKey(k), []byte(v))
	}
	return &accesslog.Request{
			Start: time.Unix(1, 0), Duration: time.Second, Method: []byte("GET"), Path: []byte("/a?b=c"), Authority: []byte("front"), Protocol: "HTTP/1.1", Status: 503,
			Reason: reason.ConnectFailure, Err: errors.New("no way"), Received: 3, Sent: 4, UserAgent: []byte("curl/8"), ID: []byte("id"), Tries: 2,
			Upstream: netip.MustParseAddrPort("10.0.0.2:8080"), Called: netip.MustParseAddrPort("10.96.0.1:80"), Client: netip.MustParseAddrPort("10.0.0.1:4000"),
			ClusterKind: "http", ClusterHost: "v1", ClusterPort: 80, Route: "r", Src: accesslog.Party{Workload: "far", Namespace: "shop", Identity: "spiffe://far"},
			Dst: accesslog.Party{Workload: "v1", Namespace: "shop"},
		}, &attributes.More{
			Head: h, GRPC: true, GRPCStatus: 14, Destination: "front.shop",
		}
}

// TestFilters: every attribute is what happened, and one without a value is missing.
func TestFilters(t *testing.T) {
	for text, want := range map[string]bool{
		"response.code == 503 && response.flags == 'UF' && response.grpc_status == 14 && response.size == 4":                                          true,
		"response.code_details.startsWith('upstream_reset')":                                                                                          true,
		"request.path == '/a?b=c' && request.url_path == '/a' && request.query == 'b=c' && request.host == 'front' && request.method == 'GET'":        true,
		"request.headers['x-log'] == 'yes' && request.useragent == 'curl/8' && request.id == 'id' && request.referer == 'r' && request.size == 3":     true,
		"request.time < timestamp('2020-01-01T00:00:00Z') && request.duration == duration('1s') && request.protocol == 'HTTP/1.1'":                    true,
		"connection.mtls && connection.uri_san_peer_certificate == 'spiffe://far' && !has(connection.requested_server_name)":                          true,
		"source.address == '10.0.0.1:4000' && source.port == 4000 && source.workload == 'far' && source.namespace == 'shop' && has(source.principal)": true,
		"destination.address == '10.96.0.1:80' && destination.service == 'front.shop' && destination.workload == 'v1' && !has(destination.principal)": true,
		"upstream.address == '10.0.0.2:8080' && upstream.transport_failure_reason == 'no way' && upstream.request_attempt_count == 2":                 true,
		"xds.cluster_name == 'inbound-vip|80|http|v1' && xds.route_name == 'r'":                                                                       true,
		"response.code < 400": false, "request.headers['none'] == 'x'": false, // has no value
	} {
		c, err := expr.Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		e, more := example()
		if got := holds(c, e, more); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	c, err := expr.Compile("request.method == 'GET'")
	if err != nil {
		t.Fatal(err)
	}
	e, _ := example()
	if holds(c, e, &attributes.More{}) {
		t.Error("a connection without HTTP has a method")
	}
}

// TestWrite: each provider's line is written, in its format and by its filter, within the
// budget of the client.
func TestWrite(t *testing.T) {
	s := observe.NewStore(requests.Language, "shop", nil)
	body, err := proto.Marshal(&telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{
		{Providers: []*telemetrypb.LogProvider{{Name: "a", Text: "%RESPONSE_CODE% %AMBIT(reason)%"}, {Name: "b", Json: true, Labels: []*telemetrypb.Label{{Name: "p", Format: "%REQ(:PATH)%"}}}}},
		{Providers: []*telemetrypb.LogProvider{{Name: "c", Text: "never"}}, Filter: "response.code == 1"},
	}})
	if err == nil {
		err = s.Put("mesh", body)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	logs, err := logging.New(&out, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	to := accesslog.NewRequests(logs.Lines(accesslog.Scope))
	var w Writer
	e, more := example()
	w.Write(to, s.Set().For(observe.Service{}).Logs, e, more, nil)
	if got := out.String(); got != "503 CONNECT_FAILURE\n"+`{"p":"/a?b=c"}`+"\n" {
		t.Errorf("%q", got)
	}
	out.Reset()
	limits := accesslog.NewLimiter(logs.Logger("access"), accesslog.Rates{Complete: 1, Failed: 1})
	for range 100 {
		w.Write(to, s.Set().For(observe.Service{}).Logs, e, more, limits.Pod("x"))
	}
	limit := limits.Pod("y")
	out.Reset()
	for range 100 {
		w.Write(to, s.Set().For(observe.Service{}).Logs, e, more, limit)
	}
	if n := strings.Count(out.String(), "\n"); n > 12 {
		t.Errorf("%d lines within a budget of 10", n)
	}
}

type limiter struct{ made []string }

func (l *limiter) Limit(name string) *accesslog.Limit {
	l.made = append(l.made, name)
	return nil
}

// TestBudgets: an identity has one budget, which lasts as long as a connection has it.
func TestBudgets(t *testing.T) {
	b, l := NewBudgets(), &limiter{}
	kept := identity.Identity{Namespace: "shop", ServiceAccount: "kept"}
	b.Join(kept, l)
	for i := range 2 * maxBudgets {
		b.Of(identity.Identity{Namespace: "shop", ServiceAccount: fmt.Sprint(i)}, l)
	}
	b.Join(kept, l)
	n := 0
	for _, name := range l.made {
		if name == "shop/kept" {
			n++
		}
	}
	if n != 1 || len(b.of) > maxBudgets {
		t.Errorf("%d budgets of one identity, %d in all", n, len(b.of))
	}
	b.Leave(kept)
	b.Leave(kept)
	b.Leave(identity.Identity{})
	if b.of[kept].sessions != 0 {
		t.Errorf("%d", b.of[kept].sessions)
	}
}
