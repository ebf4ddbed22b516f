package hosts

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// walk answers the questions of a Table by looking at all services. It is what the index must
// agree with.
type walk map[string]*workload.Service

func (w walk) best(namespace string, port int, is func(*workload.Service) (rank int, ok bool)) (out *workload.Service) {
	rank := 0
	before := func(a, b *workload.Service) bool {
		switch {
		case (a.Namespace == namespace) != (b.Namespace == namespace):
			return a.Namespace == namespace
		case a.Canonical != b.Canonical:
			return a.Canonical
		case a.Namespace != b.Namespace:
			return a.Namespace < b.Namespace
		}
		return a.Hostname < b.Hostname
	}
	for _, svc := range w {
		r, ok := is(svc)
		if !ok || !svc.VisibleTo(namespace) {
			continue
		}
		if port >= 0 && !slices.ContainsFunc(svc.Ports, func(p workload.Port) bool { return int(p.Service) == port }) {
			continue
		}
		if out == nil || r > rank || r == rank && before(svc, out) {
			out, rank = svc, r
		}
	}
	return out
}

func (w walk) named(name, namespace string, port int) *workload.Service {
	return w.best(namespace, port, func(s *workload.Service) (int, bool) {
		host := strings.ToLower(s.Hostname)
		if !s.ByName && host[0] != '*' && len(s.VIPs)+len(s.CIDRs) > 0 {
			return 0, false
		}
		if host == name {
			return 1000, true
		}
		suffix, wild := strings.CutPrefix(host, "*")
		before, is := strings.CutSuffix(name, suffix)
		return len(host), wild && is && suffix != "" && strings.Count(before, ".") < maxLabels
	})
}

func (w walk) around(a netip.Addr, network, namespace string, port uint16) *workload.Service {
	return w.best(namespace, int(port), func(s *workload.Service) (int, bool) {
		bits := -1
		for _, r := range s.CIDRs {
			if r.Network == network && r.Prefix.Contains(a.Unmap()) {
				bits = max(bits, r.Prefix.Bits())
			}
		}
		if s.Namespace == namespace {
			return bits + 1000, bits >= 0 // its own namespace decides first: docs/addresses.md, row 7
		}
		return bits, bits >= 0
	})
}

// TestIndexIsTheWalk: after any changes, the table answers as a walk over all of its services
// does, and what it was before answers as before. Many services have one host, or one range.
func TestIndexIsTheWalk(t *testing.T) {
	namespaces := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"})
	host := rapid.SampledFrom([]string{"*.a.test", "*.a.test", "*.a.test", "*.b.a.test", "a.test", "b.a.test", "B.a.test", "*.test", "x.b.a.test", "*.A.test"})
	name := rapid.SampledFrom([]string{"a.test", "b.a.test", "x.b.a.test", "y.x.b.a.test", "test", "other", "xa.test", "*.a.test", ".a.test", "", strings.Repeat("l.", 18) + "a.test"})
	port := rapid.SampledFrom([]uint16{80, 443, 0})
	prefix := rapid.SampledFrom([]string{"10.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0"})
	addr := rapid.SampledFrom([]string{"10.1.2.3", "10.9.0.1", "192.0.2.1", "::ffff:10.1.2.3", "2001:db8::1", "fe80::1%eth0"})
	network := rapid.SampledFrom([]string{"", "west"})
	rapid.Check(t, func(t *rapid.T) {
		draw := func() (xds.Resource, *workload.Service) {
			pb := &workloadpb.Service{
				Name: "e", Namespace: namespaces.Draw(t, "namespace"), Hostname: host.Draw(t, "host"), Canonical: rapid.Bool().Draw(t, "canonical"),
				LoadBalancing: &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH},
			}
			if rapid.IntRange(0, 3).Draw(t, "hidden") == 0 {
				pb.Visibility = workloadpb.Service_NAMESPACE
			}
			if rapid.IntRange(0, 3).Draw(t, "by name") == 0 {
				pb.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionByName}}
			}
			for _, p := range rapid.SliceOfN(port, 0, 3).Draw(t, "ports") {
				pb.Ports = append(pb.Ports, &workloadpb.Port{ServicePort: uint32(p), TargetPort: uint32(p)})
			}
			for _, text := range rapid.SliceOfN(prefix, 0, 3).Draw(t, "ranges") {
				p := netip.MustParsePrefix(text)
				pb.Addresses = append(pb.Addresses, &workloadpb.NetworkAddress{Network: network.Draw(t, "network"), Address: p.Addr().AsSlice(), Length: proto.Uint32(uint32(p.Bits()))}) //nolint:gosec // small
			}
			body, err := proto.Marshal(pb)
			if err != nil {
				t.Fatal(err)
			}
			svc, err := read(body)
			if err != nil {
				t.Fatal(err)
			}
			return xds.Resource{Name: svc.Key().String(), Body: body}, svc
		}
		type version struct {
			now  *index
			walk walk
		}
		tab, model := &Table{}, walk{}
		var versions []version
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			d := xds.Delta{}
			for range rapid.IntRange(0, 40).Draw(t, "updates") {
				res, svc := draw()
				d.Updated = append(d.Updated, res)
				model[res.Name] = svc
			}
			for _, k := range slices.Sorted(maps.Keys(model)) {
				if rapid.IntRange(0, 3).Draw(t, "goes") == 0 {
					d.Removed = append(d.Removed, k)
					delete(model, k)
				}
			}
			if r := tab.Apply(d); len(r) > 0 {
				t.Fatal(r)
			}
			versions = append(versions, version{tab.now.Load(), maps.Clone(model)})
		}
		key := func(s *workload.Service) string {
			if s == nil {
				return "none"
			}
			return s.Key().String()
		}
		for _, v := range versions {
			old := &Table{}
			old.now.Store(v.now)
			if old.Empty() != (len(v.walk) == 0) || v.now.byName.Len() != len(v.walk) {
				t.Fatalf("%d services, want %d", v.now.byName.Len(), len(v.walk))
			}
			for range 20 {
				ns, n, p := namespaces.Draw(t, "client"), name.Draw(t, "name"), port.Draw(t, "port")
				if got, want := old.Named(n, ns, p), v.walk.named(n, ns, int(p)); key(got) != key(want) {
					t.Fatalf("%s of %s, port %d: %s, want %s", n, ns, p, key(got), key(want))
				}
				if got, want := old.Has(n, ns), v.walk.named(n, ns, -1) != nil; got != want {
					t.Fatalf("%s sees %s: %v", ns, n, got)
				}
				a, in := netip.MustParseAddr(addr.Draw(t, "address")), network.Draw(t, "network")
				if got, want := old.Around(a, in, ns, p), v.walk.around(a, in, ns, p); key(got) != key(want) {
					t.Fatalf("%s of %s in %q, port %d: %s, want %s", a, ns, in, p, key(got), key(want))
				}
			}
		}
		// What goes leaves nothing.
		tab.Apply(xds.Delta{Removed: slices.Collect(maps.Keys(model))})
		if i := tab.now.Load(); i.byName.Len()+i.byHost.Len()+i.wild.Len()+len(i.ranges) != 0 {
			t.Fatalf("%+v is left", i)
		}
	})
}

// many is the changes that bring n services: each with a wildcard and ranges of its own, or, if
// one is set, all with the same.
func many(n int, one bool) (d xds.Delta) {
	for k := range n {
		host, at := fmt.Sprintf("*.h%d.some.example.with.a.long.name.test", k), [4]byte{10, byte(k >> 8), byte(k), 0}
		if one {
			host, at = "*.example.test", [4]byte{10, 0, 0, 0}
		}
		d.Updated = append(d.Updated, service(fmt.Sprint("ns", k), host, func(s *workloadpb.Service) {
			s.Addresses = []*workloadpb.NetworkAddress{{Address: at[:], Length: proto.Uint32(24)}}
		}))
	}
	return d
}

// eachTable calls f with tables of some sizes, and what finds a service of each.
func eachTable(t testing.TB, f func(what string, tab *Table, n int, name string, at netip.Addr)) {
	for _, one := range []bool{false, true} {
		for _, n := range []int{10, 1000, 10000} {
			what, name, at := fmt.Sprint(n, " hosts"), fmt.Sprintf("x.h%d.some.example.with.a.long.name.test", n/2), netip.AddrFrom4([4]byte{10, byte(n / 2 >> 8), byte(n / 2), 9})
			if one {
				what, name, at = fmt.Sprint("one host of ", n), "x.example.test", netip.MustParseAddr("10.0.0.9")
			}
			tab := &Table{}
			if r := tab.Apply(many(n, one)); len(r) > 0 {
				t.Fatal(r)
			}
			f(what, tab, n, name, at)
		}
	}
}

// TestLookUpsAllocateNothing, with many services, for names of any length and for addresses.
func TestLookUpsAllocateNothing(t *testing.T) {
	eachTable(t, func(what string, tab *Table, _ int, name string, at netip.Addr) {
		looked := names("other.test", name)
		if tab.Named(name, "shop", 443) == nil || tab.Around(at, "", "shop", 443) == nil || !tab.Has(name, "shop") {
			t.Fatal(what, ": nothing is found")
		}
		if n := testing.AllocsPerRun(100, func() {
			tab.Find(looked, "shop", 443, First{})
			tab.Named(name, "shop", 443)
			tab.Named(name, "shop", 81)
			tab.Has(name, "shop")
			tab.Around(at, "", "shop", 443)
			tab.Around(at, "", "shop", 81)
			tab.Around(netip.MustParseAddr("192.0.2.1"), "", "shop", 443)
		}); n > 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	})
}

// TestAChangeCostsWhatChanged: one service of 10,000 comes and goes for about the memory that one
// of 1,000 takes.
func TestAChangeCostsWhatChanged(t *testing.T) {
	bytes := map[bool]map[int]uint64{false: {}, true: {}}
	eachTable(t, func(what string, tab *Table, n int, _ string, _ netip.Addr) {
		one := strings.HasPrefix(what, "one")
		res := many(n, one).Updated[n/2]
		bytes[one][n] = allocated(func() {
			tab.Apply(xds.Delta{Removed: []string{res.Name}})
			tab.Apply(xds.Delta{Updated: []xds.Resource{res}})
		})
	})
	for one, by := range bytes {
		if by[10000] > 64<<10 || by[10000] > 2*by[1000] {
			t.Errorf("one host %v: bytes by size: %v", one, by)
		}
	}
}

// allocated returns how many bytes f allocates, of several runs the fewest.
func allocated(f func()) (least uint64) {
	for k := range 5 {
		var a, b runtime.MemStats
		runtime.ReadMemStats(&a)
		f()
		runtime.ReadMemStats(&b)
		if n := b.TotalAlloc - a.TotalAlloc; k == 0 || n < least {
			least = n
		}
	}
	return least
}

// BenchmarkLookUp is one look-up by a name and by an address, and that of the walk.
func BenchmarkLookUp(b *testing.B) {
	eachTable(b, func(what string, tab *Table, _ int, name string, at netip.Addr) {
		all := walk{}
		for svc := range tab.now.Load().byName.All() {
			all[svc.Key().String()] = svc
		}
		run := func(name string, f func()) {
			b.Run(what+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
		looked := []egress.Name{{Host: name}}
		run("find", func() { tab.Find(looked, "shop", 443, First{}) })
		run("around", func() { tab.Around(at, "", "shop", 443) })
		run("around/walk", func() { all.around(at, "", "shop", 443) })
		nowhere := netip.MustParseAddr("192.0.2.1")
		run("nowhere", func() { tab.Around(nowhere, "", "shop", 443) })
		run("nowhere/walk", func() { all.around(nowhere, "", "shop", 443) })
	})
}

// BenchmarkApply is one service that goes and comes back. times-less is the time that a table made of
// all services takes, divided by it.
func BenchmarkApply(b *testing.B) {
	eachTable(b, func(what string, tab *Table, n int, _ string, _ netip.Addr) {
		all := many(n, strings.HasPrefix(what, "one"))
		res := all.Updated[n/2]
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tab.Apply(xds.Delta{Removed: []string{res.Name}})
				tab.Apply(xds.Delta{Updated: []xds.Resource{res}})
			}
			each := b.Elapsed() / time.Duration(b.N)
			begin := time.Now()
			new(Table).Apply(all)
			b.ReportMetric(float64(time.Since(begin))/float64(each), "times-less")
		})
	})
}

// BenchmarkFirst is the first state, of 10,000 services.
func BenchmarkFirst(b *testing.B) {
	for _, one := range []bool{false, true} {
		all := many(10000, one)
		b.Run(fmt.Sprint("one host ", one), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				new(Table).Apply(all)
			}
		})
	}
}
