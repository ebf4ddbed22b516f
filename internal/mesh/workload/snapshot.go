package workload

import (
	"iter"
	"net/netip"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/ambit-mesh/ambit/internal/mesh/trie"
)

// Snapshot is the directory at one moment. It is immutable; any number of
// goroutines may read it.
type Snapshot struct {
	preferredNamespace string

	uids      trie.Map[*Workload] // by UID
	addrs     trie.Map[*Workload] // by network and address, except host network
	infos     trie.Map[*Workload] // by namespace and name
	hostnames trie.Map[*Workload] // by namespace and host name, when they have one

	services  trie.Map[*Service]     // by namespace and host name
	hosts     trie.Map[*Service]     // by host name
	vips      trie.Map[*Service]     // by network and address
	endpoints trie.Map[*endpointSet] // by namespace and host name

	// ranges of virtual addresses by network. The map is copied when a network
	// gets its first or loses its last range; both are few.
	ranges map[string]*bart.Table[*rangeServices]
}

// rangeServices are the services that claim one range.
type rangeServices struct{ services []*Service }

// WorkloadByUID finds a workload by its unique name, or nil.
func (s *Snapshot) WorkloadByUID(uid string) *Workload {
	for _, l := range s.uids.Get(trie.String(uid)) {
		if l.Value.UID == uid {
			return l.Value
		}
	}
	return nil
}

// WorkloadByAddr finds the workload at an address, or nil; never one that
// shares its node's addresses. When several claim it, a pod wins (its address
// cannot be made up), then one inside the mesh, then the least UID.
func (s *Snapshot) WorkloadByAddr(network string, a netip.Addr) *Workload {
	return s.workloadAt(network, a.Unmap(), "")
}

// workloadAt is WorkloadByAddr for clients of a namespace, whose own claims
// come before those of others, but after pods.
func (s *Snapshot) workloadAt(network string, a netip.Addr, clientNamespace string) *Workload {
	var best *Workload
	for _, l := range s.addrs.Get(trie.Addr(network, a)) {
		w := l.Value
		if w.Network != network || !w.HasAddr(a) {
			continue
		}
		if best == nil || credibility(w, clientNamespace) > credibility(best, clientNamespace) ||
			credibility(w, clientNamespace) == credibility(best, clientNamespace) && w.UID < best.UID {
			best = w
		}
	}
	return best
}

func credibility(w *Workload, clientNamespace string) int {
	n := 0
	if w.IsPod() {
		n += 4
	}
	if w.Namespace == clientNamespace {
		n += 2
	}
	if w.Protocol == HBONE {
		n++
	}
	return n
}

// WorkloadByInfo finds the workload that a pod of this node is, or nil. An
// empty node matches any. A pod wins over other workloads of its name.
func (s *Snapshot) WorkloadByInfo(node, namespace, name, serviceAccount string) *Workload {
	var other *Workload
	for _, l := range s.infos.Get(trie.Pair(namespace, name)) {
		w := l.Value
		if w.Name != name || w.Namespace != namespace || w.ServiceAccount != serviceAccount || node != "" && w.Node != node {
			continue
		}
		if w.IsPod() {
			return w
		}
		other = w
	}
	return other
}

// ServiceByName finds a service, or nil.
func (s *Snapshot) ServiceByName(namespace, hostname string) *Service {
	for _, l := range s.services.Get(trie.Pair(namespace, hostname)) {
		if l.Value.Hostname == hostname && l.Value.Namespace == namespace {
			return l.Value
		}
	}
	return nil
}

// ServiceByHostname finds the best service of a host name for clients of a
// namespace, or nil.
func (s *Snapshot) ServiceByHostname(hostname, clientNamespace string) *Service {
	var best *Service
	for _, l := range s.hosts.Get(trie.String(hostname)) {
		if l.Value.Hostname == hostname {
			best = s.better(best, l.Value, clientNamespace)
		}
	}
	return best
}

// serviceByVIP finds the best service with exactly this virtual address for
// clients of a namespace, or nil.
func (s *Snapshot) serviceByVIP(network string, a netip.Addr, clientNamespace string) *Service {
	var best *Service
	for _, l := range s.vips.Get(trie.Addr(network, a)) {
		if l.Value.hasVIP(network, a) {
			best = s.better(best, l.Value, clientNamespace)
		}
	}
	return best
}

// serviceByRange finds the best service with a range around an address, or
// nil. It prefers the client's namespace, then the narrower range.
func (s *Snapshot) serviceByRange(network string, a netip.Addr, clientNamespace string) *Service {
	table := s.ranges[network]
	if table == nil || !a.IsValid() {
		return nil
	}
	var narrowest *Service
	for _, claims := range table.Supernets(prefixOf(a)) {
		var best *Service
		for _, svc := range claims.services {
			best = s.better(best, svc, clientNamespace)
		}
		if best != nil && best.Namespace == clientNamespace {
			return best
		}
		if narrowest == nil {
			narrowest = best
		}
	}
	return narrowest
}

// better returns the service that a client of namespace ns means: visible,
// then the higher rank, else the first by name so that all nodes agree.
func (s *Snapshot) better(best, other *Service, ns string) *Service {
	if !other.VisibleTo(ns) {
		return best
	}
	if best == nil {
		return other
	}
	if a, b := s.rank(best, ns), s.rank(other, ns); a != b {
		if b > a {
			return other
		}
		return best
	}
	if c := strings.Compare(other.Namespace, best.Namespace); c < 0 || c == 0 && other.Hostname < best.Hostname {
		return other
	}
	return best
}

// The ranks of a service for a client. rankOwner and above come before pods.
const (
	rankOther     = iota
	rankPreferred // of the preferred namespace
	rankCanonical
	rankOwner   // a Kubernetes Service
	rankOwn     // of the client's namespace
	rankOwnKube // both
)

func (s *Snapshot) rank(svc *Service, ns string) int {
	switch {
	case svc.Namespace == ns && svc.isKubernetes():
		return rankOwnKube
	case svc.Namespace == ns:
		return rankOwn
	case svc.isKubernetes():
		return rankOwner
	case svc.Canonical:
		return rankCanonical
	case svc.Namespace == s.preferredNamespace:
		return rankPreferred
	}
	return rankOther
}

// Destination is what stands at an address: a service, else a workload, else
// neither.
type Destination struct {
	Service  *Service
	Workload *Workload
}

// AddressName returns the name by which a directory that is filled on demand requests what
// stands at an address.
func AddressName(network string, a netip.Addr) string { return network + "/" + a.Unmap().String() }

// InMesh reports whether a pod, a Service of Kubernetes, or another workload of the mesh
// stands there.
func (d Destination) InMesh() bool {
	return d.Service != nil && d.Service.isKubernetes() || d.Workload != nil && (d.Workload.IsPod() || d.Workload.Protocol == HBONE)
}

// Find looks an address up as a connection of a client in clientNamespace
// does. The order is that of docs/addresses.md: no claim of another namespace
// comes before the Kubernetes Service or the pod that has the address.
//
//  1. exact addresses of services of the client's namespace,
//  2. Kubernetes Services, 3. pods,
//  4. other workloads of the client's namespace,
//  5. exact addresses of other services, 6. other workloads,
//  7. ranges.
func (s *Snapshot) Find(network string, a netip.Addr, clientNamespace string) Destination {
	a = a.Unmap()
	svc := s.serviceByVIP(network, a, clientNamespace)
	if svc != nil && s.rank(svc, clientNamespace) >= rankOwner {
		return Destination{Service: svc}
	}
	w := s.workloadAt(network, a, clientNamespace)
	switch {
	case w != nil && (svc == nil || w.IsPod() || w.Namespace == clientNamespace):
		return Destination{Workload: w}
	case svc != nil:
		return Destination{Service: svc}
	}
	return Destination{Service: s.serviceByRange(network, a, clientNamespace)}
}

// ServiceAt returns the best service of an address for clients of a namespace, whatever
// workload has the address as well; nil without one.
func (s *Snapshot) ServiceAt(network string, a netip.Addr, clientNamespace string) *Service {
	a = a.Unmap()
	if svc := s.serviceByVIP(network, a, clientNamespace); svc != nil {
		return svc
	}
	return s.serviceByRange(network, a, clientNamespace)
}

// Certain reports whether nothing that a directory filled on demand does not
// have yet can come before what Find returns for an address.
func (s *Snapshot) Certain(network string, a netip.Addr, clientNamespace string) bool {
	a = a.Unmap()
	if svc := s.serviceByVIP(network, a, clientNamespace); svc != nil && s.rank(svc, clientNamespace) >= rankOwner {
		return true
	}
	w := s.workloadAt(network, a, clientNamespace)
	return w != nil && w.IsPod()
}

// FindHostname looks a gateway's host name up: a service, else a workload of
// that host name.
func (s *Snapshot) FindHostname(name NamespacedName) Destination {
	if svc := s.ServiceByName(name.Namespace, name.Hostname); svc != nil {
		return Destination{Service: svc}
	}
	for _, l := range s.hostnames.Get(trie.Pair(name.Namespace, name.Hostname)) {
		if w := l.Value; w.Namespace == name.Namespace && w.Hostname == name.Hostname {
			return Destination{Workload: w}
		}
	}
	return Destination{}
}

// Workloads iterates over all workloads, in no order.
func (s *Snapshot) Workloads() iter.Seq[*Workload] { return s.uids.All() }

// Services iterates over all services, in no order.
func (s *Snapshot) Services() iter.Seq[*Service] { return s.services.All() }

// Endpoints iterates over the workloads of a service, healthy or not, in no
// order.
func (s *Snapshot) Endpoints(svc *Service) iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		set := s.endpointsOf(svc.Key())
		if set == nil {
			return
		}
		for e := range set.all() {
			if !yield(e.w) {
				return
			}
		}
	}
}

// CountEndpoints counts the workloads of a service, healthy or not.
func (s *Snapshot) CountEndpoints(svc *Service) int {
	if set := s.endpointsOf(svc.Key()); set != nil {
		return set.n
	}
	return 0
}

func (s *Snapshot) endpointsOf(name NamespacedName) *endpointSet {
	for _, l := range s.endpoints.Get(trie.Pair(name.Namespace, name.Hostname)) {
		if l.Value.service == name {
			return l.Value
		}
	}
	return nil
}

// NumWorkloads counts the workloads.
func (s *Snapshot) NumWorkloads() int { return s.uids.Len() }

// NumServices counts the services.
func (s *Snapshot) NumServices() int { return s.services.Len() }
