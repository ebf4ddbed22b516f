package workload

import (
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
