// Package meshconfig reads the part of Istio's MeshConfig that this control
// plane honours.
package meshconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Config is what is honoured; zero values say nothing.
type Config struct {
	TrustDomain        string                 `json:"trustDomain"`
	TrustDomainAliases []string               `json:"trustDomainAliases"`
	RootNamespace      string                 `json:"rootNamespace"`
	DiscoverySelectors []metav1.LabelSelector `json:"discoverySelectors"`
	// ServiceEntryVisibility is nil when every entry may be as visible as it
	// says itself.
	ServiceEntryVisibility *Visibility `json:"-"`
	// Outbound is the mode of outboundTrafficPolicy; nil without one.
	Outbound *egress.Mode `json:"-"`
	// Providers are the extensionProviders.
	Providers Providers `json:"-"`
	// Telemetry has the fields about telemetry; nil when there is none.
	Telemetry *meshv1alpha1.MeshConfig `json:"-"`
}

// honoured are the names of Config's fields, but for those that are read one by one.
var honoured = []string{"trustDomain", "trustDomainAliases", "rootNamespace", "discoverySelectors"}

// maxTrustDomainAliases bounds how much longer a policy becomes by aliases.
const maxTrustDomainAliases = 64

// CheckTrustDomains reports what is wrong with names of the trust domain.
func CheckTrustDomains(domains []string) error {
	if len(domains) > maxTrustDomainAliases {
		return fmt.Errorf("there are %d (at most %d are possible)", len(domains), maxTrustDomainAliases)
	}
	for _, d := range domains {
		probe := identity.Identity{TrustDomain: d, Namespace: "a", ServiceAccount: "b"}
		if err := probe.Validate(); err != nil {
			return fmt.Errorf("%q: %w", d, err)
		}
	}
	return nil
}

// Discovers reports whether the control plane looks at a namespace with these
// labels: one selector is enough, and without selectors it looks at all. A
// selector that Parse refuses matches no namespace.
func Discovers(selectors []metav1.LabelSelector, of map[string]string) bool {
	return len(selectors) == 0 || slices.ContainsFunc(selectors, func(s metav1.LabelSelector) bool {
		sel, err := metav1.LabelSelectorAsSelector(&s)
		return err == nil && sel.Matches(labels.Set(of))
	})
}

// Discovery returns the selectors of the namespaces that a control plane with
// this configuration looks at: the mesh's own namespaces are always among them.
func (c Config) Discovery(always ...string) []metav1.LabelSelector {
	if len(c.DiscoverySelectors) == 0 {
		return nil
	}
	return append(slices.Clone(c.DiscoverySelectors), metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpIn, Values: always,
	}}})
}

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
	if err := CheckTrustDomains(c.TrustDomainAliases); err != nil {
		return Config{}, nil, fmt.Errorf("mesh configuration: trustDomainAliases: %w", err)
	}
	if err := c.observe(all); err != nil {
		return Config{}, nil, fmt.Errorf("mesh configuration: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch {
		case meansVisibility(name):
			if err := c.restrict(name, all[name], text); err != nil {
				return Config{}, nil, fmt.Errorf("mesh configuration: %s: %w", name, err)
			}
		case meansOutbound(name):
			if err := c.confine(name, all[name], text); err != nil {
				return Config{}, nil, fmt.Errorf("mesh configuration: %s: %w", name, err)
			}
		case name == extensionProviders, name == extensionProvidersProto:
			if err := c.provide(all[name]); err != nil {
				return Config{}, nil, fmt.Errorf("mesh configuration: %s: %w", name, err)
			}
		case !slices.Contains(honoured, name) && !slices.Contains(observed, name):
			unread = append(unread, name)
		}
	}
	return c, unread, nil
}
