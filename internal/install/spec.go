package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Spec says what to install, in the words of Istio's installer: what its
// IstioOperator file has below spec.
type Spec struct {
	Profile    string                   `json:"profile,omitempty"`
	Hub        string                   `json:"hub,omitempty"`
	Tag        any                      `json:"tag,omitempty"` // 1.2 is a number in YAML
	Namespace  string                   `json:"namespace,omitempty"`
	Revision   string                   `json:"revision,omitempty"`
	MeshConfig map[string]any           `json:"meshConfig,omitempty"`
	Components map[string]ComponentSpec `json:"components,omitempty"`
	Values     map[string]any           `json:"values,omitempty"`
}

// ComponentSpec is what is said about one component.
type ComponentSpec struct {
	Enabled   *bool          `json:"enabled,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	K8s       map[string]any `json:"k8s,omitempty"`
}

// componentNames are the names that people know the components by.
var componentNames = map[string]Component{
	"base": Base, "pilot": Ambitd, "istiod": Ambitd, "ambitd": Ambitd, "cni": CNI, "ztunnel": Ztunnel, "observability": Observability,
}

// notOurs are components of Istio that do not exist here: they may be named to
// be turned off.
var notOurs = []string{"ingressGateways", "egressGateways", "istiodRemote"}

// profiles is what each profile installs. Observability is in none: it needs programs of
// others.
var profiles = map[string][]Component{
	"ambient": {Base, Ambitd, CNI, Ztunnel},
	"minimal": {Base, Ambitd},
	"empty":   {},
}

// Parse reads files of YAML, each an IstioOperator or the spec of one, then
// settings as path=value, later ones on top of earlier ones.
func Parse(files [][]byte, settings []string) (*Spec, error) {
	all := map[string]any{}
	for i, raw := range files {
		m, err := parseFile(raw)
		if err != nil {
			return nil, fmt.Errorf("file %d of values: %w", i+1, err)
		}
		all = overlay(all, m)
	}
	for _, s := range settings {
		if err := strvals.ParseInto(s, all); err != nil {
			return nil, fmt.Errorf("--set %q: %w; it takes path=value", s, err)
		}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var s Spec
	if err := dec.Decode(&s); err != nil {
		return nil, explainUnknown(err)
	}
	return &s, s.complete()
}

// parseFile returns the spec that a file holds.
func parseFile(raw []byte) (map[string]any, error) {
	var m map[string]any
	reader := utilyaml.NewYAMLReader(newBufio(raw))
	first, err := reader.Read()
	if errors.Is(err, io.EOF) {
		return nil, nil // an empty file
	}
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict(first, &m); err != nil {
		return nil, err
	}
	if more, err := reader.Read(); err == nil && len(bytes.TrimSpace(more)) > 0 {
		return nil, errors.New("there is more than one document in it: one file, one set of values")
	}
	kind, given := m["kind"]
	if !given {
		return m, nil
	}
	if kind != "IstioOperator" {
		return nil, fmt.Errorf("it is a %v; values are an IstioOperator, or what that has below spec", kind)
	}
	spec, _ := m["spec"].(map[string]any)
	return spec, nil
}

// explainUnknown says where a field that is not understood may belong.
func explainUnknown(err error) error {
	_, field, ok := strings.Cut(err.Error(), "unknown field ")
	if !ok {
		return fmt.Errorf("values: %w", err)
	}
	field = strings.Trim(field, `"`)
	return fmt.Errorf("values: %q is not understood: there are profile, hub, tag, namespace, revision, meshConfig, components and values; what is a value of a chart is written values.%s", field, field)
}

// complete checks and fills in.
func (s *Spec) complete() error {
	if s.Profile == "" {
		s.Profile = "ambient"
	}
	if _, ok := profiles[s.Profile]; !ok {
		return fmt.Errorf("profile %q is not known: there are %s; Istio's others install sidecars and gateways", s.Profile, strings.Join(slices.Sorted(maps.Keys(profiles)), ", "))
	}
	if s.Namespace == "" {
		s.Namespace = wellknown.SystemNamespace
	}
	if msgs := validation.IsDNS1123Label(s.Namespace); len(msgs) > 0 {
		return fmt.Errorf("namespace %q: %s", s.Namespace, strings.Join(msgs, "; "))
	}
	if s.Revision == "" {
		s.Revision, _ = s.Values["revision"].(string)
	}
	if s.Revision != "" {
		if msgs := validation.IsDNS1123Label(s.Revision); len(msgs) > 0 {
			return fmt.Errorf("revision %q: %s", s.Revision, strings.Join(msgs, "; "))
		}
	}
	for name, c := range s.Components {
		if err := checkComponent(name, c, s.Namespace); err != nil {
			return err
		}
	}
	return nil
}

func checkComponent(name string, c ComponentSpec, namespace string) error {
	_, known := componentNames[name]
	foreign := slices.Contains(notOurs, name)
	switch {
	case !known && !foreign:
		return fmt.Errorf("components.%s is not known: there are %s", name, strings.Join(slices.Sorted(maps.Keys(componentNames)), ", "))
	case foreign && c.Enabled != nil && *c.Enabled:
		return fmt.Errorf("components.%s: this mesh has no such component", name)
	case len(c.K8s) > 0:
		return fmt.Errorf("components.%s.k8s: overlays of Kubernetes objects are not supported; set values.%s.resources, affinity, tolerations, env and so on, or post-process `ambit manifest generate`", name, name)
	case c.Namespace != "" && c.Namespace != namespace:
		return fmt.Errorf("components.%s.namespace: the mesh is installed into one namespace (%s); use the charts with helm for another arrangement", name, namespace)
	}
	return nil
}

// Enabled lists the components to install, in the order of installation.
func (s *Spec) Enabled() []Component {
	on := map[Component]bool{}
	for _, c := range profiles[s.Profile] {
		on[c] = true
	}
	for name, c := range s.Components {
		if part, ok := componentNames[name]; ok && c.Enabled != nil {
			on[part] = *c.Enabled
		}
	}
	var list []Component
	for _, c := range slices.Concat(phases...) {
		if on[c] {
			list = append(list, c)
		}
	}
	return list
}

// chartValues is what a component's chart is given.
func (s *Spec) chartValues(c Component) map[string]any {
	v := map[string]any{"profile": s.Profile, "revision": s.Revision}
	for key, value := range s.Values {
		switch key {
		case "pilot", "cni", "ztunnel", "observability":
			if chartKey[c] != key {
				continue
			}
		case "revision":
			continue
		}
		v[key] = value
	}
	if len(s.MeshConfig) > 0 {
		v = overlay(v, map[string]any{"meshConfig": s.MeshConfig})
	}
	global := map[string]any{"istioNamespace": s.Namespace}
	if s.Hub != "" {
		global["hub"] = s.Hub
	}
	if s.Tag != nil {
		global["tag"] = fmt.Sprint(s.Tag)
	}
	return overlay(v, map[string]any{"global": global})
}

// chartKey is the key below values that belongs to one chart alone.
var chartKey = map[Component]string{Ambitd: "pilot", CNI: "cni", Ztunnel: "ztunnel", Observability: "observability"}

// overlay merges b over a into a new map; maps are merged, all else replaced.
func overlay(a, b map[string]any) map[string]any {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range b {
		below, isMap := v.(map[string]any)
		if old, ok := out[k].(map[string]any); ok && isMap {
			out[k] = overlay(old, below)
			continue
		}
		out[k] = v
	}
	return out
}
