package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// labOnly are kinds that the lab turns into others; the mesh does not read them.
var labOnly = map[string]bool{"Deployment": true}

// desired is what the objects ask for, checked: a pure function of them.
type desired struct {
	pods      map[key]*corev1.Pod
	services  map[key]*corev1.Service
	configs   map[key]*corev1.ConfigMap
	gateways  map[key]*gatewayv1.Gateway // whose proxies the lab runs
	own       map[key]bool               // objects that the user gave
	nodes     map[string]*corev1.Node
	captured  map[key]bool
	generated map[string]string // file: text, for the mesh to read
}

// plan works out what a set of objects means for a lab with the given nodes, which
// runs the proxies of Gateways so.
func plan(objects map[key]document, nodes []string, run proxies) (*desired, error) {
	d := &desired{
		pods: map[key]*corev1.Pod{}, services: map[key]*corev1.Service{}, configs: map[key]*corev1.ConfigMap{}, nodes: map[string]*corev1.Node{},
		gateways: map[key]*gatewayv1.Gateway{}, own: map[key]bool{},
		captured: map[key]bool{}, generated: map[string]string{},
	}
	namespaces := map[string]map[string]string{}
	var gateways []*gatewayv1.Gateway
	var faults []error
	for _, k := range sortedKeys(objects) {
		d.own[k] = true
		obj, err := objects[k].decode()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", objects[k].Origin, err))
			continue
		}
		switch o := obj.(type) {
		case *corev1.Namespace:
			namespaces[o.Name] = o.Labels
		case *corev1.Node:
			d.nodes[o.Name] = o
		case *corev1.Service:
			d.services[k] = o
		case *corev1.ConfigMap:
			d.configs[k] = o
		case *corev1.Pod:
			d.pods[k] = o
		case *appsv1.Deployment:
			d.deploy(o)
		case *gatewayv1.Gateway:
			gateways = append(gateways, o)
		}
	}
	for _, g := range gateways {
		if err := d.gateway(newKey("Gateway", g.Namespace, g.Name), g, run); err != nil {
			faults = append(faults, fmt.Errorf("Gateway %s/%s: %w", g.Namespace, g.Name, err))
		}
	}
	for k, p := range d.pods {
		d.captured[k] = captured(p, namespaces[k.Namespace])
		if p.Spec.NodeName != "" && !contains(nodes, p.Spec.NodeName) {
			faults = append(faults, fmt.Errorf("%s: spec.nodeName: no node %q in this lab; --nodes %d made %s to %s", k, p.Spec.NodeName, len(nodes), nodes[0], nodes[len(nodes)-1]))
		}
	}
	for _, n := range nodes {
		if d.nodes[n] == nil {
			o := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
			o.Name = n
			d.generate(newKey("Node", "", n), o)
		}
	}
	return d, errors.Join(faults...)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func sortedKeys(m map[key]document) []key {
	out := make([]key, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].file() < out[j].file() })
	return out
}

// deploy stands in for the controllers that make pods of a Deployment. The
// pods' names carry a hash of the template, as those of ReplicaSets do.
func (d *desired) deploy(o *appsv1.Deployment) {
	b, _ := json.Marshal(o.Spec.Template)
	sum := sha256.Sum256(b)
	hash := hex.EncodeToString(sum[:])[:8]
	replicas := 1
	if o.Spec.Replicas != nil {
		replicas = int(*o.Spec.Replicas)
	}
	for i := range replicas {
		p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
		p.ObjectMeta = *o.Spec.Template.ObjectMeta.DeepCopy()
		p.Spec = *o.Spec.Template.Spec.DeepCopy()
		p.Name = fmt.Sprintf("%s-%s-%d", o.Name, hash, i)
		p.Namespace = o.Namespace
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels["pod-template-hash"] = hash
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "apps/v1", Kind: "ReplicaSet", Name: o.Name + "-" + hash, Controller: &yes,
		}}
		k := newKey("Pod", p.Namespace, p.Name)
		d.pods[k] = p
		d.generate(k, p)
	}
}

func (d *desired) generate(k key, obj any) {
	b, err := yaml.Marshal(obj)
	if err == nil {
		d.generated[k.file()] = "# made by the lab\n" + string(b)
	}
}

// applyDocuments creates or replaces objects; all or none.
func (s *supervisor) applyDocuments(docs []document) ([]string, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	seen := map[key]string{}
	var said []string
	for _, doc := range docs {
		k := doc.key()
		if first, twice := seen[k]; twice {
			return nil, fmt.Errorf("%s: %s is there already, at %s", doc.Origin, k, first)
		}
		seen[k] = doc.Origin
		switch old, there := next[k]; {
		case !there:
			said = append(said, k.String()+" created")
		case old.Text == doc.Text:
			said = append(said, k.String()+" unchanged")
			continue
		default:
			said = append(said, k.String()+" configured")
		}
		next[k] = doc
	}
	return said, s.become(next)
}

func (s *supervisor) deleteObject(k key) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	if _, ok := next[k]; !ok {
		return fmt.Errorf("%s: not found", k)
	}
	delete(next, k)
	if k.Kind == "Namespace" {
		for other := range next {
			if other.Namespace == k.Name {
				delete(next, other)
			}
		}
	}
	return s.become(next)
}

func (s *supervisor) labelObject(k key, labels map[string]*string) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := maps.Clone(s.current())
	doc, ok := next[k]
	if !ok {
		return fmt.Errorf("%s: not found", k)
	}
	doc, err := doc.relabel(labels)
	if err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	next[k] = doc
	return s.become(next)
}

func (s *supervisor) current() map[key]document {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects
}

// become makes the lab what the objects say. s.applying is held.
func (s *supervisor) become(next map[key]document) error {
	var names []string
	for _, n := range s.nodes {
		names = append(names, n.name)
	}
	want, err := plan(next, names, s.proxies())
	if err != nil {
		return err
	}
	old := s.current()
	// Addresses first: whoever reads of a service finds its address, too.
	if err := errors.Join(s.setServices(want), s.setGateways(want)); err != nil {
		return err
	}
	if err := s.endPods(want); err != nil {
		return err
	}
	if err := s.writeObjects(old, next); err != nil {
		return err
	}
	if err := syncFiles(s.d.generated(), want.generated); err != nil {
		return err
	}
	s.mu.Lock()
	s.objects = next
	for _, n := range s.nodes {
		n.labels = nil
		if o := want.nodes[n.name]; o != nil {
			n.labels = o.Labels
		}
	}
	s.notify()
	s.mu.Unlock()
	if err := s.beginPods(want); err != nil {
		return err
	}
	return s.wire()
}

func (s *supervisor) objectPath(k key) string {
	if labOnly[k.Kind] {
		return filepath.Join(s.d.objects(), k.file())
	}
	return filepath.Join(s.d.config(), k.file())
}

// writeObjects brings the directory that the mesh reads up to date, one file
// an object, each replaced in one step.
func (s *supervisor) writeObjects(old, next map[key]document) error {
	// Namespaces sort apart from the rest and first: a pod must not be seen
	// before the label that says whether it belongs to the mesh.
	keys := sortedKeys(next)
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Kind == "Namespace" && keys[j].Kind != "Namespace" })
	for _, k := range keys {
		doc := next[k]
		if was, ok := old[k]; ok && was.Text == doc.Text {
			continue
		}
		text := "# from " + doc.Origin + "\n" + doc.Text
		if err := writeFile(s.objectPath(k), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for k := range old {
		if _, ok := next[k]; !ok {
			if err := os.Remove(s.objectPath(k)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// syncFiles makes a directory hold exactly the given files.
func syncFiles(dir string, want map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; !ok {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name, text := range want {
		path := filepath.Join(dir, name)
		if b, err := os.ReadFile(path); err == nil && string(b) == text {
			continue
		}
		if err := writeFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
