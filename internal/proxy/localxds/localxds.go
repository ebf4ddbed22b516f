// Package localxds reads workloads, services and policies from a YAML file in
// place of a control plane, for tests and for a proxy that stands alone. The
// file has the shape of upstream ztunnel's LocalConfig.
package localxds

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
)

// Config is what a file holds, as resources of the control plane.
type Config struct {
	Addresses []*workloadpb.Address
	Policies  []*securitypb.Authorization
}

type file struct {
	Workloads []localWorkload `json:"workloads"`
	Services  []localService  `json:"services"`
	Policies  []localPolicy   `json:"policies"`
}

type localWorkload struct {
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	WorkloadIPs           []netip.Addr                 `json:"workloadIps"`
	Hostname              string                       `json:"hostname"`
	Network               string                       `json:"network"`
	Protocol              string                       `json:"protocol"`
	NetworkMode           string                       `json:"networkMode"`
	TrustDomain           string                       `json:"trustDomain"`
	ServiceAccount        string                       `json:"serviceAccount"`
	Waypoint              *gateway                     `json:"waypoint"`
	NetworkGateway        *gateway                     `json:"networkGateway"`
	Node                  string                       `json:"node"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	NativeTunnel          bool                         `json:"nativeTunnel"`
	ApplicationTunnel     *appTunnel                   `json:"applicationTunnel"`
	Services              map[string]map[uint16]uint16 `json:"services"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies"`
	Status                string                       `json:"status"`
	ClusterID             string                       `json:"clusterId"`
	Locality              locality                     `json:"locality"`
	Capacity              *uint32                      `json:"capacity"`
	Outbound              *string                      `json:"outboundTrafficPolicy"`
	Ending                string                       `json:"ending"` // SERVING or CLOSING; it is unhealthy then
}

type locality struct {
	Region  string `json:"region"`
	Zone    string `json:"zone"`
	Subzone string `json:"subzone"`
}

type appTunnel struct {
	Protocol string `json:"protocol"`
	Port     uint32 `json:"port"`
}

type localService struct {
	Name             string            `json:"name"`
	Namespace        string            `json:"namespace"`
	Hostname         string            `json:"hostname"`
	VIPs             []networkAddress  `json:"vips"`
	CIDRVIPs         []networkAddress  `json:"cidrVips"`
	Ports            map[uint16]uint16 `json:"ports"`
	SubjectAltNames  []string          `json:"subjectAltNames"`
	Waypoint         *gateway          `json:"waypoint"`
	WeightedWaypoint []struct {
		Destination *gateway `json:"destination"`
		Weight      uint32   `json:"weight"`
	} `json:"weightedWaypoints"`
	LoadBalancer *struct {
		RoutingPreferences []string `json:"routingPreferences"`
		Mode               string   `json:"mode"`
		HealthPolicy       string   `json:"healthPolicy"`
	} `json:"loadBalancer"`
	IPFamilies string          `json:"ipFamilies"`
	Canonical  bool            `json:"canonical"`
	Visibility string          `json:"visibility"`
	Endpoints  json.RawMessage `json:"endpoints"` // accepted and not used: workloads name their services
}

type localPolicy struct {
	Name      string       `json:"name"`
	Namespace string       `json:"namespace"`
	Scope     string       `json:"scope"`
	Action    string       `json:"action"`
	DryRun    bool         `json:"dryRun"`
	Rules     [][][]*match `json:"rules"`
}

type match struct {
	Namespaces           []stringMatch    `json:"namespaces"`
	NotNamespaces        []stringMatch    `json:"notNamespaces"`
	Principals           []stringMatch    `json:"principals"`
	NotPrincipals        []stringMatch    `json:"notPrincipals"`
	ServiceAccounts      []serviceAccount `json:"serviceAccounts"`
	NotServiceAccounts   []serviceAccount `json:"notServiceAccounts"`
	SourceIPs            []netip.Prefix   `json:"sourceIps"`
	NotSourceIPs         []netip.Prefix   `json:"notSourceIps"`
	DestinationIPs       []netip.Prefix   `json:"destinationIps"`
	NotDestinationIPs    []netip.Prefix   `json:"notDestinationIps"`
	DestinationPorts     []uint16         `json:"destinationPorts"`
	NotDestinationPorts  []uint16         `json:"notDestinationPorts"`
	SnakeNotDestinations []uint16         `json:"not_destination_ports"`
	SnakeDestinations    []uint16         `json:"destination_ports"`
}

type serviceAccount struct {
	Namespace string `json:"namespace"`
	Name      string `json:"serviceAccount"`
}

// stringMatch is "exact", {Exact: v}, {Prefix: v}, {Suffix: v} or {Presence: []}.
type stringMatch struct{ pb *securitypb.StringMatch }

func (m *stringMatch) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		m.pb = &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
		return nil
	}
	var kinds map[string]json.RawMessage
	if err := json.Unmarshal(b, &kinds); err != nil || len(kinds) != 1 {
		return fmt.Errorf("a string match is a string, or one of Exact, Prefix, Suffix, Presence: %s", b)
	}
	for kind, raw := range kinds {
		if strings.EqualFold(kind, "presence") {
			m.pb = &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}
			return nil
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("string match %s: %w", kind, err)
		}
		switch strings.ToLower(kind) {
		case "exact":
			m.pb = &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
		case "prefix":
			m.pb = &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Prefix{Prefix: s}}
		case "suffix":
			m.pb = &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Suffix{Suffix: s}}
		default:
			return fmt.Errorf("unknown string match %q", kind)
		}
	}
	return nil
}

// networkAddress is "network/address" or "network/address/length".
type networkAddress struct{ pb *workloadpb.NetworkAddress }

func (a *networkAddress) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("an address is written network/address: %s", b)
	}
	pb, err := parseNetworkAddress(s)
	a.pb = pb
	return err
}

func parseNetworkAddress(s string) (*workloadpb.NetworkAddress, error) {
	network, addr, ok := strings.Cut(s, "/")
	if !ok {
		return nil, fmt.Errorf("%q is not network/address", s)
	}
	if strings.Contains(addr, "/") {
		p, err := netip.ParsePrefix(addr)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		n := uint32(p.Bits())
		return &workloadpb.NetworkAddress{Network: network, Address: p.Addr().AsSlice(), Length: &n}, nil
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return &workloadpb.NetworkAddress{Network: network, Address: a.AsSlice()}, nil
}

// gateway's destination is "network/address" or {namespace, hostname}.
type gateway struct{ pb *workloadpb.GatewayAddress }

func (g *gateway) UnmarshalJSON(b []byte) error {
	var raw struct {
		Destination   json.RawMessage `json:"destination"`
		HBONEMTLSPort uint32          `json:"hboneMtlsPort"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	g.pb = &workloadpb.GatewayAddress{HboneMtlsPort: raw.HBONEMTLSPort}
	var s string
	if json.Unmarshal(raw.Destination, &s) == nil {
		na, err := parseNetworkAddress(s)
		if err != nil {
			return err
		}
		g.pb.Destination = &workloadpb.GatewayAddress_Address{Address: na}
		return nil
	}
	var host struct {
		Namespace string `json:"namespace"`
		Hostname  string `json:"hostname"`
	}
	if err := json.Unmarshal(raw.Destination, &host); err != nil || host.Hostname == "" {
		return fmt.Errorf("a gateway's destination is network/address or {namespace, hostname}: %s", raw.Destination)
	}
	g.pb.Destination = &workloadpb.GatewayAddress_Hostname{
		Hostname: &workloadpb.NamespacedHostname{Namespace: host.Namespace, Hostname: host.Hostname},
	}
	return nil
}

func (g *gateway) proto() *workloadpb.GatewayAddress {
	if g == nil {
		return nil
	}
	return g.pb
}

// Parse reads a file. Unknown fields are refused.
func Parse(text []byte) (*Config, error) {
	var f file
	if err := yaml.UnmarshalStrict(text, &f); err != nil {
		return nil, fmt.Errorf("local xDS: %w", err)
	}
	c := &Config{}
	for i := range f.Workloads {
		w, err := f.Workloads[i].proto()
		if err != nil {
			return nil, fmt.Errorf("local xDS: workload %d (%s): %w", i+1, f.Workloads[i].UID, err)
		}
		c.Addresses = append(c.Addresses, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	}
	for i := range f.Services {
		s, err := f.Services[i].proto()
		if err != nil {
			return nil, fmt.Errorf("local xDS: service %d (%s): %w", i+1, f.Services[i].Hostname, err)
		}
		c.Addresses = append(c.Addresses, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}})
	}
	for i := range f.Policies {
		p, err := f.Policies[i].proto()
		if err != nil {
			return nil, fmt.Errorf("local xDS: policy %d (%s): %w", i+1, f.Policies[i].Name, err)
		}
		c.Policies = append(c.Policies, p)
	}
	return c, nil
}

// enum finds a value by name, whatever its case and underscores; empty is def.
func enum[E ~int32](what, s string, values map[string]int32, def E) (E, error) {
	if s == "" {
		return def, nil
	}
	plain := func(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "_", "")) }
	for name, v := range values {
		if plain(name) == plain(s) {
			return E(v), nil
		}
	}
	return def, fmt.Errorf("%s %q is not known", what, s)
}

func (w *localWorkload) proto() (*workloadpb.Workload, error) {
	if w.UID == "" {
		return nil, fmt.Errorf("no uid")
	}
	out := &workloadpb.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, Hostname: w.Hostname, Network: w.Network,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		Waypoint: w.Waypoint.proto(), NetworkGateway: w.NetworkGateway.proto(), Node: w.Node,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, WorkloadName: w.WorkloadName,
		NativeTunnel: w.NativeTunnel, AuthorizationPolicies: w.AuthorizationPolicies, ClusterId: w.ClusterID,
		Locality: &workloadpb.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone},
		Services: map[string]*workloadpb.PortList{},
	}
	for _, a := range w.WorkloadIPs {
		out.Addresses = append(out.Addresses, a.AsSlice())
	}
	protocol := w.Protocol
	if strings.EqualFold(protocol, "TCP") {
		protocol = "NONE"
	}
	var err error
	if out.TunnelProtocol, err = enum("protocol", protocol, workloadpb.TunnelProtocol_value, workloadpb.TunnelProtocol_NONE); err != nil {
		return nil, err
	}
	if out.NetworkMode, err = enum("networkMode", w.NetworkMode, workloadpb.NetworkMode_value, workloadpb.NetworkMode_STANDARD); err != nil {
		return nil, err
	}
	if out.WorkloadType, err = enum("workloadType", w.WorkloadType, workloadpb.WorkloadType_value, workloadpb.WorkloadType_DEPLOYMENT); err != nil {
		return nil, err
	}
	if out.Status, err = enum("status", w.Status, workloadpb.WorkloadStatus_value, workloadpb.WorkloadStatus_HEALTHY); err != nil {
		return nil, err
	}
	if t := w.ApplicationTunnel; t != nil {
		p, err := enum("applicationTunnel.protocol", t.Protocol, workloadpb.ApplicationTunnel_Protocol_value, workloadpb.ApplicationTunnel_NONE)
		if err != nil {
			return nil, err
		}
		out.ApplicationTunnel = &workloadpb.ApplicationTunnel{Protocol: p, Port: t.Port}
	}
	if w.Outbound != nil {
		m, err := egress.Parse(*w.Outbound)
		if err != nil {
			return nil, fmt.Errorf("outboundTrafficPolicy: %w", err)
		}
		out.Extensions = m.Extensions()
	}
	switch w.Ending {
	case "":
	case "SERVING", "CLOSING":
		out.Status = workloadpb.WorkloadStatus_UNHEALTHY
		out.Extensions = append(out.Extensions, ending.Of(true, w.Ending == "SERVING").Extensions()...)
	default:
		return nil, fmt.Errorf("ending: %q is neither SERVING nor CLOSING", w.Ending)
	}
	if w.Capacity != nil {
		out.Capacity = wrapperspb.UInt32(*w.Capacity)
	}
	for name, ports := range w.Services {
		out.Services[name] = &workloadpb.PortList{Ports: portList(ports)}
	}
	return out, nil
}

func portList(ports map[uint16]uint16) []*workloadpb.Port {
	out := make([]*workloadpb.Port, 0, len(ports))
	for s, t := range ports {
		out = append(out, &workloadpb.Port{ServicePort: uint32(s), TargetPort: uint32(t)})
	}
	slices.SortFunc(out, func(a, b *workloadpb.Port) int { return int(a.ServicePort) - int(b.ServicePort) })
	return out
}

func (s *localService) proto() (*workloadpb.Service, error) {
	if s.Hostname == "" {
		return nil, fmt.Errorf("no hostname")
	}
	out := &workloadpb.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: portList(s.Ports),
		SubjectAltNames: s.SubjectAltNames, Waypoint: s.Waypoint.proto(), Canonical: s.Canonical,
	}
	for _, a := range append(s.VIPs, s.CIDRVIPs...) {
		out.Addresses = append(out.Addresses, a.pb)
	}
	for _, ww := range s.WeightedWaypoint {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &workloadpb.WeightedWaypoint{Destination: ww.Destination.proto(), Weight: ww.Weight})
	}
	var err error
	fam := map[string]int32{"IPv4": int32(workloadpb.IPFamilies_IPV4_ONLY), "IPv6": int32(workloadpb.IPFamilies_IPV6_ONLY)}
	for k, v := range workloadpb.IPFamilies_value {
		fam[k] = v
	}
	if out.IpFamilies, err = enum("ipFamilies", s.IPFamilies, fam, workloadpb.IPFamilies_AUTOMATIC); err != nil {
		return nil, err
	}
	if out.Visibility, err = enum("visibility", s.Visibility, workloadpb.Service_Visibility_value, workloadpb.Service_PUBLIC); err != nil {
		return nil, err
	}
	lb := s.LoadBalancer
	if lb == nil {
		return out, nil
	}
	out.LoadBalancing = &workloadpb.LoadBalancing{}
	modes := map[string]int32{"Standard": int32(workloadpb.LoadBalancing_UNSPECIFIED_MODE)}
	for k, v := range workloadpb.LoadBalancing_Mode_value {
		modes[k] = v
	}
	if out.LoadBalancing.Mode, err = enum("loadBalancer.mode", lb.Mode, modes, workloadpb.LoadBalancing_UNSPECIFIED_MODE); err != nil {
		return nil, err
	}
	if out.LoadBalancing.HealthPolicy, err = enum("loadBalancer.healthPolicy", lb.HealthPolicy, workloadpb.LoadBalancing_HealthPolicy_value, workloadpb.LoadBalancing_ONLY_HEALTHY); err != nil {
		return nil, err
	}
	for _, p := range lb.RoutingPreferences {
		sc, err := enum("loadBalancer.routingPreferences", p, workloadpb.LoadBalancing_Scope_value, workloadpb.LoadBalancing_UNSPECIFIED_SCOPE)
		if err != nil {
			return nil, err
		}
		out.LoadBalancing.RoutingPreference = append(out.LoadBalancing.RoutingPreference, sc)
	}
	return out, nil
}

func (p *localPolicy) proto() (*securitypb.Authorization, error) {
	out := &securitypb.Authorization{Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun}
	var err error
	if out.Scope, err = enum("scope", p.Scope, securitypb.Scope_value, securitypb.Scope_GLOBAL); err != nil {
		return nil, err
	}
	if out.Action, err = enum("action", p.Action, securitypb.Action_value, securitypb.Action_ALLOW); err != nil {
		return nil, err
	}
	for _, group := range p.Rules {
		g := &securitypb.Group{}
		for _, clause := range group {
			r := &securitypb.Rules{}
			for _, m := range clause {
				if m == nil {
					return nil, fmt.Errorf("an empty match")
				}
				r.Matches = append(r.Matches, m.proto())
			}
			g.Rules = append(g.Rules, r)
		}
		out.Groups = append(out.Groups, g)
	}
	return out, nil
}

func (m *match) proto() *securitypb.Match {
	return &securitypb.Match{
		Namespaces: stringMatches(m.Namespaces), NotNamespaces: stringMatches(m.NotNamespaces),
		Principals: stringMatches(m.Principals), NotPrincipals: stringMatches(m.NotPrincipals),
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
		SourceIps: prefixes(m.SourceIPs), NotSourceIps: prefixes(m.NotSourceIPs),
		DestinationIps: prefixes(m.DestinationIPs), NotDestinationIps: prefixes(m.NotDestinationIPs),
		DestinationPorts:    numbers(append(m.DestinationPorts, m.SnakeDestinations...)),
		NotDestinationPorts: numbers(append(m.NotDestinationPorts, m.SnakeNotDestinations...)),
	}
}

func stringMatches(in []stringMatch) []*securitypb.StringMatch {
	var out []*securitypb.StringMatch
	for _, m := range in {
		out = append(out, m.pb)
	}
	return out
}

func accounts(in []serviceAccount) []*securitypb.ServiceAccountMatch {
	var out []*securitypb.ServiceAccountMatch
	for _, a := range in {
		out = append(out, &securitypb.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.Name})
	}
	return out
}

func prefixes(in []netip.Prefix) []*securitypb.Address {
	var out []*securitypb.Address
	for _, p := range in {
		out = append(out, &securitypb.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func numbers(in []uint16) []uint32 {
	var out []uint32
	for _, n := range in {
		out = append(out, uint32(n))
	}
	return out
}
