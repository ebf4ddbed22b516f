// Package trust tells pods whom to trust: it keeps the roots of the mesh in a
// ConfigMap of every namespace, and in a ClusterTrustBundle where the API has
// them. What somebody else changes or deletes is put back.
package trust

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// The ConfigMap, as pods mount it.
const (
	ConfigMap = "istio-ca-root-cert"
	Key       = "root-cert.pem"
)

// workers write at a time.
const workers = 4

// Options of Run.
type Options struct {
	Client *client.Client
	// Bundle returns the roots, PEM, and what is closed when there are others.
	Bundle func() ([]byte, <-chan struct{})
	// Selected tells whether the mesh looks at a namespace; nil for all.
	Selected func(*corev1.Namespace) bool
	// Reselect, when set, has a value after Selected may answer otherwise.
	Reselect <-chan struct{}
	Logger   *slog.Logger
}

// ignored are the namespaces of Kubernetes itself, where nothing of a mesh
// runs.
var ignored = map[string]bool{"kube-system": true, "kube-public": true, "kube-node-lease": true}

type distributor struct {
	Options
	namespaces, maps cache.SharedIndexInformer
	queue            workqueue.TypedRateLimitingInterface[string]
}

// Run distributes until ctx ends. One replica should.
func Run(ctx context.Context, o Options) error {
	d := &distributor{Options: o, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute))}
	core := o.Client.Kube.CoreV1()
	d.namespaces = client.Informer(core.Namespaces(), &corev1.Namespace{}, client.Selection{})
	d.maps = client.Informer(core.ConfigMaps(""), &corev1.ConfigMap{}, client.Selection{Name: ConfigMap})
	if err := errors.Join(
		d.namespaces.SetTransform(trim), d.maps.SetTransform(trim),
		d.follow(d.namespaces, func(o metav1.Object) string { return o.GetName() }),
		d.follow(d.maps, metav1.Object.GetNamespace)); err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, d.queue.ShutDown)()
	var wg sync.WaitGroup
	wg.Go(func() { d.namespaces.RunWithContext(ctx) })
	wg.Go(func() { d.maps.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), d.namespaces.HasSynced, d.maps.HasSynced) {
		wg.Wait()
		return nil // ctx ended
	}
	for range workers {
		wg.Go(func() { d.work(ctx) })
	}
	wg.Go(func() { d.watchBundle(ctx) })
	wg.Wait()
	return nil
}

// trim forgets what is not looked at.
func trim(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
	}
	return obj, nil
}

// follow has a namespace looked at whenever an object of it changes.
func (d *distributor) follow(informer cache.SharedIndexInformer, namespace func(metav1.Object) string) error {
	add := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if o, ok := obj.(metav1.Object); ok {
			d.queue.Add(namespace(o))
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, o any) { add(o) }, DeleteFunc: add,
	})
	return err
}

func (d *distributor) watchBundle(ctx context.Context) {
	bundle := &clusterBundle{client: d.Client, log: d.Logger}
	repair := time.NewTicker(repairInterval)
	defer repair.Stop()
	for {
		roots, changed := d.Bundle()
		bundle.put(ctx, string(roots))
		select {
		case <-ctx.Done():
			return
		case <-repair.C: // the bundle alone: ConfigMaps are watched
			continue
		case <-changed:
		case <-d.Reselect:
		}
		for _, ns := range d.namespaces.GetStore().ListKeys() {
			d.queue.Add(ns)
		}
	}
}

func (d *distributor) work(ctx context.Context) {
	for {
		ns, shutdown := d.queue.Get()
		if shutdown {
			return
		}
		err := d.reconcile(ctx, ns)
		switch {
		case err == nil || ctx.Err() != nil:
			d.queue.Forget(ns)
		default:
			if d.queue.NumRequeues(ns) == 1 {
				d.Logger.Warn("cannot write the trust bundle; trying again", "namespace", ns, "configmap", ConfigMap, "error", err)
			}
			d.queue.AddRateLimited(ns)
		}
		d.queue.Done(ns)
	}
}

// wanted tells whether a namespace gets the ConfigMap.
func (d *distributor) wanted(name string) bool {
	obj, ok, err := d.namespaces.GetStore().GetByKey(name)
	ns, isNamespace := obj.(*corev1.Namespace)
	return err == nil && ok && isNamespace && !ignored[name] && ns.DeletionTimestamp == nil &&
		(d.Selected == nil || d.Selected(ns))
}

// reconcile makes the ConfigMap of a namespace what it should be. One that is
// no longer wanted stays: pods may have it mounted.
func (d *distributor) reconcile(ctx context.Context, ns string) error {
	if !d.wanted(ns) {
		return nil
	}
	roots, _ := d.Bundle()
	if len(roots) == 0 {
		return nil
	}
	api := d.Client.Kube.CoreV1().ConfigMaps(ns)
	obj, ok, err := d.maps.GetStore().GetByKey(ns + "/" + ConfigMap)
	if err != nil {
		return err
	}
	have, _ := obj.(*corev1.ConfigMap)
	if !ok || have == nil {
		_, err := api.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: ConfigMap, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       map[string]string{Key: string(roots)},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil // the watch tells what it is like, or that it went
		}
		return err
	}
	if have.Data[Key] == string(roots) {
		return nil
	}
	// The copy watched is trimmed; a patch of the one key leaves the rest.
	err = patch(ctx, d.Client, ns, string(roots))
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile: the watch tells
	}
	return err
}
