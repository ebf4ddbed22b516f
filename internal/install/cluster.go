package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// requestTimeout bounds one request: an API server that does not answer must
// not hold up the whole.
const requestTimeout = 30 * time.Second

// retries is how a request is repeated that failed for a passing reason.
var retries = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 5}

// cluster does single things to single objects.
type cluster struct{ *client.Client }

func (c cluster) resource(k kind, namespace string) dynamic.ResourceInterface {
	if k.Namespaced {
		return c.Dynamic.Resource(k.GroupVersionResource).Namespace(namespace)
	}
	return c.Dynamic.Resource(k.GroupVersionResource)
}

// of is where an object of a known kind lives.
func (c cluster) of(obj *unstructured.Unstructured) dynamic.ResourceInterface {
	k, ok := kindOf(obj)
	if !ok {
		// Rendering refused others.
		k = extra[slices.IndexFunc(extra, func(k kind) bool { return k.Kind == obj.GetKind() && k.GroupVersion().String() == obj.GetAPIVersion() })]
	}
	return c.resource(k, obj.GetNamespace())
}

// get returns the object as it is in the cluster, nil if it is not there.
func (c cluster) get(ctx context.Context, obj *unstructured.Unstructured) (live *unstructured.Unstructured, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		live, err = c.of(obj).Get(ctx, obj.GetName(), metav1.GetOptions{})
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return live, err
}

// apply makes the object what we want it to be, taking fields from whoever
// else set them. With dry, the server says what would become of it.
func (c cluster) apply(ctx context.Context, obj *unstructured.Unstructured, dry bool) (result *unstructured.Unstructured, err error) {
	data, err := json.Marshal(obj.Object)
	if err != nil {
		return nil, err
	}
	force := true
	opts := metav1.PatchOptions{FieldManager: FieldManager, Force: &force}
	if dry {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	err = retry(ctx, func(ctx context.Context) error {
		result, err = c.of(obj).Patch(ctx, obj.GetName(), types.ApplyPatchType, data, opts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("apply %s: %w", title(obj), err)
	}
	return result, nil
}

// remove deletes an object, with what it owns; gone already is fine.
func (c cluster) remove(ctx context.Context, obj *unstructured.Unstructured) error {
	policy := metav1.DeletePropagationBackground
	err := retry(ctx, func(ctx context.Context) error {
		return c.of(obj).Delete(ctx, obj.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", title(obj), err)
	}
	return nil
}

// listed returns the objects of a kind that carry labels.
func (c cluster) listed(ctx context.Context, k kind, selector string) (items []unstructured.Unstructured, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		list, err := c.Dynamic.Resource(k.GroupVersionResource).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err == nil {
			items = list.Items
		}
		return err
	})
	if apierrors.IsNotFound(err) { // a kind that this server does not have
		return nil, nil
	}
	return items, err
}

// operator refuses objects of the Prometheus operator where its kinds are missing.
func (c cluster) operator(ctx context.Context, parts []Part) error {
	asked := map[schema.GroupVersionResource]bool{}
	for _, p := range parts {
		for _, obj := range p.Objects {
			k, _ := kindOf(obj)
			if k.Group != operatorGroup || asked[k.GroupVersionResource] {
				continue
			}
			asked[k.GroupVersionResource] = true
			err := retry(ctx, func(ctx context.Context) error {
				_, err := c.Dynamic.Resource(k.GroupVersionResource).Namespace(obj.GetNamespace()).List(ctx, metav1.ListOptions{Limit: 1})
				return err
			})
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("%s: the cluster has no kind %s: install the Prometheus operator first, or set values.observability.%s.enabled=false", title(obj), k.Kind, operatorValue[k.Kind])
			} else if err != nil {
				return fmt.Errorf("look for the kind %s: %w", k.Kind, err)
			}
		}
	}
	return nil
}

// operatorValue is the value that turns each kind of the Prometheus operator on.
var operatorValue = map[string]string{"PodMonitor": "monitors", "PrometheusRule": "rules"}

// retry repeats what failed for a reason that may pass.
func retry(ctx context.Context, do func(context.Context) error) error {
	var last error
	err := wait.ExponentialBackoffWithContext(ctx, retries, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		last = do(ctx)
		if last == nil || !passing(last) {
			return true, last
		}
		return false, nil
	})
	if err != nil && last != nil && ctx.Err() == nil {
		return last
	}
	return err
}

// passing reports whether an error may be over soon.
func passing(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return !errors.Is(err, context.Canceled) // no answer at all
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsTooManyRequests(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsServiceUnavailable(err):
		return true
	}
	return status.Status().Code == http.StatusInternalServerError || status.Status().Code == http.StatusBadGateway
}
