package ratelimit

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// fixed is a node whose clock is a value.
func fixed(now *int64) *Node {
	n := New(slog.New(slog.DiscardHandler))
	n.clock = func() int64 { return *now }
	return n
}

func apply(t testing.TB, n *Node, limits ...*ratelimit.Limit) {
	t.Helper()
	var d xds.Delta
	for _, l := range limits {
		body, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		d.Updated = append(d.Updated, xds.Resource{Name: l.Namespace + "/" + l.Name, Body: body})
	}
	if bad := n.Apply(d); bad != nil {
		t.Fatal(bad)
	}
}

func pod(namespace, uid string) *workload.Workload {
	return &workload.Workload{UID: uid, Traits: &workload.Traits{Namespace: namespace}}
}

func from(namespace string) ratelimit.Source {
	return ratelimit.Source{Identity: identity.Identity{TrustDomain: "cluster.local", Namespace: namespace, ServiceAccount: "a"}, Addr: netip.MustParseAddr("10.0.0.1")}
}

func limit(name string, burst uint32, by ratelimit.By, uids ...string) *ratelimit.Limit {
	return &ratelimit.Limit{Namespace: "shop", Name: name, Workloads: uids, Rates: []ratelimit.Rate{{Count: 1, Per: time.Hour, Burst: burst, By: by}}}
}

// TestTake: each pod is counted by itself, a connection that one limit refuses counts in no
// other, and a dry run refuses none.
func TestTake(t *testing.T) {
	var now int64
	n := fixed(&now)
	web, other := pod("shop", "web"), pod("shop", "other")
	if err := n.Take(web, 80, from("shop")); err != nil {
		t.Fatal(err)
	}
	dry := limit("dry", 1, ratelimit.Destination, "other", "web")
	dry.DryRun = true
	apply(t, n, limit("all", 3, ratelimit.Destination, "other", "web"), limit("each", 1, ratelimit.SourceNamespace, "other", "web"), dry)
	take := func(w *workload.Workload, namespace string, want bool) {
		t.Helper()
		err := n.Take(w, 80, from(namespace))
		if (err == nil) != want || err != nil && err.Reason != reason.RateLimited {
			t.Errorf("%s to %s: %v", namespace, w.UID, err)
		}
	}
	take(web, "a", true)
	for range 5 {
		take(web, "a", false) // by each, and all keeps its room
	}
	take(web, "b", true)
	take(web, "c", true)
	take(web, "d", false) // by all
	take(other, "a", true)
	take(pod("bank", "web"), "a", true) // of another namespace, whatever its name
	found := n.Explain(web, 80, from("d"))
	if len(found) != 3 || found[0].Left != 0 || found[0].Error() == nil || found[1].Left != 0 || found[1].Error() != nil || found[2].Left != 1 || found[2].Error() != nil {
		t.Errorf("%+v", found)
	}
	want := map[string][3]uint64{"RateLimit shop/all": {4, 1, 0}, "RateLimit shop/dry": {2, 0, 7}, "RateLimit shop/each": {4, 5, 0}}
	for _, l := range n.Dump() {
		if got := [3]uint64{l.Allowed, l.Refused, l.Reported}; got != want[l.Object] {
			t.Errorf("%s: %v", l.Object, got)
		}
	}
	now = int64(time.Hour)
	take(web, "a", true)
}

// TestApply: a change that leaves the rates leaves the counts. What is rejected leaves what
// was there. What goes takes its counts along.
func TestApply(t *testing.T) {
	var now int64
	n := fixed(&now)
	web := pod("shop", "web")
	apply(t, n, limit("one", 1, ratelimit.SourceAddress, "web"))
	refused := func(want bool) {
		t.Helper()
		if err := n.Take(web, 80, from("a")); (err != nil) != want {
			t.Errorf("%v", err)
		}
	}
	refused(false)
	apply(t, n, limit("one", 1, ratelimit.SourceAddress, "more", "web"))
	refused(true)
	if bad := n.Apply(xds.Delta{Updated: []xds.Resource{{Name: "shop/one", Body: []byte{0xff}}}}); len(bad) != 1 {
		t.Error("garbage is accepted")
	}
	refused(true)
	n.Forget("web")
	if r := n.rooms["shop"]; r.taken.Load() != 0 {
		t.Errorf("%d places after the pod's end", r.taken.Load())
	}
	refused(false)
	refused(true)
	apply(t, n, limit("one", 2, ratelimit.SourceAddress, "web"))
	refused(false)
	if r := n.rooms["shop"]; r.taken.Load() != 1 {
		t.Errorf("%d places", r.taken.Load())
	}
	n.Apply(xds.Delta{Removed: []string{"shop/one"}})
	for range 5 {
		refused(false)
	}
	if len(n.rooms) != 0 {
		t.Error("a namespace without limits has room")
	}
}

// TestShares: the parties of one namespace's limits take no room of another's.
func TestShares(t *testing.T) {
	var now int64
	n := fixed(&now)
	a, b := limit("one", 1, ratelimit.SourceAddress, "web"), limit("one", 1, ratelimit.SourceAddress, "web")
	b.Namespace = "bank"
	apply(t, n, a, b)
	for i := range MaxOwned + 100 {
		s := from("n" + string(rune('a'+i/1000)))
		s.Addr = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		_ = n.Take(pod("shop", "web"), 80, s)
	}
	if got := n.rooms["shop"].taken.Load(); got > MaxOwned {
		t.Errorf("%d places", got)
	}
	if err := n.Take(pod("bank", "web"), 80, from("a")); err != nil || n.rooms["bank"].taken.Load() != 1 {
		t.Errorf("%v", err)
	}
}

func BenchmarkTake(b *testing.B) {
	n := New(slog.New(slog.DiscardHandler))
	apply(b, n, limit("one", 100, ratelimit.SourceIdentity, "web"))
	w, s := pod("shop", "web"), from("a")
	b.ReportAllocs()
	for b.Loop() {
		if err := n.Take(w, 80, s); err != nil {
			n.Forget("web")
		}
	}
}

func TestNoAllocation(t *testing.T) {
	var now int64
	n := fixed(&now)
	apply(t, n, limit("one", 100, ratelimit.SourceIdentity, "web"))
	w, s := pod("shop", "web"), from("a")
	if got := testing.AllocsPerRun(50, func() {
		if err := n.Take(w, 80, s); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestFor(t *testing.T) {
	w := &workload.Workload{UID: "u1", Traits: &workload.Traits{}}
	w.Namespace = "shop"
	w.Services = []workload.Membership{{Service: workload.NamespacedName{Namespace: "shop", Hostname: "web"}, Ports: []workload.Port{{Service: 80, Target: 8080}}}}
	for _, tt := range []struct {
		l    ratelimit.Limit
		port uint16
		want bool
	}{
		{ratelimit.Limit{Namespace: "shop", Hosts: []string{"web"}}, 8080, true},
		{ratelimit.Limit{Namespace: "shop", Hosts: []string{"web"}}, 80, false},
		{ratelimit.Limit{Namespace: "shop", Hosts: []string{"other"}}, 8080, false},
		{ratelimit.Limit{Namespace: "bank", Hosts: []string{"web"}}, 8080, false},
		{ratelimit.Limit{Namespace: "shop", Workloads: []string{"u0", "u1"}}, 1, true},
		{ratelimit.Limit{Namespace: "bank", Workloads: []string{"u1"}}, 1, false},
		{ratelimit.Limit{Namespace: "shop"}, 8080, false},
	} {
		if got := isFor(&tt.l, w, tt.port); got != tt.want {
			t.Errorf("%+v, port %d: %v", tt.l, tt.port, got)
		}
	}
}
