package gateway

import (
	"net/netip"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

// another adds a second waypoint, of the program at an address.
func (w *world) another(program string) *workloadpb.GatewayAddress {
	w.service("second", "10.1.0.200", func(s *workloadpb.Service) {
		s.Waypoint = nil
		s.Ports = []*workloadpb.Port{{ServicePort: 15008, TargetPort: 15008}}
	})
	w.workload("second", "10.0.0.200", func(p *workloadpb.Workload) {
		p.Services = map[string]*workloadpb.PortList{"ns/second.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 15008, TargetPort: 15008}}}}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range []string{"10.1.0.9:80", "10.0.0.9:8080"} {
		w.programs[netip.MustParseAddrPort(at)] = program
	}
	return &workloadpb.GatewayAddress{
		Destination:   &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "second.ns.svc.cluster.local"}},
		HboneMtlsPort: 15008,
	}
}

// TestChain: what is behind another waypoint is reached through it: a service, and an
// endpoint. The tunnel says for what, and how many waypoints there were.
func TestChain(t *testing.T) {
	for _, tc := range []struct {
		name, app, host string
		service         func(*workloadpb.Service, *workloadpb.GatewayAddress)
		workload        func(*workloadpb.Workload, *workloadpb.GatewayAddress)
	}{
		{"a service", "10.1.0.9:80", "", func(s *workloadpb.Service, g *workloadpb.GatewayAddress) {
			s.Waypoint = g
			s.Addresses = append([]*workloadpb.NetworkAddress{{Address: netip.MustParseAddr("fd00::9").AsSlice()}}, s.Addresses...)
		}, nil},
		{"an endpoint", "10.0.0.9:8080", "", func(s *workloadpb.Service, _ *workloadpb.GatewayAddress) { s.Waypoint = nil },
			func(p *workloadpb.Workload, g *workloadpb.GatewayAddress) { p.Waypoint = g }},
		{"an endpoint of a service of this waypoint", "10.0.0.9:8080", "", func(*workloadpb.Service, *workloadpb.GatewayAddress) {},
			func(p *workloadpb.Workload, g *workloadpb.GatewayAddress) { p.Waypoint = g }},
		{"a service without an address", "invalid AddrPort", "inner.ns.svc.cluster.local", func(s *workloadpb.Service, g *workloadpb.GatewayAddress) { s.Waypoint, s.Addresses = g, nil }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.shop()
			gw := w.another(program(t, "second"))
			w.mu.Lock()
			w.programs[netip.AddrPortFrom(netip.Addr{}, 80)] = w.programs[netip.MustParseAddrPort("10.1.0.9:80")]
			w.mu.Unlock()
			w.service("inner", "10.1.0.9", func(s *workloadpb.Service) { tc.service(s, gw) })
			w.workload("inner", "10.0.0.9", func(p *workloadpb.Workload) {
				p.Services = map[string]*workloadpb.PortList{"ns/inner.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
				if tc.workload != nil {
					tc.workload(p, gw)
				}
			})
			w.routes("shop", route.Rule{Origin: "HTTPRoute ns/r, rule 0", Backends: []route.Backend{{Name: "inner", Weight: 1}}})
			c, err := w.connect("10.1.0.1:80")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // read
			if status, body := get(t, c, "/x"); status != 200 || body != "second GET /x " {
				t.Errorf("%d %q", status, body)
			}
			w.mu.Lock()
			got := w.dialled[len(w.dialled)-1]
			w.mu.Unlock()
			if got.Tunnel.String() != "10.0.0.200:15008" || got.App.String() != tc.app && got.Host == "" || got.Host != tc.host || got.Client.Hops != "1" ||
				got.Identities != "spiffe://cluster.local/ns/ns/sa/second" || got.UID != "c//Pod/ns/second" {
				t.Errorf("dialled %+v", got)
			}
			r := w.seen(1, func() []Record { return w.requests })[0]
			if r.Backend.Name != "inner" || r.Endpoint.Name != "second" {
				t.Errorf("record of %s at %s", r.Backend.Name, r.Endpoint.Name)
			}
			v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80", Identity: clientID, Source: clientAddr.Addr(), Path: "/x"})
			if err != nil || v.Next == nil || v.Next.To != verdict.ToWaypoint || v.Next.Authority != got.Authority() || v.Next.Hops != 1 || v.Next.Request.Path != "/x" {
				t.Errorf("explained as %+v, error %v", v, err)
			}
		})
	}
}
