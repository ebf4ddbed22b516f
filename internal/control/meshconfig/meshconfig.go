// Package meshconfig reads the part of Istio's MeshConfig that this control
// plane honours.
package meshconfig

import (
	"fmt"
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
	ServiceEntryVisibility *Visibility `json:"serviceEntryVisibility"`
}

// honoured are the names of Config's fields.
var honoured = []string{"trustDomain", "rootNamespace", "discoverySelectors", "serviceEntryVisibility"}

// Parse reads YAML. unread names the fields that are accepted and have no
// effect, in order.
func Parse(text []byte) (c Config, unread []string, err error) {
	var all map[string]any
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
	if c.ServiceEntryVisibility != nil {
		if err := c.ServiceEntryVisibility.compile(); err != nil {
			return Config{}, nil, fmt.Errorf("mesh configuration: serviceEntryVisibility.%w", err)
		}
	}
	for name := range all {
		if !slices.Contains(honoured, name) {
			unread = append(unread, name)
		}
	}
	slices.Sort(unread)
	return c, unread, nil
}
