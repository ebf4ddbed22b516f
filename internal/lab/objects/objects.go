// Package objects reads the YAML of a lab, and computes what the lab has to run for it.
// Values in, values out.
package objects

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Document is one YAML document, as its author wrote it.
type Document struct {
	Origin    string `json:"origin"` // file:line
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Text      string `json:"text"`
}

// Key names an object within a lab.
type Key struct{ Kind, Namespace, Name string }

// Key returns what the document is stored under.
func (d Document) Key() Key { return Key{d.Kind, d.Namespace, d.Name} }

// String is how kubectl would name it.
func (k Key) String() string {
	s := strings.ToLower(k.Kind) + "/" + k.Name
	if k.Namespace != "" {
		s += " (namespace " + k.Namespace + ")"
	}
	return s
}

// File is the name of the object's file in the lab's directory.
func (k Key) File() string {
	ns := k.Namespace
	if ns == "" {
		ns = "_"
	}
	return strings.ToLower(k.Kind) + "." + ns + "." + k.Name + ".yaml"
}

// clusterScoped are the kinds without a namespace.
var clusterScoped = map[string]bool{"Namespace": true, "Node": true, "GatewayClass": true}

// knownKinds maps what a user may type to the kind.
var knownKinds = map[string]string{
	"ns": "Namespace", "no": "Node", "po": "Pod", "svc": "Service", "sa": "ServiceAccount",
	"deploy": "Deployment", "ap": "AuthorizationPolicy", "pa": "PeerAuthentication", "ra": "RequestAuthentication",
	"we": "WorkloadEntry", "se": "ServiceEntry",
}

func init() {
	for _, k := range []string{
		"Namespace", "Node", "Pod", "Service", "ServiceAccount", "Deployment", "EndpointSlice", "ConfigMap",
		"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "WorkloadEntry", "ServiceEntry", "Gateway", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "ReferenceGrant", "RateLimit", "EgressPolicy",
	} {
		l := strings.ToLower(k)
		knownKinds[l] = k
		if strings.HasSuffix(l, "y") {
			l = strings.TrimSuffix(l, "y") + "ie"
		}
		knownKinds[l+"s"] = k
	}
}

// canonicalKind completes what a user typed for a kind.
func canonicalKind(s string) string {
	if k, ok := knownKinds[strings.ToLower(s)]; ok {
		return k
	}
	return s
}

// NewKey fills in the default namespace.
func NewKey(kind, namespace, name string) Key {
	k := Key{Kind: canonicalKind(kind), Namespace: namespace, Name: name}
	if clusterScoped[k.Kind] {
		k.Namespace = ""
	} else if k.Namespace == "" {
		k.Namespace = "default"
	}
	return k
}

// ParsePaths reads files, and all *.yaml and *.yml of directories.
func ParsePaths(paths []string) ([]Document, error) {
	var out []Document
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		files := []string{p}
		if st.IsDir() {
			if files, err = yamlFiles(p); err != nil {
				return nil, err
			}
			if len(files) == 0 {
				return nil, fmt.Errorf("no *.yaml or *.yml in %s", p)
			}
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			docs, err := ParseText(f, string(b))
			if err != nil {
				return nil, err
			}
			out = append(out, docs...)
		}
	}
	return out, nil
}

// yamlFiles lists the manifests in a directory, but not in those below it: as
// with kubectl, each directory is asked for.
func yamlFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// ParseText splits YAML into documents and checks what the lab itself acts on.
// All faults are reported, each with file and line.
func ParseText(name, text string) ([]Document, error) {
	var out []Document
	var faults []error
	for _, part := range splitDocuments(text) {
		origin := fmt.Sprintf("%s:%d", name, part.line)
		docs, err := parseDocument(part.text, true)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", origin, err))
			continue
		}
		for _, doc := range docs {
			doc.Origin = origin
			out = append(out, doc)
		}
	}
	return out, errors.Join(faults...)
}

type textPart struct {
	line int // of the first line that says something, from 1
	text string
}

// splitDocuments cuts at lines that begin with "---".
func splitDocuments(text string) []textPart {
	var out []textPart
	var b strings.Builder
	first := 0
	flush := func() {
		if first > 0 {
			out = append(out, textPart{first, b.String()})
		}
		b.Reset()
		first = 0
	}
	for i, line := range strings.SplitAfter(text, "\n") {
		if t := strings.TrimRight(line, " \t\r\n"); t == "---" || strings.HasPrefix(line, "--- ") {
			flush()
			continue
		}
		if t := strings.TrimSpace(line); first == 0 && t != "" && !strings.HasPrefix(t, "#") {
			first = i + 1
		}
		b.WriteString(line)
	}
	flush()
	return out
}

// parseDocument reads one object, or those of a List where one is allowed.
func parseDocument(text string, list bool) ([]Document, error) {
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Items             []map[string]any `json:"items"`
	}
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		return nil, plainer(err)
	}
	if head.Kind == "" && head.Name == "" && head.APIVersion == "" {
		return nil, nil
	}
	switch {
	case head.Kind == "List" && head.APIVersion == "v1" && list:
		return parseItems(head.Items)
	case head.Kind == "":
		return nil, errors.New("kind: missing")
	case head.APIVersion == "":
		return nil, errors.New("apiVersion: missing")
	case head.Name == "":
		return nil, errors.New("metadata.name: missing")
	case strings.ContainsAny(head.Name+head.Namespace+head.Kind, "/ \x00"):
		return nil, fmt.Errorf("metadata.name: %q is not a name", head.Name)
	}
	k := NewKey(head.Kind, head.Namespace, head.Name)
	doc := Document{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name, Text: text}
	_, err := doc.Decode()
	return []Document{doc}, err
}

func parseItems(items []map[string]any) ([]Document, error) {
	var out []Document
	for i, item := range items {
		b, err := yaml.Marshal(item)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		docs, err := parseDocument(string(b), false)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		out = append(out, docs...)
	}
	return out, nil
}

// Decode returns the typed object of the kinds that the lab acts on, and nil
// for all others. A field that does not exist is an error.
func (d Document) Decode() (any, error) {
	switch d.Kind {
	case "Namespace":
		return strict(d, new(corev1.Namespace))
	case "Node":
		return strict(d, new(corev1.Node))
	case "Service":
		return strict(d, new(corev1.Service))
	case "Pod":
		pod, err := strict(d, new(corev1.Pod))
		if err != nil {
			return nil, err
		}
		return pod, checkPodSpec("spec", &pod.Spec)
	case "Deployment":
		dep, err := strict(d, new(appsv1.Deployment))
		if err != nil {
			return nil, err
		}
		return dep, checkPodSpec("spec.template.spec", &dep.Spec.Template.Spec)
	case "ConfigMap":
		return strict(d, new(corev1.ConfigMap))
	case "Gateway":
		return decodeGateway(d)
	}
	return nil, nil
}

func strict[T metav1.Object](d Document, into T) (T, error) {
	if err := yaml.UnmarshalStrict([]byte(d.Text), into); err != nil {
		return into, plainer(err)
	}
	into.SetNamespace(d.Namespace)
	return into, nil
}

// plainer takes away what only tells how YAML is decoded.
func plainer(err error) error {
	s := err.Error()
	for _, noise := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: ", "json: "} {
		s = strings.TrimPrefix(s, noise)
	}
	return errors.New(s)
}

func checkPodSpec(field string, s *corev1.PodSpec) error {
	if len(s.Containers) == 0 {
		return fmt.Errorf("%s.containers: at least one is needed", field)
	}
	seen := map[string]bool{}
	for i, c := range s.Containers {
		if c.Name == "" || seen[c.Name] || strings.ContainsAny(c.Name, "/ \x00") {
			return fmt.Errorf("%s.containers[%d].name: %q is not a name of its own", field, i, c.Name)
		}
		seen[c.Name] = true
		if len(c.Command) == 0 && len(c.Args) > 0 {
			return fmt.Errorf("%s.containers[%d].command: missing; a lab ignores the image and runs a program of this machine", field, i)
		}
	}
	return nil
}

// Relabel returns the document with labels changed; nil removes one.
func (d Document) Relabel(labels map[string]*string) (Document, error) {
	var obj map[string]any
	if err := yaml.Unmarshal([]byte(d.Text), &obj); err != nil {
		return d, err
	}
	meta, _ := obj["metadata"].(map[string]any)
	if meta == nil {
		return d, errors.New("metadata: missing")
	}
	set, _ := meta["labels"].(map[string]any)
	if set == nil {
		set = map[string]any{}
	}
	for k, v := range labels {
		if v == nil {
			delete(set, k)
		} else {
			set[k] = *v
		}
	}
	meta["labels"] = set
	b, err := yaml.Marshal(obj)
	if err != nil {
		return d, err
	}
	d.Text = string(b)
	return d, nil
}
