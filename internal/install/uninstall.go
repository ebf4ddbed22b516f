package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Uninstaller takes a mesh out of a cluster.
type Uninstaller struct {
	Client    *client.Client
	Namespace string
	// Revision to remove, "" for all of them.
	Revision string
	// Purge removes as well what is kept otherwise: kinds with all objects of
	// them, the key of the certificate authority, roots in every namespace.
	Purge bool
	// Timeout bounds the waiting for pods to end.
	Timeout  time.Duration
	Progress func(Event)
}

// Removal is what an uninstallation would remove, in its order.
type Removal struct {
	Objects []string `json:"objects"`
	// Enrolled are pods that are in the mesh: the node agents take them out before
	// they end.
	Enrolled []string `json:"enrolled,omitempty"`
	// Kept says what is left, and why.
	Kept []string `json:"kept,omitempty"`

	stages [][]*unstructured.Unstructured
	purge  []*unstructured.Unstructured
}

// Empty reports whether there is nothing to remove.
func (r *Removal) Empty() bool { return len(r.Objects) == 0 }

func (u *Uninstaller) say(step string, state State, text string) {
	if u.Progress != nil {
		u.Progress(Event{step, state, text})
	}
}

// stage is when an object goes. The webhook first, because nobody will answer
// it; then the agent, which cleans up its nodes while the API still lets it in;
// then the proxy, then the control plane, then what these needed.
func stage(obj *unstructured.Unstructured) int {
	switch {
	case obj.GetKind() == "ValidatingWebhookConfiguration":
		return 0
	case obj.GetKind() == "DaemonSet" && obj.GetName() == "ambit-cni":
		return 1
	case obj.GetKind() == "DaemonSet":
		return 2
	case obj.GetKind() == "Deployment", obj.GetKind() == "HorizontalPodAutoscaler":
		return 3
	}
	return 4
}

var stageNames = []string{"admission", "cni", "ztunnel", "ambitd", "the rest"}

// Look finds what is to be removed; nothing is removed yet.
func (u *Uninstaller) Look(ctx context.Context) (*Removal, error) {
	c := cluster{u.Client}
	objects, err := c.installed(ctx, u.Namespace, u.Revision)
	if err != nil {
		return nil, err
	}
	r := &Removal{stages: make([][]*unstructured.Unstructured, len(stageNames))}
	for _, obj := range objects {
		n := stage(obj)
		r.stages[n] = append(r.stages[n], obj)
	}
	if len(r.stages[1])+len(r.stages[2]) > 0 {
		if r.Enrolled, err = enrolled(ctx, u.Client); err != nil {
			return nil, err
		}
	}
	for _, s := range r.stages {
		for _, obj := range s {
			r.Objects = append(r.Objects, title(obj))
		}
	}
	r.Kept = []string{"conditions istio.io/WaypointBound in the status of Services: a mesh that is installed again brings them up to date"}
	if !u.Purge {
		r.Kept = append(r.Kept,
			"kinds (CRDs) and every object of them",
			fmt.Sprintf("Secret %s/istio-ca-secret, and %[1]s/cacerts of a plugged-in authority: a mesh that is installed again has the same root", u.Namespace),
			"ConfigMaps istio-ca-root-cert and istio-ca-crl in every namespace, and ClusterTrustBundle "+bundleName+" where the API server has that kind",
			fmt.Sprintf("Leases %s/ambit-*-leader, and namespace %[1]s", u.Namespace),
		)
		return r, nil
	}
	if err := u.lookForMore(ctx, c, r); err != nil {
		return nil, err
	}
	for _, obj := range r.purge {
		r.Objects = append(r.Objects, title(obj))
	}
	return r, nil
}

// enrolled lists the pods that are captured.
func enrolled(ctx context.Context, c *client.Client) ([]string, error) {
	var found []string
	for opts := (metav1.ListOptions{Limit: 500}); ; {
		list, err := c.Kube.CoreV1().Pods("").List(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("look for pods in the mesh: %w", err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			running := p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
			if running && p.Annotations[wellknown.AnnotationRedirection] != "" {
				found = append(found, p.Namespace+"/"+p.Name)
			}
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			return found, nil
		}
	}
}

// othersRun refuses a purge while a mesh is left that needs what it removes.
func (u *Uninstaller) othersRun(ctx context.Context, c cluster, r *Removal) error {
	for _, name := range []string{"Deployment", "DaemonSet"} {
		items, err := c.listed(ctx, named(name), labelPartOf+"="+partOf)
		if err != nil {
			return fmt.Errorf("list %s: %w", named(name).Resource, err)
		}
		for i := range items {
			obj := &items[i]
			if slices.Contains(r.Objects, title(obj)) {
				continue
			}
			next := fmt.Sprintf("remove that first: `ambit uninstall -i %s`", obj.GetNamespace())
			if release := obj.GetAnnotations()[helmRelease]; release != "" && obj.GetLabels()[labelManagedBy] != managedByUs {
				next = fmt.Sprintf("remove that first: `helm uninstall %s -n %s`", release, obj.GetAnnotations()[helmRelSpace])
			}
			return fmt.Errorf("%s would stay and run on without its keys, roots and kinds: %s", title(obj), next)
		}
	}
	return nil
}

// lookForMore finds what only a purge removes.
func (u *Uninstaller) lookForMore(ctx context.Context, c cluster, r *Removal) error {
	if err := u.othersRun(ctx, c, r); err != nil {
		return err
	}
	crds, err := c.listed(ctx, named("CustomResourceDefinition"), labelManagedBy+"="+managedByUs)
	if err != nil {
		return fmt.Errorf("list kinds: %w", err)
	}
	shared, err := u.gatewaysOfOthers(ctx, c)
	if err != nil {
		return err
	}
	if shared != "" {
		r.Kept = append(r.Kept, "kinds of the Gateway API: "+shared+" uses them")
	}
	for i := range crds {
		if shared != "" && strings.HasSuffix(crds[i].GetName(), ".gateway.networking.k8s.io") {
			continue
		}
		r.purge = append(r.purge, &crds[i])
	}
	for _, name := range []string{"istio-ca-root-cert", "istio-ca-crl"} {
		maps, err := u.Client.Kube.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			return fmt.Errorf("list ConfigMaps %s: %w", name, err)
		}
		for _, m := range maps.Items {
			r.purge = append(r.purge, reference("v1", "ConfigMap", m.Namespace, m.Name))
		}
	}
	r.purge = append(r.purge, reference("v1", "Secret", u.Namespace, "istio-ca-secret"))
	leases, err := u.Client.Kube.CoordinationV1().Leases(u.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Leases: %w", err)
	}
	for _, l := range leases.Items {
		if strings.HasPrefix(l.Name, "ambit-") && strings.HasSuffix(l.Name, "-leader") {
			r.purge = append(r.purge, reference("coordination.k8s.io/v1", "Lease", l.Namespace, l.Name))
		}
	}
	for _, k := range trustBundles {
		bundle := reference(k.GroupVersion().String(), k.Kind, "", bundleName)
		live, err := c.get(ctx, bundle)
		if err != nil {
			return fmt.Errorf("look at %s: %w", title(bundle), err)
		}
		if live != nil {
			r.purge = append(r.purge, bundle)
			break
		}
	}
	ns, err := u.Client.Kube.CoreV1().Namespaces().Get(ctx, u.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("look at namespace %s: %w", u.Namespace, err)
	case ns.Labels[labelManagedBy] == managedByUs:
		r.purge = append(r.purge, reference("v1", "Namespace", "", u.Namespace))
	default:
		r.Kept = append(r.Kept, "namespace "+u.Namespace+": somebody else made it")
	}
	return nil
}

// gatewaysOfOthers names a class of gateways that another controller serves:
// the kinds are not only ours then.
func (u *Uninstaller) gatewaysOfOthers(ctx context.Context, c cluster) (string, error) {
	classes, err := c.listed(ctx, grouped("gateway.networking.k8s.io", "v1", "gatewayclasses", "GatewayClass", false), "")
	if err != nil {
		return "", fmt.Errorf("list GatewayClasses: %w", err)
	}
	for _, class := range classes {
		if class.GetLabels()[labelPartOf] != partOf {
			return "GatewayClass " + class.GetName(), nil
		}
	}
	return "", nil
}

func reference(version, kind, namespace, name string) *unstructured.Unstructured {
	obj := &unstructured.Unstructured{}
	obj.SetAPIVersion(version)
	obj.SetKind(kind)
	obj.SetNamespace(namespace)
	obj.SetName(name)
	return obj
}

// Remove carries it out. An error does not stop it from removing the rest.
func (u *Uninstaller) Remove(ctx context.Context, r *Removal) error {
	c := cluster{u.Client}
	var errs []error
	for n, objects := range r.stages {
		if len(objects) == 0 {
			continue
		}
		name := stageNames[n]
		u.say(name, Working, fmt.Sprintf("removing %d objects", len(objects)))
		err := c.removeAll(ctx, objects)
		if err == nil {
			err = u.gone(ctx, c, name, objects)
		}
		if err != nil {
			u.say(name, Failed, firstLine(err.Error()))
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		u.say(name, Done, fmt.Sprintf("%d objects removed", len(objects)))
	}
	if len(r.purge) > 0 && len(errs) == 0 {
		u.say("purge", Working, fmt.Sprintf("removing %d objects", len(r.purge)))
		if err := c.removeAll(ctx, r.purge); err != nil {
			u.say("purge", Failed, firstLine(err.Error()))
			return err
		}
		u.say("purge", Done, "kinds, keys and roots removed")
	}
	return errors.Join(errs...)
}

func (c cluster) removeAll(ctx context.Context, objects []*unstructured.Unstructured) error {
	var errs []error
	for _, obj := range objects {
		errs = append(errs, c.remove(ctx, obj))
	}
	return errors.Join(errs...)
}

// gone waits until the pods of workloads have ended.
func (u *Uninstaller) gone(ctx context.Context, c cluster, step string, objects []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, u.Timeout)
	defer cancel()
	for _, obj := range objects {
		labels, _, _ := unstructured.NestedStringMap(obj.Object, "spec", "selector", "matchLabels")
		if len(labels) == 0 || obj.GetKind() != "DaemonSet" && obj.GetKind() != "Deployment" {
			continue
		}
		selector := metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})
		for left := -1; ; {
			pods, err := c.Kube.CoreV1().Pods(obj.GetNamespace()).List(ctx, metav1.ListOptions{LabelSelector: selector})
			if err == nil && len(pods.Items) == 0 {
				break
			}
			if err == nil && len(pods.Items) != left {
				left = len(pods.Items)
				u.say(step, Working, fmt.Sprintf("%d pods are ending", left))
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("pods of %s are still there: %s", title(obj), cmp.Or(names(pods.Items), "the API server does not answer"))
			case <-time.After(pollEvery):
			}
		}
	}
	return nil
}

func names[T any, P interface {
	*T
	metav1.Object
}](items []T) string {
	var out []string
	for i := range items {
		out = append(out, P(&items[i]).GetName())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// bundleName is that of the mesh's roots.
const bundleName = "istio.io:istiod-ca:root-cert"

// trustBundles are the versions of that kind, of which an API server has one or
// none.
var trustBundles = []kind{
	grouped("certificates.k8s.io", "v1", "clustertrustbundles", "ClusterTrustBundle", false),
	grouped("certificates.k8s.io", "v1beta1", "clustertrustbundles", "ClusterTrustBundle", false),
	grouped("certificates.k8s.io", "v1alpha1", "clustertrustbundles", "ClusterTrustBundle", false),
}

// extra are kinds that no chart contains but a purge removes.
var extra = append([]kind{
	core("secrets", "Secret", true),
	grouped("coordination.k8s.io", "v1", "leases", "Lease", true),
}, trustBundles...)
