package admin

// Traffic is what a node proxy has of rules, routes and limits of connections.
type Traffic struct {
	Rules  []TrafficRule  `json:"rules"`
	Routes []TrafficRoute `json:"routes"`
	Limits []RateLimit    `json:"rateLimits"`
}

// TrafficRule is a DestinationRule.
type TrafficRule struct {
	Object string `json:"object"` // kind, namespace and name
	Host   string `json:"host"`
	// Clients are the namespaces that see it, beside its own; none is all, unless Own is
	// true.
	Clients  []string       `json:"clients,omitempty"`
	Own      bool           `json:"own,omitempty"`
	Settings string         `json:"settings"`
	Groups   []TrafficGroup `json:"groups"`
}

// TrafficGroup is the connections from a namespace to a port of a service. Those of all
// namespaces are counted together, for each rule.
type TrafficGroup struct {
	Clients     string   `json:"clients"` // namespace
	Service     string   `json:"service"` // namespace/hostname
	Port        uint16   `json:"port"`
	Settings    string   `json:"settings"`
	Connections int64    `json:"connections"`
	Refused     uint64   `json:"refused"`           // beyond maxConnections
	Ejected     []string `json:"ejected,omitempty"` // UIDs
}

// TrafficRoute is a rule of a TCPRoute or a TLSRoute, for a port of a service.
type TrafficRoute struct {
	Object  string `json:"object"` // kind, namespace, name and rule
	Service string `json:"service"`
	Port    uint16 `json:"port"`
	Clients string `json:"clients,omitempty"` // their namespace; empty is all
	// Names are those that clients of TLS want, of a TLSRoute: "*" is all that no other rule
	// has.
	Names    []string `json:"names,omitempty"`
	Backends []string `json:"backends"`
}

// RateLimit is a RateLimit that a node proxy enforces for pods of its node.
type RateLimit struct {
	Object    string   `json:"object"` // kind, namespace and name
	Namespace string   `json:"namespace"`
	Hosts     []string `json:"services,omitempty"` // whose endpoints it is for
	Workloads []string `json:"workloads,omitempty"`
	Settings  string   `json:"settings"`
	DryRun    bool     `json:"dryRun,omitempty"`
	Allowed   uint64   `json:"allowed"`
	Refused   uint64   `json:"refused"`
	Reported  uint64   `json:"reported"` // too many, of a dry run
	// Unanswered are those about which a rate limit service gave no usable answer.
	Unanswered uint64 `json:"unanswered"`
	Parties    int64  `json:"parties"` // that all limits of its namespace count now
}
