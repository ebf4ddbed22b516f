package workload

import (
	"iter"
	"net/netip"
)

// Snapshot is the directory at one moment. It is immutable; any number of
// goroutines may read it.
type Snapshot struct{}

// WorkloadByUID finds a workload by its unique name, or nil.
func (s *Snapshot) WorkloadByUID(uid string) *Workload { return nil }

// WorkloadByAddr finds the workload at an address, or nil; never one that
// shares its node's addresses.
func (s *Snapshot) WorkloadByAddr(network string, a netip.Addr) *Workload { return nil }

// WorkloadByInfo finds the workload that a pod of this node is, or nil. An
// empty node matches any.
func (s *Snapshot) WorkloadByInfo(node, namespace, name, serviceAccount string) *Workload { return nil }

// ServiceByName finds a service, or nil.
func (s *Snapshot) ServiceByName(namespace, hostname string) *Service { return nil }

// ServiceByHostname finds the best service of a host name for clients of a
// namespace, or nil.
func (s *Snapshot) ServiceByHostname(hostname, clientNamespace string) *Service { return nil }

// ServiceByVIP finds the best service at a virtual address for clients of a
// namespace, or nil.
func (s *Snapshot) ServiceByVIP(network string, a netip.Addr, clientNamespace string) *Service {
	return nil
}

// Destination is what stands at an address: a service, else a workload, else
// neither.
type Destination struct {
	Service  *Service
	Workload *Workload
}

// Find looks an address up as a connection of a client in clientNamespace
// does: exact virtual address, then virtual range, then workload.
func (s *Snapshot) Find(network string, a netip.Addr, clientNamespace string) Destination {
	return Destination{}
}

// FindHostname looks a gateway's host name up: a service, else a workload of
// that host name.
func (s *Snapshot) FindHostname(name NamespacedName) Destination { return Destination{} }

// Workloads iterates over all workloads, in no order.
func (s *Snapshot) Workloads() iter.Seq[*Workload] { return func(func(*Workload) bool) {} }

// Services iterates over all services, in no order.
func (s *Snapshot) Services() iter.Seq[*Service] { return func(func(*Service) bool) {} }

// Endpoints iterates over the workloads of a service, healthy or not, in no
// order.
func (s *Snapshot) Endpoints(svc *Service) iter.Seq[*Workload] {
	return func(func(*Workload) bool) {}
}

// NumWorkloads and NumServices count.
func (s *Snapshot) NumWorkloads() int { return 0 }

// NumServices counts the services.
func (s *Snapshot) NumServices() int { return 0 }
