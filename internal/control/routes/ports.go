package routes

import (
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/service"
)

// PortsOf returns the ports of a service as routes name them.
func PortsOf(ports []service.Port) []Port {
	out := make([]Port, 0, len(ports))
	for _, p := range ports {
		opaque := p.Protocol == workloadpb.AppProtocol_TCP || p.Protocol == workloadpb.AppProtocol_TLS
		requests := p.Protocol == workloadpb.AppProtocol_HTTP11 || p.Protocol == workloadpb.AppProtocol_HTTP2 || p.Protocol == workloadpb.AppProtocol_GRPC
		out = append(out, Port{Number: uint16(p.Port), Name: p.Name, Opaque: opaque, Requests: requests})
	}
	return out
}
