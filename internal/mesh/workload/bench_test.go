package workload

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// mesh builds resources like those of a large cluster: services of equal
// size, pods spread over 50-pod nodes in three zones.
func mesh(workloads, services int, emit func(*workloadpb.Address)) {
	for i := range services {
		host := fmt.Sprintf("app-%d.ns-%d.svc.cluster.local", i, i%100)
		emit(service(fmt.Sprintf("ns-%d", i%100), host, []string{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()}))
	}
	for i := range workloads {
		emit(meshPod(i, services))
	}
}

func meshPod(i, services int) *workloadpb.Address {
	svc := i % services
	ns := fmt.Sprintf("ns-%d", svc%100)
	name := fmt.Sprintf("app-%d-7d4b9c6f5-%05x", svc, i)
	ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
	return pod(name, ip, memberOf(ns+"/"+fmt.Sprintf("app-%d.%s.svc.cluster.local", svc, ns), 80, 8080),
		at("region-1", fmt.Sprint("zone-", i/50%3), fmt.Sprintf("ip-10-0-%d-%d.ec2.internal", i/50>>8, i/50&255), "net"),
		func(w *workloadpb.Workload) {
			w.Uid = "Kubernetes//Pod/" + ns + "/" + name
			w.Namespace, w.ServiceAccount = ns, fmt.Sprint("app-", svc)
			w.WorkloadName, w.CanonicalName, w.CanonicalRevision = fmt.Sprint("app-", svc), fmt.Sprint("app-", svc), "latest"
		})
}

func fill(workloads, services int) *Directory {
	d := NewDirectory(Options{})
	var batch []*workloadpb.Address
	mesh(workloads, services, func(a *workloadpb.Address) {
		if batch = append(batch, a); len(batch) == 1000 {
			d.Apply(batch, nil)
			batch = batch[:0]
		}
	})
	d.Apply(batch, nil)
	return d
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// maxBytesPerWorkload is the budget of DESIGN: well under upstream's 2.4 KiB.
const maxBytesPerWorkload = 640

// TestMemoryPerWorkload holds the budget at a size that is quick; the
// benchmark prints the number for 100,000 workloads.
func TestMemoryPerWorkload(t *testing.T) {
	const workloads = 20_000
	before := heap()
	d := fill(workloads, 400)
	per := (heap() - before) / workloads
	t.Logf("%d bytes per workload", per)
	if per > maxBytesPerWorkload {
		t.Errorf("%d bytes per workload, budget %d", per, maxBytesPerWorkload)
	}
	runtime.KeepAlive(d)
}

func BenchmarkMemory100k(b *testing.B) {
	for range b.N {
		before := heap()
		d := fill(100_000, 2000)
		b.ReportMetric(float64(heap()-before)/100_000, "bytes/workload")
		runtime.KeepAlive(d)
	}
}

// BenchmarkChange is one pod's change in meshes of two sizes, and in a service
// of 10,000 endpoints.
func BenchmarkChange(b *testing.B) {
	for _, size := range []struct{ workloads, services int }{{1000, 20}, {100_000, 2000}, {10_000, 1}} {
		b.Run(fmt.Sprintf("workloads=%d,services=%d", size.workloads, size.services), func(b *testing.B) {
			d := fill(size.workloads, size.services)
			down, up := meshPod(77, size.services), meshPod(77, size.services)
			unhealthy(down.GetWorkload())
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				a := up
				if i%2 == 0 {
					a = down
				}
				d.Apply([]*workloadpb.Address{a}, nil)
			}
		})
	}
}

func BenchmarkFind(b *testing.B) {
	s := fill(100_000, 2000).Snapshot()
	vip, pod := netip.MustParseAddr("10.96.3.5"), netip.MustParseAddr("10.1.2.3")
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if s.Find("net", vip, "ns-1").Service == nil || s.Find("net", pod, "ns-1").Workload == nil {
			b.Fatal("not found")
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, size := range []struct {
		name                string
		workloads, services int
		lb                  func(*workloadpb.Service)
	}{
		{"standard,endpoints=50", 1000, 20, nil},
		{"standard,endpoints=10000", 10_000, 1, nil},
		{"failover,endpoints=50", 1000, 20, balanced(workloadpb.LoadBalancing_FAILOVER, byNetwork, byRegion, byZone)},
		{"failover,endpoints=10000", 10_000, 1, balanced(workloadpb.LoadBalancing_FAILOVER, byNetwork, byRegion, byZone)},
		{"affinity,endpoints=50", 1000, 20, sticky},
	} {
		b.Run(size.name, func(b *testing.B) {
			d := fill(size.workloads, size.services)
			if size.lb != nil {
				d.Apply([]*workloadpb.Address{service("ns-0", "app-0.ns-0.svc.cluster.local", nil, size.lb)}, nil)
			}
			s := d.Snapshot()
			q := Query{
				Service: s.ServiceByName("ns-0", "app-0.ns-0.svc.cluster.local"), Client: s.WorkloadByAddr("net", addr("10.0.0.1")),
				Port: 80, Dialled: addr("10.96.0.0"), Rand: rand.Uint64N, Load: func(string) int { return 0 },
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := s.Pick(q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
