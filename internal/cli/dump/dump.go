// Package dump reads the state of a node proxy from its config_dump.
package dump

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Dump is /config_dump of a ztunnel, as far as tables need it. Each element
// keeps its original text: what is printed as JSON is what ztunnel said.
type Dump struct {
	Workloads     []Element[Workload]          `json:"workloads"`
	Services      []Element[Service]           `json:"services"`
	Policies      []Element[Policy]            `json:"policies"`
	Certificates  []Element[Certificates]      `json:"certificates"`
	WorkloadState map[string]Element[PodState] `json:"workloadState"`
}

// Workload is one address book entry of a pod or a WorkloadEntry.
type Workload struct {
	WorkloadIPs []string  `json:"workloadIps"`
	Waypoint    *Waypoint `json:"waypoint"`
	Protocol    string    `json:"protocol"`
	UID         string    `json:"uid"`
	Name        string    `json:"name"`
	Namespace   string    `json:"namespace"`
	Hostname    string    `json:"hostname"`
	Node        string    `json:"node"`

	TrustDomain    string   `json:"trustDomain"` // elided when it is cluster.local
	ServiceAccount string   `json:"serviceAccount"`
	Status         string   `json:"status"`
	Policies       []string `json:"authorizationPolicies"` // namespace/name
	Services       []string `json:"services"`              // namespace/hostname
}

// Waypoint is a reference to a waypoint.
type Waypoint struct {
	Destination string `json:"destination"` // network/address, or namespace/hostname
}

// Service is a service with its endpoints, by the UID of their workload.
type Service struct {
	Name      string              `json:"name"`
	Namespace string              `json:"namespace"`
	Hostname  string              `json:"hostname"`
	VIPs      []string            `json:"vips"` // network/address
	Waypoint  *Waypoint           `json:"waypoint"`
	Endpoints map[string]Endpoint `json:"endpoints"`
}

// Endpoint is one endpoint of a service.
type Endpoint struct {
	Status string `json:"status"`
}

// Policy is an authorization policy that the proxy enforces.
type Policy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Action    string `json:"action"`
	DryRun    bool   `json:"dryRun"`
	// Rules: one of them must match; of each, every clause; of a clause, one
	// of its matches.
	Rules [][][]Match `json:"rules"`
}

// Match has conditions, all of which must hold. In a list, one entry must.
type Match struct {
	Namespaces          []Text    `json:"namespaces"`
	NotNamespaces       []Text    `json:"notNamespaces"`
	ServiceAccounts     []Account `json:"serviceAccounts"`
	NotServiceAccounts  []Account `json:"notServiceAccounts"`
	Principals          []Text    `json:"principals"`
	NotPrincipals       []Text    `json:"notPrincipals"`
	SourceIPs           []string  `json:"sourceIps"`
	NotSourceIPs        []string  `json:"notSourceIps"`
	DestinationIPs      []string  `json:"destinationIps"`
	NotDestinationIPs   []string  `json:"notDestinationIps"`
	DestinationPorts    []uint16  `json:"destinationPorts"`
	NotDestinationPorts []uint16  `json:"notDestinationPorts"`
}

// Text is a pattern of a string.
type Text struct {
	Exact, Prefix, Suffix string
	Presence              *struct{} // any value at all
}

// UnmarshalJSON reads {"Exact": "x"} and the like; Presence has any value.
func (t *Text) UnmarshalJSON(b []byte) error {
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for name, into := range map[string]*string{"Exact": &t.Exact, "Prefix": &t.Prefix, "Suffix": &t.Suffix} {
		if raw, ok := m[name]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return err
			}
		}
	}
	if _, ok := m["Presence"]; ok {
		t.Presence = &struct{}{}
	}
	return nil
}

// Account is a service account.
type Account struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Certificates are those of one identity.
type Certificates struct {
	Identity  string        `json:"identity"`
	State     string        `json:"state"`
	CertChain []Certificate `json:"certChain"`
	RootCerts []Certificate `json:"rootCerts"`
}

// Certificate is one certificate.
type Certificate struct {
	SerialNumber   string `json:"serialNumber"` // decimal
	ValidFrom      string `json:"validFrom"`    // RFC 3339
	ExpirationTime string `json:"expirationTime"`
}

// PodState is a pod that the proxy serves, with its connections.
type PodState struct {
	State       string `json:"state"`
	Connections struct {
		Inbound  []Connection `json:"inbound"`
		Outbound []Connection `json:"outbound"`
	} `json:"connections"`
	Info struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"info"`
	// DNS is what its look-ups come to; nil where the proxy does not answer them.
	DNS *struct {
		Requests         uint64 `json:"requests"`
		UpstreamRequests uint64 `json:"upstreamRequests"`
		Waiting          int64  `json:"waiting"`
	} `json:"dns"`
	// Egress is its outbound traffic policy; nil while its workload is not known.
	Egress *struct {
		Mode     string `json:"mode"`
		Refused  uint64 `json:"refused"`
		Reported uint64 `json:"reported"`
	} `json:"egress"`
}

// Connection is an open connection.
type Connection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// Element is a value and the text it was read from.
type Element[T any] struct {
	V   T
	Raw json.RawMessage
}

// UnmarshalJSON reads the value, and keeps its text.
func (e *Element[T]) UnmarshalJSON(b []byte) error {
	e.Raw = append(json.RawMessage{}, b...)
	return json.Unmarshal(b, &e.V)
}

// MarshalJSON returns the original text.
func (e Element[T]) MarshalJSON() ([]byte, error) { return e.Raw, nil }

// elements reads a list, or an object whose values are the elements: older
// proxies use the latter.
type elements[T any] []Element[T]

// UnmarshalJSON reads the list, or the object.
func (e *elements[T]) UnmarshalJSON(b []byte) error {
	var list []Element[T]
	if json.Unmarshal(b, &list) == nil {
		*e = list
		return nil
	}
	var m map[string]Element[T]
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		*e = append(*e, m[k])
	}
	return nil
}

// Parse reads a config_dump, and sorts its lists by name.
func Parse(b []byte) (*Dump, error) {
	var in struct {
		Workloads     elements[Workload]           `json:"workloads"`
		Services      elements[Service]            `json:"services"`
		Policies      elements[Policy]             `json:"policies"`
		Certificates  elements[Certificates]       `json:"certificates"`
		WorkloadState map[string]Element[PodState] `json:"workloadState"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("this is not a config_dump of a ztunnel: %w", err)
	}
	d := &Dump{in.Workloads, in.Services, in.Policies, in.Certificates, in.WorkloadState}
	slices.SortStableFunc(d.Workloads, func(a, b Element[Workload]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.UID, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.UID)
	})
	slices.SortStableFunc(d.Services, func(a, b Element[Service]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.Hostname, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.Hostname)
	})
	slices.SortStableFunc(d.Policies, func(a, b Element[Policy]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name, b.V.Namespace+"\x00"+b.V.Name)
	})
	slices.SortStableFunc(d.Certificates, func(a, b Element[Certificates]) int {
		return strings.Compare(a.V.Identity, b.V.Identity)
	})
	return d, nil
}

// Waypoint is the name of the service that a reference leads to.
func (d *Dump) Waypoint(w *Waypoint) string {
	if w == nil {
		return "None"
	}
	for _, s := range d.Services {
		if slices.Contains(s.V.VIPs, w.Destination) || s.V.Namespace+"/"+s.V.Hostname == w.Destination {
			return s.V.Name
		}
	}
	return "NA"
}

// Names maps addresses to what people call them.
func (d *Dump) Names() map[string]string {
	out := map[string]string{}
	for _, w := range d.Workloads {
		for _, ip := range w.V.WorkloadIPs {
			out[ip] = w.V.Name + "." + w.V.Namespace
		}
	}
	for _, s := range d.Services {
		for _, vip := range s.V.VIPs {
			out[AfterSlash(vip)] = s.V.Hostname
		}
	}
	return out
}

// AfterSlash drops the network from network/address.
func AfterSlash(s string) string { return s[strings.IndexByte(s, '/')+1:] }
