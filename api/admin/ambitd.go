package admin

import (
	"encoding/json"
	"time"
)

// Follower is a client of a control plane.
type Follower struct {
	Name      string         `json:"name"` // pod.namespace
	Cluster   string         `json:"cluster"`
	Version   string         `json:"version,omitempty"`
	Types     []string       `json:"types"` // their last words
	Peer      string         `json:"peer"`
	Connected time.Time      `json:"connected"`
	Detail    []FollowedType `json:"detail"`
}

// FollowedType is a type that a client has subscribed to.
type FollowedType struct {
	Type      string `json:"type"`
	Wildcard  bool   `json:"wildcard"`
	Resources int    `json:"resources"`
	Pending   int    `json:"pending"`
	Sent      string `json:"sentNonce,omitempty"`
	Acked     string `json:"ackedNonce,omitempty"`
	Synced    bool   `json:"synced"`
	Error     string `json:"error,omitempty"`
}

// Resources are all that a control plane sends.
type Resources struct {
	Addresses []Resource `json:"addresses"`
	Policies  []Resource `json:"policies"`
	// Others are resources of further types, by the last word of the type.
	Others map[string][]Resource `json:"others,omitempty"`
}

// Resource is one resource.
type Resource struct {
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Aliases []string        `json:"aliases,omitempty"`
	Body    json.RawMessage `json:"resource"` // null where it has no JSON form
}

// Stage is where a change of the root stands.
type Stage string

// The stages, in order; after the last one the authority is steady again and
// the old root is retired.
const (
	Steady Stage = "steady"
	// NewRootDistributed: the old root signs, both are in the trust bundle,
	// until every certificate whose owner has only the old root has expired.
	NewRootDistributed Stage = "new-root-distributed"
	// SigningByNew: the new root signs, both are in the trust bundle, until
	// every certificate that the old root signed has expired.
	SigningByNew Stage = "signing-by-new"
)

// Authority is the state of a certificate authority.
type Authority struct {
	Stage Stage `json:"stage"`
	// Until is when the stage ends by itself.
	Until         time.Time `json:"until,omitzero"`
	Signer        string    `json:"signer"`
	SignerExpires time.Time `json:"signerExpires"`
	// NextSigner signs when the stage new-root-distributed ends.
	NextSigner string `json:"nextSigner,omitempty"`
	PluggedIn  bool   `json:"pluggedIn"`
	// Roots counts those that the mesh trusts.
	Roots int `json:"roots"`
	// PluginProblem is why the files of the plugged-in CA are not in use.
	PluginProblem string `json:"pluginProblem,omitempty"`
	// Leads reports whether this replica starts and advances rotations.
	Leads bool `json:"leads"`
}

// Object is the status of an object.
type Object struct {
	Kind       string      `json:"kind"`
	Group      string      `json:"group,omitempty"`
	Cluster    string      `json:"cluster,omitempty"` // empty for the control plane's own
	Namespace  string      `json:"namespace,omitempty"`
	Name       string      `json:"name"`
	Conditions []Condition `json:"conditions"`
	// Entries are parts of the status with conditions of their own, such as a route's
	// parents.
	Entries []ObjectEntry `json:"entries,omitempty"`
	File    string        `json:"file,omitempty"`
	Line    int           `json:"line,omitempty"` // from 1; 0 when unknown
}

// ObjectEntry is an entry of a list of an object's status.
type ObjectEntry struct {
	List       string          `json:"list"`
	Key        json.RawMessage `json:"key"` // the reference or the name that an entry is found by
	Conditions []Condition     `json:"conditions"`
}

// Condition is one statement about an object.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // True, False or Unknown
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Problem is an object, or a part of a file, that a control plane could not read.
type Problem struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`  // from 1; 0 when unknown
	Field   string `json:"field,omitempty"` // like spec.rules[0].from; empty when unknown
	Message string `json:"message"`
	// Ignored reports that nothing is wrong: the mesh reads no objects of that kind.
	Ignored bool `json:"ignored,omitempty"`
	// Object is Kind/namespace/name where the Kubernetes API was read.
	Object string `json:"object,omitempty"`
}
