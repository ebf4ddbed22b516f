package admin

import (
	"encoding/json"
	"time"
)

// Waypoint is the dump of a waypoint.
type Waypoint struct {
	Authentications []Authentication `json:"authentications"`
	Backends        []Backend        `json:"backends"`
	Certificates    []Certificates   `json:"certificates"`
	// Config has the settings of the process.
	Config             json.RawMessage     `json:"config"`
	Connections        []GatewayConnection `json:"connections"`
	ConnectionsActive  int                 `json:"connectionsActive"`
	ConnectionsOmitted int                 `json:"connectionsOmitted"` // beyond the bound of the list
	Policies           []RequestPolicy     `json:"policies"`
	Routes             []Route             `json:"routes"`
	Services           []Service           `json:"services"`
	Telemetry          []Telemetry         `json:"telemetry"`
	Version            Version             `json:"version"`
	Workloads          []Workload          `json:"workloads"`
}

// Route is a rule of a route.
type Route struct {
	Name      string       `json:"name"` // of the resource
	Origin    string       `json:"origin"`
	Kind      string       `json:"kind"`
	Namespace string       `json:"namespace"`
	Route     string       `json:"route"`
	Rule      int          `json:"rule"`
	RuleName  string       `json:"ruleName,omitempty"`
	Dropped   string       `json:"dropped,omitempty"` // why the rule is left out
	Parents   []string     `json:"parents"`
	Hosts     []string     `json:"hosts,omitempty"`
	Matches   []string     `json:"matches"`
	Backends  []BackendRef `json:"backends"`
	Filters   []string     `json:"filters,omitempty"`
	Timeouts  *Timeouts    `json:"timeouts,omitempty"`
	Retries   int          `json:"retries"`
	Session   string       `json:"session,omitempty"`
}

// BackendRef is a backend of a rule.
type BackendRef struct {
	Name    string `json:"name"`
	Weight  uint32 `json:"weight"`
	Invalid string `json:"invalid,omitempty"` // why it cannot be used
}

// Timeouts are those of a rule, such as 10s.
type Timeouts struct {
	Request string `json:"request,omitempty"`
	Try     string `json:"try,omitempty"`
}

// Backend is a port of a service that routes send to, or that has no routes.
type Backend struct {
	Namespace string            `json:"namespace"`
	Hostname  string            `json:"hostname"`
	Port      uint16            `json:"port"`
	Protocol  string            `json:"protocol"`
	Known     bool              `json:"known"` // the service has come from the control plane
	Endpoints []BackendEndpoint `json:"endpoints"`
	Limits    *Limits           `json:"limits,omitempty"`
}

// Limits are those of a DestinationRule.
type Limits struct {
	Connections uint32 `json:"connections,omitempty"`
	Pending     uint32 `json:"pending,omitempty"`
	Requests    uint32 `json:"requests,omitempty"`
}

// BackendEndpoint is an endpoint of a backend.
type BackendEndpoint struct {
	Workload string `json:"workload"` // namespace/name
	Address  string `json:"address,omitempty"`
	Healthy  bool   `json:"healthy"`
	LeftOut  bool   `json:"leftOut,omitempty"` // on a loop at least
	Protocol string `json:"protocol"`
}

// GatewayConnection is a connection that a client's node proxy has opened.
type GatewayConnection struct {
	Client   string    `json:"client,omitempty"` // namespace/name; empty when unknown
	Identity string    `json:"identity"`
	Source   string    `json:"source"`
	Called   string    `json:"called"` // namespace/hostname of a service, or the UID of a workload
	Port     uint16    `json:"port"`
	Protocol string    `json:"protocol"` // HTTP/1.1, HTTP/2, TCP; empty before it is known
	Endpoint string    `json:"endpoint,omitempty"`
	Since    time.Time `json:"since"`
}

// RequestPolicy is an AuthorizationPolicy that a waypoint enforces.
type RequestPolicy struct {
	Resource string   `json:"resource"`
	Policy   string   `json:"policy"` // namespace/name
	Action   string   `json:"action"`
	DryRun   bool     `json:"dryRun,omitempty"`
	For      []string `json:"for"` // services; "*" is everything
	Rules    int      `json:"rules"`
	Provider string   `json:"provider,omitempty"` // of CUSTOM: the authorizer that is asked, and where
	Error    string   `json:"error,omitempty"`
}

// Authentication is a RequestAuthentication that a waypoint enforces.
type Authentication struct {
	Resource  string          `json:"resource"`
	Policy    string          `json:"policy"` // namespace/name
	For       []string        `json:"for"`    // services; "*" is everything
	Providers []TokenProvider `json:"providers"`
	Error     string          `json:"error,omitempty"`
}

// TokenProvider is an issuer whose tokens are accepted.
type TokenProvider struct {
	Issuer    string   `json:"issuer"`
	Audiences []string `json:"audiences,omitempty"`
	Source    string   `json:"source,omitempty"`
	Keys      int      `json:"keys"`
}
