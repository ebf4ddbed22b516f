package gateway

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hop"
)

// learn requests resources, if the directory is filled on demand. done runs on the
// loop later, or never if learn reports false.
func (s *shard) learn(names []string, done func()) bool {
	f := s.g.opts.Learn
	return f != nil && len(names) > 0 && f(s.loop, names, done)
}

// unknown lists what a decision about a target and a client needs and the directory
// does not have, as names of resources: an address as network/ip, a service as
// namespace/hostname.
func (w *whereabouts) unknown(t connect.Target, client netip.Addr) (names []string) {
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	address := func(network string, a netip.Addr) { add(network + "/" + a.Unmap().String()) }
	var at workload.Destination
	if t.IsHost() {
		at.Service = w.snapshot.ServiceByHostname(t.Host, w.namespace)
		if ns := namespaceOf(t.Host); at.Service == nil && ns != "" {
			add(ns + "/" + t.Host)
		}
	} else {
		at = w.snapshot.Find(w.network, t.Addr.Addr(), w.namespace)
		if !w.snapshot.Certain(w.network, t.Addr.Addr(), w.namespace) {
			address(w.network, t.Addr.Addr())
		}
	}
	port := t.TargetPort()
	gateway := func(g workload.GatewayAddress) {
		for _, name := range w.absent(g) {
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
			if w.snapshot.ServiceByName(m.Service.Namespace, m.Service.Hostname) == nil &&
				slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port || p.Target == 0 }) {
				add(m.Service.String())
			}
		}
		for svc := range w.snapshot.Backed(at.Workload, port) {
			gateway(svc.Waypoint)
			for _, o := range svc.WeightedWaypoints {
				gateway(o.Destination)
			}
		}
	}
	if client.IsValid() && w.snapshot.WorkloadByAddr(w.network, client) == nil {
		address(w.network, client)
	}
	return names
}

// absent names a gateway if the directory does not have it.
func (w *whereabouts) absent(g workload.GatewayAddress) []string {
	switch {
	case g.IsZero() || hop.Lookup(w.snapshot, g) != (workload.Destination{}):
		return nil
	case g.ByHostname():
		return []string{g.Hostname.String()}
	}
	return []string{g.Address.Network + "/" + g.Address.Addr.Unmap().String()}
}

// namespaceOf returns the namespace in the host name of a Kubernetes Service, "" for
// any other name.
func namespaceOf(host string) string {
	parts := strings.SplitN(host, ".", 4)
	if len(parts) == 4 && parts[2] == "svc" {
		return parts[1]
	}
	return ""
}

// unknownBackend names the service of a backend if the directory does not have it.
func (s *shard) unknownBackend(cfg *route.Config, b *route.Backend) []string {
	if b == nil {
		return nil
	}
	up := cfg.Upstreams[b.Name]
	if up == nil || s.g.opts.Directory().ServiceByName(up.Service.Namespace, up.Service.Hostname) != nil {
		return nil
	}
	return []string{up.Service.Namespace + "/" + up.Service.Hostname}
}
