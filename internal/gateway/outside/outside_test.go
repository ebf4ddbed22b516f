package outside

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
)

func at(a string) netip.Addr { return netip.MustParseAddr(a) }

// TestLocate: a name leads to one of its addresses, never to the gateway itself; what was
// called by an address goes there; a service that is not what was called goes nowhere.
func TestLocate(t *testing.T) {
	names := map[string][]netip.Addr{
		"a.test": {at("192.0.2.1"), at("2001:db8::1")}, "v4.test": {at("192.0.2.4")},
		"bad.test": {at("127.0.0.1"), at("169.254.169.254"), at("::1"), at("0.0.0.0"), at("fe80::1"), at("224.0.0.1")}, "mixed.test": {at("127.0.0.1"), at("192.0.2.9")}, "none.test": nil,
		"pod.test": {at("10.0.0.1")}, "service.test": {at("10.96.0.1")}, "vm.test": {at("10.0.0.2")}, "rebound.test": {at("10.0.0.1"), at("10.96.0.1"), at("192.0.2.9")},
		"claimed.test": {at("192.0.2.20")}, "listed.test": {at("192.0.2.21")}, "new.test": {at("192.0.2.30")}, "hidden.test": {at("10.0.0.1"), at("192.0.2.30")},
	}
	where := place.Whereabouts{Network: "lan", Namespace: "street", Answered: func(name string) bool { return name != "lan/192.0.2.30" }, Snapshot: localxdstest.Snapshot(t, `
workloads:
- {uid: c//Pod/shop/pod, name: pod, namespace: shop, network: lan, workloadIps: [10.0.0.1], protocol: TCP}
- {uid: c/networking.istio.io/WorkloadEntry/yard/vm, name: vm, namespace: yard, network: lan, workloadIps: [10.0.0.2], protocol: HBONE}
- {uid: c/networking.istio.io/ServiceEntry/yard/out/192.0.2.21, name: out, namespace: yard, network: lan, workloadIps: [192.0.2.21], protocol: TCP}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [lan/10.96.0.1], ports: {80: 8080}, ipFamilies: IPV4_ONLY}
- {name: claim, namespace: yard, hostname: claim.test, vips: [lan/192.0.2.20], ports: {443: 443}}
`)}
	f := Finder{Names: func(h string) ([]netip.Addr, error, bool) { //nolint:revive // as in Finder
		if h == "broken.test" {
			return nil, errors.New("SERVFAIL"), true
		}
		a, ok := names[h]
		return a, nil, ok
	}}
	svc := &workload.Service{Name: "p", Namespace: "shop", Hostname: "*.test", Mode: workload.Passthrough, Ports: []workload.Port{{Service: 80, Target: 8080}, {Service: 81}}}
	dynamic := *svc
	dynamic.ByName = true
	for name, tt := range map[string]struct {
		svc     *workload.Service
		other   bool
		dest    place.Destination
		port    uint16
		like    netip.Addr
		want    string
		missing string
	}{
		"a name, IPv4":                            {svc: svc, dest: place.Destination{Named: "a.test"}, port: 80, like: at("10.0.0.1"), want: "192.0.2.1:8080"},
		"a name, IPv6":                            {svc: svc, dest: place.Destination{Named: "a.test"}, port: 81, like: at("fd00::1"), want: "[2001:db8::1]:81"},
		"a name without addresses of the family":  {svc: svc, dest: place.Destination{Named: "v4.test"}, port: 80, like: at("fd00::1"), want: "192.0.2.4:8080"},
		"a name that is not known yet":            {svc: svc, dest: place.Destination{Named: "later.test"}, port: 80, missing: "later.test"},
		"a name that leads to the gateway":        {svc: svc, dest: place.Destination{Named: "bad.test"}, port: 80},
		"one that leads elsewhere as well":        {svc: svc, dest: place.Destination{Named: "mixed.test"}, port: 80, want: "192.0.2.9:8080"},
		"a name that leads to a pod":              {svc: svc, dest: place.Destination{Named: "pod.test"}, port: 80},
		"one that leads to a Service":             {svc: svc, dest: place.Destination{Named: "service.test"}, port: 80},
		"one that leads to a machine of the mesh": {svc: svc, dest: place.Destination{Named: "vm.test"}, port: 80},
		"one that leads out of the mesh as well":  {svc: svc, dest: place.Destination{Named: "rebound.test"}, port: 80, want: "192.0.2.9:8080"},
		"one that another namespace claims":       {svc: svc, dest: place.Destination{Named: "claimed.test"}, port: 80, want: "192.0.2.20:8080"},
		"one that another namespace lists":        {svc: svc, dest: place.Destination{Named: "listed.test"}, port: 80, want: "192.0.2.21:8080"},
		"one that has not been asked about":       {svc: svc, dest: place.Destination{Named: "new.test"}, port: 80, missing: "lan/192.0.2.30"},
		"the same beside a pod":                   {svc: svc, dest: place.Destination{Named: "hidden.test"}, port: 80, missing: "lan/192.0.2.30"},
		"an address that is a pod's":              {svc: svc, dest: place.Destination{Addr: at("10.0.0.1")}, port: 80},
		"one that was not asked about":            {svc: svc, dest: place.Destination{Addr: at("192.0.2.30")}, port: 80, missing: "lan/192.0.2.30"},
		"a name without addresses":                {svc: svc, dest: place.Destination{Named: "none.test"}, port: 80},
		"a name that fails":                       {svc: svc, dest: place.Destination{Named: "broken.test"}, port: 80},
		"an address":                              {svc: svc, dest: place.Destination{Addr: at("198.51.100.1")}, port: 80, want: "198.51.100.1:8080"},
		"an address, of a service of names":       {svc: &dynamic, dest: place.Destination{Addr: at("198.51.100.1")}, port: 80},
		"neither":                                 {svc: svc, port: 80},
		"another service":                         {svc: svc, other: true, dest: place.Destination{Addr: at("198.51.100.1")}, port: 80},
	} {
		t.Run(name, func(t *testing.T) {
			up := workload.Upstream{Direct: true, Service: tt.svc}
			missing, err := f.Locate(&up, &tt.dest, Call{Service: tt.svc, Own: !tt.other, Port: tt.port, Like: tt.like, Where: &where, Random: func(uint64) uint64 { return 0 }})
			if (err == nil) != (tt.want != "") || err == nil && netip.AddrPortFrom(up.Addr, up.Port).String() != tt.want {
				t.Fatalf("%v:%d, %v", up.Addr, up.Port, err)
			}
			if strings.Join(missing, " ") != tt.missing {
				t.Errorf("missing %q", missing)
			}
			if err == nil && (up.Direct || up.Workload == nil || up.Workload.Network != "lan") {
				t.Errorf("%+v", up)
			}
		})
	}
	w := &workload.Workload{UID: "w", Traits: &workload.Traits{Hostname: "a.test"}}
	up := workload.Upstream{Workload: w, Port: 9}
	if _, err := f.Locate(&up, &place.Destination{}, Call{Service: svc, Random: func(uint64) uint64 { return 0 }}); err != nil || up.Addr != at("192.0.2.1") || up.Workload != w {
		t.Errorf("an endpoint with a name: %+v, %v", up, err)
	}
}

// TestCalled: only names that the service has count.
func TestCalled(t *testing.T) {
	for authority, want := range map[string]string{
		"a.test": "a.test", "A.Test:80": "a.test", "a.b.test.": "a.b.test", "test": "", "a.test.evil": "", "192.0.2.1": "", "[::1]:80": "", "": "", ".test": "", "*.test": "", "a..test": "", "a/b.test": "",
	} {
		d := place.Destination{Service: &workload.Service{Hostname: "*.test"}}
		if ok := Called(&d, []byte(authority)); ok != (want != "") || d.Named != want {
			t.Errorf("%q: %q, %v", authority, d.Named, ok)
		}
	}
}
