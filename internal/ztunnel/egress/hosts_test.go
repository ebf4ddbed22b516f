package egress

import (
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// hosted is a gate with the host *.example.com, for clients of the shop alone.
func hosted(t testing.TB) *Gate {
	body, err := proto.Marshal(&workloadpb.Service{
		Name: "e", Namespace: "shop", Hostname: "*.example.com", Visibility: workloadpb.Service_NAMESPACE,
		LoadBalancing: &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH}, Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 80}},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{Hosts: &hosts.Table{}, NameServers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
	if r := g.Hosts.Apply(xds.Delta{Updated: []xds.Resource{{Name: "shop/*.example.com", Body: body}}}); len(r) > 0 {
		t.Fatal(r)
	}
	return g
}

// TestHost: with REGISTRY_ONLY, an address is in the registry once a look-up that counts has
// led there from a host of an entry, for who sees the entry and at its port. Of a pod without
// policies, nothing else is remembered.
func TestHost(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	g, p := hosted(t), &Pod{}
	free := *s.WorkloadByUID("c//Pod/shop/client")
	traits := *free.Traits
	traits.Outbound, free.Traits = egress.AllowAny, &traits
	l := g.Listen(p, "shop", func() *workload.Workload { return &free })
	if !l.Wanted() || l.Trusts(netip.MustParseAddr("192.0.2.53")) {
		t.Error("answers of any server count, or none")
	}
	a, other := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	l.Given("a.example.com", "", a, time.Minute)
	l.Given("other.test", "", other, time.Minute)
	l.Given("b.example.com", "yard", other, time.Minute)
	if p.Answers.Len() != 1 {
		t.Errorf("%d answers are kept", p.Answers.Len())
	}
	client := s.WorkloadByUID("c//Pod/shop/client")
	for to, refused := range map[string]bool{"203.0.113.1:80": false, "203.0.113.1:81": true, "203.0.113.2:80": true, "203.0.113.3:80": true} {
		dst := netip.MustParseAddrPort(to)
		c := Conn{Snapshot: s, Source: client, Dst: dst, Host: g.Host(p, "shop", dst, opening.Opening{})}
		if err := c.Refusal(); (err != nil) != refused {
			t.Errorf("%s: %v", to, err)
		}
	}
	if m := g.Host(p, "yard", netip.AddrPortFrom(a, 80), opening.Opening{}); m.Service != nil {
		t.Errorf("another namespace: %+v", m)
	}
	if got := p.Answers.Of("a.example.com", a, time.Now()); got != a {
		t.Errorf("the name leads to %s", got)
	}
	if got := p.Answers.Of("b.example.com", a, time.Now()); got.IsValid() {
		t.Errorf("the answer of an entry leads to %s", got)
	}
}

// BenchmarkHost is what a connection costs where there are such hosts.
func BenchmarkHost(b *testing.B) {
	g, p := hosted(b), &Pod{}
	a := netip.MustParseAddr("203.0.113.1")
	p.Answers.Add("a.example.com", egress.Origin{}, a, time.Minute, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		g.Host(p, "shop", netip.AddrPortFrom(a, 80), opening.Opening{})
	}
}
