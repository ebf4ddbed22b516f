// Package dump reads the state of a node proxy from its config_dump.
package dump

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
)

// Dump is /config_dump of a ztunnel, as far as tables need it. Each element
// keeps its original text, which JSON output repeats.
type Dump struct {
	Workloads     []Element[admin.Workload]     `json:"workloads"`
	Services      []Element[admin.Service]      `json:"services"`
	Policies      []Element[admin.Policy]       `json:"policies"`
	Certificates  []Element[admin.Certificates] `json:"certificates"`
	WorkloadState map[string]Element[admin.Pod] `json:"workloadState"`
	// Traffic is nil where the proxy has no such thing.
	Traffic *admin.Traffic `json:"traffic,omitempty"`
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
		Workloads     elements[admin.Workload]      `json:"workloads"`
		Services      elements[admin.Service]       `json:"services"`
		Policies      elements[admin.Policy]        `json:"policies"`
		Certificates  elements[admin.Certificates]  `json:"certificates"`
		WorkloadState map[string]Element[admin.Pod] `json:"workloadState"`
		Traffic       *admin.Traffic                `json:"traffic"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("this is not a config_dump of a ztunnel: %w", err)
	}
	d := &Dump{in.Workloads, in.Services, in.Policies, in.Certificates, in.WorkloadState, in.Traffic}
	slices.SortStableFunc(d.Workloads, func(a, b Element[admin.Workload]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.UID, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.UID)
	})
	slices.SortStableFunc(d.Services, func(a, b Element[admin.Service]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name+"\x00"+a.V.Hostname, b.V.Namespace+"\x00"+b.V.Name+"\x00"+b.V.Hostname)
	})
	slices.SortStableFunc(d.Policies, func(a, b Element[admin.Policy]) int {
		return strings.Compare(a.V.Namespace+"\x00"+a.V.Name, b.V.Namespace+"\x00"+b.V.Name)
	})
	slices.SortStableFunc(d.Certificates, func(a, b Element[admin.Certificates]) int {
		return strings.Compare(a.V.Identity, b.V.Identity)
	})
	return d, nil
}

// Waypoint is the name of the service that a reference leads to.
func (d *Dump) Waypoint(w *admin.Gateway) string {
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
