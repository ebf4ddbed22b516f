package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func first(uint64) uint64 { return 0 }

const (
	byRegion  = workloadpb.LoadBalancing_REGION
	byZone    = workloadpb.LoadBalancing_ZONE
	byNode    = workloadpb.LoadBalancing_NODE
	byNetwork = workloadpb.LoadBalancing_NETWORK
)

// reachable lists who a query can return, by drawing many times.
func reachable(t testing.TB, s *Snapshot, q Query) []string {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	q.Rand = r.Uint64N
	seen := map[string]bool{}
	for range 400 {
		u, err := s.Pick(q)
		if err != nil {
			return []string{err.Error()}
		}
		seen[u.Workload.Name] = true
	}
	var out []string
	for n := range seen {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func TestPickModes(t *testing.T) {
	endpoints := []*workloadpb.Address{
		pod("same-zone", "10.0.0.1", memberOf("ns/h", 80, 8080), at("r1", "z1", "n9", "net")),
		pod("same-zone-2", "10.0.0.2", memberOf("ns/h", 80, 8080), at("r1", "z1", "n8", "net")),
		pod("same-region", "10.0.0.3", memberOf("ns/h", 80, 8080), at("r1", "z2", "n1", "net")),
		pod("far", "10.0.0.4", memberOf("ns/h", 80, 8080), at("r2", "z1", "n1", "net")),
		pod("far-network", "10.0.0.5", memberOf("ns/h", 80, 8080), at("r1", "z1", "n1", "net2")),
		pod("client", "10.0.0.6", at("r1", "z1", "n1", "net")),
	}
	for _, tc := range []struct {
		name   string
		lb     func(*workloadpb.Service)
		tried  []string
		want   []string
		refuse string
	}{
		{name: "standard", lb: balanced(workloadpb.LoadBalancing_UNSPECIFIED_MODE, byRegion), want: []string{"far", "far-network", "same-region", "same-zone", "same-zone-2"}},
		{name: "failover", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byRegion, byZone), want: []string{"far-network", "same-zone", "same-zone-2"}},
		{name: "failover to the next rank", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byRegion, byZone), tried: []string{"same-zone", "same-zone-2", "far-network"}, want: []string{"same-region"}},
		{name: "failover to the last", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byRegion, byZone), tried: []string{"same-zone", "same-zone-2", "far-network", "same-region"}, want: []string{"far"}},
		{name: "network first outranks", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byNetwork, byRegion, byZone), tried: []string{"same-zone", "same-zone-2"}, want: []string{"same-region"}},
		{name: "even a far one", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byNetwork, byRegion, byZone), tried: []string{"same-zone", "same-zone-2", "same-region"}, want: []string{"far"}},
		{name: "before another network", lb: balanced(workloadpb.LoadBalancing_FAILOVER, byNetwork, byRegion, byZone), tried: []string{"same-zone", "same-zone-2", "same-region", "far"}, want: []string{"far-network"}},
		{name: "strict", lb: balanced(workloadpb.LoadBalancing_STRICT, byNetwork, byRegion, byZone), want: []string{"same-zone", "same-zone-2"}},
		{name: "strict without any", lb: balanced(workloadpb.LoadBalancing_STRICT, byNetwork, byRegion, byZone, byNode), refuse: "5 outside the locality"},
		{name: "strict, all tried", lb: balanced(workloadpb.LoadBalancing_STRICT, byNetwork, byRegion, byZone), tried: []string{"same-zone", "same-zone-2"}, refuse: "2 already tried, 3 outside"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := directory(t, append(slices.Clone(endpoints), service("ns", "h", []string{"10.1.0.1"}, tc.lb))...).Snapshot()
			q := Query{
				Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: 80,
				Excluded: func(uid string) bool { return slices.Contains(tc.tried, uid[strings.LastIndex(uid, "/")+1:]) },
			}
			for _, load := range []func(string) int{nil, func(string) int { return 1 }} {
				q.Load = load
				got := reachable(t, s, q)
				if tc.refuse != "" {
					if len(got) != 1 || !strings.Contains(got[0], tc.refuse) {
						t.Errorf("%v, want a refusal with %q", got, tc.refuse)
					}
				} else if !slices.Equal(got, tc.want) {
					t.Errorf("%v, want %v", got, tc.want)
				}
			}
		})
	}
}

func TestPickPortsAndAddresses(t *testing.T) {
	tunnel := func(w *workloadpb.Workload) {
		w.ApplicationTunnel = &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: 15088}
	}
	gateway := func(w *workloadpb.Workload) {
		w.Network = "net2"
		w.NetworkGateway = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Address{Address: vip("10.3.0.1")}, HboneMtlsPort: 15008}
	}
	dual := func(w *workloadpb.Workload) { w.Addresses = append(w.Addresses, addr("fd00::1").AsSlice()) }
	noTarget := func(s *workloadpb.Service) { s.Ports = []*workloadpb.Port{{ServicePort: 80}} }
	v6only := func(s *workloadpb.Service) { s.IpFamilies = workloadpb.IPFamilies_IPV6_ONLY }
	for _, tc := range []struct {
		name     string
		endpoint *workloadpb.Address
		edit     func(*workloadpb.Service)
		port     uint16
		dialled  string
		waypoint bool
		want     string // address port
		refuse   string
	}{
		{name: "endpoint's port", endpoint: pod("e", "10.0.0.1", memberOf("ns/h", 80, 9090)), port: 80, want: "10.0.0.1 9090"},
		{name: "service's port", endpoint: pod("e", "10.0.0.1", memberOf("ns/h")), port: 80, want: "10.0.0.1 8080"},
		{name: "no such port", endpoint: pod("e", "10.0.0.1", memberOf("ns/h", 81, 81)), port: 81, refuse: "it has no port 81"},
		{name: "port of nobody", endpoint: pod("e", "10.0.0.1", memberOf("ns/h")), edit: noTarget, port: 80, refuse: "1 without port 80"},
		{name: "port of the endpoint only", endpoint: pod("e", "10.0.0.1", memberOf("ns/h", 80, 9090)), edit: noTarget, port: 80, want: "10.0.0.1 9090"},
		{name: "waypoint with tunnel", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), tunnel), port: 15008, waypoint: true, want: "10.0.0.1 15008"},
		{name: "waypoint without", endpoint: pod("e", "10.0.0.1", memberOf("ns/h")), port: 15008, waypoint: true, refuse: "1 without port 15008"},
		{name: "tunnel does not help services", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), tunnel), port: 15008, refuse: "no port 15008"},
		{name: "family of the client", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), dual), port: 80, dialled: "fd99::1", want: "fd00::1 8080"},
		{name: "other family when there is no choice", endpoint: pod("e", "10.0.0.1", memberOf("ns/h")), port: 80, dialled: "fd99::1", want: "10.0.0.1 8080"},
		{name: "family of the service", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), dual), edit: v6only, port: 80, dialled: "10.1.0.1", want: "fd00::1 8080"},
		{name: "the address dialled", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), dual), edit: v6only, port: 80, dialled: "10.0.0.1", want: "10.0.0.1 8080"},
		{name: "family that nobody has", endpoint: pod("e", "10.0.0.1", memberOf("ns/h")), edit: v6only, port: 80, refuse: "1 without a usable address"},
		{name: "no address", endpoint: pod("e", "", memberOf("ns/h")), port: 80, refuse: "1 without a usable address"},
		{name: "host name", endpoint: pod("e", "", memberOf("ns/h"), func(w *workloadpb.Workload) { w.Hostname = "x.example" }), port: 80, want: "invalid IP 8080"},
		{name: "behind a gateway", endpoint: pod("e", "", memberOf("ns/h"), gateway), port: 80, want: "invalid IP 8080"},
		{name: "own gateway is no way", endpoint: pod("e", "", memberOf("ns/h"), gateway, func(w *workloadpb.Workload) { w.Network = "net" }), port: 80, refuse: "usable address"},
		{name: "unhealthy", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), unhealthy), port: 80, refuse: "1 not ready"},
		{name: "no capacity", endpoint: pod("e", "10.0.0.1", memberOf("ns/h"), capacity(0)), port: 80, refuse: "1 without capacity"},
		{name: "no endpoint", endpoint: pod("e", "10.0.0.1"), port: 80, refuse: "it has no endpoints"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			edits := []func(*workloadpb.Service){}
			if tc.edit != nil {
				edits = append(edits, tc.edit)
			}
			s := directory(t, tc.endpoint, service("ns", "h", []string{"10.1.0.1"}, edits...), pod("client", "10.0.0.9")).Snapshot()
			q := Query{Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: tc.port, Waypoint: tc.waypoint, Rand: first}
			if tc.dialled != "" {
				q.Dialled = addr(tc.dialled)
			}
			u, err := s.Pick(q)
			if tc.refuse != "" {
				if err == nil || err.Reason != reason.NoHealthyUpstream || !strings.Contains(err.Error(), tc.refuse) {
					t.Errorf("got %+v, %v; want a refusal with %q", u, err, tc.refuse)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(u.Addr, " ", u.Port); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestPickPassthrough(t *testing.T) {
	s := directory(t, service("ns", "h", []string{"10.1.0.1"}, balanced(workloadpb.LoadBalancing_PASSTHROUGH)), pod("client", "10.0.0.9")).Snapshot()
	u, err := s.Pick(Query{Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: 443, Rand: first})
	if err != nil || !u.Direct || u.Workload != nil {
		t.Errorf("%+v, %v", u, err)
	}
}

// TestPickDistribution holds the choice to the weights, across several buckets
// and with a part of the endpoints unusable.
func TestPickDistribution(t *testing.T) {
	set := []*workloadpb.Address{service("ns", "h", []string{"10.1.0.1"}), pod("client", "10.0.0.1")}
	want := map[string]float64{}
	total := 0.0
	for i := range 200 {
		name := fmt.Sprint("e", i)
		c := uint32(i % 4)
		set = append(set, pod(name, netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}).String(), memberOf("ns/h"), capacity(c)))
		if i%10 != 0 {
			want[name] = float64(c)
			total += float64(c)
		}
	}
	s := directory(t, set...).Snapshot()
	r := rand.New(rand.NewPCG(7, 7))
	q := Query{
		Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: 80, Rand: r.Uint64N,
		Excluded: func(uid string) bool { return strings.HasSuffix(uid, "0") },
	}
	for name, load := range map[string]func(string) int{"random": nil, "two choices, equal load": func(string) int { return 0 }} {
		t.Run(name, func(t *testing.T) {
			q.Load = load
			const draws = 200_000
			got := map[string]float64{}
			for range draws {
				u, err := s.Pick(q)
				if err != nil {
					t.Fatal(err)
				}
				got[u.Workload.Name]++
			}
			for name, w := range want {
				mean := draws * w / total
				// Six standard deviations: never by chance.
				if math.Abs(got[name]-mean) > 6*math.Sqrt(mean) {
					t.Errorf("%s was drawn %v times, want about %.0f", name, got[name], mean)
				}
			}
		})
	}
}

// TestPickLeastConnections: in the long run every endpoint carries connections
// in proportion to its capacity, and the fullest is not far from the mean.
func TestPickLeastConnections(t *testing.T) {
	set := []*workloadpb.Address{service("ns", "h", []string{"10.1.0.1"}), pod("client", "10.0.0.1")}
	for i := range 20 {
		set = append(set, pod(fmt.Sprint("e", i), netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}).String(), memberOf("ns/h"), capacity(uint32(1+i%2))))
	}
	s := directory(t, set...).Snapshot()
	r := rand.New(rand.NewPCG(3, 3))
	load := map[string]int{}
	q := Query{
		Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: 80, Rand: r.Uint64N,
		Load: func(uid string) int { return load[uid] },
	}
	const conns = 3000 // 100 for each unit of capacity
	for range conns {
		u, err := s.Pick(q)
		if err != nil {
			t.Fatal(err)
		}
		load[u.Workload.UID]++
	}
	for w := range s.Endpoints(q.Service) {
		if per := float64(load[w.UID]) / float64(w.Capacity); math.Abs(per-100) > 10 {
			t.Errorf("%s carries %.0f connections per capacity, want 100", w.Name, per)
		}
	}
}

func sticky(s *workloadpb.Service) {
	s.Extensions = append(s.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionClientAffinity})
}

// TestPickClientAffinity: a client stays with its endpoint, whatever the load
// and however the proxy came to know the mesh; clients are shared out in
// proportion to capacity; an endpoint that comes or goes moves no others.
func TestPickClientAffinity(t *testing.T) {
	const clients, endpoints = 600, 6
	mesh := func(without int) *Snapshot {
		set := []*workloadpb.Address{service("ns", "h", []string{"10.1.0.1"}, sticky)}
		for i := range endpoints {
			if i != without {
				set = append(set, pod(fmt.Sprint("e", i), netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}).String(), memberOf("ns/h"), capacity(uint32(1+i%2))))
			}
		}
		for i := range clients {
			set = append(set, pod(fmt.Sprint("c", i), netip.AddrFrom4([4]byte{10, 3, byte(i / 256), byte(i)}).String()))
		}
		r := rand.New(rand.NewPCG(1, uint64(without+1)))
		r.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		return directory(t, set...).Snapshot()
	}
	choose := func(s *Snapshot, client int, not string) string {
		r := rand.New(rand.NewPCG(2, 2))
		var chosen string
		for range 5 {
			u, err := s.Pick(Query{
				Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID(fmt.Sprint("Kubernetes//Pod/ns/c", client)), Port: 80,
				Rand: r.Uint64N, Load: func(string) int { return int(r.Uint64N(9)) },
				Excluded: func(uid string) bool { return not != "" && strings.HasSuffix(uid, "/"+not) },
			})
			if err != nil {
				t.Fatal(err)
			}
			if chosen != "" && chosen != u.Workload.Name {
				t.Fatalf("client %d was led to %s and to %s", client, chosen, u.Workload.Name)
			}
			chosen = u.Workload.Name
		}
		return chosen
	}
	all, fewer := mesh(-1), mesh(0)
	share := map[string]int{}
	for i := range clients {
		was, is := choose(all, i, ""), choose(fewer, i, "")
		share[was]++
		if was != "e0" && was != is {
			t.Errorf("client %d moved from %s to %s because e0 went", i, was, is)
		}
		if tried := choose(all, i, was); tried == was {
			t.Errorf("client %d is led to %s, which it has tried", i, was)
		}
	}
	for i := range endpoints {
		want := clients * (1 + i%2) / 9 // 3·1 + 3·2 units of capacity
		if got := share[fmt.Sprint("e", i)]; got < want/2 || got > want*3/2 {
			t.Errorf("e%d has %d clients of %d, want about %d: %v", i, got, clients, want, share)
		}
	}
}

// TestPickNeverReturnsWhatItMustNot draws meshes and queries.
func TestPickNeverReturnsWhatItMustNot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.SampledFrom([]string{"a", "b"})
		where := func() func(*workloadpb.Workload) {
			return at(places.Draw(t, "region"), places.Draw(t, "zone"), places.Draw(t, "node"), places.Draw(t, "network"))
		}
		allowAll := rapid.Bool().Draw(t, "allow unhealthy")
		mode := rapid.SampledFrom([]workloadpb.LoadBalancing_Mode{0, 1, 2}).Draw(t, "mode")
		scopes := rapid.SliceOfN(rapid.SampledFrom([]workloadpb.LoadBalancing_Scope{byRegion, byZone, byNode, byNetwork}), 0, 3).Draw(t, "scopes")
		d := NewDirectory(Options{})
		set := []*workloadpb.Address{pod("client", "10.0.0.1", where()), service("ns", "h", nil, balanced(mode, scopes...), func(s *workloadpb.Service) {
			if allowAll {
				s.LoadBalancing.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL
			}
			if rapid.Bool().Draw(t, "affinity") {
				sticky(s)
			}
		})}
		n := rapid.IntRange(0, 12).Draw(t, "endpoints")
		for i := range n {
			edits := []func(*workloadpb.Workload){memberOf("ns/h"), where(), capacity(rapid.Uint32Range(0, 2).Draw(t, "capacity"))}
			if rapid.Bool().Draw(t, "unhealthy") {
				edits = append(edits, unhealthy)
			}
			set = append(set, pod(fmt.Sprint("e", i), fmt.Sprintf("10.1.0.%d", i+1), edits...))
		}
		d.Apply(set, nil)
		s := d.Snapshot()
		excluded := rapid.SliceOf(rapid.IntRange(0, 12)).Draw(t, "excluded")
		isExcluded := func(uid string) bool {
			return slices.ContainsFunc(excluded, func(i int) bool { return strings.HasSuffix(uid, fmt.Sprint("/e", i)) })
		}
		q := Query{Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID("Kubernetes//Pod/ns/client"), Port: 80, Excluded: isExcluded,
			Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Uint64N}
		if rapid.Bool().Draw(t, "least connections") {
			q.Load = func(uid string) int { return len(uid) }
		}
		// The plain reading of the rules.
		bestRank, eligible := -1, map[string]int{}
		for w := range s.Endpoints(q.Service) {
			rank := naiveRank(q.Service, q.Client, w)
			if isExcluded(w.UID) || w.Capacity == 0 || !w.Healthy && !allowAll || mode == workloadpb.LoadBalancing_STRICT && !sharesAll(q.Service, q.Client, w) {
				continue
			}
			eligible[w.UID] = rank
			bestRank = max(bestRank, rank)
		}
		u, err := s.Pick(q)
		if err != nil {
			if len(eligible) > 0 {
				t.Fatalf("refused although %v could serve: %v", eligible, err)
			}
			return
		}
		rank, ok := eligible[u.Workload.UID]
		if !ok || mode != 0 && rank != bestRank {
			t.Fatalf("picked %s of rank %d; eligible %v", u.Workload.UID, rank, eligible)
		}
	})
}

func sharesAll(svc *Service, c, w *Workload) bool {
	p := picker{Query: Query{Client: c}}
	return !slices.ContainsFunc(svc.Scopes, func(s Scope) bool { return !p.shares(w, s) })
}

// naiveRank orders endpoints as the reference says: those of the client's
// network first when the network comes first, then by how many scopes in a
// row are shared.
func naiveRank(svc *Service, c, w *Workload) int {
	p := picker{Query: Query{Client: c}}
	rest, bonus := svc.Scopes, 0
	if len(rest) > 0 && rest[0] == ScopeNetwork {
		rest = slices.DeleteFunc(slices.Clone(rest), func(s Scope) bool { return s == ScopeNetwork })
		if p.shares(w, ScopeNetwork) {
			bonus = 100
		}
	}
	n := 0
	for _, s := range rest {
		if !p.shares(w, s) {
			break
		}
		n++
	}
	return n + bonus
}

func TestPickWaypoint(t *testing.T) {
	g := func(host string) *workloadpb.GatewayAddress {
		return &workloadpb.GatewayAddress{HboneMtlsPort: 15008, Destination: &workloadpb.GatewayAddress_Hostname{
			Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: host}}}
	}
	weighted := func(a, b uint32) *Service {
		s := directory(t, service("ns", "h", nil, func(s *workloadpb.Service) {
			s.Waypoint = g("primary")
			s.WeightedWaypoints = []*workloadpb.WeightedWaypoint{{Destination: g("a"), Weight: a}, {Destination: g("b"), Weight: b}}
		})).Snapshot()
		return s.ServiceByName("ns", "h")
	}
	r := rand.New(rand.NewPCG(1, 1))
	got := map[string]int{}
	for range 10_000 {
		got[PickWaypoint(weighted(1, 3), r.Uint64N).Hostname.Hostname]++
	}
	if got["a"] < 2200 || got["a"] > 2800 || got["a"]+got["b"] != 10_000 {
		t.Errorf("shares of 1 to 3: %v", got)
	}
	if w := PickWaypoint(weighted(0, 0), r.Uint64N); w.Hostname.Hostname != "primary" {
		t.Errorf("without weights: %v", w)
	}
	if w := PickWaypoint(&Service{}, r.Uint64N); !w.IsZero() {
		t.Errorf("without any: %v", w)
	}
}

func ends(p ending.Phase) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		unhealthy(w)
		w.Extensions = p.Extensions()
	}
}

// TestPickEnding: an endpoint that is about to end gets connections only while no other is
// ready, and it still is.
func TestPickEnding(t *testing.T) {
	ready := pod("ready", "10.0.0.1", memberOf("ns/h", 80, 8080))
	serving := pod("serving", "10.0.0.2", memberOf("ns/h", 80, 8080), ends(ending.Serving))
	also := pod("also", "10.0.0.3", memberOf("ns/h", 80, 8080), ends(ending.Serving))
	closing := pod("closing", "10.0.0.4", memberOf("ns/h", 80, 8080), ends(ending.Closing))
	sick := pod("sick", "10.0.0.5", memberOf("ns/h", 80, 8080), unhealthy)
	idle := pod("idle", "10.0.0.6", memberOf("ns/h", 80, 8080), ends(ending.Serving), capacity(0))
	none := func(why string) []string {
		return []string{"no healthy upstream: service ns/h: none of " + why}
	}
	for _, tc := range []struct {
		name      string
		endpoints []*workloadpb.Address
		edit      []func(*workloadpb.Service)
		excluded  string
		keep      string
		want      []string
	}{
		{name: "one is ready", endpoints: []*workloadpb.Address{ready, serving, closing, sick}, want: []string{"ready"}},
		{name: "one is ready, and another is asked for", endpoints: []*workloadpb.Address{ready, serving}, keep: "serving", want: []string{"ready"}},
		{name: "none is ready", endpoints: []*workloadpb.Address{serving, also, closing, sick}, want: []string{"also", "serving"}},
		{name: "none is ready, and one is kept", endpoints: []*workloadpb.Address{serving, also, closing}, keep: "also", want: []string{"also"}},
		{name: "none is ready, with affinity", endpoints: []*workloadpb.Address{serving, closing}, edit: []func(*workloadpb.Service){func(s *workloadpb.Service) {
			s.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionClientAffinity}}
		}}, want: []string{"serving"}},
		{name: "none serves", endpoints: []*workloadpb.Address{closing, sick}, want: none("2 endpoints can be used, 2 not ready")},
		{name: "without capacity", endpoints: []*workloadpb.Address{idle}, want: none("1 endpoints can be used, 1 not ready")},
		{name: "the ready one has failed", endpoints: []*workloadpb.Address{ready, serving}, excluded: "ready", want: none("2 endpoints can be used, 1 not ready, 1 already tried")},
		{name: "all are tried", endpoints: []*workloadpb.Address{serving, closing}, excluded: "serving", want: none("2 endpoints can be used, 1 not ready, 1 already tried")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := directory(t, append(tc.endpoints, pod("client", "10.0.0.9"), service("ns", "h", []string{"10.96.0.1"}, tc.edit...))...).Snapshot()
			uid := func(name string) string {
				if name == "" {
					return ""
				}
				return "Kubernetes//Pod/ns/" + name
			}
			got := reachable(t, s, Query{
				Service: s.ServiceByName("ns", "h"), Client: s.WorkloadByUID(uid("client")), Port: 80, Keep: uid(tc.keep),
				Excluded: func(u string) bool { return u == uid(tc.excluded) },
			})
			if !slices.Equal(got, tc.want) {
				t.Errorf("%q, and not %q", got, tc.want)
			}
		})
	}
}
