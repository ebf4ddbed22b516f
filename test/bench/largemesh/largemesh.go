// Package largemesh makes the directory of a large mesh.
package largemesh

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Addresses returns the workloads and services of a large mesh, as a control plane sends them.
func Addresses(pods, services int) ([]*xds.Resource, error) {
	all := make([]*xds.Resource, 0, pods+services)
	add := func(name string, a *workload.Address) error {
		body, err := proto.Marshal(a)
		all = append(all, &xds.Resource{Name: name, Version: "1", Body: body})
		return err
	}
	ports := func() []*workload.Port {
		return []*workload.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}}
	}
	host := func(i int) string { return fmt.Sprintf("svc-%d.large.svc.cluster.local", i) }
	for i := range services {
		err := add("large/"+host(i), &workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
			Name: fmt.Sprintf("svc-%d", i), Namespace: "large", Hostname: host(i), Ports: ports(),
			Addresses: []*workload.NetworkAddress{{Address: []byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}}},
		}}})
		if err != nil {
			return nil, err
		}
	}
	for i := range pods {
		s := i % services
		name := fmt.Sprintf("svc-%d-%08x", s, i)
		uid := wellknown.DefaultCluster + "//Pod/large/" + name
		err := add(uid, &workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{
			Uid: uid, Name: name, Namespace: "large", Addresses: [][]byte{{10, byte(1 + i>>16), byte(i >> 8), byte(i)}},
			TunnelProtocol: workload.TunnelProtocol_HBONE, ServiceAccount: fmt.Sprintf("svc-%d", s), Node: fmt.Sprintf("node-%d", i/100),
			CanonicalName: fmt.Sprintf("svc-%d", s), CanonicalRevision: "latest", WorkloadType: workload.WorkloadType_DEPLOYMENT,
			WorkloadName: fmt.Sprintf("svc-%d", s), ClusterId: wellknown.DefaultCluster,
			Services: map[string]*workload.PortList{"large/" + host(s): {Ports: ports()}},
		}}})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
