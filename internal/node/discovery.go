package node

import (
	"fmt"
	"slices"

	"sigs.k8s.io/yaml"
)

// Discovery is which namespaces the control plane looks at. A pod of another
// namespace is not known to any proxy, and would be cut off if it was enrolled.
type Discovery struct {
	// Selectors choose namespaces by their labels; one of them is enough. None:
	// all.
	Selectors []Labels
	// Always are namespaces that are looked at whatever their labels: the mesh's
	// own.
	Always []string
}

// ParseDiscovery reads what Istio's MeshConfig says about it. It reads no other
// field: what is wrong there is the control plane's business.
func ParseDiscovery(text []byte) (Discovery, error) {
	var c struct {
		RootNamespace      string   `json:"rootNamespace"`
		DiscoverySelectors []Labels `json:"discoverySelectors"`
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return Discovery{}, fmt.Errorf("mesh configuration: %w", err)
	}
	for i, s := range c.DiscoverySelectors {
		for _, e := range s.MatchExpressions {
			if err := e.validate(); err != nil {
				return Discovery{}, fmt.Errorf("mesh configuration: discoverySelectors[%d]: %w", i, err)
			}
		}
	}
	d := Discovery{Selectors: c.DiscoverySelectors}
	if c.RootNamespace != "" {
		d.Always = []string{c.RootNamespace}
	}
	return d, nil
}

// Sees reports whether the control plane looks at a namespace.
func (d Discovery) Sees(namespace string, labels map[string]string) bool {
	return len(d.Selectors) == 0 || slices.Contains(d.Always, namespace) ||
		slices.ContainsFunc(d.Selectors, func(s Labels) bool { return s.Matches(labels) })
}

// whyUnseen is why a pod is not enrolled that is labelled for the mesh.
const whyUnseen = "the control plane does not look at its namespace: no discovery selector of the mesh matches it"

// SetDiscovery replaces which namespaces the control plane looks at.
func (a *Agent) SetDiscovery(d Discovery) {
	a.mu.Lock()
	a.cfg.Policy.Discovery = d
	a.news()
	a.mu.Unlock()
	a.all()
}

// unseen informs the owners of a pod once that its label has no effect.
func (a *Agent) unseen(st *state, pod Pod, why string) {
	if why != whyUnseen {
		st.unseen = false
		return
	}
	if !st.unseen {
		st.unseen = true
		a.cfg.Logger.Warn("a pod is labelled for the mesh and is not enrolled", "pod", pod.String(), "why", why)
		a.cfg.Tell(pod, Notice{Warning: true, Reason: ReasonNotDiscovered, Message: "the pod is labelled for the mesh and is not enrolled: " + why +
			"; label the namespace so that meshConfig.discoverySelectors choose it, or remove istio.io/dataplane-mode"})
	}
}
