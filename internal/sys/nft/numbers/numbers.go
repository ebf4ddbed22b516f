// Package numbers holds the ports, marks and tables that redirection gives to
// the kernel. They are an interface of the mesh, whose vocabulary has them too
// (internal/mesh/wellknown); the kernel's side knows nobody, and a test of the
// node agent, which knows both, holds them equal.
package numbers

// Ports of the proxy inside a pod.
const (
	PortOutbound = 15001
	PortInbound  = 15006
	PortHBONE    = 15008
	PortDNS      = 15053
	PortSOCKS5   = 15080
)

// Marks, and the routing table for what is marked.
const (
	MarkProxy    = 0x539 // on packets the proxy sends
	MarkReturn   = 0x111 // on connections whose replies go back to the proxy
	MarkMask     = 0xfff
	RouteTable   = 100
	RulePriority = 32764
)
