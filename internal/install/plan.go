package install

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/util/csaupgrade"
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
// installation breaks both. Kinds are shared by all who use them: those that
// somebody else brought are brought up to date, and stay theirs.
func (c cluster) foreign(ctx context.Context, parts []Part) error {
	for _, p := range parts {
		for _, obj := range p.Objects {
			live, err := c.get(ctx, obj)
			if err != nil {
				return fmt.Errorf("look at %s: %w", title(obj), err)
			}
			err = ownedByAnother(live)
			switch {
			case err != nil && obj.GetKind() == "CustomResourceDefinition":
				dropLabel(obj, labelManagedBy)
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// helm is who Helm is in the managedFields of objects.
const helm = "helm"

// adopt makes the fields that Helm set on objects ours, so that applying them
// removes what is not wanted any more. It returns Helm's releases, which still
// list these objects.
func (c cluster) adopt(ctx context.Context, parts []Part) ([]string, error) {
	var releases []string
	for _, p := range parts {
		for _, obj := range p.Objects {
			live, err := c.get(ctx, obj)
			if err != nil {
				return nil, fmt.Errorf("look at %s: %w", title(obj), err)
			}
			if live == nil || live.GetLabels()[labelManagedBy] == managedByUs || live.GetAnnotations()[helmRelease] == "" {
				continue
			}
			releases = append(releases, live.GetAnnotations()[helmRelSpace]+"/"+live.GetAnnotations()[helmRelease])
			if err := c.own(ctx, live); err != nil {
				return nil, fmt.Errorf("take over %s: %w", title(obj), err)
			}
		}
	}
	slices.Sort(releases)
	return slices.Compact(releases), nil
}

func (c cluster) own(ctx context.Context, live *unstructured.Unstructured) error {
	// Helm 4 applies, Helm 3 updates: only the latter is what can be converted.
	fields := live.GetManagedFields()
	for i := range fields {
		if fields[i].Manager == helm && fields[i].Subresource == "" {
			fields[i].Operation = metav1.ManagedFieldsOperationUpdate
		}
	}
	live.SetManagedFields(fields)
	if err := csaupgrade.UpgradeManagedFields(live, sets.New(helm), FieldManager); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": live.GetResourceVersion(), "managedFields": live.GetManagedFields(),
		"annotations": map[string]any{helmRelease: nil, helmRelSpace: nil},
	}})
	if err != nil {
		return err
	}
	return retry(ctx, func(ctx context.Context) error {
		_, err := c.of(live).Patch(ctx, live.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
		return err
	})
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

// CheckVersions reports whether an installation may go from one version to
// another: forward, and one minor version at a time, because that is how far
// the parts are compatible while they are replaced one after the other.
func CheckVersions(from, to string) error {
	if from == "" || from == to {
		return nil
	}
	a, errA := version.ParseSemantic(from)
	b, errB := version.ParseSemantic(to)
	if errA != nil || errB != nil {
		return nil //nolint:nilerr // builds without a version: whoever made them knows
	}
	switch {
	case b.LessThan(a):
		return fmt.Errorf("version %s is installed and this is %s: going back is not supported; use the `ambit` of version %s, or a canary (--revision) of this one", from, to, from)
	case b.Major() != a.Major() || b.Minor() > a.Minor()+1:
		return fmt.Errorf("version %s is installed and this is %s: minor versions cannot be skipped; upgrade to v%d.%d first, with the `ambit` of that version", from, to, a.Major(), a.Minor()+1)
	}
	return nil
}
