package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// State is how far a step is.
type State string

// The states.
const (
	Working State = "working"
	Done    State = "done"
	Failed  State = "failed"
)

// Event tells of progress.
type Event struct {
	Step  string // what is worked on: a component, or a duty
	State State
	Text  string // for Working: what is being done or waited for
}

// Installer installs one spec into one cluster.
type Installer struct {
	Client  *client.Client
	Spec    *Spec
	Version string // of this program
	// Force takes over what others installed, and skips the check of versions.
	Force bool
	// Timeout bounds the waiting for each phase to become ready.
	Timeout time.Duration
	// Progress is told what happens; may be nil.
	Progress func(Event)
}

// Plan is what an installation would do.
type Plan struct {
	// From is the version that is installed now, "" for none.
	From    string   `json:"from,omitempty"`
	To      string   `json:"to"`
	Changes []Change `json:"changes"`
	// TakenOver are the releases of Helm (namespace/name) that Apply took objects
	// from. Helm still lists them.
	TakenOver []string `json:"-"`

	parts    []Part
	obsolete []*unstructured.Unstructured
}

// Parts are the objects, as they are applied.
func (p *Plan) Parts() []Part { return p.parts }

// Count tells how many objects meet a fate.
func (p *Plan) Count(a Action) int {
	n := 0
	for _, c := range p.Changes {
		if c.Action == a {
			n++
		}
	}
	return n
}

func (i *Installer) say(step string, state State, text string) {
	if i.Progress != nil {
		i.Progress(Event{step, state, text})
	}
}

// Plan looks at the cluster and asks its API server what applying would
// change; nothing is changed yet.
func (i *Installer) Plan(ctx context.Context) (*Plan, error) {
	p, err := i.prepare(ctx)
	if err != nil {
		return nil, err
	}
	c := cluster{i.Client}
	ns := i.namespaceObject()
	live, err := c.get(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", title(ns), err)
	}
	if p.Changes, err = c.plan(ctx, p.parts, p.obsolete); err != nil {
		return nil, err
	}
	if live == nil {
		p.Changes = slices.Insert(p.Changes, 0, Change{Action: Create, Object: title(ns)})
	}
	return p, nil
}

// prepare renders, and refuses what must not be done.
func (i *Installer) prepare(ctx context.Context) (*Plan, error) {
	c := cluster{i.Client}
	server, err := serverVersion(i.Client)
	if err != nil {
		return nil, err
	}
	p := &Plan{To: i.Version}
	if p.From, err = c.installedVersion(ctx, i.Spec.Namespace, i.Spec.Revision); err != nil {
		return nil, fmt.Errorf("look for an installed control plane: %w", err)
	}
	if !i.Force {
		if err := CheckVersions(p.From, p.To); err != nil {
			return nil, err
		}
	}
	p.parts, err = Render(i.Spec, RenderOptions{Version: i.Version, Config: i.Client.Config, KubeVersion: server, Upgrade: p.From != ""})
	if err != nil {
		return nil, err
	}
	if err := c.operator(ctx, p.parts); err != nil {
		return nil, err
	}
	if !i.Force {
		if err := c.foreign(ctx, p.parts); err != nil {
			return nil, err
		}
		if err := i.admits(ctx, c, p.parts); err != nil {
			return nil, err
		}
	}
	p.obsolete, err = c.obsolete(ctx, p.parts, i.Spec.Namespace, cmp.Or(i.Spec.Revision, wellknown.DefaultRevision))
	return p, err
}

// admits refuses a namespace whose level of pod security keeps node agent and
// proxy out.
func (i *Installer) admits(ctx context.Context, c cluster, parts []Part) error {
	if !slices.ContainsFunc(parts, func(p Part) bool { return p.Component == CNI || p.Component == Ztunnel }) {
		return nil
	}
	live, err := c.get(ctx, i.namespaceObject())
	if err != nil || live == nil {
		return err
	}
	if level := live.GetLabels()[labelPodSecurity]; level != "" && level != podSecurityPrivileged {
		return fmt.Errorf("namespace %s enforces the pod security level %q, which keeps node agent and node proxy out: they enter network namespaces of pods. Allow that there with\n  kubectl label namespace %s %s=%s --overwrite",
			i.Spec.Namespace, level, i.Spec.Namespace, labelPodSecurity, podSecurityPrivileged)
	}
	return nil
}

// serverVersion asks the API server for its version.
func serverVersion(c *client.Client) (string, error) {
	d, err := discovery.NewDiscoveryClientForConfig(c.Config)
	if err != nil {
		return "", err
	}
	v, err := d.ServerVersion()
	if err != nil {
		return "", fmt.Errorf("ask the API server for its version: %w", err)
	}
	return v.GitVersion, nil
}

// Install does it: phase by phase, each waited for. What was applied stays
// when a phase fails: applying again goes on from there.
func (i *Installer) Install(ctx context.Context) error {
	p, err := i.prepare(ctx)
	if err != nil {
		return err
	}
	return i.Apply(ctx, p)
}

// Apply carries out a plan.
func (i *Installer) Apply(ctx context.Context, p *Plan) error {
	c := cluster{i.Client}
	if err := i.namespace(ctx); err != nil {
		return err
	}
	if i.Force {
		releases, err := c.adopt(ctx, p.parts)
		if err != nil {
			return err
		}
		p.TakenOver = releases
	}
	for _, phase := range phases {
		if err := i.phase(ctx, c, p.parts, phase); err != nil {
			return err
		}
	}
	for _, obj := range p.obsolete {
		if err := c.remove(ctx, obj); err != nil {
			return err
		}
	}
	if n := len(p.obsolete); n > 0 {
		i.say("cleanup", Done, fmt.Sprintf("%d objects that are no longer wanted removed", n))
	}
	return nil
}

// phase applies the components of a phase, then waits for them together.
func (i *Installer) phase(ctx context.Context, c cluster, parts []Part, phase []Component) error {
	var applied []Part
	for _, component := range phase {
		for _, p := range parts {
			if p.Component != component {
				continue
			}
			for n, obj := range p.Objects {
				i.say(string(component), Working, fmt.Sprintf("applying %d of %d: %s", n+1, len(p.Objects), title(obj)))
				if _, err := c.apply(ctx, obj, false); err != nil {
					i.say(string(component), Failed, firstLine(err.Error()))
					return err
				}
			}
			applied = append(applied, p)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	var errs []error
	for _, p := range applied {
		name := string(p.Component)
		if err := c.await(waiting, p.Objects, func(text string) { i.say(name, Working, text) }); err != nil {
			i.say(name, Failed, firstLine(err.Error())) // the rest is in the error
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		i.say(name, Done, fmt.Sprintf("%d objects", len(p.Objects)))
	}
	return errors.Join(errs...)
}

// namespaceObject is the mesh's namespace as the installation makes it. Node
// agent and proxy need more than the restricted levels of pod security allow.
func (i *Installer) namespaceObject() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{
			"name": i.Spec.Namespace,
			"labels": map[string]any{
				labelPartOf: partOf, labelManagedBy: managedByUs,
				labelPodSecurity: podSecurityPrivileged,
			},
		},
	}}
}

// namespace makes the mesh's namespace unless it is there, as
// `helm install --create-namespace` does.
func (i *Installer) namespace(ctx context.Context) error {
	obj := i.namespaceObject()
	c := cluster{i.Client}
	live, err := c.get(ctx, obj)
	if err != nil {
		return fmt.Errorf("look at %s: %w", title(obj), err)
	}
	if live == nil {
		_, err = c.apply(ctx, obj, false)
		return err
	}
	if live.GetDeletionTimestamp() != nil {
		return fmt.Errorf("namespace %s is being deleted: wait until it is gone (`kubectl get namespace %s -o yaml` says what keeps it)", i.Spec.Namespace, i.Spec.Namespace)
	}
	return nil
}
