package workload

import (
	"iter"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// IsGateway reports whether the workload of an identity at an address is the
// gateway gw or one of its replicas.
func (s *Snapshot) IsGateway(gw GatewayAddress, id identity.Identity, a netip.Addr) bool {
	if gw.IsZero() || id.IsZero() {
		return false
	}
	is := func(w *Workload) bool { return w.HasAddr(a) && w.Identity() == id }
	var at Destination
	if gw.ByHostname() {
		at = s.FindHostname(gw.Hostname)
	} else {
		at = s.Find(gw.Address.Network, gw.Address.Addr, "")
	}
	if at.Workload != nil {
		return is(at.Workload)
	}
	if at.Service == nil {
		return false
	}
	for w := range s.Endpoints(at.Service) {
		if is(w) {
			return true
		}
	}
	return false
}

// Backed returns the services that a workload is an endpoint of at one of its own ports,
// those that the snapshot has.
func (s *Snapshot) Backed(w *Workload, port uint16) iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for i := range w.Services {
			m := &w.Services[i]
			svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
			if svc != nil && m.leadsTo(svc, port) && !yield(svc) {
				return
			}
		}
	}
}

// leadsTo reports whether a port of the service leads to a port of its endpoint.
func (m *Membership) leadsTo(svc *Service, port uint16) bool {
	for _, p := range svc.Ports {
		if m.Target(p) == port {
			return true
		}
	}
	return false
}

// Target returns the port of the endpoint for a port of its service, 0 for none.
func (m *Membership) Target(p Port) uint16 {
	for _, own := range m.Ports {
		if own.Service == p.Service && own.Target != 0 {
			return own.Target
		}
	}
	return p.Target
}

// Declared returns what the services of a workload declare of one of its own ports,
// unknown when they disagree.
func (s *Snapshot) Declared(w *Workload, port uint16) App {
	found := AppUnknown
	for i := range w.Services {
		m := &w.Services[i]
		svc := s.ServiceByName(m.Service.Namespace, m.Service.Hostname)
		if svc == nil {
			continue
		}
		for _, p := range svc.Ports {
			if m.Target(p) != port || p.App == AppUnknown {
				continue
			}
			if found != AppUnknown && found != p.App {
				return AppUnknown
			}
			found = p.App
		}
	}
	return found
}
