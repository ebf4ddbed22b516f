package workload

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// pod returns a resource like those of the control plane.
func pod(name, ip string, edit ...func(*workloadpb.Workload)) *workloadpb.Address {
	w := &workloadpb.Workload{
		Uid: "Kubernetes//Pod/ns/" + name, Name: name, Namespace: "ns", Network: "net",
		ServiceAccount: "sa", Node: "node-1", TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
		WorkloadName: "app", WorkloadType: workloadpb.WorkloadType_DEPLOYMENT, CanonicalName: "app", ClusterId: "Kubernetes",
	}
	if ip != "" {
		w.Addresses = [][]byte{netip.MustParseAddr(ip).AsSlice()}
	}
	for _, e := range edit {
		e(w)
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}}
}

func memberOf(service string, ports ...uint32) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		list := &workloadpb.PortList{}
		for i := 0; i < len(ports); i += 2 {
			list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: ports[i], TargetPort: ports[i+1]})
		}
		if w.Services == nil {
			w.Services = map[string]*workloadpb.PortList{}
		}
		w.Services[service] = list
	}
}

func unhealthy(w *workloadpb.Workload) { w.Status = workloadpb.WorkloadStatus_UNHEALTHY }

func capacity(n uint32) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) { w.Capacity = wrapperspb.UInt32(n) }
}

func at(region, zone, node, network string) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		w.Locality = &workloadpb.Locality{Region: region, Zone: zone}
		w.Node, w.Network = node, network
	}
}

// service returns a resource with virtual addresses (CIDRs allowed) in net.
func service(ns, host string, vips []string, edit ...func(*workloadpb.Service)) *workloadpb.Address {
	s := &workloadpb.Service{
		Name: host, Namespace: ns, Hostname: host,
		Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	for _, v := range vips {
		s.Addresses = append(s.Addresses, vip(v))
	}
	for _, e := range edit {
		e(s)
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}}
}

func vip(s string) *workloadpb.NetworkAddress {
	if p, err := netip.ParsePrefix(s); err == nil {
		n := uint32(p.Bits())
		return &workloadpb.NetworkAddress{Network: "net", Address: p.Addr().AsSlice(), Length: &n}
	}
	return &workloadpb.NetworkAddress{Network: "net", Address: netip.MustParseAddr(s).AsSlice()}
}

func balanced(mode workloadpb.LoadBalancing_Mode, scopes ...workloadpb.LoadBalancing_Scope) func(*workloadpb.Service) {
	return func(s *workloadpb.Service) {
		s.LoadBalancing = &workloadpb.LoadBalancing{Mode: mode, RoutingPreference: scopes}
	}
}

// directory applies resources that must all be accepted.
func directory(t testing.TB, set ...*workloadpb.Address) *Directory {
	t.Helper()
	d := NewDirectory(Options{})
	if _, rejected := d.Apply(set, nil); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
	return d
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
