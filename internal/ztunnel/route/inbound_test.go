package route

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
)

const inboundMesh = `
workloads:
- {uid: s, name: s, namespace: shop, serviceAccount: s, workloadIps: [10.0.0.2, "fd00::2"], protocol: HBONE, services: {shop/s.shop.svc: {80: 8080}, shop/other.shop.svc: {80: 9090}}}
- {uid: plain, name: plain, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.9], protocol: HBONE, services: {shop/wp.shop.svc: {15008: 15008}}}
- {uid: proxy, name: proxy, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.8, "fd00::8"], protocol: HBONE, applicationTunnel: {protocol: PROXY, port: 15088}}
- {uid: same, name: same, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.7], protocol: HBONE, applicationTunnel: {protocol: PROXY}}
- {uid: none, name: none, namespace: shop, serviceAccount: wp, workloadIps: [10.0.0.6], protocol: HBONE, applicationTunnel: {protocol: NONE, port: 15088}}
- {uid: w, name: w, namespace: shop, serviceAccount: w, workloadIps: [10.0.0.5], protocol: HBONE, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
services:
- {name: s, namespace: shop, hostname: s.shop.svc, vips: [/10.96.0.1], ports: {80: 8080}}
- {name: other, namespace: shop, hostname: other.shop.svc, vips: [/10.96.0.4], ports: {80: 0}}
- {name: wp, namespace: shop, hostname: wp.shop.svc, vips: [/10.96.0.9], ports: {15008: 15008}}
- {name: v, namespace: shop, hostname: v.shop.svc, vips: ["/fd96::3", /10.96.0.3], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
- {name: bare, namespace: shop, hostname: bare.shop.svc, vips: [], ports: {80: 80}}
`

func TestInbound(t *testing.T) {
	s := localxdstest.Snapshot(t, inboundMesh)
	show := func(p Plan) string {
		svc := "-"
		if p.Service != nil {
			svc = p.Service.Name
		}
		proxy := "-"
		if p.Proxy.IsValid() {
			proxy = p.Proxy.String()
		}
		return fmt.Sprintf("up=%s connect=%s src=%t proxy=%s svc=%s", p.Upstream, p.Connect, p.KeepSource, proxy, svc)
	}
	for _, tc := range []struct {
		name, local, at, method, authority, host string
		noLocalhost                              bool
		want                                     string
		status                                   int
		reason                                   reason.Reason
	}{
		{name: "address", local: "s", at: "10.0.0.2", authority: "10.0.0.2:8080", want: "up=10.0.0.2:8080 connect=10.0.0.2:8080 src=true proxy=- svc=s"},
		{name: "address, other service's port", local: "s", at: "10.0.0.2", authority: "10.0.0.2:9090", want: "up=10.0.0.2:9090 connect=10.0.0.2:9090 src=true proxy=- svc=other"},
		{name: "address, client says the service", local: "s", at: "10.0.0.2", authority: "10.0.0.2:8080", host: "other.shop.svc", want: "up=10.0.0.2:8080 connect=10.0.0.2:8080 src=true proxy=- svc=other"},
		{name: "address, client says nonsense", local: "s", at: "10.0.0.2", authority: "10.0.0.2:1", host: "wp.shop.svc", want: "up=10.0.0.2:1 connect=10.0.0.2:1 src=true proxy=- svc=-"},
		{name: "IPv6", local: "s", at: "fd00::2", authority: "[fd00::2]:8080", want: "up=[fd00::2]:8080 connect=[fd00::2]:8080 src=true proxy=- svc=s"},
		{name: "host name", local: "s", at: "10.0.0.2", authority: "s.shop.svc:80", want: "up=10.0.0.2:8080 connect=10.0.0.2:8080 src=true proxy=- svc=s"},
		{name: "host name, named port", local: "s", at: "10.0.0.2", authority: "other.shop.svc:80", want: "up=10.0.0.2:9090 connect=10.0.0.2:9090 src=true proxy=- svc=other"},
		{name: "unknown host name", local: "s", at: "10.0.0.2", authority: "x.shop.svc:80", status: 503, reason: reason.NoHealthyUpstream},
		{name: "unknown port of host name", local: "s", at: "10.0.0.2", authority: "s.shop.svc:81", status: 503, reason: reason.NoHealthyUpstream},
		{name: "method", local: "s", at: "10.0.0.2", method: "GET", authority: "10.0.0.2:8080", status: 400, reason: reason.BadRequest},
		{name: "authority", local: "s", at: "10.0.0.2", authority: "10.0.0.2", status: 400, reason: reason.BadRequest},
		{name: "ip mismatch", local: "s", at: "10.0.0.2", authority: "10.0.0.3:8080", status: 400, reason: reason.AddressMismatch},
		{name: "ip mismatch, loopback", local: "s", at: "10.0.0.2", authority: "127.0.0.1:8080", status: 400, reason: reason.AddressMismatch},
		{name: "other family of the same pod", local: "s", at: "10.0.0.2", authority: "[fd00::2]:8080", status: 400, reason: reason.AddressMismatch},
		{name: "proxy port 15001", local: "s", at: "10.0.0.2", authority: "10.0.0.2:15001", status: 503, reason: reason.RecursiveCall},
		{name: "proxy port 15006", local: "s", at: "10.0.0.2", authority: "10.0.0.2:15006", status: 503, reason: reason.RecursiveCall},
		{name: "proxy port 15008", local: "s", at: "10.0.0.2", authority: "10.0.0.2:15008", status: 503, reason: reason.RecursiveCall},
		{name: "proxy port 15080", local: "s", at: "10.0.0.2", authority: "10.0.0.2:15080", status: 503, reason: reason.RecursiveCall},
		{name: "proxy port by name", local: "plain", at: "10.0.0.9", authority: "wp.shop.svc:15008", status: 503, reason: reason.RecursiveCall},
		{name: "unknown pod", local: "", at: "10.0.0.2", authority: "10.0.0.2:80", status: 503, reason: reason.UnknownSource},
		{name: "sandwich for a service", local: "plain", at: "10.0.0.9", authority: "10.96.0.3:80", want: "up=10.0.0.9:80 connect=10.0.0.9:80 src=true proxy=- svc=-"},
		{name: "sandwich for a workload", local: "plain", at: "10.0.0.9", authority: "10.0.0.5:80", want: "up=10.0.0.9:80 connect=10.0.0.9:80 src=true proxy=- svc=-"},
		{name: "sandwich for somebody else", local: "plain", at: "10.0.0.9", authority: "10.96.0.1:80", status: 400, reason: reason.AddressMismatch},
		{name: "PROXY", local: "proxy", at: "10.0.0.8", authority: "10.96.0.3:80", want: "up=10.0.0.8:15088 connect=127.0.0.1:15088 src=false proxy=10.96.0.3:80 svc=-"},
		{name: "PROXY, IPv6", local: "proxy", at: "fd00::8", authority: "[fd96::3]:80", want: "up=[fd00::8]:15088 connect=[::1]:15088 src=false proxy=[fd96::3]:80 svc=-"},
		{name: "PROXY, not on loopback", local: "proxy", at: "10.0.0.8", authority: "10.96.0.3:80", noLocalhost: true, want: "up=10.0.0.8:15088 connect=10.0.0.8:15088 src=true proxy=10.96.0.3:80 svc=-"},
		{name: "PROXY, port of the request", local: "same", at: "10.0.0.7", authority: "10.96.0.3:80", want: "up=10.0.0.7:80 connect=127.0.0.1:80 src=false proxy=10.96.0.3:80 svc=-"},
		{name: "PROXY, host name", local: "proxy", at: "10.0.0.8", authority: "v.shop.svc:80", want: "up=10.0.0.8:15088 connect=127.0.0.1:15088 src=false proxy=10.96.0.3:80 svc=v"},
		{name: "PROXY, host name without address", local: "proxy", at: "10.0.0.8", authority: "bare.shop.svc:80", status: 503, reason: reason.NoHealthyUpstream},
		{name: "tunnel without preamble", local: "none", at: "10.0.0.6", authority: "10.96.0.3:80", want: "up=10.0.0.6:15088 connect=10.0.0.6:15088 src=true proxy=- svc=-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			method := tc.method
			if method == "" {
				method = "CONNECT"
			}
			p, status, err := Inbound(In{
				Snapshot: s, Local: s.WorkloadByUID(tc.local), At: netip.AddrPortFrom(netip.MustParseAddr(tc.at), 15008),
				Method: method, Authority: tc.authority, Host: tc.host, LocalhostTunnel: !tc.noLocalhost,
			})
			if err != nil {
				if status != tc.status || err.Reason != tc.reason {
					t.Fatalf("%d %v", status, err)
				}
				return
			}
			if got := show(p); got != tc.want || status != 200 {
				t.Fatalf("%d\ngot  %s\nwant %s", status, got, tc.want)
			}
		})
	}
}
