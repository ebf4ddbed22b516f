package workload

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

var (
	protocolNames = [...]string{TCP: "TCP", HBONE: "HBONE"}
	tunnelNames   = [...]string{NoTunnel: "NONE", ProxyTunnel: "PROXY"}
	modeNames     = [...]string{Standard: "Standard", Strict: "Strict", Failover: "Failover", Passthrough: "Passthrough"}
	familyNames   = [...]string{AnyFamily: "", IPv4Only: "IPv4", IPv6Only: "IPv6", DualStack: "Dual"}
	scopeNames    = [...]string{ScopeRegion: "Region", ScopeZone: "Zone", ScopeSubzone: "Subzone", ScopeNode: "Node", ScopeCluster: "Cluster", ScopeNetwork: "Network"}
)

// String returns the protocol's name: TCP or HBONE.
func (p Protocol) String() string { return protocolNames[p] }

// String returns the mode's name.
func (m Mode) String() string { return modeNames[m] }

// String returns the scope's name.
func (s Scope) String() string { return scopeNames[s] }

// DumpWorkloads returns all workloads for /config_dump, sorted by UID.
func (s *Snapshot) DumpWorkloads() []admin.Workload {
	list := slices.SortedFunc(s.Workloads(), func(a, b *Workload) int { return cmp.Compare(a.UID, b.UID) })
	out := make([]admin.Workload, len(list))
	for i, w := range list {
		out[i] = w.dump()
	}
	return out
}

// DumpServices returns all services for /config_dump, sorted by host name, with the
// endpoints that get connections.
func (s *Snapshot) DumpServices() []admin.Service {
	list := slices.SortedFunc(s.Services(), func(a, b *Service) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
	})
	out := make([]admin.Service, len(list))
	for i, svc := range list {
		out[i] = s.DumpService(svc)
	}
	return out
}

// MarshalJSON renders the workload as in /config_dump.
func (w *Workload) MarshalJSON() ([]byte, error) { return json.Marshal(w.dump()) }

func (w *Workload) dump() admin.Workload {
	d := admin.Workload{
		WorkloadIPs: []string{}, Waypoint: w.Waypoint.dump(), NetworkGateway: w.NetworkGateway.dump(),
		Protocol: w.Protocol.String(), NetworkMode: "Standard", UID: w.UID, Name: w.Name, Namespace: w.Namespace,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount, Network: w.Network,
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision, Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel,
		Policies: w.Policies, Status: statusName(w), Ending: w.Ending.String(), ClusterID: w.ClusterID, Capacity: w.Capacity,
	}
	for _, a := range w.addrs {
		d.WorkloadIPs = append(d.WorkloadIPs, a.String())
	}
	if w.Outbound != egress.AllowAny {
		d.Outbound = w.Outbound.String()
	}
	if w.HostNetwork {
		d.NetworkMode = "HostNetwork"
	}
	if t := w.ApplicationTunnel; t.Present {
		d.ApplicationTunnel = &admin.AppTunnel{Protocol: tunnelNames[t.Protocol]}
		if t.Port != 0 {
			d.ApplicationTunnel.Port = &t.Port
		}
	}
	if l := w.Locality; l != (Locality{}) {
		d.Locality = &admin.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	for _, m := range w.Services {
		d.Services = append(d.Services, m.Service.String())
	}
	return d
}

// DumpService returns a service for /config_dump.
func (s *Snapshot) DumpService(svc *Service) admin.Service {
	d := admin.Service{
		Name: svc.Name, Namespace: svc.Namespace, Hostname: svc.Hostname, VIPs: []string{}, Ports: portsDump(svc.Ports),
		Endpoints: map[string]admin.Endpoint{}, SANs: orEmpty(svc.SANs), Waypoint: svc.Waypoint.dump(),
		ClientAffinity: svc.ClientAffinity, IPFamilies: familyNames[svc.Families], Canonical: svc.Canonical, Visibility: "Public",
	}
	d.EndpointsBehind, d.EndpointsTaken = svc.EndpointsBehind, svc.EndpointsTaken
	for _, id := range svc.Beside {
		d.Beside = append(d.Beside, id.String())
	}
	for _, v := range svc.VIPs {
		d.VIPs = append(d.VIPs, v.String())
	}
	for _, r := range svc.CIDRs {
		d.CIDRs = append(d.CIDRs, admin.Range{Network: r.Network, CIDR: r.Prefix.String()})
	}
	for _, w := range svc.WeightedWaypoints {
		d.WeightedWaypoints = append(d.WeightedWaypoints, admin.WeightedGateway{Destination: *w.Destination.dump(), Weight: w.Weight})
	}
	if svc.HasLoadBalancing {
		d.LoadBalancer = &admin.LoadBalancer{Preferences: []string{}, Mode: svc.Mode.String(), Health: "OnlyHealthy"}
		for _, sc := range svc.Scopes {
			d.LoadBalancer.Preferences = append(d.LoadBalancer.Preferences, sc.String())
		}
		if svc.AllowUnhealthy {
			d.LoadBalancer.Health = "AllowAll"
		}
	}
	if svc.NamespaceOnly {
		d.Visibility = "Namespace"
	}
	if set := s.endpointsOf(svc.Key()); set != nil {
		for e := range set.all() {
			if e.w.Healthy || svc.AllowUnhealthy {
				d.Endpoints[e.w.UID] = admin.Endpoint{UID: e.w.UID, Port: portsDump(e.m.Ports), Status: statusName(e.w)}
			}
		}
	}
	return d
}

func (g GatewayAddress) dump() *admin.Gateway {
	switch {
	case g.IsZero():
		return nil
	case g.ByHostname():
		return &admin.Gateway{Destination: g.Hostname.String(), HBONEPort: g.HBONEPort}
	}
	return &admin.Gateway{Destination: g.Address.String(), HBONEPort: g.HBONEPort}
}

func portsDump(ports []Port) map[uint16]uint16 {
	out := make(map[uint16]uint16, len(ports))
	for _, p := range ports {
		out[p.Service] = p.Target
	}
	return out
}

func statusName(w *Workload) string {
	if w.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

func orEmpty[E any](s []E) []E {
	if s == nil {
		return []E{}
	}
	return s
}
