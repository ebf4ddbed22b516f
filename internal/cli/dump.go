package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// dump is /config_dump of a ztunnel, as far as tables need it. Each element
// keeps its original text: what is printed as JSON is what ztunnel said.
type dump struct {
	Workloads     []element[workloadDump]      `json:"workloads"`
	Services      []element[serviceDump]       `json:"services"`
	Policies      []element[policyDump]        `json:"policies"`
	Certificates  []element[certificateDump]   `json:"certificates"`
	WorkloadState map[string]element[podState] `json:"workloadState"`
}

type workloadDump struct {
	WorkloadIPs []string      `json:"workloadIps"`
	Waypoint    *waypointDump `json:"waypoint"`
	Protocol    string        `json:"protocol"`
	UID         string        `json:"uid"`
	Name        string        `json:"name"`
	Namespace   string        `json:"namespace"`
	Hostname    string        `json:"hostname"`
	Node        string        `json:"node"`

	TrustDomain    string   `json:"trustDomain"` // elided when it is cluster.local
	ServiceAccount string   `json:"serviceAccount"`
	Status         string   `json:"status"`
	Policies       []string `json:"authorizationPolicies"` // namespace/name
	Services       []string `json:"services"`              // namespace/hostname
}

type waypointDump struct {
	Destination string `json:"destination"` // network/address, or namespace/hostname
}

type serviceDump struct {
	Name      string                  `json:"name"`
	Namespace string                  `json:"namespace"`
	Hostname  string                  `json:"hostname"`
	VIPs      []string                `json:"vips"` // network/address
	Waypoint  *waypointDump           `json:"waypoint"`
	Endpoints map[string]endpointDump `json:"endpoints"`
}

type endpointDump struct {
	Status string `json:"status"`
}

type policyDump struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Action    string `json:"action"`
	DryRun    bool   `json:"dryRun"`
	// Rules: one of them must match; of each, every clause; of a clause, one
	// of its matches.
	Rules [][][]matchDump `json:"rules"`
}

type matchDump struct {
	Namespaces          []textDump    `json:"namespaces"`
	NotNamespaces       []textDump    `json:"notNamespaces"`
	ServiceAccounts     []accountDump `json:"serviceAccounts"`
	NotServiceAccounts  []accountDump `json:"notServiceAccounts"`
	Principals          []textDump    `json:"principals"`
	NotPrincipals       []textDump    `json:"notPrincipals"`
	SourceIPs           []string      `json:"sourceIps"`
	NotSourceIPs        []string      `json:"notSourceIps"`
	DestinationIPs      []string      `json:"destinationIps"`
	NotDestinationIPs   []string      `json:"notDestinationIps"`
	DestinationPorts    []uint16      `json:"destinationPorts"`
	NotDestinationPorts []uint16      `json:"notDestinationPorts"`
}

type textDump struct {
	Exact, Prefix, Suffix string
	Presence              *struct{} // any value at all
}

// UnmarshalJSON reads {"Exact": "x"} and the like; Presence has any value.
func (t *textDump) UnmarshalJSON(b []byte) error {
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

type accountDump struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type certificateDump struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	CertChain []certDump `json:"certChain"`
	RootCerts []certDump `json:"rootCerts"`
}

type certDump struct {
	SerialNumber   string `json:"serialNumber"` // decimal
	ValidFrom      string `json:"validFrom"`    // RFC 3339
	ExpirationTime string `json:"expirationTime"`
}

type podState struct {
	State       string `json:"state"`
	Connections struct {
		Inbound  []connectionDump `json:"inbound"`
		Outbound []connectionDump `json:"outbound"`
	} `json:"connections"`
	Info struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"info"`
}

type connectionDump struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// element is a value and the text it was read from.
type element[T any] struct {
	V   T
	raw json.RawMessage
}

func (e *element[T]) UnmarshalJSON(b []byte) error {
	e.raw = append(json.RawMessage{}, b...)
	return json.Unmarshal(b, &e.V)
}

func (e element[T]) MarshalJSON() ([]byte, error) { return e.raw, nil }

// elements reads a list, or an object whose values are the elements: older
// proxies use the latter.
type elements[T any] []element[T]

func (e *elements[T]) UnmarshalJSON(b []byte) error {
	var list []element[T]
	if json.Unmarshal(b, &list) == nil {
		*e = list
		return nil
	}
	var m map[string]element[T]
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		*e = append(*e, m[k])
	}
	return nil
}

func parseDump(b []byte) (*dump, error) {
	var in struct {
		Workloads     elements[workloadDump]       `json:"workloads"`
		Services      elements[serviceDump]        `json:"services"`
		Policies      elements[policyDump]         `json:"policies"`
		Certificates  elements[certificateDump]    `json:"certificates"`
		WorkloadState map[string]element[podState] `json:"workloadState"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("this is not a config_dump of a ztunnel: %w", err)
	}
	d := &dump{in.Workloads, in.Services, in.Policies, in.Certificates, in.WorkloadState}
	slices.SortStableFunc(d.Workloads, func(a, b element[workloadDump]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.UID, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.UID)
	})
	slices.SortStableFunc(d.Services, func(a, b element[serviceDump]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.Hostname, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.Hostname)
	})
	slices.SortStableFunc(d.Policies, func(a, b element[policyDump]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name, b.V.Namespace+"\x00"+b.V.Name)
	})
	slices.SortStableFunc(d.Certificates, func(a, b element[certificateDump]) int {
		return strings.Compare(a.V.Identity, b.V.Identity)
	})
	return d, nil
}

// waypoint is the name of the service that a reference leads to.
func (d *dump) waypoint(w *waypointDump) string {
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

// names maps addresses to what people call them.
func (d *dump) names() map[string]string {
	out := map[string]string{}
	for _, w := range d.Workloads {
		for _, ip := range w.V.WorkloadIPs {
			out[ip] = w.V.Name + "." + w.V.Namespace
		}
	}
	for _, s := range d.Services {
		for _, vip := range s.V.VIPs {
			out[afterSlash(vip)] = s.V.Hostname
		}
	}
	return out
}

// afterSlash drops the network from network/address.
func afterSlash(s string) string { return s[strings.IndexByte(s, '/')+1:] }
