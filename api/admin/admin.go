// Package admin declares what the programs answer on their administrative ports: each
// answer once, as the types that its program fills in and that the command line and tests
// read. Names, cases and what is left out of a proxy's dump follow Istio's, whose tools
// read it as well; fields that Istio does not have are Ambit's own.
//
// A type holds values only. How a table shows them is the command line's.
package admin

import "time"

// Paths of the answers.
const (
	// PathDump answers a Ztunnel, or a Waypoint.
	PathDump = "/config_dump"
	// PathFollowers answers a list of Follower. This path and the next ones are ambitd's.
	PathFollowers = "/debug/syncz"
	// PathStatus answers a list of Object.
	PathStatus = "/debug/status"
	// PathProblems answers a list of Problem.
	PathProblems = "/debug/problems"
	// PathResources answers Resources.
	PathResources = "/debug/config_dump"
	// PathAuthority answers an Authority.
	PathAuthority = "/debug/ca"
	// PathRotate starts a change of the root by POST, and answers an Authority.
	PathRotate = "/ca/rotate"
	// PathPods answers a list of EnrolledPod. It is the node agent's.
	PathPods = "/debug/pods"
)

// Version is that of a program.
type Version struct {
	Version     string `json:"version"`
	GitRevision string `json:"gitRevision"`
	GoVersion   string `json:"goVersion"`
}

// Certificates are those of one identity.
type Certificates struct {
	Identity string `json:"identity"`
	// State is Available, Initializing, or "Unavailable: " and why.
	State     string        `json:"state"`
	CertChain []Certificate `json:"certChain"`
	RootCerts []Certificate `json:"rootCerts"`
}

// Certificate is one X.509 certificate.
type Certificate struct {
	PEM            []byte    `json:"pem"`          // base64 of the PEM text in JSON
	SerialNumber   string    `json:"serialNumber"` // decimal
	ValidFrom      time.Time `json:"validFrom"`
	ExpirationTime time.Time `json:"expirationTime"`
}

// EnrolledPod is a pod as its node's agent sees it.
type EnrolledPod struct {
	Pod      string `json:"pod"` // namespace/name
	UID      string `json:"uid"`
	Enrolled bool   `json:"enrolled"`
	Served   bool   `json:"served"` // by the newest node proxy
	State    string `json:"state"`  // of the pod's label: enabled, pending or empty
}

// Telemetry is a Telemetry object that acts at a proxy, or the mesh's settings.
type Telemetry struct {
	Object    string   `json:"object,omitempty"` // namespace/name; empty for the mesh's settings
	Scope     string   `json:"scope"`
	Side      string   `json:"side,omitempty"` // empty for both
	Services  []string `json:"services,omitempty"`
	Workloads []string `json:"workloads,omitempty"` // UIDs
	Provider  string   `json:"tracingProvider,omitempty"`
}
