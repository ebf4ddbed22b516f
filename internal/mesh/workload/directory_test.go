package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/trie"
)

func TestServicesByAddress(t *testing.T) {
	canonical := func(s *workloadpb.Service) { s.Canonical = true }
	hidden := func(s *workloadpb.Service) { s.Visibility = workloadpb.Service_NAMESPACE }
	future := func(s *workloadpb.Service) { s.Visibility = 77 }
	for _, tc := range []struct {
		name   string
		set    []*workloadpb.Address
		ip, ns string
		want   string
	}{
		{"exact", []*workloadpb.Address{service("b", "h", []string{"10.0.0.1"})}, "10.0.0.1", "x", "b/h"},
		{"none", []*workloadpb.Address{service("b", "h", []string{"10.0.0.1"})}, "10.0.0.2", "x", ""},
		{"own namespace wins", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}, canonical), service("b", "h", []string{"10.0.0.1"})}, "10.0.0.1", "b", "b/h"},
		{"then canonical", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}), service("b", "h", []string{"10.0.0.1"}, canonical)}, "10.0.0.1", "x", "b/h"},
		{"then preferred namespace", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}), service("pref", "h", []string{"10.0.0.1"})}, "10.0.0.1", "x", "pref/h"},
		{"then by name", []*workloadpb.Address{service("c", "h", []string{"10.0.0.1"}), service("b", "h", []string{"10.0.0.1"})}, "10.0.0.1", "x", "b/h"},
		{"hidden from others", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}, hidden)}, "10.0.0.1", "x", ""},
		{"visible at home", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}, hidden)}, "10.0.0.1", "a", "a/h"},
		{"unknown visibility hides", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"}, future)}, "10.0.0.1", "x", ""},
		{"range", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"})}, "10.2.3.4", "x", "a/h"},
		{"full length is exact", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1/32"})}, "10.0.0.1", "x", "a/h"},
		{"narrowest range", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"}), service("b", "h2", []string{"10.2.0.0/16"})}, "10.2.3.4", "x", "b/h2"},
		{"own namespace before narrower", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"}), service("b", "h2", []string{"10.2.0.0/16"})}, "10.2.3.4", "a", "a/h"},
		{"hidden range is skipped", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"}), service("b", "h2", []string{"10.2.0.0/16"}, hidden)}, "10.2.3.4", "x", "a/h"},
		{"exact before own range", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"}), service("b", "h2", []string{"10.2.3.4"})}, "10.2.3.4", "a", "b/h2"},
		{"hidden exact falls to range", []*workloadpb.Address{service("a", "h", []string{"10.0.0.0/8"}), service("b", "h2", []string{"10.2.3.4"}, hidden)}, "10.2.3.4", "x", "a/h"},
		{"v6 range", []*workloadpb.Address{service("a", "h", []string{"fd00::/16"})}, "fd00::5", "x", "a/h"},
		{"v4 in v6 clothing", []*workloadpb.Address{service("a", "h", []string{"10.0.0.1"})}, "::ffff:10.0.0.1", "x", "a/h"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := NewDirectory(Options{PreferredNamespace: "pref"})
			d.Apply(tc.set, nil)
			got := ""
			if s := d.Snapshot().Find("net", addr(tc.ip), tc.ns).Service; s != nil {
				got = s.Key().String()
			}
			if got != tc.want {
				t.Errorf("%s from %s: %q, want %q", tc.ip, tc.ns, got, tc.want)
			}
			if s := d.Snapshot().Find("elsewhere", addr(tc.ip), tc.ns).Service; s != nil {
				t.Errorf("found %v in another network", s.Key())
			}
		})
	}
}

func TestWorkloadByAddr(t *testing.T) {
	host := func(w *workloadpb.Workload) { w.NetworkMode = workloadpb.NetworkMode_HOST_NETWORK }
	entry := func(w *workloadpb.Workload) {
		w.Uid = strings.Replace(w.Uid, "//Pod/", "/networking.istio.io/WorkloadEntry/", 1)
	}
	plain := func(w *workloadpb.Workload) { w.TunnelProtocol = workloadpb.TunnelProtocol_NONE }
	for _, tc := range []struct {
		name string
		set  []*workloadpb.Address
		want string
	}{
		{"one", []*workloadpb.Address{pod("a", "10.0.0.1")}, "a"},
		{"host network is not found", []*workloadpb.Address{pod("a", "10.0.0.1", host)}, ""},
		{"pod before entry", []*workloadpb.Address{pod("a", "10.0.0.1", entry), pod("b", "10.0.0.1", plain)}, "b"},
		{"mesh before plain", []*workloadpb.Address{pod("a", "10.0.0.1", plain), pod("b", "10.0.0.1")}, "b"},
		{"tie by name", []*workloadpb.Address{pod("b", "10.0.0.1"), pod("a", "10.0.0.1")}, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if w := directory(t, tc.set...).Snapshot().WorkloadByAddr("net", addr("10.0.0.1")); w != nil {
				got = w.Name
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	named := func(w *workloadpb.Workload) { w.Hostname = "db.example" }
	s := directory(t, service("ns", "h", []string{"10.1.0.1"}), pod("a", "10.0.0.1"), pod("vm", "", named)).Snapshot()
	if d := s.Find("net", addr("10.1.0.1"), "x"); d.Service == nil || d.Workload != nil {
		t.Errorf("a virtual address: %+v", d)
	}
	if d := s.Find("net", addr("10.0.0.1"), "x"); d.Service != nil || d.Workload == nil {
		t.Errorf("a workload's address: %+v", d)
	}
	if d := s.Find("net", addr("10.9.9.9"), "x"); d != (Destination{}) {
		t.Errorf("an unknown address: %+v", d)
	}
	if d := s.FindHostname(NamespacedName{"ns", "h"}); d.Service == nil {
		t.Error("service not found by name")
	}
	if d := s.FindHostname(NamespacedName{"ns", "db.example"}); d.Workload == nil || d.Workload.Name != "vm" {
		t.Error("workload not found by host name")
	}
	if w := s.WorkloadByInfo("node-1", "ns", "a", "sa"); w == nil {
		t.Error("pod not found by what the node agent knows")
	}
	for _, info := range [][4]string{{"node-2", "ns", "a", "sa"}, {"", "ns", "a", "other"}, {"", "other", "a", "sa"}} {
		if w := s.WorkloadByInfo(info[0], info[1], info[2], info[3]); w != nil {
			t.Errorf("%v is somebody else", info)
		}
	}
}

func TestRejections(t *testing.T) {
	w := func(edit func(*workloadpb.Workload)) *workloadpb.Address { return pod("bad", "10.0.0.9", edit) }
	s := func(edit func(*workloadpb.Service)) *workloadpb.Address {
		return service("ns", "bad", []string{"10.1.0.9"}, edit)
	}
	long := uint32(33)
	for name, a := range map[string]*workloadpb.Address{
		"empty":            {},
		"no uid":           w(func(w *workloadpb.Workload) { w.Uid = "" }),
		"short address":    w(func(w *workloadpb.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }),
		"legacy tunnel":    w(func(w *workloadpb.Workload) { w.TunnelProtocol = workloadpb.TunnelProtocol_LEGACY_ISTIO_MTLS }),
		"unknown mode":     w(func(w *workloadpb.Workload) { w.NetworkMode = 9 }),
		"unknown status":   w(func(w *workloadpb.Workload) { w.Status = 9 }),
		"empty waypoint":   w(func(w *workloadpb.Workload) { w.Waypoint = &workloadpb.GatewayAddress{} }),
		"service name":     w(memberOf("no-slash", 80, 80)),
		"huge port":        w(memberOf("ns/h", 80, 70000)),
		"unknown app":      w(func(w *workloadpb.Workload) { w.ApplicationTunnel = &workloadpb.ApplicationTunnel{Protocol: 9} }),
		"no hostname":      s(func(s *workloadpb.Service) { s.Hostname = "" }),
		"long prefix":      s(func(s *workloadpb.Service) { s.Addresses[0].Length = &long }),
		"unknown scope":    s(balanced(workloadpb.LoadBalancing_STRICT, workloadpb.LoadBalancing_UNSPECIFIED_SCOPE)),
		"unknown lb mode":  s(balanced(9)),
		"unknown families": s(func(s *workloadpb.Service) { s.IpFamilies = 9 }),
		"waypoint nowhere": s(func(s *workloadpb.Service) { s.WeightedWaypoints = []*workloadpb.WeightedWaypoint{{Weight: 1}} }),
	} {
		t.Run(name, func(t *testing.T) {
			d := directory(t, pod("bad", "10.0.0.8"), service("ns", "bad", []string{"10.1.0.8"}))
			before := d.Snapshot()
			changes, rejected := d.Apply([]*workloadpb.Address{a, pod("good", "10.0.0.7")}, nil)
			if len(rejected) != 1 || rejected[0].Name != ResourceName(a) || rejected[0].Err == nil {
				t.Fatalf("rejections: %v", rejected)
			}
			if len(changes.List) != 1 || changes.List[0].NewWorkload.Name != "good" {
				t.Errorf("the rest: %+v", changes.List)
			}
			if d.Snapshot().WorkloadByAddr("net", addr("10.0.0.8")) != before.WorkloadByAddr("net", addr("10.0.0.8")) ||
				d.Snapshot().Find("net", addr("10.1.0.8"), "").Service == nil {
				t.Error("what was known before is gone")
			}
		})
	}
}

func TestChanges(t *testing.T) {
	d := NewDirectory(Options{})
	var seen []Changes
	cancel := d.Subscribe(func(c Changes) {
		if d.Snapshot() != c.Snapshot {
			t.Error("told before the snapshot is visible")
		}
		seen = append(seen, c)
	})
	d.Apply([]*workloadpb.Address{pod("a", "10.0.0.1"), service("ns", "h", nil)}, nil)
	d.Apply([]*workloadpb.Address{pod("a", "10.0.0.1"), service("ns", "h", nil)}, []string{"unknown", "ns/unknown"})
	d.Apply([]*workloadpb.Address{pod("a", "10.0.0.2")}, nil)
	d.Apply(nil, []string{"Kubernetes//Pod/ns/a", "ns/h"})
	cancel()
	d.Apply([]*workloadpb.Address{pod("b", "10.0.0.3")}, nil)
	if len(seen) != 3 {
		t.Fatalf("told %d times, want 3: what does not change anything is not a change", len(seen))
	}
	if c := seen[1].List; len(c) != 1 || c[0].OldWorkload.Addrs()[0] != addr("10.0.0.1") || c[0].NewWorkload.Addrs()[0] != addr("10.0.0.2") {
		t.Errorf("the change: %+v", c)
	}
	if got := seen[2].RemovedUIDs(); !slices.Equal(got, []string{"Kubernetes//Pod/ns/a"}) {
		t.Errorf("removed: %v", got)
	}
	if len(d.traits) != 1 || len(d.nodes) != 1 {
		t.Errorf("%d traits, %d nodes are kept for one workload", len(d.traits), len(d.nodes))
	}
}

func TestEndpointsBeforeTheirService(t *testing.T) {
	d := directory(t, pod("a", "10.0.0.1", memberOf("ns/h", 80, 8080), unhealthy))
	all := service("ns", "h", []string{"10.1.0.1"}, func(s *workloadpb.Service) {
		s.LoadBalancing = &workloadpb.LoadBalancing{HealthPolicy: workloadpb.LoadBalancing_ALLOW_ALL}
	})
	pick := func() error {
		s := d.Snapshot()
		svc := s.ServiceByName("ns", "h")
		if _, err := s.Pick(Query{Service: svc, Client: s.WorkloadByUID("Kubernetes//Pod/ns/a"), Port: 80, Rand: first}); err != nil {
			return err
		}
		return nil
	}
	d.Apply([]*workloadpb.Address{all}, nil)
	if err := pick(); err != nil {
		t.Errorf("staged endpoint: %v", err)
	}
	// A service that becomes strict about health, and back, forgets nobody.
	d.Apply([]*workloadpb.Address{service("ns", "h", []string{"10.1.0.1"})}, nil)
	if err := pick(); err == nil {
		t.Error("unhealthy endpoint in rotation")
	}
	d.Apply([]*workloadpb.Address{all}, nil)
	if err := pick(); err != nil {
		t.Errorf("after the policy came back: %v", err)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDirectory(Options{})
		find := func(s *Snapshot) (*Workload, bool) {
			w := s.WorkloadByInfo("", "ns", "a", "sa")
			return w, w != nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var got *Workload
		var wg sync.WaitGroup
		wg.Go(func() { got, _ = Wait(ctx, d, find) })
		synctest.Wait()
		d.Apply([]*workloadpb.Address{pod("b", "10.0.0.2")}, nil)
		synctest.Wait()
		d.Apply([]*workloadpb.Address{pod("a", "10.0.0.1")}, nil)
		wg.Wait()
		if got == nil || got.Name != "a" {
			t.Errorf("waited for a, got %v", got)
		}
		never := func(*Snapshot) (int, bool) { return 0, false }
		start := time.Now()
		if _, err := Wait(ctx, d, never); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("gave up after %v with %v", time.Since(start), err)
		}
	})
}

// TestDirectoryAgainstModel applies random deltas and compares every index
// with a plain map, now and for the snapshots of the past.
func TestDirectoryAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := NewDirectory(Options{})
		type moment struct {
			s     *Snapshot
			model map[string]*workloadpb.Address
		}
		var past []moment
		model := map[string]*workloadpb.Address{}
		for range rapid.IntRange(1, 15).Draw(t, "deltas") {
			var set []*workloadpb.Address
			for range rapid.IntRange(0, 4).Draw(t, "set") {
				set = append(set, genAddress(t))
			}
			var removed []string
			for range rapid.IntRange(0, 2).Draw(t, "removed") {
				removed = append(removed, ResourceName(genAddress(t)))
			}
			next := map[string]*workloadpb.Address{}
			for k, v := range model {
				next[k] = v
			}
			for _, a := range set {
				next[ResourceName(a)] = proto.CloneOf(a)
			}
			for _, n := range removed {
				delete(next, n)
			}
			if _, rejected := d.Apply(set, removed); len(rejected) > 0 {
				t.Fatalf("rejected: %v", rejected)
			}
			model = next
			past = append(past, moment{d.Snapshot(), model})
		}
		for _, m := range past {
			checkAgainst(t, m.s, m.model)
		}
	})
}

func genAddress(t *rapid.T) *workloadpb.Address {
	n := rapid.IntRange(0, 5).Draw(t, "n")
	ip := fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 4).Draw(t, "ip"))
	if rapid.Bool().Draw(t, "workload") {
		return pod(fmt.Sprintf("p%d", n), ip, func(w *workloadpb.Workload) {
			w.NetworkMode = workloadpb.NetworkMode(rapid.IntRange(0, 1).Draw(t, "mode"))
			w.Status = workloadpb.WorkloadStatus(rapid.IntRange(0, 1).Draw(t, "status"))
			for range rapid.IntRange(0, 2).Draw(t, "services") {
				memberOf(fmt.Sprintf("ns/s%d", rapid.IntRange(0, 2).Draw(t, "service")), 80, 8080)(w)
			}
		})
	}
	return service("ns", fmt.Sprintf("s%d", n%3), []string{ip, fmt.Sprintf("10.%d.0.0/16", n)}, func(s *workloadpb.Service) {
		s.LoadBalancing = &workloadpb.LoadBalancing{HealthPolicy: workloadpb.LoadBalancing_HealthPolicy(rapid.IntRange(0, 1).Draw(t, "health"))}
	})
}

func checkAgainst(t *rapid.T, s *Snapshot, model map[string]*workloadpb.Address) {
	byAddr, endpoints := map[string][]string{}, map[string][]string{}
	workloads, services := 0, 0
	for name, a := range model {
		if svc := a.GetService(); svc != nil {
			services++
			got := s.ServiceByName(svc.GetNamespace(), svc.GetHostname())
			if got == nil || len(got.VIPs) != 1 || got.VIPs[0].Addr.AsSlice()[3] != svc.GetAddresses()[0].GetAddress()[3] {
				t.Fatalf("service %s: %+v", name, got)
			}
			if !slices.Contains(vipOwners(s, got.VIPs[0]), name) || s.serviceByRange("net", got.CIDRs[0].Prefix.Addr(), "ns") == nil {
				t.Fatalf("service %s is not found by its addresses", name)
			}
			continue
		}
		workloads++
		w := a.GetWorkload()
		if got := s.WorkloadByUID(name); got == nil || got.Healthy != (w.GetStatus() == workloadpb.WorkloadStatus_HEALTHY) {
			t.Fatalf("workload %s: %+v", name, got)
		}
		if w.GetNetworkMode() == workloadpb.NetworkMode_STANDARD {
			ip, _ := netip.AddrFromSlice(w.GetAddresses()[0])
			byAddr[ip.String()] = append(byAddr[ip.String()], name)
		}
		for svc := range w.GetServices() {
			endpoints[svc] = append(endpoints[svc], name)
		}
	}
	if s.NumWorkloads() != workloads || s.NumServices() != services {
		t.Fatalf("%d workloads, %d services; want %d, %d", s.NumWorkloads(), s.NumServices(), workloads, services)
	}
	for i := 1; i <= 4; i++ {
		ip := fmt.Sprintf("10.0.0.%d", i)
		want := ""
		if l := byAddr[ip]; len(l) > 0 {
			want = slices.Min(l)
		}
		got := ""
		if w := s.WorkloadByAddr("net", addr(ip)); w != nil {
			got = w.UID
		}
		if got != want {
			t.Fatalf("at %s: %q, want %q", ip, got, want)
		}
	}
	for svc := range s.Services() {
		var got []string
		for w := range s.Endpoints(svc) {
			got = append(got, w.UID)
		}
		slices.Sort(got)
		want := endpoints[svc.Key().String()]
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("endpoints of %v: %v, want %v", svc.Key(), got, want)
		}
		if set := s.endpointsOf(svc.Key()); set != nil && set.allowUnhealthy != svc.AllowUnhealthy {
			t.Fatalf("endpoints of %v follow another health policy", svc.Key())
		}
	}
}

func vipOwners(s *Snapshot, a NetworkAddress) []string {
	var out []string
	for _, l := range s.vips.Get(trie.Addr(a.Network, a.Addr)) {
		out = append(out, l.Value.Key().String())
	}
	return out
}

func TestReadersWhileWriting(t *testing.T) {
	d := NewDirectory(Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := d.Snapshot()
				n := 0
				for w := range s.Workloads() {
					if s.WorkloadByUID(w.UID) != w {
						t.Error("a snapshot contradicts itself")
						return
					}
					n++
				}
				if n != s.NumWorkloads() {
					t.Errorf("%d workloads, counted %d", s.NumWorkloads(), n)
					return
				}
			}
		})
	}
	for i := range 2000 {
		d.Apply([]*workloadpb.Address{pod(fmt.Sprint("p", i%150), fmt.Sprintf("10.0.0.%d", i%250), memberOf("ns/h", 80, uint32(i)))},
			[]string{fmt.Sprint("Kubernetes//Pod/ns/p", (i*7)%150)})
	}
	close(stop)
	wg.Wait()
}

func FuzzApply(f *testing.F) {
	for _, a := range []*workloadpb.Address{
		pod("a", "10.0.0.1", memberOf("ns/h", 80, 8080)),
		service("ns", "h", []string{"10.1.0.1", "10.0.0.0/8", "fd00::/16"}, balanced(workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_NETWORK)),
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := new(workloadpb.Address)
		if proto.Unmarshal(b, a) != nil {
			return
		}
		d := NewDirectory(Options{})
		_, rejected := d.Apply([]*workloadpb.Address{a, pod("other", "10.0.0.1")}, nil)
		if _, err := json.Marshal(d.Snapshot().DumpWorkloads()); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(d.Snapshot().DumpServices()); err != nil {
			t.Fatal(err)
		}
		d.Apply(nil, []string{ResourceName(a), "Kubernetes//Pod/ns/other"})
		s := d.Snapshot()
		if s.NumWorkloads()+s.NumServices() != 0 || s.addrs.Len()+s.vips.Len()+s.endpoints.Len()+s.hostnames.Len()+s.infos.Len()+s.hosts.Len()+len(s.ranges) != 0 {
			t.Fatalf("removal leaves something behind of %v (rejected: %v)", a, rejected)
		}
		if len(d.traits)+len(d.nodes) != 0 {
			t.Fatal("removal leaves shared parts behind")
		}
	})
}
