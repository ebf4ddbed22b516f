// Package ambit has the kinds of objects that are Ambit's own, of the group ambit.mesh.
package ambit

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// RateLimit limits the new connections to pods.
type RateLimit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RateLimitSpec   `json:"spec"`
	Status RateLimitStatus `json:"status,omitempty"`
}

// RateLimitSpec is what the author writes: either targets or a selector.
type RateLimitSpec struct {
	// TargetRefs are Services of the object's namespace.
	TargetRefs []TargetRef `json:"targetRefs,omitempty"`
	// Selector chooses pods of the object's namespace.
	Selector *Selector `json:"selector,omitempty"`
	// Mode is Enforce, which it is by default, or DryRun.
	Mode        string            `json:"mode,omitempty"`
	Connections []ConnectionLimit `json:"connections,omitempty"`
	// Global has a rate limit service asked about what the others permit.
	Global *GlobalLimit `json:"global,omitempty"`
}

// TargetRef names an object of the same namespace.
type TargetRef struct {
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

// Selector chooses pods by their labels.
type Selector struct {
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
}

// ConnectionLimit is how many new connections each pod accepts.
type ConnectionLimit struct {
	Rate int64 `json:"rate"`
	// Per is a time, as 1s, 1m or 1h; 1s by default.
	Per string `json:"per,omitempty"`
	// Burst is how many may come at once; the rate by default.
	Burst int64 `json:"burst,omitempty"`
	// By is Destination, which it is by default, SourceNamespace, SourceIdentity or
	// SourceAddress: whose connections are counted together.
	By string `json:"by,omitempty"`
}

// GlobalLimit is a service that speaks Envoy's protocol of rate limit services.
type GlobalLimit struct {
	Service GlobalService `json:"service"`
	Domain  string        `json:"domain"`
	// Timeout is how long an answer may take; 100ms by default.
	Timeout string `json:"timeout,omitempty"`
	// FailureMode is what becomes of a connection without an answer: Deny, which it is by
	// default, or Allow.
	FailureMode string       `json:"failureMode,omitempty"`
	Descriptors []Descriptor `json:"descriptors"`
}

// GlobalService names a port of a Service of the same namespace.
type GlobalService struct {
	Name string `json:"name"`
	Port int64  `json:"port"`
}

// Descriptor is what the service is asked about, as one.
type Descriptor struct {
	Entries []string `json:"entries"`
}

// RateLimitStatus is what the control plane reports.
type RateLimitStatus struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Labels returns the labels that pods must have; it may be called on nil.
func (s *Selector) Labels() map[string]string {
	if s == nil {
		return nil
	}
	return s.MatchLabels
}
