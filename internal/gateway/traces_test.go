package gateway

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/observe/requests"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// observing returns settings with a share of requests that is sampled.
func observing(t testing.TB, percent float64, logs ...*telemetrypb.AccessLogging) *observe.Set {
	s := observe.NewStore(requests.Language, "ns", nil)
	body, err := proto.Marshal(&telemetrypb.Layer{AccessLogging: logs, Tracing: &telemetrypb.Tracing{
		Collector: &telemetrypb.Collector{Provider: "otel", Service: &telemetrypb.Service{Namespace: "ns", Hostname: "otel"}, Port: 4317}, Sampling: proto.Float64(percent),
	}})
	if err == nil {
		err = s.Put("mesh", body)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.Set()
}

// turns returns what makes one request of a connection that carries HTTP/1, whose head is
// given.
func turns(t testing.TB, w *world, head string) (one func()) {
	w.shop()
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "shop", Weight: 1}}})
	cfg, policies, tokens := w.config, w.policies, w.tokens
	w.g.opts.Config = func() *route.Config { return cfg }
	w.g.opts.Policies, w.g.opts.Authentications = fixed(policies), fixed(tokens)
	logs, err := logging.New(&lineCounter{}, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	rec := telemetry.NewLimited("waypoint", logs.Logger("access"), accesslog.DefaultRates)
	w.g.opts.Telemetry = NewTelemetry(rec, accesslog.NewRequests(logs.Lines(accesslog.Scope)), w.dir.Snapshot)
	var asked *fake
	w.g.opts.dial = func(l *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
		u := &fake{loop: l, last: &asked}
		l.Post(func() { done(u, nil) })
		return func() {}
	}
	l := w.group.Loop(0)
	down := &fake{loop: l}
	w.on(l, func() {
		w.g.shard(l).serve(&incoming{
			authority: "10.1.0.1:80", peer: clientID, remote: clientAddr, accept: func() stream.Conn { return down }, refuse: func(n int) { t.Error(n) },
			gone: func() bool { return false },
		})
	})
	request := []byte("GET /a HTTP/1.1\r\nHost: h\r\nUser-Agent: curl/8\r\n" + head + "\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	turn := make(chan struct{})
	ask := func() { down.sink.OnData(request, false) }
	var reply func()
	reply = func() {
		u := asked
		if asked = nil; u == nil { // it is being dialled
			l.Post(reply)
			return
		}
		u.sink.OnData(response, false)
		turn <- struct{}{}
	}
	return func() {
		l.Post(ask)
		l.Post(reply)
		<-turn
	}
}

func fixed[T any](v T) func() T { return func() T { return v } }

// TestTracesAllocateNothing: a request costs no memory whether it is sampled or not, and
// with a format of a user's own.
func TestTracesAllocateNothing(t *testing.T) {
	for _, tt := range []struct {
		percent float64
		head    string
		spans   bool
	}{
		{0, "", false}, {100, "", true}, {0, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n", true},
		{100, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n", false}, {100, "b3: 0\r\n", false},
	} {
		t.Run(fmt.Sprint(tt.percent, tt.head), func(t *testing.T) {
			w := newWorld(t, 1)
			set := observing(t, tt.percent, &telemetrypb.AccessLogging{Providers: []*telemetrypb.LogProvider{{Name: "envoy"}}})
			w.g.opts.Observed, w.g.opts.Spans = fixed(set), otlp.NewCounters("test", "spans")
			one := turns(t, w, tt.head)
			for range 300 {
				one()
			}
			if n := testing.AllocsPerRun(100, one); n != 0 && !race {
				t.Errorf("%v allocations a request", n)
			}
			waits := false
			w.on(w.group.Loop(0), func() { waits = !w.g.shards[0].traces.Flush() })
			if waits != tt.spans {
				t.Errorf("spans wait: %v, want %v", waits, tt.spans)
			}
		})
	}
}

func BenchmarkTraces(b *testing.B) {
	for _, percent := range []float64{0, 100} {
		b.Run(fmt.Sprint(percent), func(b *testing.B) {
			w := newWorld(b, 1)
			set := observing(b, percent)
			w.g.opts.Observed = fixed(set)
			one := turns(b, w, "")
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}
