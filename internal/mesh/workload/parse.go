package workload

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Defaults of workloads that leave a field empty, as upstream has them.
const (
	defaultServiceAccount = "default"
	defaultCapacity       = 1
)

// parseWorkload reads a workload. Strings of the result that many workloads
// share are not interned yet.
func parseWorkload(p *workloadpb.Workload, trustDomain string) (*Workload, error) {
	if p.GetUid() == "" {
		return nil, errors.New("uid: empty")
	}
	t, err := parseTraits(p, trustDomain)
	if err != nil {
		return nil, err
	}
	w := &Workload{UID: p.GetUid(), Name: p.GetName(), Node: p.GetNode(), Traits: t, Ending: ending.FromExtensions(p.GetExtensions())}
	// The name is part of most UIDs; sharing its bytes saves an allocation.
	if i := strings.LastIndex(w.UID, w.Name); i >= 0 {
		w.Name = w.UID[i : i+len(w.Name)]
	}
	switch p.GetStatus() {
	case workloadpb.WorkloadStatus_HEALTHY:
		w.Healthy = true
	case workloadpb.WorkloadStatus_UNHEALTHY:
	default:
		return nil, fmt.Errorf("status: unknown value %d", p.GetStatus())
	}
	if n := len(p.GetAddresses()); n > 0 {
		w.addrs = make([]netip.Addr, n)
	}
	for i, b := range p.GetAddresses() {
		if w.addrs[i], err = parseAddr(b); err != nil {
			return nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
	}
	return w, nil
}

func parseTraits(p *workloadpb.Workload, trustDomain string) (*Traits, error) {
	t := &Traits{
		Namespace:         p.GetNamespace(),
		TrustDomain:       orDefault(p.GetTrustDomain(), trustDomain),
		ServiceAccount:    orDefault(p.GetServiceAccount(), defaultServiceAccount),
		Network:           p.GetNetwork(),
		ClusterID:         orDefault(p.GetClusterId(), wellknown.DefaultCluster),
		Locality:          Locality{p.GetLocality().GetRegion(), p.GetLocality().GetZone(), p.GetLocality().GetSubzone()},
		WorkloadName:      p.GetWorkloadName(),
		CanonicalName:     p.GetCanonicalName(),
		CanonicalRevision: p.GetCanonicalRevision(),
		Hostname:          p.GetHostname(),
		NativeTunnel:      p.GetNativeTunnel(),
		Capacity:          defaultCapacity,
		Policies:          slices.Clone(p.GetAuthorizationPolicies()),
		Outbound:          egress.FromExtensions(p.GetExtensions()),
		Egress:            egress.Selected(p.GetExtensions()),
	}
	if c := p.GetCapacity(); c != nil {
		t.Capacity = c.GetValue()
	}
	if name, ok := workloadpb.WorkloadType_name[int32(p.GetWorkloadType())]; ok {
		t.WorkloadType = strings.ToLower(name)
	}
	switch p.GetTunnelProtocol() {
	case workloadpb.TunnelProtocol_NONE:
	case workloadpb.TunnelProtocol_HBONE:
		t.Protocol = HBONE
	default:
		return nil, fmt.Errorf("tunnel_protocol: %v is not supported", p.GetTunnelProtocol())
	}
	switch p.GetNetworkMode() {
	case workloadpb.NetworkMode_STANDARD:
	case workloadpb.NetworkMode_HOST_NETWORK:
		t.HostNetwork = true
	default:
		return nil, fmt.Errorf("network_mode: unknown value %d", p.GetNetworkMode())
	}
	var err error
	if t.ApplicationTunnel, err = parseTunnel(p.GetApplicationTunnel()); err != nil {
		return nil, fmt.Errorf("application_tunnel: %w", err)
	}
	if t.Waypoint, err = parseGateway(p.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if t.NetworkGateway, err = parseGateway(p.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network_gateway: %w", err)
	}
	if t.Services, err = parseMemberships(p.GetServices()); err != nil {
		return nil, err
	}
	return t, nil
}

// parseMemberships sorts by name: a protobuf map has no order, and equal
// workloads must come out equal.
func parseMemberships(services map[string]*workloadpb.PortList) ([]Membership, error) {
	if len(services) == 0 {
		return nil, nil
	}
	out := make([]Membership, 0, len(services))
	for key, list := range services {
		ns, host, ok := strings.Cut(key, "/")
		if !ok {
			return nil, fmt.Errorf("services: %q is not namespace/hostname", key)
		}
		ports, err := parsePorts(list.GetPorts())
		if err != nil {
			return nil, fmt.Errorf("services[%q]: %w", key, err)
		}
		out = append(out, Membership{NamespacedName{ns, host}, ports})
	}
	slices.SortFunc(out, func(a, b Membership) int {
		if c := strings.Compare(a.Service.Namespace, b.Service.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Service.Hostname, b.Service.Hostname)
	})
	return out, nil
}

// ParseService reads a service that is in no directory.
func ParseService(p *workloadpb.Service) (*Service, error) { return parseService(p) }

func parseService(p *workloadpb.Service) (*Service, error) {
	if p.GetHostname() == "" {
		return nil, errors.New("hostname: empty")
	}
	s := &Service{
		Name:               p.GetName(),
		Namespace:          p.GetNamespace(),
		Hostname:           p.GetHostname(),
		SANs:               slices.Clone(p.GetSubjectAltNames()),
		Canonical:          p.GetCanonical(),
		IngressUseWaypoint: p.GetIngressUseWaypoint(),
		// A visibility from the future is narrower than PUBLIC, so it hides.
		NamespaceOnly: p.GetVisibility() != workloadpb.Service_PUBLIC,
		ClientAffinity: slices.ContainsFunc(p.GetExtensions(), func(e *workloadpb.Extension) bool {
			return e.GetName() == wellknown.ExtensionClientAffinity
		}),
	}
	var err error
	for i, a := range p.GetAddresses() {
		if err = s.parseVIP(a); err != nil {
			return nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
	}
	if s.Ports, err = parsePorts(p.GetPorts()); err != nil {
		return nil, err
	}
	if s.Waypoint, err = parseGateway(p.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, e := range p.GetExtensions() {
		s.EndpointsTaken = s.EndpointsTaken || e.GetName() == wellknown.ExtensionEndpointsTaken
		s.Race = s.Race || e.GetName() == wellknown.ExtensionRace
		s.ByName = s.ByName || e.GetName() == wellknown.ExtensionByName
		if e.GetName() != wellknown.ExtensionEndpoints {
			continue
		}
		if s.Beside, err = parseBeside(e); err != nil {
			return nil, fmt.Errorf("extension %s: %w", e.GetName(), err)
		}
		s.EndpointsBehind = true
	}
	for i, w := range p.GetWeightedWaypoints() {
		g, err := parseGateway(w.GetDestination())
		if err == nil && g.IsZero() {
			err = errors.New("no destination")
		}
		if err != nil {
			return nil, fmt.Errorf("weighted_waypoints[%d]: %w", i, err)
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, WeightedWaypoint{g, w.GetWeight()})
	}
	switch f := p.GetIpFamilies(); f {
	case workloadpb.IPFamilies_AUTOMATIC, workloadpb.IPFamilies_IPV4_ONLY, workloadpb.IPFamilies_IPV6_ONLY, workloadpb.IPFamilies_DUAL:
		s.Families = Families(f)
	default:
		return nil, fmt.Errorf("ip_families: unknown value %d", f)
	}
	if err := s.parseLoadBalancing(p.GetLoadBalancing()); err != nil {
		return nil, fmt.Errorf("load_balancing: %w", err)
	}
	return s, nil
}

// parseBeside reads the principals of an extension.
func parseBeside(e *workloadpb.Extension) (out []identity.Identity, err error) {
	list := &structpb.ListValue{}
	if c := e.GetConfig(); c != nil {
		if err := c.UnmarshalTo(list); err != nil {
			return nil, err
		}
	}
	for i, v := range list.GetValues() {
		id, err := identity.Parse("spiffe://" + v.GetStringValue())
		if err != nil {
			return nil, fmt.Errorf("principals[%d]: %w", i, err)
		}
		out = append(out, id)
	}
	return out, nil
}

func (s *Service) parseVIP(p *workloadpb.NetworkAddress) error {
	a, err := parseAddr(p.GetAddress())
	if err != nil {
		return err
	}
	if p.Length == nil || p.GetLength() == uint32(a.BitLen()) {
		s.VIPs = append(s.VIPs, NetworkAddress{p.GetNetwork(), a})
		return nil
	}
	if p.GetLength() > uint32(a.BitLen()) {
		return fmt.Errorf("length: %d bits for %v", p.GetLength(), a)
	}
	prefix := netip.PrefixFrom(a, int(p.GetLength())).Masked()
	s.CIDRs = append(s.CIDRs, NetworkPrefix{p.GetNetwork(), prefix})
	return nil
}

func (s *Service) parseLoadBalancing(p *workloadpb.LoadBalancing) error {
	if p == nil {
		return nil
	}
	s.HasLoadBalancing = true
	switch m := p.GetMode(); m {
	case workloadpb.LoadBalancing_UNSPECIFIED_MODE:
		s.Mode = Standard
	case workloadpb.LoadBalancing_STRICT:
		s.Mode = Strict
	case workloadpb.LoadBalancing_FAILOVER:
		s.Mode = Failover
	case workloadpb.LoadBalancing_PASSTHROUGH:
		s.Mode = Passthrough
	default:
		return fmt.Errorf("mode: unknown value %d", m)
	}
	switch h := p.GetHealthPolicy(); h {
	case workloadpb.LoadBalancing_ONLY_HEALTHY:
	case workloadpb.LoadBalancing_ALLOW_ALL:
		s.AllowUnhealthy = true
	default:
		return fmt.Errorf("health_policy: unknown value %d", h)
	}
	for i, sc := range p.GetRoutingPreference() {
		if sc < workloadpb.LoadBalancing_REGION || sc > workloadpb.LoadBalancing_NETWORK {
			return fmt.Errorf("routing_preference[%d]: unknown value %d", i, sc)
		}
		s.Scopes = append(s.Scopes, Scope(sc))
	}
	return nil
}

func parseTunnel(p *workloadpb.ApplicationTunnel) (ApplicationTunnel, error) {
	if p == nil {
		return ApplicationTunnel{}, nil
	}
	t := ApplicationTunnel{Present: true}
	switch p.GetProtocol() {
	case workloadpb.ApplicationTunnel_NONE:
	case workloadpb.ApplicationTunnel_PROXY:
		t.Protocol = ProxyTunnel
	default:
		return t, fmt.Errorf("protocol: unknown value %d", p.GetProtocol())
	}
	var err error
	t.Port, err = parsePort(p.GetPort())
	return t, err
}

func parseGateway(p *workloadpb.GatewayAddress) (GatewayAddress, error) {
	if p == nil {
		return GatewayAddress{}, nil
	}
	port, err := parsePort(p.GetHboneMtlsPort())
	if err != nil {
		return GatewayAddress{}, err
	}
	g := GatewayAddress{HBONEPort: port}
	switch d := p.GetDestination().(type) {
	case *workloadpb.GatewayAddress_Hostname:
		if d.Hostname.GetHostname() == "" {
			return g, errors.New("hostname: empty")
		}
		g.Hostname = NamespacedName{d.Hostname.GetNamespace(), d.Hostname.GetHostname()}
	case *workloadpb.GatewayAddress_Address:
		a, err := parseAddr(d.Address.GetAddress())
		if err != nil {
			return g, err
		}
		g.Address = NetworkAddress{d.Address.GetNetwork(), a}
	default:
		return g, errors.New("neither a hostname nor an address")
	}
	return g, nil
}

func parsePorts(list []*workloadpb.Port) ([]Port, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]Port, len(list))
	for i, p := range list {
		var err error
		if out[i].Service, err = parsePort(p.GetServicePort()); err != nil {
			return nil, fmt.Errorf("ports[%d].service_port: %w", i, err)
		}
		if out[i].Target, err = parsePort(p.GetTargetPort()); err != nil {
			return nil, fmt.Errorf("ports[%d].target_port: %w", i, err)
		}
		if app := p.GetAppProtocol(); app >= 0 && app <= workloadpb.AppProtocol_TLS {
			out[i].App = App(app)
		}
	}
	return out, nil
}

func parsePort(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("%d is not a port", p)
	}
	return uint16(p), nil
}

// parseAddr reads 4 or 16 bytes. IPv4 in IPv6 clothing is IPv4.
func parseAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, fmt.Errorf("an address of %d bytes", len(b))
	}
	return a.Unmap(), nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// same reports whether two traits are interchangeable.
func (t *Traits) same(o *Traits) bool {
	return t.hash == o.hash &&
		t.Namespace == o.Namespace && t.TrustDomain == o.TrustDomain && t.ServiceAccount == o.ServiceAccount &&
		t.Network == o.Network && t.ClusterID == o.ClusterID && t.Locality == o.Locality &&
		t.WorkloadName == o.WorkloadName && t.WorkloadType == o.WorkloadType &&
		t.CanonicalName == o.CanonicalName && t.CanonicalRevision == o.CanonicalRevision &&
		t.Hostname == o.Hostname && t.Protocol == o.Protocol && t.HostNetwork == o.HostNetwork &&
		t.NativeTunnel == o.NativeTunnel && t.ApplicationTunnel == o.ApplicationTunnel &&
		t.Waypoint == o.Waypoint && t.NetworkGateway == o.NetworkGateway && t.Capacity == o.Capacity && t.Outbound == o.Outbound &&
		slices.Equal(t.Policies, o.Policies) && slices.Equal(t.Egress, o.Egress) &&
		slices.EqualFunc(t.Services, o.Services, func(a, b Membership) bool {
			return a.Service == b.Service && slices.Equal(a.Ports, b.Ports)
		})
}

// seed is random so that what users choose cannot collide on purpose.
var seed = maphash.MakeSeed()

// setHash hashes what usually tells traits apart; same decides.
func (t *Traits) setHash() {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, s := range [...]string{
		t.Namespace, t.ServiceAccount, t.Network, t.ClusterID, t.Locality.Region, t.Locality.Zone, t.Locality.Subzone,
		t.WorkloadName, t.CanonicalName, t.CanonicalRevision, t.Hostname, t.Waypoint.Hostname.Hostname,
	} {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0)
	}
	for _, p := range t.Policies {
		_, _ = h.WriteString(p)
		_ = h.WriteByte(0)
	}
	for _, p := range t.Egress {
		_, _ = h.WriteString(p)
		_ = h.WriteByte(0)
	}
	for _, m := range t.Services {
		_, _ = h.WriteString(m.Service.Hostname)
		_ = h.WriteByte(byte(len(m.Ports)))
	}
	_ = h.WriteByte(byte(t.Protocol))
	_ = h.WriteByte(byte(t.Outbound))
	t.hash = h.Sum64()
}
