package export

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool/pooltest"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is an exporter and a collector.
type world struct {
	t        *testing.T
	loop     *poll.Loop
	exporter *Exporter
	counters *otlp.Counters
	to       *observe.Collector

	mu     sync.Mutex // guards what follows
	answer func() int
	names  []string
	at     netip.AddrPort
	failed *reason.Error // of Reach
}

func newWorld(t *testing.T, path string) *world {
	t.Helper()
	group, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, loop: group.Loop(0), counters: otlp.NewCounters("test", "spans"), answer: func() int { return 200 }}
	w.to = &observe.Collector{Provider: "otel", Service: observe.Service{Namespace: "o", Hostname: "otel"}, Port: 4317, Path: path}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
	if err != nil {
		t.Fatal(err)
	}
	w.at = l.Addr().(*net.TCPAddr).AddrPort()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: w, Protocols: protocols} //nolint:gosec // of this test alone
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	p := pooltest.Plain(t, w.loop)
	w.exporter = New(Config{
		Loop: w.loop, Pool: p, Prefix: func() *otlp.Prefix { return otlp.NewPrefix("test", "v", nil) }, Counters: w.counters, Log: slog.New(slog.DiscardHandler), Method: MethodTraces,
		Reach: func(*observe.Collector, func()) (pool.Target, bool, *reason.Error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return pool.Target{App: w.at}, false, w.failed
		},
	})
	t.Cleanup(func() {
		w.on(func() { w.exporter.Close(); p.Drain() })
		_ = s.Close()
		<-done
		group.Close()
	})
	return w
}

// ServeHTTP implements http.Handler.
func (w *world) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.mu.Lock()
	answer := w.answer
	w.mu.Unlock()
	status := answer()
	isGRPC := r.Header.Get("Content-Type") == "application/grpc"
	if isGRPC {
		if len(body) < 5 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 || r.URL.Path != MethodTraces || r.Header.Get("Te") != "trailers" || r.ProtoMajor != 2 {
			w.t.Errorf("a frame of %d bytes to %s by %s", len(body), r.URL.Path, r.Proto)
		}
		body = body[5:]
	}
	if status == 200 {
		var req collectorpb.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			w.t.Error(err)
		}
		w.mu.Lock()
		for _, s := range req.ResourceSpans[0].ScopeSpans[0].Spans {
			w.names = append(w.names, s.Name)
		}
		w.mu.Unlock()
	}
	if !isGRPC {
		out.WriteHeader(status)
		return
	}
	out.Header().Set("Content-Type", "application/grpc")
	out.Header().Set("Trailer", "Grpc-Status")
	_, _ = out.Write(make([]byte, 5))
	out.Header().Set("Grpc-Status", map[bool]string{true: "0", false: "14"}[status == 200])
}

func (w *world) on(f func()) {
	w.t.Helper()
	done := make(chan struct{})
	w.loop.Post(func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(time.Minute):
		w.t.Fatal("the loop hangs")
	}
}

// add adds spans of a party.
func (w *world) add(party string, n, size int) {
	w.on(func() {
		var e otlp.Encoder
		for i := range n {
			e.Begin(&otlp.Span{Trace: [16]byte{1}, ID: [8]byte{1}, Name: fmt.Appendf(nil, "%s%d%s", party, i, bytes.Repeat([]byte("x"), size)), Kind: otlp.KindServer, Start: time.Unix(1, 0), End: time.Unix(2, 0)})
			if w.exporter.Admits(w.to, party, size) {
				w.exporter.Add(w.to, party, e.Bytes())
			}
		}
	})
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			sent, full, failed := w.counters.Values()
			w.t.Fatalf("never: %s; sent %d, full %d, failed %d", what, sent, full, failed)
		}
	}
}

func (w *world) set(answer func() int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// TestExport: spans arrive by gRPC and by HTTP, all of them, some in one request.
func TestExport(t *testing.T) {
	for _, path := range []string{"", "/v1/traces"} {
		t.Run(path, func(t *testing.T) {
			w := newWorld(t, path)
			w.add("a", 1000, 500)
			w.eventually("all spans are sent", func() bool { sent, _, _ := w.counters.Values(); return sent == 1000 })
			w.add("b", 1, 10)
			w.on(func() { w.exporter.Flush() })
			w.eventually("the last one", func() bool { sent, _, _ := w.counters.Values(); return sent == 1001 })
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.names) != 1001 {
				t.Errorf("%d spans", len(w.names))
			}
		})
	}
}

// TestCollectorIsSlow: what a collector does not take is dropped and counted, the memory
// is bounded, and nothing waits. Afterwards spans arrive again.
func TestCollectorIsSlow(t *testing.T) {
	w := newWorld(t, "")
	hold := make(chan struct{})
	w.set(func() int { <-hold; return 200 })
	const n = 5000
	w.add("a", n, 1000)
	w.on(func() {
		if s := w.exporter.senders[w.to]; s.queue.Size() > maxQueue {
			t.Errorf("%d bytes wait", s.queue.Size())
		}
	})
	if _, full, _ := w.counters.Values(); full == 0 {
		t.Error("nothing was dropped")
	}
	close(hold)
	w.eventually("the rest is sent", func() bool { sent, full, _ := w.counters.Values(); return sent+full == n })
}

// TestCollectorRefuses: what may be sent again is, and what may not is dropped and counted.
func TestCollectorRefuses(t *testing.T) {
	for _, path := range []string{"", "/v1/traces"} {
		t.Run(path, func(t *testing.T) {
			w := newWorld(t, path)
			tries := 0
			w.set(func() int {
				if tries++; tries == 1 {
					return 503
				}
				return 200
			})
			w.add("a", 1, 10)
			w.eventually("it is sent again", func() bool { sent, _, _ := w.counters.Values(); return sent == 1 })
		})
	}
	w := newWorld(t, "/v1/traces")
	w.set(func() int { return 400 })
	w.add("a", 3, 10)
	w.eventually("it is dropped", func() bool { _, _, failed := w.counters.Values(); return failed == 3 })
}

// TestCollectorIsAway: neither a port that is closed nor a service that does not exist
// costs more than the spans.
func TestCollectorIsAway(t *testing.T) {
	w := newWorld(t, "")
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		t.Fatal(err)
	}
	live := w.at
	w.at = l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	w.add("a", 2, 10)
	w.on(func() { w.exporter.Flush() })
	w.eventually("a try has failed", func() bool {
		tries := 0
		w.on(func() { tries = w.exporter.senders[w.to].tries })
		return tries > 1
	})
	w.mu.Lock()
	w.at, w.failed = live, nil
	w.mu.Unlock()
	w.eventually("it is sent once it is back", func() bool { sent, _, _ := w.counters.Values(); return sent == 2 })
}

// TestFloodCostsItsOwnSpans: a party that sends more than the collector takes does not
// cost another party's spans.
func TestFloodCostsItsOwnSpans(t *testing.T) {
	w := newWorld(t, "")
	hold := make(chan struct{})
	w.set(func() int { <-hold; return 200 })
	w.add("flood", 5000, 1000)
	w.add("quiet", 20, 1000)
	w.add("flood", 5000, 1000)
	close(hold)
	w.eventually("the quiet party's spans", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, name := range w.names {
			if name[:5] == "quiet" {
				n++
			}
		}
		return n == 20
	})
}

// TestOutcome: which answers are acceptance, and which may be repeated.
func TestOutcome(t *testing.T) {
	for _, tt := range []struct {
		status, grpc int
		isGRPC       bool
		ok, repeated bool
	}{
		{200, -1, false, true, false}, {202, -1, false, true, false}, {429, -1, false, false, true}, {503, -1, false, false, true}, {400, -1, false, false, false},
		{500, -1, false, false, false}, {200, 0, true, true, false}, {200, 14, true, false, true}, {200, 3, true, false, false}, {200, -1, true, false, false},
		{404, -1, true, false, false}, {503, -1, true, false, true},
	} {
		if ok, again := outcome(tt.status, tt.grpc, tt.isGRPC); ok != tt.ok || again != tt.repeated {
			t.Errorf("%+v: %v %v", tt, ok, again)
		}
	}
}
