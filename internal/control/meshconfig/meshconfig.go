// Package meshconfig reads the part of Istio's MeshConfig that this control
// plane honours.
package meshconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Config is what is honoured; zero values say nothing.
type Config struct {
	TrustDomain        string                 `json:"trustDomain"`
	RootNamespace      string                 `json:"rootNamespace"`
	DiscoverySelectors []metav1.LabelSelector `json:"discoverySelectors"`
	// ServiceEntryVisibility is nil when every entry may be as visible as it
	// says itself.
	ServiceEntryVisibility *Visibility `json:"-"`
}

// honoured are the names of Config's fields, but for that of the visibility.
var honoured = []string{"trustDomain", "rootNamespace", "discoverySelectors"}

// Parse reads YAML. unread names the fields that are accepted and have no
// effect, in order.
func Parse(text []byte) (c Config, unread []string, err error) {
	var all map[string]json.RawMessage
	if err := yaml.Unmarshal(text, &all); err != nil {
		return Config{}, nil, fmt.Errorf("mesh configuration: %w", err)
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return Config{}, nil, fmt.Errorf("mesh configuration: %w", err)
	}
	for i := range c.DiscoverySelectors {
		if _, err := metav1.LabelSelectorAsSelector(&c.DiscoverySelectors[i]); err != nil {
			return Config{}, nil, fmt.Errorf("mesh configuration: discoverySelectors[%d]: %w", i, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch {
		case meansVisibility(name):
			if err := c.restrict(name, all[name], text); err != nil {
				return Config{}, nil, fmt.Errorf("mesh configuration: %s: %w", name, err)
			}
		case !slices.Contains(honoured, name):
			unread = append(unread, name)
		}
	}
	return c, unread, nil
}
