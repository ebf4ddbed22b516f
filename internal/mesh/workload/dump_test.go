package workload

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

var update = flag.Bool("update", false, "write the golden files")

// TestDump pins the shape of /config_dump, which existing tools parse.
func TestDump(t *testing.T) {
	byName := &workloadpb.GatewayAddress{HboneMtlsPort: 15008, Destination: &workloadpb.GatewayAddress_Hostname{
		Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "waypoint.ns.svc"}}}
	byAddr := &workloadpb.GatewayAddress{HboneMtlsPort: 15008, Destination: &workloadpb.GatewayAddress_Address{Address: vip("10.3.0.1")}}
	full := func(w *workloadpb.Workload) {
		proto.Merge(w, &workloadpb.Workload{
			CanonicalRevision: "v2", Hostname: "x.example", NativeTunnel: true, Waypoint: byName, NetworkGateway: byAddr,
			AuthorizationPolicies: []string{"ns/p1", "ns/p2"}, Locality: &workloadpb.Locality{Region: "r", Zone: "z"},
			ApplicationTunnel: &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: 15088},
			TrustDomain:       "td", Addresses: [][]byte{addr("fd00::1").AsSlice()},
		})
	}
	bare := func(w *workloadpb.Workload) {
		*w = workloadpb.Workload{Uid: "bare", Namespace: "ns", NetworkMode: workloadpb.NetworkMode_HOST_NETWORK,
			Status: workloadpb.WorkloadStatus_UNHEALTHY, Services: map[string]*workloadpb.PortList{"ns/full.ns.svc": {}},
			ApplicationTunnel: &workloadpb.ApplicationTunnel{}}
	}
	s := directory(t,
		pod("full", "10.0.0.1", full, memberOf("ns/full.ns.svc", 80, 8080), capacity(3)),
		pod("bare", "", bare),
		service("ns", "full.ns.svc", []string{"10.1.0.1", "10.8.0.0/16", "fd00::5"},
			balanced(workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_SUBZONE),
			func(s *workloadpb.Service) {
				proto.Merge(s, &workloadpb.Service{Waypoint: byAddr, SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"}, Canonical: true,
					IpFamilies: workloadpb.IPFamilies_DUAL, Visibility: workloadpb.Service_NAMESPACE,
					WeightedWaypoints: []*workloadpb.WeightedWaypoint{{Destination: byName, Weight: 90}}})
			}),
		service("ns", "bare.ns.svc", nil),
	).Snapshot()
	got, err := json.MarshalIndent(map[string]any{"workloads": s.DumpWorkloads(), "services": s.DumpServices()}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/dump.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(want), got) {
		t.Errorf("config dump changed (-update writes it):\n%s", got)
	}
}
