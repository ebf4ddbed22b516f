package objects

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Desired is what the objects ask for, checked: a pure function of them.
type Desired struct {
	Pods      map[Key]*corev1.Pod
	Services  map[Key]*corev1.Service
	configs   map[Key]*corev1.ConfigMap
	Gateways  map[Key]*gatewayv1.Gateway // whose proxies the lab runs
	own       map[Key]bool               // objects that the user gave
	Nodes     map[string]*corev1.Node
	Captured  map[Key]bool
	Generated map[string]string // file: text, for the mesh to read
}

// Plan works out what a set of objects means for a lab with the given nodes, which
// runs the proxies of Gateways so.
func Plan(objects map[Key]Document, nodes []string, run Proxies) (*Desired, error) {
	d := &Desired{
		Pods: map[Key]*corev1.Pod{}, Services: map[Key]*corev1.Service{}, configs: map[Key]*corev1.ConfigMap{}, Nodes: map[string]*corev1.Node{},
		Gateways: map[Key]*gatewayv1.Gateway{}, own: map[Key]bool{},
		Captured: map[Key]bool{}, Generated: map[string]string{},
	}
	namespaces := map[string]map[string]string{}
	var gateways []*gatewayv1.Gateway
	var faults []error
	for _, k := range SortedKeys(objects) {
		d.own[k] = true
		obj, err := objects[k].Decode()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", objects[k].Origin, err))
			continue
		}
		switch o := obj.(type) {
		case *corev1.Namespace:
			namespaces[o.Name] = o.Labels
		case *corev1.Node:
			d.Nodes[o.Name] = o
		case *corev1.Service:
			d.Services[k] = o
		case *corev1.ConfigMap:
			d.configs[k] = o
		case *corev1.Pod:
			d.Pods[k] = o
		case *appsv1.Deployment:
			d.deploy(o)
		case *gatewayv1.Gateway:
			gateways = append(gateways, o)
		}
	}
	for _, g := range gateways {
		if err := d.gateway(NewKey("Gateway", g.Namespace, g.Name), g, run); err != nil {
			faults = append(faults, fmt.Errorf("gateway %s/%s: %w", g.Namespace, g.Name, err))
		}
	}
	for k, p := range d.Pods {
		d.Captured[k] = captured(p, namespaces[k.Namespace])
		if p.Spec.NodeName != "" && !contains(nodes, p.Spec.NodeName) {
			faults = append(faults, fmt.Errorf("%s: spec.nodeName: no node %q in this lab; --nodes %d made %s to %s", k, p.Spec.NodeName, len(nodes), nodes[0], nodes[len(nodes)-1]))
		}
	}
	for _, n := range nodes {
		if d.Nodes[n] == nil {
			o := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
			o.Name = n
			d.generate(NewKey("Node", "", n), o)
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

// SortedKeys returns the keys in the order of their files.
func SortedKeys(m map[Key]Document) []Key {
	out := make([]Key, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].File() < out[j].File() })
	return out
}

// deploy stands in for the controllers that make pods of a Deployment. The
// pods' names carry a hash of the template, as those of ReplicaSets do.
func (d *Desired) deploy(o *appsv1.Deployment) {
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
		k := NewKey("Pod", p.Namespace, p.Name)
		d.Pods[k] = p
		d.generate(k, p)
	}
}

func (d *Desired) generate(k Key, obj any) {
	b, err := yaml.Marshal(obj)
	if err == nil {
		d.Generated[k.File()] = "# made by the lab\n" + string(b)
	}
}

// Proxies is how a lab runs the proxies of Gateways. The zero value runs none.
type Proxies struct {
	Path string            // of the program
	Xds  string            // host:port of the control plane
	Env  map[string]string // beside that of the Deployment
	Args []string
}

// decodeGateway reads a Gateway of Gateway API, nil for one of another group.
func decodeGateway(d Document) (any, error) {
	g := new(gatewayv1.Gateway)
	if err := yaml.Unmarshal([]byte(d.Text), g); err != nil {
		return nil, plainer(err)
	}
	if g.GroupVersionKind().Group != gatewayv1.GroupName {
		return nil, nil
	}
	g.Namespace = d.Namespace
	return g, nil
}

// gateway adds what is made for a Gateway. One that has addresses already is
// somebody else's. The ConfigMap that it names changes the objects, as on Kubernetes.
func (d *Desired) gateway(k Key, g *gatewayv1.Gateway, p Proxies) error {
	if p.Path == "" || len(g.Status.Addresses) > 0 {
		return nil
	}
	var overlays []deploy.Overlay
	name, err := deploy.Parameters(g)
	if err != nil {
		return err
	}
	if name != "" {
		c := d.configs[NewKey("ConfigMap", g.Namespace, name)]
		if c == nil {
			return fmt.Errorf("spec.infrastructure.parametersRef: there is no ConfigMap %s/%s", g.Namespace, name)
		}
		overlays = []deploy.Overlay{{From: "ConfigMap " + c.Namespace + "/" + c.Name, Data: c.Data}}
	}
	objects, ok, err := deploy.For(g, deploy.Settings{
		Image: network.Waypoint, XDS: p.Xds, ClusterID: wellknown.DefaultCluster, Domain: wellknown.DefaultDomain, LogLevel: "info",
	}, overlays...)
	if !ok || err != nil {
		return err
	}
	d.Gateways[k] = g
	for _, o := range []struct {
		kind, name string
		obj        any
	}{
		{"Service", objects.Service.Name, objects.Service},
		{"ServiceAccount", objects.ServiceAccount.Name, objects.ServiceAccount},
	} {
		ok := NewKey(o.kind, g.Namespace, o.name)
		if !d.own[ok] { // the user's counts
			d.generate(ok, o.obj)
		}
	}
	if k := NewKey("Service", g.Namespace, objects.Service.Name); d.Services[k] == nil {
		d.Services[k] = objects.Service
	}
	p.run(&objects.Deployment.Spec.Template.Spec)
	d.deploy(objects.Deployment)
	return nil
}

// run puts the program of this machine in the place of the image, as the user that
// runs the lab: its files are for no other.
func (p Proxies) run(spec *corev1.PodSpec) {
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.Command, c.SecurityContext = []string{p.Path}, nil
		c.Args = append(c.Args, p.Args...)
		for name, v := range p.Env {
			setEnv(c, name, v)
		}
	}
}

func setEnv(c *corev1.Container, name, value string) {
	for i := range c.Env {
		if c.Env[i].Name == name {
			c.Env[i] = corev1.EnvVar{Name: name, Value: value}
			return
		}
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
}

// captured reports whether labels ask for a pod to be in the mesh. ambit-cni
// decides; this only says what to ask before a pod may start.
func captured(p *corev1.Pod, namespace map[string]string) bool {
	if p.Spec.HostNetwork {
		return false
	}
	switch p.Labels[wellknown.LabelDataplaneMode] {
	case wellknown.DataplaneModeNone:
		return false
	case wellknown.DataplaneModeAmbient:
		return true
	}
	return namespace[wellknown.LabelDataplaneMode] == wellknown.DataplaneModeAmbient
}
