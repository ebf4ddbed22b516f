package route

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
)

const mesh = `
workloads:
- {uid: c, name: c, namespace: shop, serviceAccount: c, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE}
- {uid: s1, name: s1, namespace: shop, serviceAccount: s, workloadIps: [10.0.0.2, "fd00::2"], protocol: HBONE, services: {shop/s.shop.svc.cluster.local: {80: 8080}}}
- {uid: s2, name: s2, namespace: shop, serviceAccount: s, workloadIps: [10.0.0.3, "fd00::3"], protocol: HBONE, services: {shop/s.shop.svc.cluster.local: {80: 8081}}}
- {uid: t, name: t, namespace: shop, serviceAccount: t, workloadIps: [10.0.0.4], protocol: TCP, services: {shop/t.shop.svc.cluster.local: {80: 8080}}}
- {uid: wp, name: wp, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.9], protocol: TCP, services: {shop/wp.shop.svc.cluster.local: {15008: 15008}}}
- {uid: w, name: w, namespace: shop, serviceAccount: w, workloadIps: [10.0.0.5], protocol: HBONE,
   services: {shop/kept.shop.svc.cluster.local: {80: 8080}},
   waypoint: {destination: {namespace: shop, hostname: wp.shop.svc.cluster.local}, hboneMtlsPort: 15008}}
- {uid: w2, name: w2, namespace: shop, serviceAccount: w, workloadIps: [10.0.0.6], protocol: HBONE,
   waypoint: {destination: /10.0.0.9, hboneMtlsPort: 15008}}
- {uid: w3, name: w3, namespace: shop, serviceAccount: w, workloadIps: [10.0.0.7], protocol: HBONE,
   waypoint: {destination: {namespace: shop, hostname: nobody.shop}, hboneMtlsPort: 15008}}
- {uid: far, name: far, namespace: shop, serviceAccount: far, network: remote, workloadIps: [10.9.0.1], protocol: HBONE, services: {shop/far.shop.svc.cluster.local: {80: 80}}}
- {uid: gw, name: gw, namespace: infra, serviceAccount: gw, network: west, workloadIps: [10.9.0.8, "fd00:9::8"], protocol: HBONE, services: {infra/gw.infra.svc: {15009: 15008}}}
- {uid: west, name: west, namespace: shop, network: west, protocol: HBONE, services: {shop/west.shop.svc: {80: 80}, shop/both.shop.svc: {80: 80}},
   networkGateway: {destination: west/10.9.0.8, hboneMtlsPort: 15008}}
- {uid: named-gw, name: named-gw, namespace: shop, network: west, protocol: HBONE, services: {shop/named.shop.svc: {80: 80}},
   networkGateway: {destination: {namespace: infra, hostname: gw.infra.svc}, hboneMtlsPort: 15009}}
- {uid: lost-gw, name: lost-gw, namespace: shop, network: east, protocol: HBONE, services: {shop/lost.shop.svc: {80: 80}, shop/both.shop.svc: {80: 80}},
   networkGateway: {destination: east/10.8.0.8, hboneMtlsPort: 15008}}
- {uid: mute, name: mute, namespace: shop, network: west, protocol: HBONE, services: {shop/mute.shop.svc: {80: 80}},
   networkGateway: {destination: west/10.9.0.8, hboneMtlsPort: 15008}}
- {uid: elb, name: elb, namespace: infra, serviceAccount: gw, network: cloud, hostname: gw.example.com, protocol: HBONE, services: {infra/elb.infra.svc: {15008: 15008}}}
- {uid: cloud, name: cloud, namespace: shop, network: cloud, protocol: HBONE, services: {shop/cloud.shop.svc: {80: 80}},
   networkGateway: {destination: {namespace: infra, hostname: elb.infra.svc}, hboneMtlsPort: 15008}}
- {uid: westwp, name: westwp, namespace: shop, network: west, protocol: HBONE, services: {shop/westwp.shop.svc: {15008: 15008}},
   networkGateway: {destination: west/10.9.0.8, hboneMtlsPort: 15008}}
- {uid: named, name: named, namespace: shop, serviceAccount: n, hostname: db.example.com, protocol: TCP, services: {shop/db.example.com: {5432: 5432}}}
services:
- {name: s, namespace: shop, hostname: s.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd96::1"], ports: {80: 0}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/alias", "not-an-identity"]}
- {name: t, namespace: shop, hostname: t.shop.svc.cluster.local, vips: [/10.96.0.2], ports: {80: 8080}}
- {name: wp, namespace: shop, hostname: wp.shop.svc.cluster.local, vips: [/10.96.0.9], ports: {15008: 15008}}
- {name: v, namespace: shop, hostname: v.shop.svc.cluster.local, vips: [/10.96.0.3], ports: {80: 80},
   waypoint: {destination: {namespace: shop, hostname: wp.shop.svc.cluster.local}, hboneMtlsPort: 15008}}
- {name: none, namespace: shop, hostname: none.shop.svc.cluster.local, vips: [/10.96.0.4], ports: {80: 80}}
- {name: pass, namespace: shop, hostname: pass.example.com, vips: [/10.96.0.5], ports: {80: 80}, loadBalancer: {mode: PASSTHROUGH}}
- {name: far, namespace: shop, hostname: far.shop.svc.cluster.local, vips: [/10.96.0.6], ports: {80: 80}}
- {name: west, namespace: shop, hostname: west.shop.svc, vips: [/10.96.0.20, "/fd96::20"], ports: {80: 80}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/west"]}
- {name: both, namespace: shop, hostname: both.shop.svc, vips: [/10.96.0.21], ports: {80: 80}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/both"]}
- {name: named, namespace: shop, hostname: named.shop.svc, vips: [/10.96.0.22, "/fd96::22"], ports: {80: 80}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/west"]}
- {name: lost, namespace: shop, hostname: lost.shop.svc, vips: [/10.96.0.23], ports: {80: 80}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/west"]}
- {name: mute, namespace: shop, hostname: mute.shop.svc, vips: [/10.96.0.24], ports: {80: 80}, subjectAltNames: ["west.example.com"]}
- {name: cloud, namespace: shop, hostname: cloud.shop.svc, vips: [/10.96.0.25], ports: {80: 80}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/west"]}
- {name: guarded, namespace: shop, hostname: guarded.shop.svc, vips: [/10.96.0.26], ports: {81: 81}, waypoint: {destination: {namespace: shop, hostname: westwp.shop.svc}, hboneMtlsPort: 15008}}
- {name: westwp, namespace: shop, hostname: westwp.shop.svc, vips: [/10.96.0.27], ports: {15008: 15008}, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/westwp"]}
- {name: gw, namespace: infra, hostname: gw.infra.svc, vips: [/10.96.0.28], ports: {15009: 15008}, subjectAltNames: ["spiffe://cluster.local/ns/infra/sa/alias"]}
- {name: elb, namespace: infra, hostname: elb.infra.svc, vips: [/10.96.0.29], ports: {15008: 15008}}
- {name: kept, namespace: shop, hostname: kept.shop.svc.cluster.local, vips: [/10.96.0.30], ports: {80: 8080}}
- {name: refused, namespace: shop, hostname: refused.shop.svc.cluster.local, vips: [/10.96.0.31], ports: {80: 8080},
   waypoint: {destination: {namespace: shop, hostname: shop.gone.NotFound.waypoint.invalid}, hboneMtlsPort: 15008}}
- {name: idle, namespace: shop, hostname: idle.shop.svc.cluster.local, vips: [/10.96.0.32], ports: {80: 8080},
   waypoint: {destination: {namespace: shop, hostname: none.shop.svc.cluster.local}, hboneMtlsPort: 80}}
- {name: db, namespace: shop, hostname: db.example.com, vips: [/10.96.0.7], ports: {5432: 5432}}
`

// show renders a route in one line.
func (r Route) show() string {
	uid := "-"
	if r.Workload != nil {
		uid = r.Workload.UID
	}
	svc := "-"
	if r.Service != nil {
		svc = r.Service.Name
	}
	ids := make([]string, len(r.Identities))
	for i, id := range r.Identities {
		ids[i] = id.ServiceAccount
	}
	who := strings.Join(ids, "+")
	for _, id := range r.Inner {
		who += " inner=" + id.ServiceAccount
	}
	return fmt.Sprintf("%s %s next=%s target=%s wl=%s svc=%s ids=%s host=%s", r.Protocol, r.Via, r.Next, r.Target, uid, svc, who, r.Hostname)
}

func TestOutbound(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	for _, tc := range []struct {
		name, src, dst string
		want           string // of show, alternatives separated by " | "
		reason         reason.Reason
	}{
		{"workload", "c", "10.0.0.2:9000", "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:9000 wl=s1 svc=- ids=s host=", 0},
		{"workload, IPv6", "c", "[fd00::2]:9000", "HBONE direct next=[fd00::2]:15008 target=[fd00::2]:9000 wl=s1 svc=- ids=s host=", 0},
		{"service", "c", "10.96.0.1:80", "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:8080 wl=s1 svc=s ids=s+alias host= | HBONE direct next=10.0.0.3:15008 target=10.0.0.3:8081 wl=s2 svc=s ids=s+alias host=", 0},
		{"service, IPv6", "c", "[fd96::1]:80", "HBONE direct next=[fd00::2]:15008 target=[fd00::2]:8080 wl=s1 svc=s ids=s+alias host= | HBONE direct next=[fd00::3]:15008 target=[fd00::3]:8081 wl=s2 svc=s ids=s+alias host=", 0},
		{"service in plaintext", "c", "10.96.0.2:80", "TCP direct next=10.0.0.4:8080 target= wl=t svc=t ids= host=", 0},
		{"service waypoint", "c", "10.96.0.3:80", "HBONE service waypoint next=10.0.0.9:15008 target=10.96.0.3:80 wl=wp svc=v ids=wp host=", 0},
		{"workload waypoint by name", "c", "10.0.0.5:80", "HBONE workload waypoint next=10.0.0.9:15008 target=10.0.0.5:80 wl=wp svc=- ids=wp host=", 0},
		{"workload waypoint by address", "c", "10.0.0.6:80", "HBONE workload waypoint next=10.0.0.9:15008 target=10.0.0.6:80 wl=wp svc=- ids=wp host=", 0},
		{"the waypoint itself", "wp", "10.0.0.5:80", "HBONE direct next=10.0.0.5:15008 target=10.0.0.5:80 wl=w svc=- ids=w host=", 0},
		{"service, and an endpoint with a waypoint of its own", "c", "10.96.0.30:80", "HBONE workload waypoint next=10.0.0.9:15008 target=10.0.0.5:8080 wl=wp svc=kept ids=wp host=", 0},
		{"the waypoint of the endpoint calls its service", "wp", "10.96.0.30:80", "HBONE direct next=10.0.0.5:15008 target=10.0.0.5:8080 wl=w svc=kept ids=w host=", 0},
		{"unknown waypoint", "c", "10.0.0.7:80", "", reason.WaypointUnavailable},
		{"waypoint that is refused", "c", "10.96.0.31:80", "", reason.WaypointUnavailable},
		{"waypoint without a ready proxy", "c", "10.96.0.32:80", "", reason.WaypointUnavailable},
		{"no endpoints", "c", "10.96.0.4:80", "", reason.NoHealthyUpstream},
		{"port not served", "c", "10.96.0.1:81", "", reason.NoHealthyUpstream},
		{"passthrough service", "c", "10.96.0.5:80", "TCP passthrough next=10.96.0.5:80 target= wl=- svc=pass ids= host=", 0},
		{"unknown", "c", "192.0.2.1:443", "TCP passthrough next=192.0.2.1:443 target= wl=- svc=- ids= host=", 0},
		{"loopback, other port", "c", "127.0.0.1:80", "TCP passthrough next=127.0.0.1:80 target= wl=- svc=- ids= host=", 0},
		{"recursion", "c", "127.0.0.1:15001", "", reason.RecursiveCall},
		{"recursion, IPv6", "c", "[::1]:15008", "", reason.RecursiveCall},
		{"unknown source", "", "10.0.0.2:80", "", reason.UnknownSource},
		{"other network", "c", "10.96.0.20:80", "DOUBLEHBONE direct next=10.9.0.8:15008 target=west.shop.svc:80 wl=gw svc=west ids=gw inner=west host=", 0},
		{"other network, IPv6 and a gateway named by its address", "c", "[fd96::20]:80", "DOUBLEHBONE direct next=10.9.0.8:15008 target=west.shop.svc:80 wl=gw svc=west ids=gw inner=west host=", 0},
		{"other network, gateway named by its host name", "c", "10.96.0.22:80", "DOUBLEHBONE direct next=10.9.0.8:15008 target=named.shop.svc:80 wl=gw svc=named ids=gw+alias inner=west host=", 0},
		{"other network, IPv6", "c", "[fd96::22]:80", "DOUBLEHBONE direct next=[fd00:9::8]:15008 target=named.shop.svc:80 wl=gw svc=named ids=gw+alias inner=west host=", 0},
		{"other network, gateway that must be resolved", "c", "10.96.0.25:80", "DOUBLEHBONE direct next=invalid AddrPort target=cloud.shop.svc:80 wl=elb svc=cloud ids=gw inner=west host=gw.example.com", 0},
		{"two other networks, one without a known gateway", "c", "10.96.0.21:80", "DOUBLEHBONE direct next=10.9.0.8:15008 target=both.shop.svc:80 wl=gw svc=both ids=gw inner=both host=", 0},
		{"waypoint in another network", "c", "10.96.0.26:81", "DOUBLEHBONE service waypoint next=10.9.0.8:15008 target=guarded.shop.svc:81 wl=gw svc=guarded ids=gw inner=westwp host=", 0},
		{"gateway that nobody knows", "c", "10.96.0.23:80", "", reason.UnknownGateway},
		{"identities that nobody names", "c", "10.96.0.24:80", "", reason.NoHealthyUpstream},
		{"other network without gateway", "c", "10.96.0.6:80", "", reason.UnknownGateway},
		{"endpoint by name", "c", "10.96.0.7:5432", "TCP direct next=invalid AddrPort target= wl=named svc=db ids= host=db.example.com", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := netip.MustParseAddrPort("10.0.0.1:4000")
			if tc.src == "wp" {
				src = netip.MustParseAddrPort("10.0.0.9:4000")
			}
			for range 20 {
				r, err := Outbound(Out{Snapshot: s, Source: s.WorkloadByUID(tc.src), Src: src, Dst: netip.MustParseAddrPort(tc.dst), Rand: func(n uint64) uint64 { return n - 1 }})
				if err != nil {
					if err.Reason != tc.reason || tc.want != "" {
						t.Fatalf("%v", err)
					}
					return
				}
				if got := r.show(); tc.want == "" || !strings.Contains(" | "+tc.want+" | ", " | "+got+" | ") {
					t.Fatalf("\ngot  %s\nwant %s", got, tc.want)
				}
			}
		})
	}
}

// An impostor at the waypoint's address, or the waypoint's identity at another
// address, does not skip the waypoint.
func TestFromWaypointNeedsBoth(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	for _, tc := range []struct{ uid, src string }{{"c", "10.0.0.9:1"}, {"wp", "10.0.0.1:1"}} {
		r, err := Outbound(Out{Snapshot: s, Source: s.WorkloadByUID(tc.uid), Src: netip.MustParseAddrPort(tc.src), Dst: netip.MustParseAddrPort("10.0.0.5:80"), Rand: func(uint64) uint64 { return 0 }})
		if err != nil || r.Via != WorkloadWaypoint {
			t.Errorf("%v: %v %v", tc, r.show(), err)
		}
	}
}

func TestExcluded(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	o := Out{Snapshot: s, Source: s.WorkloadByUID("c"), Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Rand: func(uint64) uint64 { return 0 }}
	for range 20 {
		o.Excluded = func(uid string) bool { return uid == "s1" }
		if r, err := Outbound(o); err != nil || r.Workload.UID != "s2" || !r.Balanced {
			t.Fatalf("%v %v", r.show(), err)
		}
	}
	o.Dst = netip.MustParseAddrPort("10.96.0.21:80")
	for range 20 {
		o.Excluded = func(uid string) bool { return uid == "gw" }
		if r, err := Outbound(o); err != nil && err.Reason == reason.UnknownGateway {
			continue // the only gateway failed already, and the error says what is left
		} else if err == nil {
			t.Fatalf("%v", r.show())
		}
	}
	o.Excluded = func(string) bool { return true }
	if r, err := Outbound(o); err == nil {
		t.Fatal(r.show())
	}
}

func TestResolved(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.7")
	if r := (Route{Hostname: "h"}).at(netip.Addr{}, 5432).Resolved(a); r.Next.String() != "192.0.2.7:5432" || r.Hostname != "" {
		t.Error(r.show())
	}
	if r := (Route{Protocol: connect.DoubleHBONE, Hostname: "h", Next: netip.AddrPortFrom(netip.Addr{}, 15009), Target: connect.Target{Host: "svc", Port: 80}}).Resolved(a); r.Next.String() != "192.0.2.7:15009" || r.Target.String() != "svc:80" || r.Hostname != "" {
		t.Error(r.show())
	}
	if r := (Route{Protocol: connect.HBONE, Hostname: "h"}).at(netip.Addr{}, 80).Resolved(a); r.Next.String() != "192.0.2.7:15008" || r.Target.String() != "192.0.2.7:80" {
		t.Error(r.show())
	}
}
