package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

func canonical(s *workloadpb.Service) { s.Canonical = true }

// kubernetes makes a service one of Kubernetes: its name, and IP families.
func kubernetes(ns, name string, vips []string, edit ...func(*workloadpb.Service)) *workloadpb.Address {
	return service(ns, name+"."+ns+".svc.cluster.local", vips, append([]func(*workloadpb.Service){func(s *workloadpb.Service) {
		s.Name, s.Canonical, s.IpFamilies = name, true, workloadpb.IPFamilies_DUAL
	}}, edit...)...)
}

// of puts a workload into a namespace.
func of(ns string) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		w.Uid = strings.Replace(w.Uid, "/ns/", "/"+ns+"/", 1)
		w.Namespace = ns
	}
}

func machineEntry(w *workloadpb.Workload) {
	w.Uid = strings.Replace(w.Uid, "//Pod/", "/networking.istio.io/WorkloadEntry/", 1)
	w.TunnelProtocol = workloadpb.TunnelProtocol_NONE
}

// found names what is at an address: a service's key, or a workload's UID.
func found(d Destination) string {
	switch {
	case d.Service != nil:
		return d.Service.Key().String()
	case d.Workload != nil:
		return d.Workload.UID
	}
	return ""
}

// TestWhoOwnsAnAddress is the table of docs/addresses.md.
func TestWhoOwnsAnAddress(t *testing.T) {
	for _, family := range []struct{ at, narrow, wide, all string }{
		{"10.0.0.1", "10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0"},
		{"fd00::1", "fd00::/64", "fd00::/8", "::/0"},
	} {
		at := []string{family.at}
		web := kubernetes("shop", "web", at)
		client := pod("web", family.at, of("shop"))
		machine := pod("vm", family.at, of("shop"), machineEntry)
		claim := func(ns string, what ...string) *workloadpb.Address {
			return service(ns, "made.up."+ns, what, canonical)
		}
		// An entry may take the name and the form of a Kubernetes Service.
		forged := service("aaa", "web.aaa.svc.cluster.local", at, canonical, func(s *workloadpb.Service) { s.Name = "web" })
		for _, tc := range []struct {
			name string
			set  []*workloadpb.Address
			from string
			want string
		}{
			{"a Service before a claim that sorts before", []*workloadpb.Address{web, claim("aaa", family.at)}, "front", "shop/web.shop.svc.cluster.local"},
			{"a Service before a claim that sorts after", []*workloadpb.Address{web, claim("zzz", family.at)}, "front", "shop/web.shop.svc.cluster.local"},
			{"a Service before what has its form", []*workloadpb.Address{web, forged}, "front", "shop/web.shop.svc.cluster.local"},
			{"a Service before ranges", []*workloadpb.Address{web, claim("zzz", family.all), claim("aaa", family.narrow)}, "front", "shop/web.shop.svc.cluster.local"},
			{"a Service before a range of the client's namespace", []*workloadpb.Address{web, claim("front", family.narrow)}, "front", "shop/web.shop.svc.cluster.local"},
			{"a Service before a WorkloadEntry", []*workloadpb.Address{web, machine}, "front", "shop/web.shop.svc.cluster.local"},
			{"a pod before a claim", []*workloadpb.Address{client, claim("aaa", family.at), claim("zzz", family.at)}, "front", "Kubernetes//Pod/shop/web"},
			{"a pod before a claim, for its own namespace", []*workloadpb.Address{client, claim("zzz", family.at)}, "shop", "Kubernetes//Pod/shop/web"},
			{"a pod before what has the form of a Service", []*workloadpb.Address{client, forged}, "front", "Kubernetes//Pod/shop/web"},
			{"a pod before a claim of its own namespace", []*workloadpb.Address{client, claim("shop", family.at)}, "front", "Kubernetes//Pod/shop/web"},
			{"a pod before ranges", []*workloadpb.Address{client, claim("zzz", family.all), claim("aaa", family.narrow)}, "front", "Kubernetes//Pod/shop/web"},
			{"a pod before a range of the client's namespace", []*workloadpb.Address{client, claim("shop", family.wide)}, "shop", "Kubernetes//Pod/shop/web"},
			{"the client's namespace may take a Service's address", []*workloadpb.Address{web, claim("front", family.at)}, "front", "front/made.up.front"},
			{"the client's namespace may take a pod's address", []*workloadpb.Address{client, claim("front", family.at)}, "front", "front/made.up.front"},
			{"a Service of the client's namespace before its entry", []*workloadpb.Address{web, claim("shop", family.at)}, "shop", "shop/web.shop.svc.cluster.local"},
			{"a claim before a WorkloadEntry", []*workloadpb.Address{machine, claim("zzz", family.at)}, "front", "zzz/made.up.zzz"},
			{"a WorkloadEntry of the client's namespace before a claim", []*workloadpb.Address{machine, claim("zzz", family.at)}, "shop", "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"},
			{"a WorkloadEntry before ranges", []*workloadpb.Address{machine, claim("shop", family.narrow)}, "shop", "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"},
			{"a claim before ranges", []*workloadpb.Address{claim("zzz", family.at), claim("front", family.narrow)}, "front", "zzz/made.up.zzz"},
			{"the narrower range", []*workloadpb.Address{claim("aaa", family.wide), claim("zzz", family.narrow)}, "front", "zzz/made.up.zzz"},
			{"a range of the client's namespace before a narrower one", []*workloadpb.Address{claim("front", family.wide), claim("zzz", family.narrow)}, "front", "front/made.up.front"},
		} {
			t.Run(tc.name+" "+family.at, func(t *testing.T) {
				for _, set := range [][]*workloadpb.Address{tc.set, reversed(tc.set)} {
					if got := found(directory(t, set...).Snapshot().Find("net", addr(family.at), tc.from)); got != tc.want {
						t.Errorf("%s from %s: %q, want %q", family.at, tc.from, got, tc.want)
					}
				}
			})
		}
	}
}

func reversed[E any](list []E) []E {
	out := slices.Clone(list)
	slices.Reverse(out)
	return out
}

// Whatever other namespaces add, in whatever order, the owner of an address
// stays.
func TestNobodyTakesAnAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owner := rapid.SampledFrom([]string{"aaa", "shop", "zzz"}).Draw(t, "owner")
		set := []*workloadpb.Address{
			kubernetes(owner, "web", []string{"10.0.0.1", "fd00::1"}),
			pod("web", "10.0.0.2", of(owner), func(w *workloadpb.Workload) { w.Addresses = append(w.Addresses, addr("fd00::2").AsSlice()) }),
		}
		addresses := []string{"10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"}
		names := []string{"aa", "bb", "mm", "yy", "zzzz"}
		for i := range rapid.IntRange(0, 12).Draw(t, "claims") {
			set = append(set, foreign(t, i, names, addresses))
		}
		set = rapid.Permutation(set).Draw(t, "order")
		d := NewDirectory(Options{PreferredNamespace: rapid.SampledFrom(names).Draw(t, "preferred")})
		for _, a := range set { // one by one: updates arrive in any order
			if _, rejected := d.Apply([]*workloadpb.Address{a}, nil); len(rejected) > 0 {
				t.Fatal(rejected)
			}
		}
		for _, from := range []string{owner, "front", ""} {
			for _, at := range addresses {
				want := "Kubernetes//Pod/" + owner + "/web"
				if strings.HasSuffix(at, "1") {
					want = owner + "/web." + owner + ".svc.cluster.local"
				}
				if got := found(d.Snapshot().Find("net", addr(at), from)); got != want {
					t.Fatalf("%s from %q: %s, want %s", at, from, got, want)
				}
			}
		}
	})
}

// foreign is anything that another namespace can make by ServiceEntries and
// WorkloadEntries.
func foreign(t *rapid.T, i int, names, addresses []string) *workloadpb.Address {
	ns := rapid.SampledFrom(names).Draw(t, "namespace")
	claims := append([]string{"0.0.0.0/0", "::/0", "10.0.0.0/31", "10.0.0.0/8", "fd00::/126"}, addresses...)
	if rapid.Bool().Draw(t, "workload") {
		return pod(fmt.Sprint("w", i), rapid.SampledFrom(addresses).Draw(t, "at"), of(ns), machineEntry, func(w *workloadpb.Workload) {
			w.TunnelProtocol = rapid.SampledFrom([]workloadpb.TunnelProtocol{0, workloadpb.TunnelProtocol_HBONE}).Draw(t, "tunnel")
		})
	}
	name := fmt.Sprint("s", i)
	host := rapid.SampledFrom([]string{name + ".test", name + "." + ns + ".svc.cluster.local", "web.shop.svc.cluster.local"}).Draw(t, "host")
	return service(ns, host, rapid.SliceOfNDistinct(rapid.SampledFrom(claims), 1, 4, rapid.ID).Draw(t, "claims"), func(s *workloadpb.Service) {
		s.Name, s.Canonical = name, rapid.Bool().Draw(t, "canonical")
		if rapid.Bool().Draw(t, "hidden") {
			s.Visibility = workloadpb.Service_NAMESPACE
		}
	})
}
