package admin

import (
	"encoding/json"
	"strings"
)

// Ztunnel is the dump of a node proxy.
type Ztunnel struct {
	Certificates []Certificates `json:"certificates"`
	// Config has the settings of the process.
	Config   json.RawMessage `json:"config"`
	Policies []Policy        `json:"policies"`
	Services []Service       `json:"services"`
	// StaticConfig is the directory that was read from a file.
	StaticConfig json.RawMessage `json:"staticConfig"`
	Telemetry    []Telemetry     `json:"telemetry"`
	Traffic      *Traffic        `json:"traffic,omitempty"`
	Version      Version         `json:"version"`
	Workloads    []Workload      `json:"workloads"`
	// Pods are those of the node, by UID.
	Pods map[string]Pod `json:"workloadState"`
}

// Pod is a pod that a node proxy serves, or will serve.
type Pod struct {
	State       string       `json:"state"` // Up or Pending
	Connections *Connections `json:"connections,omitempty"`
	Info        PodInfo      `json:"info"`
	// DNS is absent where the proxy does not answer look-ups.
	DNS *DNS `json:"dns,omitempty"`
	// Egress is absent while the pod's workload has not come.
	Egress *Egress `json:"egress,omitempty"`
}

// PodInfo is what the node agent has handed over of a pod.
type PodInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Connections are the open connections of a pod.
type Connections struct {
	Inbound  []Inbound  `json:"inbound"`
	Outbound []Outbound `json:"outbound"`
}

// Inbound is a connection to a pod's program.
type Inbound struct {
	Src         string  `json:"src"`
	OriginalDst *string `json:"originalDst"` // the service that the client named
	ActualDst   string  `json:"actualDst"`
	Protocol    string  `json:"protocol"`
}

// Outbound is a connection of a pod's program.
type Outbound struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// DNS counts a pod's look-ups.
type DNS struct {
	Requests uint64 `json:"requests"`
	// UpstreamRequests are those that were passed to the pod's name servers.
	UpstreamRequests uint64 `json:"upstreamRequests"`
	// Waiting are those that wait for them now.
	Waiting int64 `json:"waiting"`
	IPv6    bool  `json:"ipv6"`
}

// Egress is a pod's outbound traffic policy, and what it did.
type Egress struct {
	Mode     string `json:"mode"`
	Refused  uint64 `json:"refused"`
	Reported uint64 `json:"reported"` // by a dry run
	// Policies are the EgressPolicies that select the pod.
	Policies []EgressPolicy `json:"policies,omitempty"`
	// UDP is Refused where a policy refuses the pod's UDP; empty otherwise.
	UDP string `json:"udp,omitempty"`
	// PolicyAllowed, PolicyRefused and PolicyReported count what the EgressPolicies decided.
	PolicyAllowed  uint64 `json:"policyAllowed,omitempty"`
	PolicyRefused  uint64 `json:"policyRefused,omitempty"`
	PolicyReported uint64 `json:"policyReported,omitempty"`
	// Answers is how many answers to look-ups are remembered.
	Answers int `json:"answers,omitempty"`
	// Calls are connections to the outside of the mesh, of pods that a policy watches.
	Calls []Call `json:"calls,omitempty"`
	// OtherCalls counts those that have no place in Calls.
	OtherCalls uint64 `json:"otherCalls,omitempty"`
}

// PolicyNames lists the policies for people, with their modes.
func (e *Egress) PolicyNames() string {
	out := make([]string, 0, len(e.Policies))
	for _, p := range e.Policies {
		out = append(out, p.Name+" ("+p.Mode+")")
	}
	return strings.Join(out, ", ")
}

// EgressPolicy is one that selects a pod.
type EgressPolicy struct {
	Name string `json:"name"` // namespace/name
	// Mode is Enforce, DryRun, Invalid or Missing.
	Mode string `json:"mode"`
}

// Call is what a pod has called outside of the mesh.
type Call struct {
	Host     string `json:"host,omitempty"`    // by which the address was found
	Address  string `json:"address,omitempty"` // empty where a waypoint chooses it
	Port     uint16 `json:"port"`
	Decision string `json:"decision"` // allowed, reported or refused
	Count    uint64 `json:"count"`
}
