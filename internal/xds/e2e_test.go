package xds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

const typeA, typeB = "type.googleapis.com/test.A", "type.googleapis.com/test.B"

// patience bounds waits for things that happen at once unless broken.
const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// served is a Server on loopback.
type served struct {
	*Server
	addr string
	stop func()
}

func serve(t *testing.T, c *Cache, addr string, opts ServerOptions) *served {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(c, opts)
	g := grpc.NewServer(GRPCOptions()...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	stop := sync.OnceFunc(func() { g.Stop(); <-done })
	t.Cleanup(stop)
	return &served{s, l.Addr().String(), stop}
}

// mirror is a type's state as a client sees it.
type mirror struct {
	mu      sync.Mutex
	cond    *sync.Cond
	held    map[string]string
	updated int // resources received, also again
	removed int
	bytes   int
	reject  map[string]error
}

func newMirror() *mirror {
	m := &mirror{held: make(map[string]string), reject: make(map[string]error)}
	m.cond = sync.NewCond(&m.mu)
	return m
}

func (m *mirror) apply(d Delta) []Rejection {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Rejection
	for _, r := range d.Updated {
		m.updated++
		m.bytes += len(r.Body) + len(r.Name)
		if err := m.reject[r.Name]; err != nil {
			out = append(out, Rejection{r.Name, err})
			continue
		}
		m.held[r.Name] = string(r.Body)
	}
	for _, n := range d.Removed {
		m.removed++
		delete(m.held, n)
	}
	m.cond.Broadcast()
	return out
}

// await waits until ok holds.
func (m *mirror) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { m.mu.Lock(); m.cond.Broadcast(); m.mu.Unlock() })
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	m.mu.Lock()
	defer m.mu.Unlock()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s (holds %d)", what, len(m.held))
		}
		m.cond.Wait()
	}
}

func follow(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func awaitClosed(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("did not happen: %s", what)
	}
}

func numbered(n int, body string) []*Resource {
	out := make([]*Resource, n)
	for i := range out {
		out[i] = &Resource{Name: fmt.Sprintf("cluster//Pod/ns/%d", i), Body: fmt.Appendf(nil, "%s-%d-%0200d", body, i, i)}
	}
	return out
}

func TestOneChangeOfMany(t *testing.T) {
	const n = 10_000
	cache := NewCache()
	cache.Update(typeA, numbered(n, "v1"), nil)
	cache.MarkSynced(typeA)
	m := newMirror()
	var mu sync.Mutex
	pushed := map[string]int{}
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{Metrics: ServerMetrics{Pushed: func(u string, r, d, b int) {
		mu.Lock()
		defer mu.Unlock()
		pushed["resources"] += r
		pushed["bytes"] += b
	}}})
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: m.apply}}})
	awaitClosed(t, "sync", c.Synced())
	m.await(t, "all resources", func() bool { return len(m.held) == n })
	m.mu.Lock()
	m.updated, m.bytes = 0, 0
	m.mu.Unlock()
	mu.Lock()
	clear(pushed)
	mu.Unlock()

	cache.Update(typeA, []*Resource{{Name: "cluster//Pod/ns/77", Body: []byte("v2")}}, nil)
	m.await(t, "the change", func() bool { return m.held["cluster//Pod/ns/77"] == "v2" })
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("one change of %d workloads: %d bytes", n, m.bytes)
	if m.updated != 1 || m.bytes >= 2048 {
		t.Errorf("one change came as %d resources of %d bytes", m.updated, m.bytes)
	}
}

func TestServerRestart(t *testing.T) {
	cache := NewCache()
	cache.Update(typeA, numbered(100, "v1"), nil)
	cache.MarkSynced(typeA)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{})
	m := newMirror()
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: m.apply}}})
	awaitClosed(t, "sync", c.Synced())
	m.await(t, "all resources", func() bool { return len(m.held) == 100 })
	s.stop()

	// The new server knows nothing of the old: two changed, ten are gone.
	fresh := NewCache()
	fresh.Update(typeA, numbered(90, "v1"), nil)
	fresh.Update(typeA, []*Resource{{Name: "cluster//Pod/ns/3", Body: []byte("v2")}, {Name: "new", Body: []byte("v1")}}, nil)
	fresh.MarkSynced(typeA)
	m.mu.Lock()
	m.updated = 0
	m.mu.Unlock()
	serve(t, fresh, s.addr, ServerOptions{})
	m.await(t, "the difference", func() bool { return m.held["new"] == "v1" && len(m.held) == 91 })
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.updated != 2 || m.removed != 10 || m.held["cluster//Pod/ns/3"] != "v2" {
		t.Errorf("restart: %d resources resent, %d removed; want 2, 10", m.updated, m.removed)
	}
}

func TestRejectionWhileRestApplies(t *testing.T) {
	cache := NewCache()
	cache.Update(typeA, []*Resource{{Name: "good", Body: []byte("1")}, {Name: "bad", Body: []byte("1")}}, nil)
	cache.MarkSynced(typeA)
	rejected := make(chan string, 4)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{Metrics: ServerMetrics{Rejected: func(u string) { rejected <- u }}})
	m := newMirror()
	m.reject["bad"] = errors.New("no such colour")
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: m.apply}}})
	awaitClosed(t, "sync", c.Synced())
	<-rejected
	st := s.Clients()
	if len(st) != 1 || st[0].Types[0].Error != "bad: no such colour" {
		t.Errorf("status of the client: %+v", st)
	}
	m.await(t, "the good one", func() bool { return m.held["good"] == "1" })
}

func TestDemandEndToEnd(t *testing.T) {
	cache := NewCache()
	cache.Update(typeA, []*Resource{
		{Name: "pod", Body: []byte("p"), Aliases: []string{"net/10.0.0.1", "ns/svc"}},
		{Name: "ns/svc", Body: []byte("s"), Aliases: []string{"net/10.1.0.1"}},
	}, nil)
	cache.MarkSynced(typeA)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{})
	m := newMirror()
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: m.apply}}})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, tc := range []struct {
		name string
		held int
	}{{"net/10.0.0.1", 1}, {"nobody", 1}, {"ns/svc", 2}} {
		if err := c.Demand(ctx, typeA, tc.name); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		m.await(t, tc.name, func() bool { return len(m.held) == tc.held })
	}
	// A name that did not exist is still followed, and so is what an alias brought.
	cache.Update(typeA, []*Resource{{Name: "nobody", Body: []byte("n")}, {Name: "unrelated", Body: []byte("u")}}, nil)
	cache.Update(typeA, nil, []string{"pod"})
	m.await(t, "later changes", func() bool {
		_, pod := m.held["pod"]
		_, unrelated := m.held["unrelated"]
		return m.held["nobody"] == "n" && !pod && !unrelated
	})
}

// TestSilentClientsKeepNobodyOut: who connects and says nothing has its turn,
// and then it is another's.
func TestSilentClientsKeepNobodyOut(t *testing.T) {
	cache := NewCache()
	cache.Update(typeA, []*Resource{{Name: "x", Body: []byte("1")}}, nil)
	cache.MarkSynced(typeA)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{})
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 * joiners {
		if _, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m := newMirror()
	follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: m.apply}}})
	m.await(t, "the state, beside silent clients", func() bool { return m.held["x"] == "1" })
}
