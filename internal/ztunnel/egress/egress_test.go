package egress

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
)

const mesh = `
workloads:
- {uid: c//Pod/shop/client, name: client, namespace: shop, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, outboundTrafficPolicy: REGISTRY_ONLY}
- {uid: c//Pod/yard/digger, name: digger, namespace: yard, workloadIps: [10.0.0.2], protocol: TCP, outboundTrafficPolicy: REGISTRY_ONLY}
- {uid: c//Pod/shop/host, name: host, namespace: shop, workloadIps: [10.1.0.1], protocol: TCP, networkMode: HOST_NETWORK}
- {uid: c//Pod/far/pod, name: pod, namespace: far, network: far, workloadIps: [10.2.0.1], protocol: HBONE}
- {uid: c/networking.istio.io/WorkloadEntry/yard/vm, name: vm, namespace: yard, workloadIps: [10.3.0.1], protocol: HBONE}
- {uid: c/networking.istio.io/WorkloadEntry/shop/bare, name: bare, namespace: shop, workloadIps: [10.3.0.2], protocol: TCP}
- {uid: c/networking.istio.io/ServiceEntry/shop/listed/192.0.2.1, name: listed, namespace: shop, workloadIps: [192.0.2.1], protocol: TCP, services: {shop/listed.test: {443: 8443}}}
- {uid: c/networking.istio.io/ServiceEntry/yard/hidden/192.0.2.2, name: hidden, namespace: yard, workloadIps: [192.0.2.2, 198.51.100.2], protocol: TCP, services: {yard/hidden.test: {443: 443}}}
- {uid: c/networking.istio.io/ServiceEntry/yard/lost/192.0.2.3, name: lost, namespace: yard, workloadIps: [192.0.2.3], protocol: TCP, services: {yard/lost.test: {443: 443}}}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}}
- {name: listed, namespace: shop, hostname: listed.test, vips: [/240.240.0.1], ports: {443: 8443}}
- {name: hidden, namespace: yard, hostname: hidden.test, vips: [/240.240.0.2], ports: {443: 443}, visibility: Namespace}
- {name: any, namespace: shop, hostname: any.test, vips: [/240.240.0.3], ports: {443: 443}, loadBalancer: {mode: PASSTHROUGH}}
- {name: block, namespace: shop, hostname: block.test, cidrVips: [/198.51.100.0/24, "/2001:db8::/64"], ports: {443: 443}, loadBalancer: {mode: PASSTHROUGH}}
- {name: own, namespace: yard, hostname: own.test, cidrVips: [/203.0.113.0/24], ports: {443: 443}, visibility: Namespace, loadBalancer: {mode: PASSTHROUGH}}
`

func TestRefusal(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	client, digger := s.WorkloadByUID("c//Pod/shop/client"), s.WorkloadByUID("c//Pod/yard/digger")
	for _, tt := range []struct {
		name, to string
		from     *workload.Workload
		refused  bool
	}{
		{"service", "10.96.0.1:80", client, false},
		{"another port of a service", "10.96.0.1:81", client, true},
		{"service, IPv4 in IPv6", "[::ffff:10.96.0.1]:80", client, false},
		{"pod", "10.0.0.2:1234", client, false},
		{"itself", "[fd00::1]:1234", client, false},
		{"loopback", "127.0.0.2:1", client, false},
		{"loopback, IPv6", "[::1]:1", client, false},
		{"node", "10.1.0.1:10250", client, true},
		{"pod of another network", "10.2.0.1:80", client, true},
		{"machine in the mesh", "10.3.0.1:22", client, false},
		{"machine without service", "10.3.0.2:22", client, true},
		{"endpoint", "192.0.2.1:8443", client, false},
		{"endpoint, from another namespace", "192.0.2.1:8443", digger, false},
		{"the service's port at the endpoint", "192.0.2.1:443", client, true},
		{"address of an entry", "240.240.0.1:443", client, false},
		{"another port of it", "240.240.0.1:8443", client, true},
		{"hidden, from its namespace", "240.240.0.2:443", digger, false},
		{"hidden", "240.240.0.2:443", client, true},
		{"hidden endpoint, from its namespace", "192.0.2.2:443", digger, false},
		{"hidden endpoint", "192.0.2.2:443", client, true},
		{"endpoint of a service that is not known", "192.0.2.3:443", digger, true},
		{"passthrough", "240.240.0.3:443", client, false},
		{"another port of passthrough", "240.240.0.3:444", client, true},
		{"range", "198.51.100.1:443", client, false},
		{"another port of a range", "198.51.100.1:80", client, true},
		{"range, where a hidden endpoint is as well", "198.51.100.2:443", client, false},
		{"its other ports", "198.51.100.2:80", client, true},
		{"range, IPv6", "[2001:db8::9]:443", client, false},
		{"beside the range, IPv6", "[2001:db8:0:1::9]:443", client, true},
		{"hidden range", "203.0.113.1:443", client, true},
		{"hidden range, from its namespace", "203.0.113.1:443", digger, false},
		{"hard-coded", "192.0.2.77:443", client, true},
		{"metadata of a cloud", "169.254.169.254:80", client, true},
		{"zone", "[fe80::1%eth0]:80", client, true},
		{"control plane", "192.0.2.99:15012", client, false},
		{"another port of the control plane", "192.0.2.99:15014", client, true},
	} {
		c := Conn{Snapshot: s, Source: tt.from, Src: netip.MustParseAddrPort("10.0.0.1:9"), Dst: netip.MustParseAddrPort(tt.to), Exempt: Servers("192.0.2.99:15012", "istiod.istio-system.svc:15012", "")}
		err := c.Refusal()
		if (err != nil) != tt.refused || err != nil && (err.Reason != reason.NotInRegistry || !strings.Contains(err.Error(), c.Dst.String())) {
			t.Errorf("%s (%s): %v", tt.name, tt.to, err)
		}
	}
}

func TestServers(t *testing.T) {
	got := Servers("", "a.b:1", "10.0.0.1", "10.0.0.1:2", "[fd00::1]:3", "[::ffff:10.0.0.2]:4")
	want := Exempt{netip.MustParseAddrPort("10.0.0.1:2"), netip.MustParseAddrPort("[fd00::1]:3"), netip.MustParseAddrPort("10.0.0.2:4")}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestUnknown(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	client := s.WorkloadByUID("c//Pod/shop/client")
	free := s.WorkloadByUID("c//Pod/shop/host")
	for to, want := range map[string]string{"192.0.2.3": "yard/lost.test", "192.0.2.1": "", "10.0.0.2": "", "192.0.2.77": "", "10.3.0.1": ""} {
		if got := strings.Join(Unknown(s, "", client, netip.MustParseAddr(to)), " "); got != want {
			t.Errorf("%s: %q", to, got)
		}
	}
	if got := Unknown(s, "", free, netip.MustParseAddr("192.0.2.3")); got != nil {
		t.Errorf("a pod without a policy needs %q", got)
	}
}

// world draws a directory over few addresses, ports and namespaces, so that all of them
// meet.
func world(t *rapid.T) (*workload.Snapshot, []*workload.Service) {
	addr := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1"})
	ns := rapid.SampledFrom([]string{"a", "b"})
	port := rapid.Uint32Range(1, 3)
	ports := func() []*workloadpb.Port {
		return []*workloadpb.Port{{ServicePort: port.Draw(t, "service port"), TargetPort: port.Draw(t, "target port")}}
	}
	var all []*workloadpb.Address
	hosts := []string{"x.test", "y.test", "z.test"}
	for _, h := range hosts {
		if rapid.Bool().Draw(t, "absent") {
			continue
		}
		a := netip.MustParseAddr(addr.Draw(t, "vip"))
		na := &workloadpb.NetworkAddress{Address: a.AsSlice()}
		if rapid.Bool().Draw(t, "range") {
			n := uint32(24)
			na.Length = &n
		}
		all = append(all, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
			Name: h, Namespace: ns.Draw(t, "namespace"), Hostname: h, Addresses: []*workloadpb.NetworkAddress{na}, Ports: ports(),
			Visibility: workloadpb.Service_Visibility(rapid.Int32Range(0, 1).Draw(t, "visibility")),
		}}})
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "workloads") {
		kind := rapid.SampledFrom([]string{"/Pod", "networking.istio.io/WorkloadEntry"}).Draw(t, "kind")
		w := &workloadpb.Workload{
			Uid: "c/" + kind + "/n/" + string(rune('p'+i)), Name: string(rune('p' + i)), Namespace: ns.Draw(t, "namespace"),
			Addresses:      [][]byte{netip.MustParseAddr(addr.Draw(t, "address")).AsSlice()},
			TunnelProtocol: workloadpb.TunnelProtocol(rapid.Int32Range(0, 1).Draw(t, "protocol")),
			NetworkMode:    workloadpb.NetworkMode(rapid.Int32Range(0, 1).Draw(t, "mode")),
			Services:       map[string]*workloadpb.PortList{},
		}
		for _, n := range []string{"a/", "b/"} {
			if rapid.Bool().Draw(t, "member") {
				w.Services[n+rapid.SampledFrom(hosts).Draw(t, "service")] = &workloadpb.PortList{Ports: ports()}
			}
		}
		all = append(all, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	}
	d := workload.NewDirectory(workload.Options{})
	if _, bad := d.Apply(all, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	return d.Snapshot(), slices.Collect(d.Snapshot().Services())
}

// TestNothingUnlistedPasses: what REGISTRY_ONLY lets out is listed somewhere, as a search
// through all of the directory finds; a pod that no service hides is never refused.
func TestNothingUnlistedPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, services := world(t)
		source := &workload.Workload{Traits: &workload.Traits{Namespace: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "client")}}
		at := netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2"}).Draw(t, "dst"))
		port := uint16(rapid.IntRange(1, 4).Draw(t, "port"))
		c := Conn{Snapshot: s, Source: source, Dst: netip.AddrPortFrom(at, port)}

		claimed, listed := false, false
		for _, svc := range services {
			if !svc.VisibleTo(source.Namespace) {
				continue
			}
			covers := slices.Contains(svc.VIPs, workload.NetworkAddress{Addr: at}) ||
				slices.ContainsFunc(svc.CIDRs, func(p workload.NetworkPrefix) bool { return p.Prefix.Contains(at) })
			_, serves := svc.TargetPort(port)
			claimed, listed = claimed || covers, listed || covers && serves
		}
		pod := false
		for w := range s.Workloads() {
			if w.HostNetwork || !w.HasAddr(at) {
				continue
			}
			pod = pod || w.IsPod()
			listed = listed || w.IsPod() || w.Protocol == workload.HBONE
			for _, m := range w.Services {
				svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
				listed = listed || svc != nil && svc.VisibleTo(source.Namespace) && slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port })
			}
		}
		refusal := c.Refusal()
		if refusal == nil && !listed {
			t.Fatalf("%v passes, and is listed nowhere", c.Dst)
		}
		if refusal != nil && pod && !claimed {
			t.Fatalf("a pod is refused: %v", refusal)
		}
		for mode, want := range map[egress.Mode][2]bool{egress.AllowAny: {}, egress.DryRun: {false, refusal != nil}, egress.RegistryOnly: {refusal != nil, false}, 9: {refusal != nil, false}} {
			source.Outbound = mode
			refused, reported := Decide(&c)
			if (refused != nil) != want[0] || (reported != nil) != want[1] {
				t.Fatalf("%v: refused %v, reported %v", mode, refused, reported)
			}
		}
	})
}

func TestGate(t *testing.T) {
	s := localxdstest.Snapshot(t, mesh)
	var log strings.Builder
	g := Gate{Policies: NewPolicies(slog.New(slog.DiscardHandler)), Log: slog.New(slog.NewTextHandler(&log, nil))}
	var pod Pod
	client := s.WorkloadByUID("c//Pod/shop/client")
	traits := *client.Traits
	traits.Outbound = egress.DryRun
	watched := *client
	watched.Traits = &traits
	bad := netip.MustParseAddrPort("192.0.2.77:443")
	if err := g.Check(&pod, nil, Conn{Snapshot: s, Source: client, Dst: bad}); err == nil || log.Len() > 0 {
		t.Errorf("%v %s", err, log.String())
	}
	if err := g.Check(&pod, nil, Conn{Snapshot: s, Source: &watched, Dst: bad}); err != nil || !strings.Contains(log.String(), "192.0.2.77:443") {
		t.Errorf("%v %s", err, log.String())
	}
	if got := *g.State(&pod, client); got.Mode != "REGISTRY_ONLY" || got.Refused != 1 || got.Reported != 1 || g.State(&pod, nil) != nil {
		t.Errorf("%v", got)
	}
}

func BenchmarkCheck(b *testing.B) {
	s := localxdstest.Snapshot(b, mesh)
	g := Gate{Policies: NewPolicies(slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler)}
	var pod Pod
	for name, to := range map[string]string{"pod": "10.0.0.2:80", "service": "10.96.0.1:80", "endpoint": "192.0.2.1:8443", "range": "198.51.100.1:443"} {
		c := Conn{Snapshot: s, Source: s.WorkloadByUID("c//Pod/shop/client"), Dst: netip.MustParseAddrPort(to)}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := g.Check(&pod, nil, c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
