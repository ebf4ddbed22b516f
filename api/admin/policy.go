package admin

import "encoding/json"

// Policy is an authorization policy that a node proxy enforces.
type Policy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`  // Global, Namespace or WorkloadSelector
	Action    string `json:"action"` // Allow or Deny
	// Rules: one of them must match; of each, every clause; of a clause, one of its
	// matches.
	Rules  [][][]Match `json:"rules"`
	DryRun bool        `json:"dryRun"`
	// Error is why the policy cannot be enforced as it is written.
	Error string `json:"error,omitempty"`
}

// Match has conditions, all of which must hold. In a list, one entry must.
type Match struct {
	Namespaces          []Text    `json:"namespaces,omitempty"`
	NotNamespaces       []Text    `json:"notNamespaces,omitempty"`
	ServiceAccounts     []Account `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []Account `json:"notServiceAccounts,omitempty"`
	Principals          []Text    `json:"principals,omitempty"`
	NotPrincipals       []Text    `json:"notPrincipals,omitempty"`
	SourceIPs           []string  `json:"sourceIps,omitempty"`
	NotSourceIPs        []string  `json:"notSourceIps,omitempty"`
	DestinationIPs      []string  `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string  `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16  `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16  `json:"notDestinationPorts,omitempty"`
}

// Account is a service account.
type Account struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Kinds of a Text.
const (
	Exact    = "Exact"
	Prefix   = "Prefix"
	Suffix   = "Suffix"
	Presence = "Presence" // any value
)

// Text is a condition on a text. In JSON it is an object of one field: {"Prefix": "a"}.
type Text struct{ Kind, Value string }

// MarshalJSON writes Presence with an empty list, as Istio's proxy does.
func (t Text) MarshalJSON() ([]byte, error) {
	if t.Kind == Presence {
		return json.Marshal(map[string][]string{Presence: {}})
	}
	return json.Marshal(map[string]string{t.Kind: t.Value})
}

// UnmarshalJSON reads the one field that it has a kind for. Presence has any value.
func (t *Text) UnmarshalJSON(b []byte) error {
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*t = Text{}
	for _, kind := range []string{Exact, Prefix, Suffix} {
		if raw, ok := m[kind]; ok {
			t.Kind = kind
			return json.Unmarshal(raw, &t.Value)
		}
	}
	if _, ok := m[Presence]; ok {
		t.Kind = Presence
	}
	return nil
}
