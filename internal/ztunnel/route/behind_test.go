package route

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
)

// behindMesh has services whose endpoints admit only a waypoint (closed, second, gone),
// one whose endpoints admit each client (open), and one without a waypoint (plain).
const behindMesh = `
workloads:
- {uid: c, name: c, namespace: shop, serviceAccount: c, workloadIps: [10.0.0.1], protocol: HBONE}
- {uid: x, name: x, namespace: shop, serviceAccount: exempt, workloadIps: [10.0.0.11], protocol: HBONE}
- {uid: a, name: a, namespace: shop, serviceAccount: a, workloadIps: [10.0.0.2], protocol: HBONE,
   services: {shop/closed.shop.svc: {80: 8080}, shop/plain.shop.svc: {80: 8080}, shop/open.shop.svc: {81: 8081}}}
- {uid: b, name: b, namespace: shop, serviceAccount: b, workloadIps: [10.0.0.3], protocol: HBONE, services: {shop/closed.shop.svc: {80: 8080}, shop/second.shop.svc: {80: 8080}}}
- {uid: d, name: d, namespace: shop, serviceAccount: d, workloadIps: [10.0.0.4], protocol: HBONE, services: {shop/gone.shop.svc: {80: 8080}}}
- {uid: e, name: e, namespace: shop, serviceAccount: e, workloadIps: [10.0.0.5], protocol: HBONE, services: {shop/closed.shop.svc: {80: 8080}},
   waypoint: {destination: {namespace: shop, hostname: two.shop.svc}, hboneMtlsPort: 15008}}
- {uid: wp, name: wp, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.9], protocol: HBONE, services: {shop/wp.shop.svc: {15008: 15008, 15021: 15021}}}
- {uid: two, name: two, namespace: shop, serviceAccount: two, workloadIps: [10.0.0.10], protocol: HBONE, services: {shop/two.shop.svc: {15008: 15008}}}
services:
- {name: closed, namespace: shop, hostname: closed.shop.svc, vips: [/10.96.0.1], ports: {80: 0}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {name: second, namespace: shop, hostname: second.shop.svc, vips: [/10.96.0.2], ports: {80: 8080}, waypoint: {destination: {namespace: shop, hostname: two.shop.svc}, hboneMtlsPort: 15008}}
- {name: open, namespace: shop, hostname: open.shop.svc, vips: [/10.96.0.3], ports: {81: 8081}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {name: gone, namespace: shop, hostname: gone.shop.svc, vips: [/10.96.0.4], ports: {80: 8080}, waypoint: {destination: {namespace: shop, hostname: shop.gone.NotFound.waypoint.invalid}, hboneMtlsPort: 15008}}
- {name: plain, namespace: shop, hostname: plain.shop.svc, vips: [/10.96.0.5], ports: {80: 8080}}
- {name: wp, namespace: shop, hostname: wp.shop.svc, vips: [/10.96.0.9], ports: {15008: 15008, 15021: 15021}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {name: two, namespace: shop, hostname: two.shop.svc, vips: [/10.96.0.10], ports: {15008: 15008}}
`

// behindDirectory has the services of behindMesh; those of some names have their
// endpoints behind the waypoint, but for the account exempt.
func behindDirectory(t *testing.T, without ...string) *workload.Snapshot {
	t.Helper()
	c, err := localxds.Parse([]byte(behindMesh))
	if err != nil {
		t.Fatal(err)
	}
	beside, err := anypb.New(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("cluster.local/ns/shop/sa/exempt"), structpb.NewStringValue("cluster.local/ns/shop/sa/wp")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Addresses {
		if s := a.GetService(); s != nil && slices.Contains([]string{"closed", "second", "gone", "wp"}, s.Name) {
			s.Extensions = append(s.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionEndpointsTaken}, &workloadpb.Extension{Name: wellknown.ExtensionEndpoints, Config: beside})
		}
	}
	c.Addresses = slices.DeleteFunc(c.Addresses, func(a *workloadpb.Address) bool {
		return slices.Contains(without, a.GetService().GetName())
	})
	d := workload.NewDirectory(workload.Options{})
	if _, bad := d.Apply(c.Addresses, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	return d.Snapshot()
}

// TestEndpointsBehindWaypoint: a connection to the own address of an endpoint, which
// admits only the waypoint of its services, goes to that waypoint, and no other does.
func TestEndpointsBehindWaypoint(t *testing.T) {
	s := behindDirectory(t)
	for _, tc := range []struct {
		name, src, dst, want string
		reason               reason.Reason
	}{
		{name: "a port of the service", src: "c", dst: "10.0.0.2:8080", want: "HBONE workload waypoint next=10.0.0.9:15008 target=10.0.0.2:8080 wl=wp svc=- ids=wp host="},
		{name: "a port of no service", src: "c", dst: "10.0.0.2:9000", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:9000 wl=a svc=- ids=a host="},
		{name: "the service's own port, which leads elsewhere", src: "c", dst: "10.0.0.2:80", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:80 wl=a svc=- ids=a host="},
		{name: "a port that admits everybody", src: "c", dst: "10.0.0.2:8081", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:8081 wl=a svc=- ids=a host="},
		{name: "an exempt account", src: "x", dst: "10.0.0.2:8080", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:8080 wl=a svc=- ids=a host="},
		{name: "the waypoint", src: "wp", dst: "10.0.0.2:8080", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:8080 wl=a svc=- ids=a host="},
		{name: "two waypoints", src: "c", dst: "10.0.0.3:8080", want: "HBONE direct next=10.0.0.3:15008 target=10.0.0.3:8080 wl=b svc=- ids=b host="},
		{name: "the endpoint's own waypoint", src: "c", dst: "10.0.0.5:8080", want: "HBONE workload waypoint next=10.0.0.10:15008 target=10.0.0.5:8080 wl=two svc=- ids=two host="},
		{name: "the waypoint is gone", src: "c", dst: "10.0.0.4:8080", reason: reason.WaypointUnavailable},
		{name: "the waypoint itself is called", src: "c", dst: "10.0.0.9:15021", want: "HBONE direct next=10.0.0.9:15008 target=10.0.0.9:15021 wl=wp svc=- ids=wp host="},
		{name: "a service without a waypoint at the same port", src: "c", dst: "10.96.0.5:80", want: "HBONE workload waypoint next=10.0.0.9:15008 target=10.0.0.2:8080 wl=wp svc=plain ids=wp host="},
		{name: "the same for an exempt account", src: "x", dst: "10.96.0.5:80", want: "HBONE direct next=10.0.0.2:15008 target=10.0.0.2:8080 wl=a svc=plain ids=a host="},
		{name: "the service", src: "c", dst: "10.96.0.1:80", want: "HBONE service waypoint next=10.0.0.9:15008 target=10.96.0.1:80 wl=wp svc=closed ids=wp host="},
	} {
		src := s.WorkloadByUID(tc.src)
		r, err := Outbound(Out{
			Snapshot: s, Source: src, Src: netip.AddrPortFrom(src.Addrs()[0], 1), Dst: netip.MustParseAddrPort(tc.dst),
			Rand: func(uint64) uint64 { return 0 },
		})
		switch {
		case err != nil && err.Reason != tc.reason:
			t.Errorf("%s: %v", tc.name, err)
		case err == nil && r.show() != tc.want:
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, r.show(), tc.want)
		}
	}
}

// TestBehindOnDemand: what decides about a call of an endpoint is requested when it is
// not known.
func TestBehindOnDemand(t *testing.T) {
	for _, tc := range []struct {
		dst, without, want string
	}{
		{"10.0.0.2", "closed", "shop/closed.shop.svc"},
		{"10.0.0.2", "wp", "shop/wp.shop.svc"},
		{"10.96.0.5", "closed", "shop/closed.shop.svc"},
		{"10.96.0.5", "wp", "shop/wp.shop.svc"},
	} {
		names := Unknown(behindDirectory(t, tc.without), "", netip.MustParseAddr(tc.dst), "shop", hosts.Match{})
		n := 0
		for _, name := range names {
			if name == tc.want {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s without %s: %q", tc.dst, tc.without, names)
		}
	}
}

// TestSandwichForEndpoints: a waypoint behind a node proxy gets what is for the endpoints
// of its services, at their ports alone.
func TestSandwichForEndpoints(t *testing.T) {
	s := behindDirectory(t)
	for _, tc := range []struct {
		pod, at, authority string
		ok                 bool
	}{
		{"wp", "10.0.0.9", "10.0.0.2:8080", true},
		{"wp", "10.0.0.9", "10.0.0.2:9000", false},
		{"wp", "10.0.0.9", "10.0.0.2:8081", false},
		{"two", "10.0.0.10", "10.0.0.2:8080", false},
		{"two", "10.0.0.10", "10.0.0.3:8080", true},
		{"wp", "10.0.0.9", "10.0.0.5:8080", false},
		{"two", "10.0.0.10", "10.0.0.5:8080", true},
	} {
		_, status, err := Inbound(In{Snapshot: s, Local: s.WorkloadByUID(tc.pod), At: netip.AddrPortFrom(netip.MustParseAddr(tc.at), 15008), Method: "CONNECT", Authority: tc.authority})
		if (err == nil) != tc.ok || err != nil && err.Reason != reason.AddressMismatch {
			t.Errorf("%s for %s: %d %v", tc.pod, tc.authority, status, err)
		}
	}
}
