package workload

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

// The shapes of /config_dump. Existing tools parse them, so names, cases and
// what is left out follow upstream.
type (
	workloadDump struct {
		WorkloadIPs       []netip.Addr  `json:"workloadIps"`
		Waypoint          *gatewayDump  `json:"waypoint,omitempty"`
		NetworkGateway    *gatewayDump  `json:"networkGateway,omitempty"`
		Protocol          string        `json:"protocol"`
		NetworkMode       string        `json:"networkMode"`
		UID               string        `json:"uid,omitempty"`
		Name              string        `json:"name"`
		Namespace         string        `json:"namespace"`
		TrustDomain       string        `json:"trustDomain,omitempty"`
		ServiceAccount    string        `json:"serviceAccount,omitempty"`
		Network           string        `json:"network,omitempty"`
		WorkloadName      string        `json:"workloadName,omitempty"`
		WorkloadType      string        `json:"workloadType,omitempty"`
		CanonicalName     string        `json:"canonicalName,omitempty"`
		CanonicalRevision string        `json:"canonicalRevision,omitempty"`
		Hostname          string        `json:"hostname,omitempty"`
		Node              string        `json:"node,omitempty"`
		NativeTunnel      bool          `json:"nativeTunnel,omitempty"`
		ApplicationTunnel *tunnelDump   `json:"applicationTunnel,omitempty"`
		Policies          []string      `json:"authorizationPolicies,omitempty"`
		Status            string        `json:"status"`
		ClusterID         string        `json:"clusterId"`
		Locality          *localityDump `json:"locality,omitempty"`
		Services          []string      `json:"services,omitempty"`
		Capacity          uint32        `json:"capacity"`
		Outbound          string        `json:"outboundTrafficPolicy,omitempty"`
	}
	gatewayDump struct {
		Destination string `json:"destination"`
		HBONEPort   uint16 `json:"hboneMtlsPort"`
	}
	tunnelDump struct {
		Protocol string  `json:"protocol"`
		Port     *uint16 `json:"port"`
	}
	localityDump struct {
		Region  string `json:"region"`
		Zone    string `json:"zone"`
		Subzone string `json:"subzone"`
	}
	serviceDump struct {
		Name              string                  `json:"name"`
		Namespace         string                  `json:"namespace"`
		Hostname          string                  `json:"hostname"`
		VIPs              []string                `json:"vips"`
		CIDRs             []rangeDump             `json:"cidrVips,omitempty"`
		Ports             map[uint16]uint16       `json:"ports"`
		Endpoints         map[string]endpointDump `json:"endpoints"`
		SANs              []string                `json:"subjectAltNames"`
		Waypoint          *gatewayDump            `json:"waypoint,omitempty"`
		WeightedWaypoints []weightedDump          `json:"weightedWaypoints,omitempty"`
		EndpointsBehind   bool                    `json:"endpointsBehindWaypoint,omitempty"`
		EndpointsTaken    bool                    `json:"endpointsTakenByWaypoint,omitempty"`
		Beside            []string                `json:"besideWaypoint,omitempty"`
		LoadBalancer      *balancerDump           `json:"loadBalancer,omitempty"`
		ClientAffinity    bool                    `json:"clientAffinity,omitempty"`
		IPFamilies        string                  `json:"ipFamilies,omitempty"`
		Canonical         bool                    `json:"canonical"`
		Visibility        string                  `json:"visibility"`
	}
	rangeDump struct {
		Network string       `json:"network"`
		CIDR    netip.Prefix `json:"cidr"`
	}
	endpointDump struct {
		UID    string            `json:"workloadUid"`
		Port   map[uint16]uint16 `json:"port"`
		Status string            `json:"status"`
	}
	weightedDump struct {
		Destination gatewayDump `json:"destination"`
		Weight      uint32      `json:"weight"`
	}
	balancerDump struct {
		Preferences []string `json:"routingPreferences"`
		Mode        string   `json:"mode"`
		Health      string   `json:"healthPolicy"`
	}
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

// DumpWorkloads renders all workloads as the JSON array of /config_dump,
// sorted by UID.
func (s *Snapshot) DumpWorkloads() (json.RawMessage, error) {
	list := slices.SortedFunc(s.Workloads(), func(a, b *Workload) int { return cmp.Compare(a.UID, b.UID) })
	out := make([]workloadDump, len(list))
	for i, w := range list {
		out[i] = w.dump()
	}
	return json.Marshal(out)
}

// DumpServices renders all services as the JSON array of /config_dump,
// sorted by host name, with the endpoints that are in rotation.
func (s *Snapshot) DumpServices() (json.RawMessage, error) {
	list := slices.SortedFunc(s.Services(), func(a, b *Service) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
	})
	out := make([]serviceDump, len(list))
	for i, svc := range list {
		out[i] = s.dumpService(svc)
	}
	return json.Marshal(out)
}

// MarshalJSON renders the workload as in /config_dump.
func (w *Workload) MarshalJSON() ([]byte, error) { return json.Marshal(w.dump()) }

func (w *Workload) dump() workloadDump {
	d := workloadDump{
		WorkloadIPs: orEmpty(w.addrs), Waypoint: w.Waypoint.dump(), NetworkGateway: w.NetworkGateway.dump(),
		Protocol: w.Protocol.String(), NetworkMode: "Standard", UID: w.UID, Name: w.Name, Namespace: w.Namespace,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount, Network: w.Network,
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision, Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel,
		Policies: w.Policies, Status: statusName(w), ClusterID: w.ClusterID, Capacity: w.Capacity,
	}
	if w.Outbound != egress.AllowAny {
		d.Outbound = w.Outbound.String()
	}
	if w.HostNetwork {
		d.NetworkMode = "HostNetwork"
	}
	if t := w.ApplicationTunnel; t.Present {
		d.ApplicationTunnel = &tunnelDump{Protocol: tunnelNames[t.Protocol]}
		if t.Port != 0 {
			d.ApplicationTunnel.Port = &t.Port
		}
	}
	if l := w.Locality; l != (Locality{}) {
		d.Locality = &localityDump{l.Region, l.Zone, l.Subzone}
	}
	for _, m := range w.Services {
		d.Services = append(d.Services, m.Service.String())
	}
	return d
}

func (s *Snapshot) dumpService(svc *Service) serviceDump {
	d := serviceDump{
		Name: svc.Name, Namespace: svc.Namespace, Hostname: svc.Hostname, VIPs: []string{}, Ports: portsDump(svc.Ports),
		Endpoints: map[string]endpointDump{}, SANs: orEmpty(svc.SANs), Waypoint: svc.Waypoint.dump(),
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
		d.CIDRs = append(d.CIDRs, rangeDump{r.Network, r.Prefix})
	}
	for _, w := range svc.WeightedWaypoints {
		d.WeightedWaypoints = append(d.WeightedWaypoints, weightedDump{*w.Destination.dump(), w.Weight})
	}
	if svc.HasLoadBalancing {
		d.LoadBalancer = &balancerDump{Preferences: []string{}, Mode: svc.Mode.String(), Health: "OnlyHealthy"}
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
				d.Endpoints[e.w.UID] = endpointDump{e.w.UID, portsDump(e.m.Ports), statusName(e.w)}
			}
		}
	}
	return d
}

func (g GatewayAddress) dump() *gatewayDump {
	switch {
	case g.IsZero():
		return nil
	case g.ByHostname():
		return &gatewayDump{g.Hostname.String(), g.HBONEPort}
	}
	return &gatewayDump{g.Address.String(), g.HBONEPort}
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
