package install

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
)

// Change is what becomes of one object.
type Change struct {
	Action Action   `json:"action"`
	Object string   `json:"object"`
	Fields []string `json:"fields,omitempty"` // what differs, for an update
	Note   string   `json:"note,omitempty"`
}

// Action is a kind of change.
type Action string

// The actions.
const (
	Create Action = "create"
	Update Action = "update"
	Delete Action = "delete"
	Keep   Action = "keep" // nothing to do
)

func (c Change) String() string {
	s := fmt.Sprintf("%s %s", c.Action, c.Object)
	if len(c.Fields) > 0 {
		s += ": " + strings.Join(c.Fields, ", ")
	}
	if c.Note != "" {
		s += " (" + c.Note + ")"
	}
	return s
}

// plan asks the server what applying the parts would do.
func (c cluster) plan(ctx context.Context, parts []Part, obsolete []*unstructured.Unstructured) ([]Change, error) {
	var changes []Change
	for _, p := range parts {
		for _, obj := range p.Objects {
			change, err := c.change(ctx, obj)
			if err != nil {
				return nil, err
			}
			changes = append(changes, change)
		}
	}
	for _, obj := range obsolete {
		changes = append(changes, Change{Action: Delete, Object: title(obj)})
	}
	return changes, nil
}

func (c cluster) change(ctx context.Context, obj *unstructured.Unstructured) (Change, error) {
	live, err := c.get(ctx, obj)
	if err != nil {
		return Change{}, fmt.Errorf("look at %s: %w", title(obj), err)
	}
	after, err := c.apply(ctx, obj, true)
	switch {
	case live == nil && apierrors.IsNotFound(err):
		return Change{Action: Create, Object: title(obj), Note: "not checked by the server: its namespace is not there yet"}, nil
	case err != nil:
		return Change{}, err
	case live == nil:
		return Change{Action: Create, Object: title(obj)}, nil
	}
	if fields := differences(live.Object, after.Object); len(fields) > 0 {
		return Change{Action: Update, Object: title(obj), Fields: fields}, nil
	}
	return Change{Action: Keep, Object: title(obj)}, nil
}

// bookkeeping is what the server changes by itself.
var bookkeeping = []string{"metadata.managedFields", "metadata.resourceVersion", "metadata.generation", "metadata.creationTimestamp", "metadata.uid", "metadata.annotations.deprecated.daemonset.template.generation", "status"}

// maxFields bounds how much is said of one object.
const maxFields = 6

// differences names the fields in which two states of an object differ.
func differences(a, b map[string]any) []string {
	var fields []string
	compare("", a, b, &fields)
	slices.Sort(fields)
	if more := len(fields) - maxFields; more > 0 {
		fields = append(fields[:maxFields], fmt.Sprintf("and %d more", more))
	}
	return fields
}

func compare(path string, a, b any, into *[]string) {
	if slices.Contains(bookkeeping, path) {
		return
	}
	x, xMap := a.(map[string]any)
	y, yMap := b.(map[string]any)
	if xMap && yMap {
		keys := maps.Clone(x)
		maps.Copy(keys, y)
		for k := range keys {
			below := k
			if path != "" {
				below = path + "." + k
			}
			compare(below, x[k], y[k], into)
		}
		return
	}
	xs, xList := a.([]any)
	ys, yList := b.([]any)
	if xList && yList && len(xs) == len(ys) {
		for i := range xs {
			compare(fmt.Sprintf("%s[%d]", path, i), xs[i], ys[i], into)
		}
		return
	}
	if !reflect.DeepEqual(a, b) {
		*into = append(*into, path)
	}
}

// obsolete finds what an earlier installation of the same revision left that
// the parts do not contain. Kinds stay: users' objects depend on them.
func (c cluster) obsolete(ctx context.Context, parts []Part, namespace, revision string) ([]*unstructured.Unstructured, error) {
	wanted := map[string]bool{}
	for _, p := range parts {
		for _, obj := range p.Objects {
			wanted[title(obj)] = true
		}
	}
	installed, err := c.installed(ctx, namespace, revision)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(installed, func(obj *unstructured.Unstructured) bool { return wanted[title(obj)] }), nil
}

// installed lists what was installed of a revision ("" for all of them) in a
// namespace, but for kinds and the namespace itself, the last applied first.
func (c cluster) installed(ctx context.Context, namespace, revision string) ([]*unstructured.Unstructured, error) {
	selector := labelManagedBy + "=" + managedByUs
	if revision != "" {
		selector += "," + labelRevision + "=" + revision
	}
	var all []*unstructured.Unstructured
	for _, k := range slices.Backward(kinds) {
		if k.Kind == "CustomResourceDefinition" || k.Kind == "Namespace" {
			continue
		}
		items, err := c.listed(ctx, k, selector)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k.Resource, err)
		}
		for i := range items {
			// Names of what has no namespace end in that of the mesh.
			if items[i].GetNamespace() == namespace || !k.Namespaced && strings.HasSuffix(items[i].GetName(), "-"+namespace) {
				all = append(all, &items[i])
			}
		}
	}
	return all, nil
}

// foreign refuses what belongs to somebody else: taking over half of another
// installation breaks both.
func (c cluster) foreign(ctx context.Context, parts []Part) error {
	for _, p := range parts {
		for _, obj := range p.Objects {
			if obj.GetKind() == "CustomResourceDefinition" {
				continue // shared by all who use the kind
			}
			live, err := c.get(ctx, obj)
			if err != nil {
				return fmt.Errorf("look at %s: %w", title(obj), err)
			}
			if err := ownedByAnother(live); err != nil {
				return err
			}
		}
	}
	return nil
}

func ownedByAnother(live *unstructured.Unstructured) error {
	if live == nil || live.GetLabels()[labelManagedBy] == managedByUs {
		return nil
	}
	if name := live.GetAnnotations()[helmRelease]; name != "" && live.GetLabels()[labelPartOf] == partOf {
		return fmt.Errorf("%s was installed by Helm (release %s in namespace %s): go on with `helm upgrade`, or `helm uninstall` it first; --force takes it over", title(live), name, live.GetAnnotations()[helmRelSpace])
	}
	return fmt.Errorf("%s is there already and not ours: is another mesh installed in this namespace? Remove that, choose another --revision or namespace; --force takes it over", title(live))
}

// installedVersion is the version of a revision's control plane, "" if there
// is none.
func (c cluster) installedVersion(ctx context.Context, namespace, revision string) (string, error) {
	obj := &unstructured.Unstructured{}
	obj.SetAPIVersion("apps/v1")
	obj.SetKind("Deployment")
	obj.SetNamespace(namespace)
	obj.SetName("ambitd" + suffix(revision))
	live, err := c.get(ctx, obj)
	if err != nil || live == nil {
		return "", err
	}
	if v := live.GetLabels()[labelVersion]; v != "" {
		return v, nil
	}
	return "unknown", nil
}

// CheckVersions tells whether an installation may go from one version to
// another: forward, and one minor version at a time, because that is how far
// the parts are compatible while they are replaced one after the other.
func CheckVersions(from, to string) error {
	if from == "" || from == to {
		return nil
	}
	a, errA := version.ParseSemantic(from)
	b, errB := version.ParseSemantic(to)
	if errA != nil || errB != nil {
		return nil // builds without a version: whoever made them knows
	}
	switch {
	case b.LessThan(a):
		return fmt.Errorf("version %s is installed and this is %s: going back is not supported; use the `ambit` of version %s, or a canary (--revision) of this one", from, to, from)
	case b.Major() != a.Major() || b.Minor() > a.Minor()+1:
		return fmt.Errorf("version %s is installed and this is %s: minor versions cannot be skipped; upgrade to v%d.%d first, with the `ambit` of that version", from, to, a.Major(), a.Minor()+1)
	}
	return nil
}
