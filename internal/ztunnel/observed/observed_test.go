package observed

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const webUID = "Kubernetes//Pod/shop/web"

// world is a node with the pod web.
type world struct {
	t    testing.TB
	node *Node
	pod  *Pod
	web  *workload.Workload
}

func newWorld(t testing.TB) *world {
	t.Helper()
	loops, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	dir.Apply([]*workloadpb.Address{{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{
		Uid: webUID, Name: "web", Namespace: "shop", WorkloadName: "web", Node: "node1", Addresses: [][]byte{{10, 0, 0, 1}}, ServiceAccount: "web",
	}}}}, nil)
	w := &world{t: t, web: dir.Snapshot().WorkloadByUID(webUID)}
	w.node = New(Config{Loops: loops, Directory: dir, Layers: NewLayers(slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler)})
	w.pod = w.node.Join(func(s *workload.Snapshot) *workload.Workload { return s.WorkloadByUID(webUID) })
	t.Cleanup(func() { w.pod.Leave(); w.node.Flush(); loops.Close() })
	return w
}

func (w *world) set(name string, l *telemetrypb.Layer) {
	w.t.Helper()
	body, err := proto.Marshal(l)
	if err != nil {
		w.t.Fatal(err)
	}
	if bad := w.node.cfg.Layers.Apply(xds.Delta{Updated: []xds.Resource{{Name: name, Body: body}}}); len(bad) > 0 {
		w.t.Fatal(bad)
	}
}

// sampling is a layer for all with a collector.
func sampling(percent float64, side telemetrypb.Side) *telemetrypb.Layer {
	return &telemetrypb.Layer{Side: side, Tracing: &telemetrypb.Tracing{
		Collector: &telemetrypb.Collector{Provider: "otel", Service: &telemetrypb.Service{Namespace: "o", Hostname: "otel"}, Port: 4317}, Sampling: &percent,
	}}
}

func spanOf(m *telemetry.More) *span {
	if m == nil {
		return nil
	}
	s, _ := m.Watch.(*span)
	return s
}

// TestDecisions: who begins a trace decides about it, once.
func TestDecisions(t *testing.T) {
	parent := connect.Trace{ID: [16]byte{1}, Span: [8]byte{2}}
	with := func(d connect.Decision) connect.Trace { p := parent; p.Decision = d; return p }
	for _, tt := range []struct {
		name    string
		percent float64
		in      connect.Trace // of the tunnel
		sampled bool
		parent  [8]byte
		after   connect.Decision
	}{
		{"nothing, all are sampled", 100, connect.Trace{}, true, [8]byte{}, connect.Sampled},
		{"nothing, none is sampled", 0, connect.Trace{}, false, [8]byte{}, connect.Undecided},
		{"a sender without spans, all", 100, with(connect.Undecided), true, [8]byte{}, connect.Sampled},
		{"a sender without spans, none", 0, with(connect.Undecided), false, [8]byte{}, connect.Undecided},
		{"decided for it", 0, with(connect.Sampled), true, parent.Span, connect.Sampled},
		{"decided against it", 100, with(connect.Dropped), false, [8]byte{}, connect.Dropped},
	} {
		w := newWorld(t)
		w.set("mesh", sampling(tt.percent, telemetrypb.Side_BOTH))
		in := tt.in
		s := spanOf(w.pod.Inbound(w.web, &in, telemetry.ServiceRef{}))
		if (s != nil) != tt.sampled || in.Decision != tt.after || s != nil && (s.parent != tt.parent || s.remote != (tt.parent != [8]byte{}) || s.id == tt.in.Span) {
			t.Errorf("%s: %+v, %v", tt.name, s, in)
		}
		if !tt.in.IsZero() && in.ID != tt.in.ID || s != nil && in.ID == [16]byte{} {
			t.Errorf("%s: trace %x", tt.name, in.ID)
		}
	}
	w := newWorld(t)
	out := connect.NewTrace()
	if w.pod.Outbound(w.web, &out, telemetry.ServiceRef{}) != nil || out.Decision != connect.Undecided {
		t.Error("without settings something is observed")
	}
	w.set("mesh", sampling(0, telemetrypb.Side_CLIENT))
	for range 3 { // attempts
		if w.pod.Outbound(w.web, &out, telemetry.ServiceRef{}) != nil || out.Decision != connect.Dropped {
			t.Errorf("%v", out)
		}
		w.set("mesh", sampling(100, telemetrypb.Side_CLIENT)) // too late for this one
	}
	out = connect.NewTrace()
	if s := spanOf(w.pod.Outbound(w.web, &out, telemetry.ServiceRef{})); s == nil || s.id != out.Span || out.Decision != connect.Sampled {
		t.Errorf("%+v %v", s, out)
	}
	in := connect.Trace{}
	if w.pod.Inbound(w.web, &in, telemetry.ServiceRef{}) != nil || !in.IsZero() {
		t.Error("a layer for clients is one for servers")
	}
	// What carries spans begins no traces.
	out = connect.NewTrace()
	if w.pod.Outbound(w.web, &out, telemetry.ServiceRef{Namespace: "o", Hostname: "otel"}) != nil || out.Decision != connect.Undecided {
		t.Errorf("a connection to the collector: %v", out)
	}
	if none := (*Node)(nil).Join(nil); none.Outbound(w.web, &out, telemetry.ServiceRef{}) != nil || none.Inbound(w.web, &in, telemetry.ServiceRef{}) != nil {
		t.Error("no node observes something")
	}
}

// end is the end of a connection to web.
func end(w *world, edit func(*telemetry.End)) *telemetry.End {
	start := time.Unix(100, 0)
	e := &telemetry.End{
		Entry: &accesslog.Entry{
			Src: accesslog.Party{Addr: netip.MustParseAddrPort("10.0.0.2:4000"), Workload: "far", Namespace: "shop", Identity: "spiffe://cluster.local/ns/shop/sa/far"},
			Dst: accesslog.Party{Addr: netip.MustParseAddrPort("10.0.0.1:15008"), Workload: "web", Namespace: "shop"}, Service: "web.shop.svc", HBONEAddr: "10.0.0.1:80", Sent: 3, Received: 5,
		},
		Key:   &telemetry.Key{Reporter: telemetry.Destination, MTLS: true, Dst: w.web, SrcIdentity: identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "far"}},
		Start: start, Up: start.Add(1500 * time.Microsecond), Over: start.Add(time.Second), Trace: connect.Trace{ID: [16]byte{1}, Decision: connect.Sampled},
		Target: connect.AddrTarget(netip.MustParseAddrPort("10.0.0.1:80")),
	}
	if edit != nil {
		edit(e)
	}
	return e
}

// filtered is a rule whose filter the control plane has checked.
func filtered(t testing.TB, text string) *telemetrypb.AccessLogging {
	t.Helper()
	c, err := expr.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := c.Tree()
	if err != nil {
		t.Fatal(err)
	}
	return &telemetrypb.AccessLogging{Filter: text, Checked: tree}
}

// TestFilters: which connections have lines, and what a filter without a value does.
func TestFilters(t *testing.T) {
	yes := true
	rule := func(a *telemetrypb.AccessLogging) *telemetrypb.Layer {
		return &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{a}}
	}
	failed := func(e *telemetry.End) { e.Reason = reason.PolicyDenied }
	for _, tt := range []struct {
		name string
		rule *telemetrypb.AccessLogging
		edit func(*telemetry.End)
		line bool
	}{
		{"off", &telemetrypb.AccessLogging{Disabled: &yes}, nil, false},
		{"holds", filtered(t, "source.workload == 'far' && destination.service == 'web.shop.svc' && connection.mtls"), nil, true},
		{"the port that was called", filtered(t, "destination.port == 80 && destination.address == '10.0.0.1:80'"), nil, true},
		{"the port of a name", filtered(t, "destination.port == 81 && !has(destination.address)"), func(e *telemetry.End) { e.HBONEAddr = "web.shop.svc:81" }, true},
		{"without a tunnel", filtered(t, "destination.port == 15008"), func(e *telemetry.End) { e.HBONEAddr = "" }, true},
		{"holds not", filtered(t, "source.namespace == 'market'"), nil, false},
		{"failures, a failure", filtered(t, "has(connection.termination_details)"), failed, true},
		{"failures, none", filtered(t, "has(connection.termination_details)"), nil, false},
		{"a field without a value", filtered(t, "connection.termination_details == 'x'"), nil, false},
		{"identities", filtered(t, "source.principal == connection.uri_san_peer_certificate && !has(destination.principal) && source.address == '10.0.0.2:4000' && source.port == 4000"), nil, true},
		{"what is never there", filtered(t, "has(connection.requested_server_name)"), nil, false},
	} {
		w := newWorld(t)
		w.set("a", rule(tt.rule))
		trace := connect.NewTrace()
		m := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{})
		if m == nil || m.Watch.Ended(end(w, tt.edit)) != tt.line {
			t.Errorf("%s: %+v", tt.name, m)
		}
	}
	w := newWorld(t)
	w.set("other", &telemetrypb.Layer{Scope: telemetrypb.Scope_WORKLOAD, Workloads: []string{"Kubernetes//Pod/shop/db"}, AccessLogging: []*telemetrypb.AccessLogging{{Disabled: &yes}}})
	w.set("far", &telemetrypb.Layer{Scope: telemetrypb.Scope_NAMESPACE, Namespace: "market", AccessLogging: []*telemetrypb.AccessLogging{{Disabled: &yes}}})
	trace := connect.NewTrace()
	if m := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{}); m != nil {
		t.Errorf("layers for others change something: %+v", m)
	}
	// A layer that is rejected leaves what was there: an older control plane sends text alone.
	w.set("a", rule(&telemetrypb.AccessLogging{Disabled: &yes}))
	body, err := proto.Marshal(rule(&telemetrypb.AccessLogging{Filter: "source.workload == 'far'"}))
	if err != nil {
		t.Fatal(err)
	}
	if bad := w.node.cfg.Layers.Apply(xds.Delta{Updated: []xds.Resource{{Name: "a", Body: body}}}); len(bad) != 1 {
		t.Errorf("%v", bad)
	}
	if m := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{}); m == nil || m.Watch.Ended(end(w, nil)) {
		t.Errorf("%+v", m)
	}
}

// TestDearExpressions: the expressions of one namespace have a time, and others have theirs.
func TestDearExpressions(t *testing.T) {
	w := newWorld(t)
	w.set("a", &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{filtered(t, "source.workload == 'far'")}})
	m, other := w.node.meter("shop"), w.node.meter("market")
	now := time.Unix(100, 0)
	calls := 0
	if !m.spend(now, func() { calls++ }) || !other.spend(now, func() { calls++ }) {
		t.Error("nothing was used")
	}
	m.used.Store(int64(maxEvaluation))
	if m.spend(now, func() { calls++ }) || !other.spend(now, func() { calls++ }) || !m.spend(now.Add(time.Second), func() { calls++ }) || calls != 4 {
		t.Errorf("%d were evaluated", calls)
	}
	// A connection whose filter is not evaluated has no line, and is counted.
	trace := connect.NewTrace()
	h := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{}).Watch
	if !h.Ended(end(w, nil)) {
		t.Error("the filter does not hold")
	}
	for range 2 { // the second may change in between
		m.second.Store(time.Now().Unix())
		m.used.Store(int64(maxEvaluation))
		if !h.Ended(end(w, nil)) {
			break
		}
	}
	if w.node.skipped.n.Load() == 0 {
		t.Error("nothing is counted as skipped")
	}
}

// TestSpan: what the message of a span has.
func TestSpan(t *testing.T) {
	w := newWorld(t)
	l := sampling(100, telemetrypb.Side_BOTH)
	l.Tracing.CustomTags = &telemetrypb.CustomTags{Tags: []*telemetrypb.CustomTag{{Name: "color", Literal: "blue"}}}
	w.set("mesh", l)
	trace := connect.Trace{ID: [16]byte{1}, Span: [8]byte{7}, Decision: connect.Sampled}
	s := spanOf(w.pod.Inbound(w.web, &trace, telemetry.ServiceRef{}))
	s.info = &sockopt.TCPInfo{RTT: 250 * time.Microsecond, Retransmits: 2}
	decode := func(edit func(*telemetry.End)) (*tracepb.Span, map[string]string) {
		var e otlp.Encoder
		s.encode(&e, end(w, edit))
		out := &tracepb.Span{}
		if err := proto.Unmarshal(e.Bytes(), out); err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, a := range out.Attributes {
			m[a.Key] = strings.Trim(a.Value.String()[strings.Index(a.Value.String(), ":")+1:], `"`)
		}
		return out, m
	}
	got, attributes := decode(nil)
	if got.Name != "tcp web.shop.svc:80" || got.Kind != tracepb.Span_SPAN_KIND_SERVER || got.ParentSpanId[0] != 7 || got.Status.GetCode() != 0 || got.EndTimeUnixNano-got.StartTimeUnixNano != uint64(time.Second) {
		t.Errorf("%v", got)
	}
	for k, want := range map[string]string{
		"ambit.bytes_sent": "3", "ambit.connect.duration_ms": "1.5", "ambit.tcp.rtt_us": "250", "ambit.tcp.retransmits": "2", "color": "blue", "response_flags": "-",
		"istio.destination_workload": "web", "client.address": "10.0.0.2", "client.port": "4000", "network.peer.address": "10.0.0.2", "server.port": "80",
	} {
		if attributes[k] != want {
			t.Errorf("%s is %q, want %q", k, attributes[k], want)
		}
	}
	got, attributes = decode(func(e *telemetry.End) {
		e.Result = relay.Result{Reason: reason.PolicyDenied, Err: errors.New("x")}
		e.Policy, e.DryRun, e.Service, e.Target, e.Up = "shop/p", "shop/q=would_deny", strings.Repeat("\xff", 5000), connect.Target{}, time.Time{}
	})
	if got.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || attributes["ambit.reason"] != "POLICY_DENIED" || attributes["response_flags"] != "DENY" || attributes["ambit.policy"] != "shop/p" ||
		attributes["ambit.dry_run"] != "shop/q=would_deny" || attributes["ambit.connect.duration_ms"] != "" {
		t.Errorf("%v %v", got, attributes)
	}
}

// TestFlood: spans beyond the room are dropped and counted, and nothing waits for a
// collector that is not there.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	w.set("mesh", sampling(100, telemetrypb.Side_BOTH))
	release, held := make(chan struct{}), make(chan struct{})
	w.node.senders[0].loop.Post(func() { close(held); <-release })
	<-held
	const many = 10000
	for range many {
		trace := connect.Trace{}
		w.pod.Inbound(w.web, &trace, telemetry.ServiceRef{}).Watch.Ended(end(w, nil))
	}
	if n := w.node.senders[0].pending.Load(); n > maxPending || n < maxPending/2 {
		t.Errorf("%d bytes wait", n)
	}
	if _, full, _ := w.node.counters.Values(); full == 0 || full > many-500 {
		t.Errorf("%d of %d are dropped", full, many)
	}
	close(release)
}

// TestVerdicts: verdicts of policies under trial are counted and noted, and go with their
// policies.
func TestVerdicts(t *testing.T) {
	w := newWorld(t)
	c := &telemetry.Conn{}
	log := slog.New(slog.DiscardHandler)
	w.node.Decided(log, slog.LevelInfo, c, &rbac.Conn{}, &rbac.Decision{Allowed: true})
	if c.More != nil {
		t.Error("something is noted without a verdict")
	}
	w.node.Decided(log, slog.LevelInfo, c, &rbac.Conn{}, &rbac.Decision{Allowed: true, DryRun: []rbac.DryRun{{Policy: "shop/p", Deny: true}, {Policy: "shop/q"}}, WouldDeny: true})
	if c.More.DryRun != "shop/p=would_deny,shop/q=would_allow,would_allow_none" {
		t.Errorf("%q", c.More.DryRun)
	}
}

// TestOverridesOfWorkloads: overrides are those of the workload that reports, in the half
// that it reports.
func TestOverridesOfWorkloads(t *testing.T) {
	w := newWorld(t)
	yes := true
	w.set("a", &telemetrypb.Layer{Scope: telemetrypb.Scope_NAMESPACE, Namespace: "shop", Side: telemetrypb.Side_SERVER, Metrics: []*telemetrypb.MetricOverride{{Disabled: &yes}}})
	if !w.node.Any() {
		t.Error("there is none")
	}
	for _, tt := range []struct {
		reporter, namespace, workload string
		disabled                      bool
	}{{"destination", "shop", "web", true}, {"source", "shop", "web", false}, {"destination", "market", "web", false}, {"destination", "shop", "db", false}} {
		if got := w.node.For(telemetry.Traffic{Reporter: tt.reporter, Namespace: tt.namespace, Workload: tt.workload})["TCP_SENT_BYTES"].Disabled; got != tt.disabled {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// BenchmarkUnsampled is what a connection costs that is not sampled.
func BenchmarkUnsampled(b *testing.B) {
	w := newWorld(b)
	w.set("mesh", sampling(0, telemetrypb.Side_BOTH))
	trace := connect.NewTrace()
	b.ReportAllocs()
	for b.Loop() {
		out, in := trace, connect.Trace{}
		w.pod.Outbound(w.web, &out, telemetry.ServiceRef{})
		w.pod.Inbound(w.web, &in, telemetry.ServiceRef{})
	}
}

// TestUnsampledAllocates: nothing.
func TestUnsampledAllocates(t *testing.T) {
	w := newWorld(t)
	w.set("mesh", sampling(0, telemetrypb.Side_BOTH))
	trace := connect.NewTrace()
	if n := testing.AllocsPerRun(1000, func() {
		out, in := trace, connect.Trace{}
		w.pod.Outbound(w.web, &out, telemetry.ServiceRef{})
		w.pod.Inbound(w.web, &in, telemetry.ServiceRef{})
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestFiltersAllocate: nothing, when they look at names, ports and identities.
func TestFiltersAllocate(t *testing.T) {
	w := newWorld(t)
	w.set("a", &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{
		filtered(t, "source.workload in ['near', 'nearer'] || source.principal.startsWith('spiffe://other/') || source.port < 10 || source.namespace.matches('^m.*t$')"),
	}})
	trace := connect.NewTrace()
	m, over := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{}), end(w, nil)
	if n := testing.AllocsPerRun(1000, func() { m.Watch.Ended(over) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkFilter is what a filter costs the end of a connection.
func BenchmarkFilter(b *testing.B) {
	w := newWorld(b)
	w.set("a", &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{filtered(b, "source.workload != 'client' || has(connection.termination_details)")}})
	trace := connect.NewTrace()
	m, over := w.pod.Outbound(w.web, &trace, telemetry.ServiceRef{}), end(w, nil)
	b.ReportAllocs()
	for b.Loop() {
		m.Watch.Ended(over)
	}
}
