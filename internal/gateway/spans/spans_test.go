package spans

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
)

const (
	aTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	aSpan   = "00f067aa0ba902b7"
	sampled = "00-" + aTrace + "-" + aSpan + "-01"
	dropped = "00-" + aTrace + "-" + aSpan + "-00"
	tunnel  = "00-11111111111111111111111111111111-2222222222222222-00"
)

func tracing(percent float64) *observe.Tracing {
	return &observe.Tracing{Collector: &observe.Collector{}, Share: trace.Percent(percent), Propagate: true, IstioTags: true}
}

func head(fields ...string) *message.Head {
	h := &message.Head{}
	for i := 0; i+1 < len(fields); i += 2 {
		h.Add(message.NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

// TestBegin: which requests have spans, in which trace, and what their endpoints get.
func TestBegin(t *testing.T) {
	closed, silent := tracing(100), tracing(100)
	closed.Propagate, silent.Collector = false, nil
	for _, tt := range []struct {
		name    string
		tracing *observe.Tracing
		head    []string
		used    bool   // the trace of the connection
		spans   bool   // the request has some
		trace   string // that the endpoint gets; "" for none, "new" for one that is neither the client's nor the connection's
		flag    string
		parent  string // of the span; "" for none
		links   bool
	}{
		{"sampled by its sender", tracing(0), []string{"traceparent", sampled}, false, true, aTrace, "01", aSpan, true},
		{"dropped by its sender", tracing(100), []string{"traceparent", dropped}, false, false, aTrace, "00", "", false},
		{"the first of a connection", tracing(100), nil, false, true, strings.Repeat("1", 32), "01", strings.Repeat("2", 16), false},
		{"a later one", tracing(100), nil, true, true, "new", "01", "", true},
		{"not sampled", tracing(0), nil, false, false, strings.Repeat("1", 32), "00", "", false},
		{"a decision alone", tracing(0), []string{"b3", "1"}, true, true, "new", "01", "", true},
		{"two contexts", tracing(100), []string{"traceparent", sampled, "traceparent", dropped, "tracestate", "a=b"}, true, true, "new", "01", "", true},
		{"nothing is passed on", closed, []string{"traceparent", sampled, "tracestate", "a=b", "x-b3-traceid", aTrace}, false, true, "", "", aSpan, true},
		{"nothing is reported", silent, nil, true, false, "new", "01", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := head(tt.head...)
			tun := ParseTunnel(tunnel)
			tun.Used = tt.used
			var s Span
			if got := s.Begin(tt.tracing, h, &tun, rand.Uint64); got != tt.spans {
				t.Fatalf("spans: %v", got)
			}
			v := string(h.Get(message.Traceparent))
			switch {
			case tt.trace == "":
				if len(h.Fields) != 0 {
					t.Errorf("%+v", h.Fields)
				}
			case len(v) != 55 || v[53:] != tt.flag:
				t.Errorf("traceparent %q", v)
			case tt.trace == "new" && (strings.Contains(v, aTrace) || strings.Contains(v, "11111111111111111111")), tt.trace != "new" && v[3:35] != tt.trace:
				t.Errorf("trace %s", v)
			}
			if tt.trace == "new" && h.Index(message.Tracestate, 0) >= 0 {
				t.Error("tracestate of another trace is passed on")
			}
			if !tt.spans {
				if !tt.used && tt.head != nil && v != dropped {
					t.Errorf("the context has changed: %s", v)
				}
				return
			}
			parent := ""
			if s.parent != (trace.SpanID{}) {
				parent = hex.EncodeToString(s.parent[:])
			}
			if parent != tt.parent || (s.link.ID != [16]byte{}) != tt.links {
				t.Errorf("parent %s, link %v", parent, s.link)
			}
			if tt.trace != "" && v[36:52] != hex.EncodeToString(s.client[:]) {
				t.Error("the endpoint's parent is not the span of the client")
			}
		})
	}
}

// TestTunnelDecides: what a node proxy has decided about a connection counts for its first
// request, unless that has a context, and for no other.
func TestTunnelDecides(t *testing.T) {
	for _, tt := range []struct {
		flag    string
		percent float64
		head    []string
		used    bool
		spans   bool
	}{
		{"00", 100, nil, false, true}, {"00", 0, nil, false, false}, {"01", 0, nil, false, true}, {"02", 100, nil, false, false}, {"03", 0, nil, false, true},
		{"02", 0, []string{"traceparent", sampled}, false, true}, {"01", 100, []string{"traceparent", dropped}, false, false}, {"01", 100, []string{"b3", "0"}, false, false},
		{"02", 100, nil, true, true}, {"01", 0, nil, true, false},
	} {
		tun := ParseTunnel(tunnel[:len(tunnel)-2] + tt.flag)
		tun.Used = tt.used
		var s Span
		if got := s.Begin(tracing(tt.percent), head(tt.head...), &tun, rand.Uint64); got != tt.spans {
			t.Errorf("%+v: %v", tt, got)
		}
		if want := "00-" + hex.EncodeToString(s.trace[:]) + "-" + hex.EncodeToString(s.client[:]) + "-01"; tt.spans && s.Traceparent() != want {
			t.Errorf("%s, want %s", s.Traceparent(), want)
		}
	}
}

// encoded returns the spans of a request.
func encoded(t testing.TB, s *Span, v *Values) (out []*tracepb.Span) {
	s.Encode(&otlp.Encoder{}, &Self{Name: "waypoint", Namespace: "shop", Node: "waypoint~a~b~c", Cluster: "east", Mesh: "m"}, v, func(b []byte) {
		one := &tracepb.Span{}
		if err := proto.Unmarshal(b, one); err != nil {
			t.Fatal(err)
		}
		out = append(out, one)
	})
	return out
}

func attribute(s *tracepb.Span, name string) string {
	for _, a := range s.Attributes {
		if a.Key == name {
			if v, ok := a.Value.Value.(*common.AnyValue_StringValue); ok {
				return v.StringValue
			}
			return fmt.Sprint(a.Value.GetIntValue())
		}
	}
	return ""
}

// TestEncode: the spans of a request that was answered, and of one that was refused.
func TestEncode(t *testing.T) {
	h := head("traceparent", sampled, "x-who", "ann")
	tr := tracing(0)
	tr.Tags = []observe.Tag{{Name: "color", Value: "blue"}, {Name: "who", Header: true, Key: message.NewKey("x-who"), Value: "none"}, {Name: "other", Header: true, Key: message.NewKey("x-other"), Value: "none"}}
	var s Span
	s.Begin(tr, h, &Tunnel{}, rand.Uint64)
	s.Sent(time.Unix(10, 0))
	s.Sent(time.Unix(11, 0)) // of a second try
	v := &Values{
		Start: time.Unix(9, 0), End: time.Unix(12, 0), Host: "front.shop.svc.cluster.local", Port: 80, Version: "HTTP/1.1", Method: []byte("GET"), Authority: []byte("[::1]:80"),
		Path: []byte("/a?b=c"), Head: h, Client: netip.MustParseAddrPort("[::2]:3"), Status: 503, GRPCStatus: -1, Tries: 2, SourceIdentity: "spiffe://x",
		Source: &workload.Workload{Name: "far-1", Traits: &workload.Traits{WorkloadName: "far", Namespace: "shop"}}, BackendHost: "v2.shop.svc.cluster.local", BackendPort: 81,
		Upstream: netip.MustParseAddrPort("10.0.0.1:8080"),
	}
	got := encoded(t, &s, v)
	if len(got) != 2 || got[1].StartTimeUnixNano != 10e9 || got[0].StartTimeUnixNano != 9e9 || string(got[1].ParentSpanId) != string(got[0].SpanId) || got[0].Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Fatalf("%v", got)
	}
	for name, want := range map[string]string{
		"http.request.method": "GET", "url.path": "/a", "url.query": "b=c", "server.address": "::1", "client.address": "::2", "http.response.status_code": "503", "error.type": "503",
		"color": "blue", "who": "ann", "other": "none", "istio.source_workload": "far", "node_id": "waypoint~a~b~c", "http.status_code": "503", "istio.cluster_id": "east",
	} {
		if v := attribute(got[0], name); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
	if attribute(got[1], "http.request.resend_count") != "1" || attribute(got[1], "server.address") != "v2.shop.svc.cluster.local" || got[1].Name != "GET v2.shop.svc.cluster.local:81" {
		t.Errorf("%v", got[1])
	}
	v.Status, v.GRPC, v.GRPCStatus = 200, true, 5
	if got := encoded(t, &s, v); got[0].Status != nil || got[1].Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || attribute(got[0], "rpc.grpc.status_code") != "5" {
		t.Errorf("what a client of gRPC has done wrong: %v", got)
	}
	v.GRPCStatus = 13
	if got := encoded(t, &s, v); got[0].Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("a failure of gRPC: %v", got)
	}
	tr.IstioTags = false
	s.Begin(tr, h, &Tunnel{}, rand.Uint64)
	refused := encoded(t, &s, &Values{Version: "HTTP/2", Method: []byte("BREW"), Status: 403, Reason: reason.PolicyDenied, Head: h, GRPCStatus: -1})
	if len(refused) != 1 || attribute(refused[0], "ambit.reason") != "POLICY_DENIED" || refused[0].Status != nil || attribute(refused[0], "node_id") != "" ||
		attribute(refused[0], "http.request.method") != "_OTHER" || attribute(refused[0], "http.request.method_original") != "BREW" {
		t.Errorf("%v", refused)
	}
}

// TestLongValues: whatever a client sends, its spans are bounded and can be read.
func TestLongValues(t *testing.T) {
	long := []byte(strings.Repeat("\xff\n", 50_000))
	h := head("traceparent", sampled, "tracestate", string(long))
	tr := tracing(0)
	tr.Tags = []observe.Tag{{Name: "h", Header: true, Key: message.NewKey("tracestate")}}
	var s Span
	s.Begin(tr, h, &Tunnel{}, rand.Uint64)
	s.Sent(time.Unix(1, 0))
	for _, one := range encoded(t, &s, &Values{
		Version: "HTTP/1.0", Method: long, Authority: long, Path: long, UserAgent: long, RequestID: long, Head: h, Host: "h", BackendHost: strings.Repeat("x", 253), GRPCStatus: -1,
	}) {
		if n := proto.Size(one); n > 24<<10 {
			t.Errorf("%d bytes", n)
		}
	}
}
