package traffic

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// mesh has a service web of some endpoints, of which each has a region of its own, and a
// client in the region of the first.
type mesh struct {
	*workload.Snapshot
	svc    *workload.Service
	client *workload.Workload
}

func newMesh(t testing.TB, endpoints int) mesh {
	t.Helper()
	d := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	var all []*workloadpb.Address
	all = append(all, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
		Name: "web", Namespace: "shop", Hostname: "web.shop.svc.cluster.local", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81, TargetPort: 8080}},
	}}})
	for i := range endpoints {
		w := &workloadpb.Workload{
			Uid: fmt.Sprint("e", i), Name: fmt.Sprint("e", i), Namespace: "shop", Addresses: [][]byte{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).AsSlice()},
			Locality: &workloadpb.Locality{Region: fmt.Sprint("r", i)},
			Services: map[string]*workloadpb.PortList{"shop/web.shop.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81, TargetPort: 8080}}}},
		}
		all = append(all, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	}
	if _, bad := d.Apply(all, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	s := d.Snapshot()
	return mesh{s, s.ServiceByName("shop", "web.shop.svc.cluster.local"), s.WorkloadByUID("e0")}
}

func (m mesh) query() workload.Query {
	return workload.Query{Service: m.svc, Client: m.client, Port: 80, Rand: func(n uint64) uint64 { return n - 1 }, Load: func(string) int { return 0 }}
}

// with returns a node with a rule for web, of its own namespace.
func with(t testing.TB, s rules.Settings) *Node {
	t.Helper()
	n := New(slog.New(slog.DiscardHandler))
	set(t, n, s)
	return n
}

func set(t testing.TB, n *Node, s rules.Settings) {
	t.Helper()
	body, err := (&rules.Rule{Namespace: "shop", Name: "web", Host: "web.shop.svc.cluster.local", Settings: s}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if bad := n.Apply(xds.Delta{Updated: []xds.Resource{{Name: "all/shop/web", Body: body}}}); bad != nil {
		t.Fatal(bad)
	}
}

// TestLimit: no more connections than the limit are in at any moment, whoever comes at
// once; the limit changes with the rule, and the connections stay counted.
func TestLimit(t *testing.T) {
	m := newMesh(t, 1)
	n := with(t, rules.Settings{MaxConnections: 10})
	g := n.For("shop", m.svc, 80)
	other := n.For("street", m.svc, 80)
	if n.For("shop", m.svc, 81) == g || n.For("shop", m.svc, 82) != nil {
		t.Error("ports are not counted apart")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if err := g.Enter(); err == nil {
					if g.Active() > 10+8 { // Enter counts for a moment what it refuses
						t.Error("more than the limit")
					}
					g.Leave()
				}
			}
		})
	}
	wg.Wait()
	for range 10 {
		if err := g.Enter(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Enter(); err == nil || err.Reason != reason.ResourceExhausted {
		t.Errorf("connection 11: %v", err)
	}
	if other == g || other.Enter() != nil {
		t.Error("the clients of another namespace have no connections of their own")
	}
	set(t, n, rules.Settings{MaxConnections: 11})
	if again := n.For("shop", m.svc, 80); again != g || again.Enter() != nil || again.Enter() == nil {
		t.Error("the new limit is not in effect for the connections that are open")
	}
	n.Apply(xds.Delta{Removed: []string{"all/shop/web"}})
	if n.For("shop", m.svc, 80) != nil {
		t.Error("the rule is gone, and its group is found")
	}
	var none *Group
	if none.Enter() != nil || none.ConnectTimeout() != 0 || none.Failed(m.Snapshot, m.svc, "e0") {
		t.Error("without a rule something is limited")
	}
	none.Leave()
	none.Worked("e0")
}

// TestEjection: an endpoint that fails is left out, up to the share that is permitted; with
// all others gone it is taken nevertheless.
func TestEjection(t *testing.T) {
	m := newMesh(t, 4)
	o := rules.Outlier{Consecutive: 2, Interval: time.Second, Base: time.Hour, MaxPercent: 50}
	n := with(t, rules.Settings{Outlier: &o, Balance: rules.RoundRobin})
	g := n.For("shop", m.svc, 80)
	picks := func() map[string]int {
		count := map[string]int{}
		for range 40 {
			up, err := n.For("shop", m.svc, 80).Pick(m.Snapshot, m.query())
			if err != nil {
				t.Fatal(err)
			}
			count[up.Workload.UID]++
		}
		return count
	}
	if c := picks(); len(c) != 4 || c["e0"] != 10 || c["e3"] != 10 {
		t.Errorf("in turns: %v", c)
	}
	fail := func(uid string) bool {
		g.Failed(m.Snapshot, m.svc, uid)
		g.Worked(uid)
		if g.Failed(m.Snapshot, m.svc, uid) {
			t.Error("ejected, although a connection was accepted between")
		}
		return g.Failed(m.Snapshot, m.svc, uid)
	}
	if !fail("e0") || !fail("e1") || fail("e2") {
		t.Error("half of the endpoints, and no more, can be ejected")
	}
	if len(n.For("street", m.svc, 80).Ejected(time.Now())) != 0 {
		t.Error("what failed for one tenant is left out for another")
	}
	if c := picks(); c["e0"]+c["e1"] != 0 {
		t.Errorf("ejected ones are chosen: %v", c)
	}
	n.Forget("e0")
	if c := picks(); c["e0"] == 0 || c["e1"] != 0 || !fail("e0") {
		t.Errorf("a successor of the same name does not begin anew: %v", c)
	}
	if g.Failed(m.Snapshot, m.svc, "gone") || len(g.Ejected(time.Now())) != 2 {
		t.Errorf("ejected: %v", g.Ejected(time.Now()))
	}
	q := m.query()
	q.Excluded = func(uid string) bool { return uid == "e2" || uid == "e3" }
	if up, err := g.Pick(m.Snapshot, q); err != nil || up.Workload.UID != "e0" && up.Workload.UID != "e1" {
		t.Errorf("with all others excluded: %v, %v", up.Workload, err)
	}
	o.MinHealthPercent = 51
	set(t, n, rules.Settings{Outlier: &o, Balance: rules.RoundRobin})
	if c := picks(); len(c) != 4 {
		t.Errorf("fewer than minHealthPercent are left, and ejections hold: %v", c)
	}
	set(t, n, rules.Settings{Balance: rules.RoundRobin})
	if c := picks(); len(c) != 4 || len(g.Ejected(time.Now())) != 0 {
		t.Errorf("the rule ejects nothing any more: %v", c)
	}
}

// TestLocality: a region that is named comes after the client's own, before all others.
func TestLocality(t *testing.T) {
	m := newMesh(t, 4)
	l := &rules.Locality{Scopes: []rules.Scope{rules.Region, rules.Zone}, Failover: []rules.Failover{{From: "r0", To: "r2"}}}
	g := with(t, rules.Settings{Locality: l}).For("shop", m.svc, 80)
	failed := map[string]bool{}
	for _, want := range []string{"e0", "e2"} {
		for range 20 {
			q := m.query()
			q.Excluded = func(uid string) bool { return failed[uid] }
			if up, err := g.Pick(m.Snapshot, q); err != nil || up.Workload.UID != want {
				t.Fatalf("without %v: %v, %v", failed, up.Workload, err)
			}
		}
		failed[want] = true
	}
	q := m.query()
	q.Excluded = func(uid string) bool { return failed[uid] }
	if _, err := g.Pick(m.Snapshot, q); err != nil {
		t.Errorf("other regions are not taken: %v", err)
	}
}

// TestBounds: neither names of services nor endpoints that fail make a node proxy keep more
// than its bounds.
func TestBounds(t *testing.T) {
	n := New(slog.New(slog.DiscardHandler))
	body, err := (&rules.Rule{Namespace: "istio-system", Name: "all", Host: "*", Root: true, Settings: rules.Settings{MaxConnections: 1, Outlier: &rules.Outlier{Consecutive: 9, Base: time.Second, Interval: time.Hour, MaxPercent: 100}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(xds.Delta{Updated: []xds.Resource{{Name: "all/istio-system/all", Body: body}}})
	m := newMesh(t, 1)
	for i := range 3 * maxGroups {
		svc := *m.svc
		svc.Hostname = fmt.Sprint("s", i)
		if n.For("shop", &svc, 80) == nil {
			t.Fatal("no group")
		}
		for port := range uint16(50) {
			n.For("shop", &svc, 1000+port) // which the service does not have
		}
	}
	if len(n.groups) > maxGroups {
		t.Errorf("%d groups", len(n.groups))
	}
	kept := 0
	n.now.Load().found.Range(func(any, any) bool { kept++; return true })
	if kept > maxFound {
		t.Errorf("%d look-ups are kept", kept)
	}
	many := newMesh(t, 250)
	g := n.For("shop", many.svc, 80)
	for i := range 2 * maxPlaces {
		g.Failed(many.Snapshot, many.svc, fmt.Sprint("e", i%250))
		g.Failed(many.Snapshot, many.svc, fmt.Sprint("gone", i))
	}
	if len(g.health) > 251 {
		t.Errorf("%d endpoints are kept, of 250", len(g.health))
	}
}

// TestTurns: numbers in a row visit all of a range before one comes again.
func TestTurns(t *testing.T) {
	for n := uint64(1); n < 200; n++ {
		seen := map[uint64]bool{}
		for i := range n {
			at := turn(i+7, n)
			if at >= n || seen[at] {
				t.Fatalf("of %d, number %d comes twice", n, at)
			}
			seen[at] = true
		}
	}
}

func addRoute(t testing.TB, n *Node, name, clients string, created int64, backends ...route.Backend) {
	t.Helper()
	r := &wire.Rule{
		Origin:  wire.Origin{Kind: "TCPRoute", Namespace: "shop", Name: name, Created: time.Unix(created, 0)},
		Parents: []wire.Parent{{Port: route.PortKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local", Port: 80}, Clients: clients}},
		Rule:    route.Rule{Carries: route.Anything, Backends: backends},
	}
	body, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if bad := n.ApplyRoutes(xds.Delta{Updated: []xds.Resource{{Name: name, Body: body}}}); bad != nil {
		t.Fatal(bad)
	}
}

// TestShift: each share of a route's backends gets its share of rolls; what is invalid is
// refused; clients of a namespace with a route of their own have that one.
func TestShift(t *testing.T) {
	m := newMesh(t, 1)
	n := New(slog.New(slog.DiscardHandler))
	if _, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 0); ok {
		t.Error("shifted without a route")
	}
	addRoute(t, n, "split", "", 1, route.Backend{Name: "shop/v1:80", Weight: 3}, route.Backend{Name: "shop/v2:81", Weight: 1}, route.Backend{Weight: 4, Invalid: "there is no Service shop/absent"})
	count := map[string]int{}
	for i := range uint64(800) {
		s, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, i*((1<<64-1)/800))
		if !ok || s.Origin != "TCPRoute shop/split, rule 0" {
			t.Fatalf("%+v", s)
		}
		if s.Failure != nil {
			count[s.Failure.Reason.String()]++
		} else {
			count[s.To.UpstreamName()]++
		}
	}
	if count["shop/v1:80"] < 299 || count["shop/v1:80"] > 301 || count["shop/v2:81"] < 99 || count["shop/v2:81"] > 101 || count["NO_BACKEND"] < 399 {
		t.Errorf("%v", count)
	}
	if _, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 81}, 0); ok {
		t.Error("another port is shifted")
	}
	addRoute(t, n, "mine", "market", 2, route.Backend{Name: "shop/v2:81", Weight: 1})
	if s, _ := n.Shift(Call{Client: "market", Service: m.svc, Port: 80}, 0); s.To.Hostname != "v2" {
		t.Errorf("clients with a route of their own: %+v", s)
	}
	if s, _ := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 0); s.To.Hostname != "v1" {
		t.Errorf("other clients: %+v", s)
	}
	addRoute(t, n, "split", "", 1)
	if s, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 0); !ok || s.Failure == nil || s.Failure.Reason != reason.NoBackend {
		t.Errorf("a route without backends: %+v", s)
	}
	if bad := n.ApplyRoutes(xds.Delta{Updated: []xds.Resource{{Name: "mine", Body: []byte{0xff}}}}); len(bad) != 1 {
		t.Error("garbage is not rejected")
	}
	if s, _ := n.Shift(Call{Client: "market", Service: m.svc, Port: 80}, 0); s.To.Hostname != "v2" {
		t.Error("what was rejected has replaced what was there")
	}
}

// TestNoAllocation: neither rules nor routes cost a connection an allocation.
func TestNoAllocation(t *testing.T) {
	m := newMesh(t, 8)
	n := with(t, rules.Settings{MaxConnections: 9, Outlier: &rules.Outlier{Consecutive: 5, Interval: time.Second, Base: time.Second, MaxPercent: 10}, Balance: rules.RoundRobin})
	addRoute(t, n, "split", "", 1, route.Backend{Name: "shop/v1:80", Weight: 1})
	q := m.query()
	if a := testing.AllocsPerRun(100, func() {
		_, _ = n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 1<<60)
		g := n.For("shop", m.svc, 80)
		_ = g.Enter()
		_, _ = g.Pick(m.Snapshot, q)
		g.Worked("e0")
		g.Leave()
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// BenchmarkDecide is what a connection costs with a rule and a route: a look-up of each, a
// choice, and being counted.
func BenchmarkDecide(b *testing.B) {
	m := newMesh(b, 8)
	n := with(b, rules.Settings{MaxConnections: 1 << 30, Outlier: &rules.Outlier{Consecutive: 5, Interval: time.Second, Base: time.Second, MaxPercent: 10}, Balance: rules.RoundRobin})
	addRoute(b, n, "split", "", 1, route.Backend{Name: "shop/v1:80", Weight: 1})
	q := m.query()
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 1<<60); !ok {
			b.Fatal("no route")
		}
		g := n.For("shop", m.svc, 80)
		if g.Enter() != nil {
			b.Fatal("refused")
		}
		if _, err := g.Pick(m.Snapshot, q); err != nil {
			b.Fatal(err)
		}
		g.Leave()
	}
}

// BenchmarkWithout is what a connection costs where there are no rules and no routes.
func BenchmarkWithout(b *testing.B) {
	m := newMesh(b, 1)
	n := New(slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80}, 0); ok || n.For("shop", m.svc, 80) != nil {
			b.Fatal("there is something")
		}
	}
}

// TestNames: of connections of TLS, the name decides, once the first bytes are read; others
// take the TCPRoute beside.
func TestNames(t *testing.T) {
	m := newMesh(t, 1)
	n := New(slog.New(slog.DiscardHandler))
	addRoute(t, n, "plain", "", 1, route.Backend{Name: "shop/v1:80", Weight: 1})
	call := Call{Client: "shop", Service: m.svc, Port: 80}
	if n.Reads(call) != nil {
		t.Error("a port without a TLSRoute is read")
	}
	r := &wire.Rule{
		Origin:  wire.Origin{Kind: "TLSRoute", Namespace: "shop", Name: "named", Created: time.Unix(1, 0)},
		Parents: []wire.Parent{{Port: route.PortKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local", Port: 80}}},
		Rule:    route.Rule{Carries: route.TLS, Hosts: []string{"a.b"}, Backends: []route.Backend{{Name: "shop/v2:81", Weight: 1}}},
	}
	body, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if bad := n.ApplyRoutes(xds.Delta{Updated: []xds.Resource{{Name: "named", Body: body}}}); bad != nil {
		t.Fatal(bad)
	}
	if n.Reads(call) == nil || n.Backends(call) != nil {
		t.Error("the first bytes are not asked for")
	}
	for want, first := range map[string]First{
		"v1": {Seen: true}, "v2": {Seen: true, TLS: true, Name: "a.b"}, "": {Seen: true, TLS: true, Name: "c.d"},
	} {
		c := call
		c.First = first
		s, ok := n.Shift(c, 0)
		if !ok || s.To.Hostname != want || (s.Failure == nil) != (want != "") || want == "" && s.Failure.Reason != reason.NoRoute || n.Reads(c) != nil {
			t.Errorf("%+v: %+v", first, s)
		}
	}
	if s, _ := n.Shift(Call{Client: "shop", Service: m.svc, Port: 80, First: First{Seen: true, Broken: true}}, 0); s.Failure == nil || s.Failure.Reason != reason.NoRoute {
		t.Errorf("a broken handshake: %+v", s)
	}
	all := n.Dump().Routes
	if len(all) != 2 || len(all[0].Names) != 0 || len(all[1].Names) != 1 || all[1].Names[0] != "a.b" {
		t.Errorf("%+v", all)
	}
}
