package nodestate

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// DaemonSet is the one that a pod belongs to, and that the pod may outlive.
type DaemonSet struct {
	client         *client.Client
	namespace, pod string
	logger         *slog.Logger

	owner atomic.Pointer[owner]
	gone  atomic.Bool // when it was heard of last
}

type owner struct {
	name string
	uid  types.UID
}

// NewDaemonSet looks after the DaemonSet of a pod.
func NewDaemonSet(c *client.Client, namespace, pod string, logger *slog.Logger) *DaemonSet {
	return &DaemonSet{client: c, namespace: namespace, pod: pod, logger: logger}
}

// Run follows the DaemonSet until the context ends. When a whole installation is
// deleted, the right to ask goes together with the DaemonSet; by then it has
// been heard that it is deleted.
func (d *DaemonSet) Run(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := d.find(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		d.logger.Warn("cannot find the DaemonSet of this agent, trying again; without it, the CNI plugin stays on the node when the mesh is uninstalled", "pod", describe(d.namespace, d.pod), "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
	o := d.owner.Load()
	lw := cache.NewListWatchFromClient(d.client.Kube.AppsV1().RESTClient(), "daemonsets", d.namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, o.name))
	heard := func(obj any) {
		if ds, ok := obj.(*appsv1.DaemonSet); ok {
			d.gone.Store(ds.DeletionTimestamp != nil)
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &appsv1.DaemonSet{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: heard, UpdateFunc: func(_, now any) { heard(now) }, DeleteFunc: func(any) { d.gone.Store(true) },
		},
	})
	informer.RunWithContext(ctx)
	return nil
}

// find learns whose the pod is.
func (d *DaemonSet) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pod, err := d.client.Kube.CoreV1().Pods(d.namespace).Get(ctx, d.pod, metav1.GetOptions{})
	if err != nil {
		return err
	}
	ref := metav1.GetControllerOf(pod)
	if ref == nil || ref.Kind != "DaemonSet" {
		return errNoDaemonSet
	}
	d.owner.Store(&owner{ref.Name, ref.UID})
	return nil
}

// Deleted reports whether the DaemonSet is deleted, and not only its pod replaced
// or its node restarted. An error means that nobody knows.
func (d *DaemonSet) Deleted(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if d.owner.Load() == nil {
		if err := d.find(ctx); err != nil {
			return false, err
		}
	}
	o := d.owner.Load()
	ds, err := d.client.Kube.AppsV1().DaemonSets(d.namespace).Get(ctx, o.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case (apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)) && d.gone.Load():
		return true, nil
	case err != nil:
		return false, fmt.Errorf("asking for DaemonSet %s: %w", describe(d.namespace, o.name), err)
	}
	// One of the same name that came after it will have its pod here soon.
	return ds.UID == o.uid && ds.DeletionTimestamp != nil, nil
}
