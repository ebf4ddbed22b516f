package hosts

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
	"github.com/ambit-mesh/ambit/internal/xds"
)

func service(namespace, host string, change func(*workloadpb.Service)) xds.Resource {
	s := &workloadpb.Service{
		Name: "e", Namespace: namespace, Hostname: host, LoadBalancing: &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH},
		Ports: []*workloadpb.Port{{ServicePort: 443, TargetPort: 443, AppProtocol: workloadpb.AppProtocol_TLS}, {ServicePort: 80, TargetPort: 80}},
	}
	if change != nil {
		change(s)
	}
	body, _ := proto.Marshal(s)
	return xds.Resource{Name: namespace + "/" + host, Body: body}
}

func table(t testing.TB, all ...xds.Resource) *Table {
	out := &Table{}
	if r := out.Apply(xds.Delta{Updated: all}); len(r) > 0 {
		t.Fatal(r)
	}
	return out
}

func example(t testing.TB) *Table {
	private := func(s *workloadpb.Service) { s.Visibility = workloadpb.Service_NAMESPACE }
	return table(t,
		service("shop", "*.example.com", nil), service("shop", "*.a.example.com", nil), service("bank", "b.example.com", func(s *workloadpb.Service) { s.Canonical = true }),
		service("yard", "b.example.com", nil), service("yard", "*.yard.test", private), service("shop", "only80.test", func(s *workloadpb.Service) { s.Ports = s.Ports[1:] }),
		service("shop", "listed.test", func(s *workloadpb.Service) {
			s.Addresses = []*workloadpb.NetworkAddress{{Address: []byte{198, 51, 100, 0}, Length: proto.Uint32(24)}}
		}),
	)
}

func names(all ...string) (out []egress.Name) {
	for _, n := range all {
		host, entry, _ := strings.Cut(n, "@")
		out = append(out, egress.Name{Host: host, Origin: egress.Origin{Entry: entry}})
	}
	return out
}

// TestFind: the host itself comes before wildcards, the own namespace before others, and only
// what a namespace sees, with the port, counts; a name in TLS must be one that was looked up.
func TestFind(t *testing.T) {
	tab := example(t)
	tls := func(name string) First { return First{Seen: true, TLS: true, Name: name} }
	for name, tt := range map[string]struct {
		names     []egress.Name
		namespace string
		port      uint16
		first     First
		want      string // key of the service, and the name
		reads     bool
	}{
		"a wildcard":                      {names: names("x.example.com"), port: 80, want: "shop/*.example.com x.example.com"},
		"the longer wildcard":             {names: names("x.y.a.example.com"), port: 80, want: "shop/*.a.example.com x.y.a.example.com"},
		"not the domain":                  {names: names("example.com"), port: 80},
		"not another domain":              {names: names("xexample.com", "example.com.evil.test"), port: 80},
		"the host before the wildcard":    {names: names("b.example.com"), port: 80, want: "bank/b.example.com b.example.com"},
		"the own namespace":               {names: names("b.example.com"), namespace: "yard", port: 80, want: "yard/b.example.com b.example.com"},
		"hidden":                          {names: names("x.yard.test"), namespace: "shop", port: 80},
		"hidden, for its namespace":       {names: names("x.yard.test"), namespace: "yard", port: 80, want: "yard/*.yard.test x.yard.test"},
		"another port":                    {names: names("x.example.com"), port: 81},
		"a port of a wider wildcard":      {names: names("only80.test"), port: 443},
		"an answer of an entry":           {names: names("x.example.com@yard"), port: 80},
		"the last look-up":                {names: names("y.example.com", "x.example.com"), port: 80, want: "shop/*.example.com y.example.com"},
		"one of several":                  {names: names("other.test", "x.example.com"), port: 80, want: "shop/*.example.com x.example.com"},
		"before the first bytes":          {names: names("x.example.com"), port: 443, want: "shop/*.example.com x.example.com", reads: true},
		"TLS that agrees":                 {names: names("y.example.com", "x.example.com"), port: 443, first: tls("X.example.com."), want: "shop/*.example.com x.example.com"},
		"TLS that names another host":     {names: names("x.example.com"), port: 443, first: tls("y.example.com")},
		"TLS without a name":              {names: names("x.example.com"), port: 443, first: tls("")},
		"TLS that is broken":              {names: names("x.example.com"), port: 443, first: First{Seen: true, Broken: true}},
		"no TLS":                          {names: names("x.example.com"), port: 443, first: First{Seen: true}, want: "shop/*.example.com x.example.com"},
		"what has addresses of its own":   {names: names("listed.test"), port: 80},
		"nothing was looked up":           {port: 80},
		"a name with many labels, no end": {names: names(strings.Repeat("a.", 100) + "example.com"), port: 80},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.namespace == "" {
				tt.namespace = "street"
			}
			m := tab.Find(tt.names, tt.namespace, tt.port, tt.first)
			got := ""
			if m.Service != nil {
				got = m.Service.Key().String() + " " + m.Name
			}
			if got != tt.want || m.Reads != tt.reads {
				t.Errorf("%q, reads %v; want %q, %v", got, m.Reads, tt.want, tt.reads)
			}
		})
	}
}

// TestNoNameWidens: whatever a connection names in TLS, it is to a service only by a name that
// was looked up, and to none that it would not be to without TLS for some look-up.
func TestNoNameWidens(t *testing.T) {
	tab := example(t)
	host := rapid.SampledFrom([]string{"x.example.com", "y.example.com", "b.example.com", "x.yard.test", "only80.test", "evil.test", "listed.test"})
	rapid.Check(t, func(t *rapid.T) {
		looked := names(rapid.SliceOfN(host, 0, 4).Draw(t, "looked up")...)
		namespace := rapid.SampledFrom([]string{"shop", "yard", "street"}).Draw(t, "namespace")
		port := rapid.SampledFrom([]uint16{80, 443, 81}).Draw(t, "port")
		sni := host.Draw(t, "SNI")
		m := tab.Find(looked, namespace, port, First{Seen: true, TLS: true, Name: sni})
		if m.Service == nil {
			return
		}
		if m.Name != sni || !slices.ContainsFunc(looked, func(n egress.Name) bool { return n.Host == sni }) || !m.Service.VisibleTo(namespace) || !Covers(m.Service.Hostname, sni) {
			t.Fatalf("%+v is %+v", looked, m)
		}
	})
}

// TestAt: a name comes after all that the directory has, but for hosts outside that another
// namespace lists.
func TestAt(t *testing.T) {
	s := localxdstest.Snapshot(t, `
workloads:
- {uid: c//Pod/shop/pod, name: pod, namespace: shop, workloadIps: [10.0.0.1], protocol: TCP}
- {uid: c/networking.istio.io/WorkloadEntry/yard/vm, name: vm, namespace: yard, workloadIps: [10.0.0.2], protocol: HBONE}
- {uid: c/networking.istio.io/ServiceEntry/yard/out/192.0.2.1, name: out, namespace: yard, workloadIps: [192.0.2.1], protocol: TCP}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}}
- {name: block, namespace: shop, hostname: block.test, cidrVips: [/198.51.100.0/24], ports: {443: 443}}
`)
	m := example(t).Find(names("x.example.com"), "shop", 80, First{})
	for a, tt := range map[string]struct {
		namespace string
		is        bool
	}{
		"203.0.113.1": {"shop", true}, "192.0.2.1": {"shop", true}, "10.0.0.1": {"shop", false}, "10.0.0.2": {"shop", false}, "10.96.0.1": {"shop", false}, "198.51.100.1": {"shop", false},
	} {
		if got := m.At(s, "", netip.MustParseAddr(a), tt.namespace); (got.Service == m.Service) != tt.is {
			t.Errorf("%s: %+v", a, got)
		}
	}
	if got := m.At(s, "", netip.MustParseAddr("192.0.2.1"), "yard"); got.Workload == nil {
		t.Errorf("a host that the own namespace lists: %+v", got)
	}
	if got := (&Match{}).At(s, "", netip.MustParseAddr("203.0.113.1"), "shop"); got.Service != nil || got.Workload != nil {
		t.Errorf("without a match: %+v", got)
	}
}

// TestAroundOwnNamespace: a range of the client's own namespace comes before a longer one of
// another, as in docs/addresses.md.
func TestAroundOwnNamespace(t *testing.T) {
	listed := func(ns string, bits uint32) xds.Resource {
		return service(ns, ns+".test", func(s *workloadpb.Service) {
			s.Addresses = []*workloadpb.NetworkAddress{{Address: []byte{198, 51, 100, 0}, Length: &bits}}
		})
	}
	tab, at := table(t, listed("shop", 16), listed("yard", 24), listed("bank", 20)), netip.MustParseAddr("198.51.100.9")
	for client, want := range map[string]string{"shop": "shop.test", "bank": "bank.test", "yard": "yard.test", "street": "yard.test"} {
		if s := tab.Around(at, "", client, 443); s == nil || s.Hostname != want {
			t.Errorf("for %s: %v, want %s", client, s, want)
		}
	}
}

// TestAround: the narrowest range, of what a namespace sees with the port.
func TestAround(t *testing.T) {
	tab := example(t)
	if s := tab.Around(netip.MustParseAddr("198.51.100.9"), "", "street", 80); s == nil || s.Hostname != "listed.test" {
		t.Errorf("%v", s)
	}
	for _, at := range []string{"198.51.101.1", "::1"} {
		if s := tab.Around(netip.MustParseAddr(at), "", "street", 80); s != nil {
			t.Errorf("%s: %v", at, s)
		}
	}
	if s := tab.Around(netip.MustParseAddr("198.51.100.9"), "", "street", 81); s != nil {
		t.Errorf("another port: %v", s)
	}
}

// TestApply: what cannot be read is rejected, and the service of before stays.
func TestApply(t *testing.T) {
	tab := example(t)
	balanced := service("shop", "*.example.com", func(s *workloadpb.Service) { s.LoadBalancing = nil })
	misnamed := service("shop", "*.example.com", nil)
	misnamed.Name = "shop/*.other.com"
	for name, bad := range map[string]xds.Resource{"no message": {Name: "shop/*.example.com", Body: []byte("x")}, "with a choice": balanced, "misnamed": misnamed} {
		if r := tab.Apply(xds.Delta{Updated: []xds.Resource{bad}}); len(r) != 1 || !tab.Has("x.example.com", "shop") || tab.Has("x.other.com", "shop") {
			t.Errorf("%s: %v", name, r)
		}
	}
	tab.Apply(xds.Delta{Removed: []string{"shop/*.example.com"}})
	if tab.Has("x.example.com", "shop") || !tab.Has("x.a.example.com", "shop") || tab.Empty() {
		t.Error("a service was removed")
	}
	if (*Table)(nil).Has("a", "b") || !(*Table)(nil).Empty() || (*Table)(nil).Named("a", "b", 1) != nil {
		t.Error("no table has services")
	}
	dynamic := table(t, service("shop", "a.test", func(s *workloadpb.Service) { s.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionByName}} }))
	if s := dynamic.Named("A.test", "shop", 80); s == nil || !s.ByName {
		t.Errorf("%+v", s)
	}
}

func FuzzApply(f *testing.F) {
	f.Add(service("shop", "*.example.com", nil).Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		tab := &Table{}
		tab.Apply(xds.Delta{Updated: []xds.Resource{{Name: "shop/*.example.com", Body: body}}})
		tab.Find(names("x.example.com"), "shop", 80, First{})
	})
}

// BenchmarkFind is the decision about one connection. It allocates nothing.
func BenchmarkFind(b *testing.B) {
	tab := example(b)
	looked := names("other.test", "x.y.example.com")
	b.ReportAllocs()
	for b.Loop() {
		tab.Find(looked, "shop", 443, First{})
	}
}

// TestFindAllocatesNothing, for names that were looked up.
func TestFindAllocatesNothing(t *testing.T) {
	tab := example(t)
	looked := names("other.test", "x.y.example.com")
	if n := testing.AllocsPerRun(100, func() { tab.Find(looked, "shop", 443, First{}) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
