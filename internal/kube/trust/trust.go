// Package trust publishes to pods what to trust and what no longer: it keeps the roots
// of the mesh, and the revocation lists of its authority, in ConfigMaps of every
// namespace, and the roots in a ClusterTrustBundle where the API has them. What
// somebody else changes or deletes is put back.
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

// Document is a text in a ConfigMap, as pods mount it.
type Document struct {
	ConfigMap, Key string
	bundle         bool // also in the ClusterTrustBundle
}

// The documents.
var (
	Roots       = Document{ConfigMap: "istio-ca-root-cert", Key: "root-cert.pem", bundle: true}
	Revocations = Document{ConfigMap: "istio-ca-crl", Key: "ca-crl.pem"}
)

// workers write at a time.
const workers = 4

// Options of Run.
type Options struct {
	Client *client.Client
	// Texts are what is published: each returns the document, PEM, and what is
	// closed when there is another. One that is empty is not written.
	Texts map[Document]func() ([]byte, <-chan struct{})
	// Selected reports whether the mesh looks at a namespace; nil for all.
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
	namespaces cache.SharedIndexInformer
	maps       map[Document]cache.SharedIndexInformer
	queue      workqueue.TypedRateLimitingInterface[string]
}

// Run distributes until ctx ends. One replica should.
func Run(ctx context.Context, o Options) error {
	d := &distributor{Options: o, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute))}
	core := o.Client.Kube.CoreV1()
	d.namespaces = client.Informer(core.Namespaces(), &corev1.Namespace{}, client.Selection{})
	d.maps = map[Document]cache.SharedIndexInformer{}
	all := []cache.SharedIndexInformer{d.namespaces}
	err := d.follow(d.namespaces, func(o metav1.Object) string { return o.GetName() })
	for doc := range o.Texts {
		d.maps[doc] = client.Informer(core.ConfigMaps(""), &corev1.ConfigMap{}, client.Selection{Name: doc.ConfigMap})
		all = append(all, d.maps[doc])
		err = errors.Join(err, d.follow(d.maps[doc], metav1.Object.GetNamespace))
	}
	if err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, d.queue.ShutDown)()
	var wg sync.WaitGroup
	var synced []cache.InformerSynced
	for _, informer := range all {
		wg.Go(func() { informer.RunWithContext(ctx) })
		synced = append(synced, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		wg.Wait()
		return nil // ctx ended
	}
	for range workers {
		wg.Go(func() { d.work(ctx) })
	}
	for doc, text := range d.Texts {
		wg.Go(func() { d.watchText(ctx, doc, text) })
	}
	wg.Go(func() { d.reselect(ctx) })
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
	if err := informer.SetTransform(trim); err != nil {
		return err
	}
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

// watchText has every namespace looked at when a document is another.
func (d *distributor) watchText(ctx context.Context, doc Document, get func() ([]byte, <-chan struct{})) {
	bundle := &clusterBundle{client: d.Client, log: d.Logger}
	repair := time.NewTicker(repairInterval)
	defer repair.Stop()
	text, changed := get()
	d.all() // a namespace may have been looked at before there was this text
	for {
		if doc.bundle {
			bundle.put(ctx, string(text))
		}
		select {
		case <-ctx.Done():
			return
		case <-repair.C: // the bundle alone: ConfigMaps are watched
		case <-changed:
			text, changed = get()
			d.all()
		}
	}
}

func (d *distributor) reselect(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.Reselect:
			d.all()
		}
	}
}

// all has every namespace looked at.
func (d *distributor) all() {
	for _, ns := range d.namespaces.GetStore().ListKeys() {
		d.queue.Add(ns)
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
				d.Logger.Warn("cannot write what pods trust by; trying again", "namespace", ns, "error", err)
			}
			d.queue.AddRateLimited(ns)
		}
		d.queue.Done(ns)
	}
}

// wanted reports whether a namespace gets the ConfigMaps.
func (d *distributor) wanted(name string) bool {
	obj, ok, err := d.namespaces.GetStore().GetByKey(name)
	ns, isNamespace := obj.(*corev1.Namespace)
	return err == nil && ok && isNamespace && !ignored[name] && ns.DeletionTimestamp == nil &&
		(d.Selected == nil || d.Selected(ns))
}

// reconcile makes the ConfigMaps of a namespace what they should be. One that is
// no longer wanted stays: pods may have it mounted.
func (d *distributor) reconcile(ctx context.Context, ns string) error {
	if !d.wanted(ns) {
		return nil
	}
	var failures []error
	for doc, get := range d.Texts {
		if text, _ := get(); len(text) > 0 {
			failures = append(failures, d.write(ctx, ns, doc, string(text)))
		}
	}
	return errors.Join(failures...)
}

func (d *distributor) write(ctx context.Context, ns string, doc Document, text string) error {
	obj, ok, err := d.maps[doc].GetStore().GetByKey(ns + "/" + doc.ConfigMap)
	if err != nil {
		return err
	}
	have, _ := obj.(*corev1.ConfigMap)
	if !ok || have == nil {
		_, err := d.Client.Kube.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: doc.ConfigMap, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       map[string]string{doc.Key: text},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil // the watch tells what it is like, or that it went
		}
		return err
	}
	if have.Data[doc.Key] == text {
		return nil
	}
	// The copy watched is trimmed; a patch of the one key leaves the rest.
	err = patch(ctx, d.Client, ns, doc, text)
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile: the watch tells
	}
	return err
}
