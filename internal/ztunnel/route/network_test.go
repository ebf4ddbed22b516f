package route

import (
	"net/netip"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

func TestFromGateway(t *testing.T) {
	ip := func(s string) [][]byte { return [][]byte{netip.MustParseAddr(s).AsSlice()} }
	pod := func(name, addr string, p workloadpb.TunnelProtocol, gw string) *workloadpb.Address {
		w := &workloadpb.Workload{Uid: name, Name: name, Namespace: "shop", ServiceAccount: name, Addresses: ip(addr), TunnelProtocol: p}
		if gw != "" {
			w.NetworkGateway = &workloadpb.GatewayAddress{
				Destination:   &workloadpb.GatewayAddress_Address{Address: &workloadpb.NetworkAddress{Address: ip(gw)[0]}},
				HboneMtlsPort: 15008,
			}
		}
		return &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}}
	}
	d := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	if _, bad := d.Apply([]*workloadpb.Address{
		pod("gw", "10.0.0.1", workloadpb.TunnelProtocol_HBONE, ""),
		pod("other", "10.0.0.2", workloadpb.TunnelProtocol_HBONE, ""),
		pod("plain", "10.0.0.3", workloadpb.TunnelProtocol_NONE, ""),
		pod("named", "10.0.0.4", workloadpb.TunnelProtocol_HBONE, "10.0.0.1"),
		pod("free", "10.0.0.5", workloadpb.TunnelProtocol_HBONE, ""),
	}, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	s := d.Snapshot()
	client := identity.Identity{TrustDomain: "cluster.local", Namespace: "far", ServiceAccount: "client"}
	other := s.WorkloadByUID("other").Identity()
	for _, tc := range []struct {
		name, local, from string
		client            identity.Identity
		want              bool
	}{
		{"the gateway that the directory names", "named", "10.0.0.1", client, true},
		{"another workload where a gateway is named", "named", "10.0.0.2", client, false},
		{"a workload that speaks HBONE, without a named gateway", "free", "10.0.0.1", client, true},
		{"the client from its own address", "free", "10.0.0.2", other, false},
		{"a workload that does not speak HBONE", "free", "10.0.0.3", client, false},
		{"an address that the directory does not have", "free", "10.0.0.99", client, false},
		{"a client without an identity", "named", "10.0.0.1", identity.Identity{}, false},
	} {
		if got := FromGateway(s, "", s.WorkloadByUID(tc.local), netip.MustParseAddr(tc.from), tc.client); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
