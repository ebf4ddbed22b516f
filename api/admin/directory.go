package admin

// Workload is a pod or a WorkloadEntry in a proxy's directory.
type Workload struct {
	WorkloadIPs       []string   `json:"workloadIps"`
	Waypoint          *Gateway   `json:"waypoint,omitempty"`
	NetworkGateway    *Gateway   `json:"networkGateway,omitempty"`
	Protocol          string     `json:"protocol"`    // TCP or HBONE
	NetworkMode       string     `json:"networkMode"` // Standard or HostNetwork
	UID               string     `json:"uid,omitempty"`
	Name              string     `json:"name"`
	Namespace         string     `json:"namespace"`
	TrustDomain       string     `json:"trustDomain,omitempty"` // left out when it is cluster.local
	ServiceAccount    string     `json:"serviceAccount,omitempty"`
	Network           string     `json:"network,omitempty"`
	WorkloadName      string     `json:"workloadName,omitempty"`
	WorkloadType      string     `json:"workloadType,omitempty"`
	CanonicalName     string     `json:"canonicalName,omitempty"`
	CanonicalRevision string     `json:"canonicalRevision,omitempty"`
	Hostname          string     `json:"hostname,omitempty"`
	Node              string     `json:"node,omitempty"`
	NativeTunnel      bool       `json:"nativeTunnel,omitempty"`
	ApplicationTunnel *AppTunnel `json:"applicationTunnel,omitempty"`
	Policies          []string   `json:"authorizationPolicies,omitempty"` // namespace/name
	Status            string     `json:"status"`                          // Healthy or Unhealthy
	Ending            string     `json:"ending,omitempty"`                // SERVING or CLOSING, from when its end was asked for
	ClusterID         string     `json:"clusterId"`
	Locality          *Locality  `json:"locality,omitempty"`
	Services          []string   `json:"services,omitempty"` // namespace/hostname
	Capacity          uint32     `json:"capacity"`
	// Outbound is the mode of its outbound traffic policy, where it has one.
	Outbound string `json:"outboundTrafficPolicy,omitempty"`
}

// Gateway names a waypoint, or the gateway of a network.
type Gateway struct {
	Destination string `json:"destination"` // network/address, or namespace/hostname
	HBONEPort   uint16 `json:"hboneMtlsPort"`
}

// AppTunnel is how a workload gets connections inside its tunnel.
type AppTunnel struct {
	Protocol string  `json:"protocol"` // NONE or PROXY
	Port     *uint16 `json:"port"`
}

// Locality is where a workload runs.
type Locality struct {
	Region  string `json:"region"`
	Zone    string `json:"zone"`
	Subzone string `json:"subzone"`
}

// Service is a service in a proxy's directory, with the endpoints that get connections.
type Service struct {
	Name              string              `json:"name"`
	Namespace         string              `json:"namespace"`
	Hostname          string              `json:"hostname"`
	VIPs              []string            `json:"vips"` // network/address
	CIDRs             []Range             `json:"cidrVips,omitempty"`
	Ports             map[uint16]uint16   `json:"ports"`     // the service's to the program's
	Endpoints         map[string]Endpoint `json:"endpoints"` // by the UID of the workload
	SANs              []string            `json:"subjectAltNames"`
	Waypoint          *Gateway            `json:"waypoint,omitempty"`
	WeightedWaypoints []WeightedGateway   `json:"weightedWaypoints,omitempty"`
	EndpointsBehind   bool                `json:"endpointsBehindWaypoint,omitempty"`
	EndpointsTaken    bool                `json:"endpointsTakenByWaypoint,omitempty"`
	Beside            []string            `json:"besideWaypoint,omitempty"`
	LoadBalancer      *LoadBalancer       `json:"loadBalancer,omitempty"`
	ClientAffinity    bool                `json:"clientAffinity,omitempty"`
	IPFamilies        string              `json:"ipFamilies,omitempty"` // IPv4, IPv6 or Dual
	Canonical         bool                `json:"canonical"`
	Visibility        string              `json:"visibility"` // Public or Namespace
}

// Range is a range of addresses of a network.
type Range struct {
	Network string `json:"network"`
	CIDR    string `json:"cidr"`
}

// Endpoint is an endpoint of a service.
type Endpoint struct {
	UID    string            `json:"workloadUid"`
	Port   map[uint16]uint16 `json:"port"`   // the service's to the program's
	Status string            `json:"status"` // Healthy or Unhealthy
}

// WeightedGateway is one of several waypoints that share a service's connections.
type WeightedGateway struct {
	Destination Gateway `json:"destination"`
	Weight      uint32  `json:"weight"`
}

// LoadBalancer is how a service's endpoints are chosen.
type LoadBalancer struct {
	Preferences []string `json:"routingPreferences"` // scopes, the first first
	Mode        string   `json:"mode"`
	Health      string   `json:"healthPolicy"`
}
