package route

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
)

const partial = `
workloads:
- {uid: c//Pod/shop/w, name: w, namespace: shop, serviceAccount: w, workloadIps: [10.0.0.5], services: {shop/v.shop.svc: {80: 80}, shop/lost.shop.svc: {80: 80}, shop/kept.shop.svc: {80: 80}}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {uid: west, name: west, namespace: shop, network: west, services: {shop/west.shop.svc: {80: 80}, shop/behind.shop.svc: {80: 80}}, networkGateway: {destination: {namespace: infra, hostname: gw.infra.svc}, hboneMtlsPort: 15008}}
- {uid: west2, name: west2, namespace: shop, network: west, services: {shop/west.shop.svc: {80: 80}}, networkGateway: {destination: {namespace: infra, hostname: gw.infra.svc}, hboneMtlsPort: 15008}}
services:
- {name: west, namespace: shop, hostname: west.shop.svc, vips: [/10.96.0.6], ports: {80: 80}}
- {name: behind, namespace: shop, hostname: behind.shop.svc, vips: [/10.96.0.8], ports: {80: 80}}
- {name: led, namespace: shop, hostname: led.shop.svc, vips: [/10.96.0.7], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: behind.shop.svc}, hboneMtlsPort: 15008}}
- {name: v, namespace: shop, hostname: v.shop.svc, vips: [/10.96.0.3], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {name: known, namespace: shop, hostname: known.shop.svc, vips: [/10.96.0.4], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: v.shop.svc}, hboneMtlsPort: 15008}}
- {name: plain, namespace: shop, hostname: plain.shop.svc, vips: [/10.96.0.5], ports: {80: 80}}
- {name: kept, namespace: shop, hostname: kept.shop.svc, vips: [/10.96.0.10], ports: {80: 80}}
- {name: refused, namespace: shop, hostname: refused.shop.svc, vips: [/10.96.0.11], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: wp.shop.NotReady.waypoint.invalid}, hboneMtlsPort: 15008}}
- {name: claim, namespace: zzz, hostname: claim.test, vips: [/10.96.0.9], ports: {80: 80}}
- {name: range, namespace: shop, hostname: range.test, cidrVips: [/10.97.0.0/16], ports: {80: 80}}
`

func TestUnknown(t *testing.T) {
	s := localxdstest.Snapshot(t, partial)
	for _, tc := range []struct {
		dst  string
		want []string
	}{
		{"10.96.0.5", nil},
		{"10.96.0.4", nil},
		{"10.96.0.6", []string{"infra/gw.infra.svc"}},
		{"10.96.0.7", []string{"infra/gw.infra.svc"}},
		{"10.96.0.3", []string{"shop/wp.shop.svc"}},
		{"10.0.0.5", []string{"shop/wp.shop.svc"}},
		{"10.96.0.10", []string{"shop/wp.shop.svc"}}, // of its endpoint
		{"10.96.0.11", nil},
		{"10.96.0.9", []string{"/10.96.0.9"}}, // its owner may not be known yet
		{"10.97.0.1", []string{"/10.97.0.1"}},
		{"10.0.0.9", []string{"/10.0.0.9"}},
		{"fd00::9", []string{"/fd00::9"}},
	} {
		if got := Unknown(s, "", netip.MustParseAddr(tc.dst), "shop", hosts.Match{}); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.dst, got, tc.want)
		}
	}
	if got := Unknown(s, "other", netip.MustParseAddr("10.96.0.5"), "shop", hosts.Match{}); !slices.Equal(got, []string{"other/10.96.0.5"}) {
		t.Errorf("in another network: %q", got)
	}
}

func TestUnknownInbound(t *testing.T) {
	s := localxdstest.Snapshot(t, partial)
	local := s.WorkloadByUID("c//Pod/shop/w")
	lost := "shop/lost.shop.svc"
	for _, tc := range []struct {
		client netip.Addr
		want   []string
	}{
		{netip.Addr{}, []string{lost}},
		{netip.MustParseAddr("10.0.0.5"), []string{lost}},
		{netip.MustParseAddr("10.0.0.7"), []string{lost, "/10.0.0.7"}},
	} {
		got := UnknownInbound(s, "", local, tc.client)
		slices.Sort(got)
		slices.Sort(tc.want)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.client, got, tc.want)
		}
	}
}
