package hop

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

const domain = "cluster.local"

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func directory(t *testing.T, all ...*workloadpb.Address) *workload.Snapshot {
	t.Helper()
	d := workload.NewDirectory(workload.Options{TrustDomain: domain})
	if _, bad := d.Apply(all, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	return d.Snapshot()
}

func pod(name, addr, network, service string, edit ...func(*workloadpb.Workload)) *workloadpb.Address {
	w := &workloadpb.Workload{
		Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: name, TrustDomain: domain, Network: network,
		Addresses: [][]byte{ip(addr)}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
	}
	if service != "" {
		w.Services = map[string]*workloadpb.PortList{"ns/" + service: {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 15008, TargetPort: 15008}}}}
	}
	for _, f := range edit {
		f(w)
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}}
}

func service(name string, edit ...func(*workloadpb.Service)) *workloadpb.Address {
	s := &workloadpb.Service{Name: name, Namespace: "ns", Hostname: name, Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}
	for _, f := range edit {
		f(s)
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}}
}

func named(name string) workload.GatewayAddress {
	return workload.GatewayAddress{Hostname: workload.NamespacedName{Namespace: "ns", Hostname: name}, HBONEPort: 15008}
}

func gatewaypb(name string) *workloadpb.GatewayAddress {
	return &workloadpb.GatewayAddress{
		Destination:   &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: name}},
		HboneMtlsPort: 15008,
	}
}

func id(account string) identity.Identity {
	return identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: account}
}

func TestGateway(t *testing.T) {
	s := directory(t,
		service("wp"), pod("wp-0", "10.0.0.1", "", "wp"),
		service("down"), pod("down-0", "10.0.0.2", "", "down", func(w *workloadpb.Workload) { w.Status = workloadpb.WorkloadStatus_UNHEALTHY }),
		pod("single", "10.0.0.3", "", ""), pod("client", "10.0.0.9", "", ""),
	)
	client := s.WorkloadByUID("c//Pod/ns/client")
	for _, tc := range []struct {
		name     string
		gw       workload.GatewayAddress
		waypoint bool
		uid      string
		why      reason.Reason
	}{
		{"a service", named("wp"), true, "c//Pod/ns/wp-0", reason.OK},
		{"an address", workload.GatewayAddress{Address: workload.NetworkAddress{Addr: netip.MustParseAddr("10.0.0.3")}, HBONEPort: 15008}, true, "c//Pod/ns/single", reason.OK},
		{"not ready", named("down"), true, "", reason.WaypointUnavailable},
		{"unknown", named("none"), true, "", reason.WaypointUnavailable},
		{"an unknown gateway of a network", named("none"), false, "", reason.UnknownGateway},
	} {
		up, err := Gateway(s, tc.gw, workload.Query{Client: client, Dialled: netip.MustParseAddr("10.0.0.3"), Rand: rand.Uint64N}, tc.waypoint)
		if tc.why != reason.OK {
			if err == nil || err.Reason != tc.why {
				t.Errorf("%s: %+v, error %v", tc.name, up, err)
			}
			continue
		}
		if err != nil || up.Workload.UID != tc.uid || up.Port != 15008 {
			t.Errorf("%s: %+v, error %v", tc.name, up, err)
		}
	}
}

func TestBehind(t *testing.T) {
	behind := func(s *workloadpb.Service) {
		s.Waypoint = gatewaypb("wp")
		s.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionEndpoints}}
	}
	s := directory(t,
		service("wp"), pod("wp-0", "10.0.0.1", "", "wp"),
		service("bound", behind), service("free"),
		pod("backs", "10.0.0.6", "", "bound"),
		pod("own", "10.0.0.4", "", "free", func(w *workloadpb.Workload) { w.Waypoint = gatewaypb("wp") }),
		pod("plain", "10.0.0.5", "", "free"),
	)
	client, wp := Sender{id("client"), netip.MustParseAddr("10.0.0.9")}, Sender{id("wp-0"), netip.MustParseAddr("10.0.0.1")}
	for _, tc := range []struct {
		name, uid string
		from      Sender
		want      workload.GatewayAddress
	}{
		{"a pod with a waypoint", "c//Pod/ns/own", client, named("wp")},
		{"from the waypoint itself", "c//Pod/ns/own", wp, workload.GatewayAddress{}},
		{"the waypoint's identity at another address", "c//Pod/ns/own", Sender{id("wp-0"), netip.MustParseAddr("10.0.0.9")}, named("wp")},
		{"the waypoint's address with another identity", "c//Pod/ns/own", Sender{id("client"), netip.MustParseAddr("10.0.0.1")}, named("wp")},
		{"an endpoint of a service that closes its endpoints", "c//Pod/ns/backs", client, named("wp")},
		{"such an endpoint, from the waypoint", "c//Pod/ns/backs", wp, workload.GatewayAddress{}},
		{"a pod without", "c//Pod/ns/plain", client, workload.GatewayAddress{}},
	} {
		w := s.WorkloadByUID(tc.uid)
		if got := Behind(s, w, netip.AddrPortFrom(w.Addrs()[0], 8080), tc.from); got != tc.want {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestAddress(t *testing.T) {
	s := directory(t, service("s", func(p *workloadpb.Service) {
		p.Addresses = []*workloadpb.NetworkAddress{
			{Network: "far", Address: ip("10.9.0.1")}, {Address: ip("fd00::1")}, {Address: ip("10.1.0.1")}, {Address: ip("10.1.0.2")},
		}
	}), service("none"))
	for _, tc := range []struct{ service, network, preferred, want string }{
		{"s", "", "10.0.0.1", "10.1.0.1"}, {"s", "", "fd00::9", "fd00::1"}, {"s", "", "", "fd00::1"}, {"s", "far", "fd00::9", "10.9.0.1"},
		{"s", "other", "10.0.0.1", "invalid IP"}, {"none", "", "10.0.0.1", "invalid IP"}, {"s", "", "::ffff:10.0.0.1", "10.1.0.1"},
	} {
		preferred, _ := netip.ParseAddr(tc.preferred)
		if got := Address(s.ServiceByName("ns", tc.service), tc.network, preferred); got.String() != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestNear(t *testing.T) {
	s := directory(t, service("s"), pod("a", "10.0.0.1", "far", "s"), pod("b", "10.0.0.2", "far", "s"), pod("c", "10.0.0.3", "", "s"), pod("client", "10.0.0.9", "", ""))
	q := workload.Query{Service: s.ServiceByName("ns", "s"), Client: s.WorkloadByUID("c//Pod/ns/client"), Port: 80, Rand: rand.Uint64N}
	for range 50 {
		if up, err := Near(s, q); err != nil || up.Workload.Name != "c" {
			t.Fatalf("%+v, error %v", up, err)
		}
	}
	q.Excluded = func(uid string) bool { return uid == "c//Pod/ns/c" }
	if up, err := Near(s, q); err != nil || up.Workload.Network != "far" {
		t.Errorf("%+v, error %v", up, err)
	}
}

func TestIdentities(t *testing.T) {
	s := directory(t, service("s", func(p *workloadpb.Service) {
		p.SubjectAltNames = []string{"spiffe://cluster.local/ns/ns/sa/a", "spiffe://cluster.local/ns/ns/sa/w", "junk"}
	}), pod("w", "10.0.0.1", "", "s"))
	w := s.WorkloadByUID("c//Pod/ns/w")
	if got := Identities(w, s.ServiceByName("ns", "s")); got != "spiffe://cluster.local/ns/ns/sa/a,spiffe://cluster.local/ns/ns/sa/w" {
		t.Error(got)
	}
	if got := Identities(w, nil); got != "spiffe://cluster.local/ns/ns/sa/w" {
		t.Error(got)
	}
}
