package egress

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// hosted is a gate with the host *.example.com, for clients of the shop alone.
func hosted(t testing.TB) *Gate {
	body, err := proto.Marshal(&workloadpb.Service{
		Name: "e", Namespace: "shop", Hostname: "*.example.com", Visibility: workloadpb.Service_NAMESPACE,
		LoadBalancing: &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH}, Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 80}, {ServicePort: 443, TargetPort: 443, AppProtocol: workloadpb.AppProtocol_TLS}},
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

// TestReviewKeepsTheName: a pod that comes under REGISTRY_ONLY keeps the connections that it
// could make, and no others, by what they have named and what was looked up when they began.
func TestReviewKeepsTheName(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	traits := *s.WorkloadByUID("c//Pod/shop/client").Traits
	traits.Outbound = egress.AllowAny
	free := *s.WorkloadByUID("c//Pod/shop/client")
	free.Traits = &traits
	at, ported := netip.MustParseAddrPort("203.0.113.1:443"), netip.MustParseAddrPort("203.0.113.1:80")
	tls := func(name string) opening.Opening { return opening.Opening{Seen: true, TLS: true, Name: name} }
	for name, tt := range map[string]struct {
		dst       netip.AddrPort
		first     opening.Opening
		unlooked  bool // no look-up has led there
		forgotten bool // what was looked up is not known any more
		held      *egress.Call
		ends      bool
	}{
		"a name that was looked up":                   {dst: at, first: tls("a.example.com")},
		"and is forgotten":                            {dst: at, first: tls("a.example.com"), forgotten: true},
		"another name":                                {dst: at, first: tls("evil.test"), ends: true},
		"another name of the entry":                   {dst: at, first: tls("b.example.com"), ends: true},
		"no name":                                     {dst: at, first: tls(""), ends: true},
		"broken":                                      {dst: at, first: opening.Opening{Seen: true, Broken: true}, ends: true},
		"no TLS":                                      {dst: at, first: opening.Silent},
		"no TLS, and the look-up is forgotten":        {dst: at, first: opening.Silent, forgotten: true},
		"no TLS, and no look-up":                      {dst: at, first: opening.Silent, unlooked: true, ends: true},
		"a name that was not looked up":               {dst: at, first: tls("a.example.com"), unlooked: true, ends: true},
		"a port without TLS":                          {dst: ported},
		"a port without TLS, the look-up is gone":     {dst: ported, forgotten: true},
		"first bytes that were not read":              {dst: at},
		"another name, that EgressPolicies have read": {dst: at, held: &egress.Call{Opening: egress.TLS, SNI: "evil.test"}, ends: true},
		"the name, that EgressPolicies have read":     {dst: at, held: &egress.Call{Opening: egress.TLS, SNI: "a.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			g, p := hosted(t), &Pod{}
			g.Policies = NewPolicies(slog.New(slog.DiscardHandler))
			var set conns.Set
			c := &conns.Conn{Protocol: connect.TCP, Asked: tt.dst}
			c.Dst = tt.dst
			if !tt.unlooked {
				p.Answers.Add("a.example.com", egress.Origin{}, at.Addr(), time.Minute, time.Now())
			}
			host := g.Host(p, "shop", tt.dst, tt.first)
			p.Began(c, &host, tt.first)
			set.Add(c)
			if tt.held != nil {
				p.follow(c, tt.held)
			}
			g.Review(p, &set, s, "", &free)
			if why, _ := set.Aborted(c); why != reason.OK {
				t.Fatalf("without a policy: %s", why)
			}
			if tt.forgotten {
				p.Answers.Forget()
			}
			g.Review(p, &set, s, "", s.WorkloadByUID("c//Pod/shop/client"))
			if why, _ := set.Aborted(c); (why == reason.NotInRegistry) != tt.ends {
				t.Errorf("it ends: %s", why)
			}
			if p.Ended(c); len(p.open)+len(p.began) > 0 {
				t.Error("something is kept of what has ended")
			}
		})
	}
}

// TestBeganIsShared: what is kept of one connection more, of which there are others, is a pointer.
func TestBeganIsShared(t *testing.T) {
	g, p := hosted(t), &Pod{}
	at := netip.MustParseAddrPort("203.0.113.1:443")
	p.Answers.Add("a.example.com", egress.Origin{}, at.Addr(), time.Minute, time.Now())
	first := opening.Opening{Seen: true, TLS: true, Name: "a.example.com"}
	host := g.Host(p, "shop", at, first)
	one, other := &conns.Conn{}, &conns.Conn{}
	p.Began(one, &host, first)
	p.Began(other, &host, first)
	if n := testing.AllocsPerRun(100, func() { p.Ended(other); p.Began(other, &host, first) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if p.began[one] != p.began[other] {
		t.Error("they do not share it")
	}
	if n := testing.AllocsPerRun(100, func() { p.Began(other, &hosts.Match{}, opening.Opening{}) }); n > 0 {
		t.Errorf("a connection without a name: %v allocations", n)
	}
	p.Ended(one)
	p.Ended(other)
	if p.Began(one, &hosts.Match{}, opening.Opening{}); len(p.began) != 0 {
		t.Error("a connection without a name costs memory")
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
