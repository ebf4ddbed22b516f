package place

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// Unknown lists what a decision about a target and a client needs and the directory
// does not have, as names of resources: an address as network/ip, a service as
// namespace/hostname.
func (w *Whereabouts) Unknown(t connect.Target, client netip.Addr) (names []string) {
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	address := func(network string, a netip.Addr) { add(workload.AddressName(network, a)) }
	at, _ := w.at(t)
	if t.IsHost() {
		if ns := NamespaceOf(t.Host); at.Service == nil && ns != "" {
			add(ns + "/" + t.Host)
		}
	} else if !w.Snapshot.Certain(w.Network, t.Addr.Addr(), w.Namespace) {
		address(w.Network, t.Addr.Addr())
	}
	port := t.TargetPort()
	gateway := func(g workload.GatewayAddress) {
		for _, name := range w.Absent(g) {
			add(name)
		}
	}
	switch {
	case at.Service != nil:
		gateway(at.Service.Waypoint)
		for _, o := range at.Service.WeightedWaypoints {
			gateway(o.Destination)
		}
	case at.Workload != nil:
		gateway(at.Workload.Waypoint)
		for i := range at.Workload.Services {
			m := &at.Workload.Services[i]
			if w.Snapshot.ServiceByName(m.Service.Namespace, m.Service.Hostname) == nil &&
				slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port || p.Target == 0 }) {
				add(m.Service.String())
			}
		}
		for svc := range w.Snapshot.Backed(at.Workload, port) {
			gateway(svc.Waypoint)
			for _, o := range svc.WeightedWaypoints {
				gateway(o.Destination)
			}
		}
	}
	if client.IsValid() && w.Snapshot.WorkloadByAddr(w.Network, client) == nil {
		address(w.Network, client)
	}
	return names
}

// Absent names a gateway if the directory does not have it.
func (w *Whereabouts) Absent(g workload.GatewayAddress) []string {
	switch {
	case g.IsZero() || hop.Lookup(w.Snapshot, g) != (workload.Destination{}):
		return nil
	case g.ByHostname():
		return []string{g.Hostname.String()}
	}
	return []string{workload.AddressName(g.Address.Network, g.Address.Addr)}
}

// NamespaceOf returns the namespace in the host name of a Kubernetes Service, "" for
// any other name.
func NamespaceOf(host string) string {
	parts := strings.SplitN(host, ".", 4)
	if len(parts) == 4 && parts[2] == "svc" {
		return parts[1]
	}
	return ""
}
