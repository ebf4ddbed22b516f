// Package deployer applies what package deploy computes for Gateways to the
// Kubernetes API: it creates the objects, puts back what others change of them, and
// deletes them when a Gateway no longer has proxies of Ambit.
package deployer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

const (
	// fieldManager is Istio's: objects that its control plane made are taken over, and
	// the other way round.
	fieldManager = "istio.io/gateway-controller"
	// workers apply at a time.
	workers = 2
	// settle collects changes that come together.
	settle = 100 * time.Millisecond
)

// Options of Run.
type Options struct {
	Client *client.Client
	// Gateways returns those to run, without status. One that did not change is the
	// same pointer. Changed has a value after it may return others.
	Gateways func() []*deploy.Plan
	Changed  <-chan struct{}
	// Classes are created where they are missing.
	Classes  []*gatewayv1.GatewayClass
	Settings deploy.Settings
	Logger   *slog.Logger
}

// kinds are those of what is made, in the order in which they are applied.
var kinds = []schema.GroupVersionResource{
	corev1.SchemeGroupVersion.WithResource("serviceaccounts"),
	corev1.SchemeGroupVersion.WithResource("services"),
	appsv1.SchemeGroupVersion.WithResource("deployments"),
	autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers"),
	policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"),
}

type deployer struct {
	Options
	queue workqueue.TypedRateLimitingInterface[types.NamespacedName]
	made  map[schema.GroupVersionResource]cache.SharedIndexInformer

	mu       sync.Mutex
	gateways map[types.NamespacedName]*deploy.Plan // guarded by mu
}

// Run applies until ctx ends. One replica should.
func Run(ctx context.Context, o Options) error {
	d := &deployer{
		Options: o, gateways: map[types.NamespacedName]*deploy.Plan{},
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](100*time.Millisecond, time.Minute)),
	}
	selection := client.Selection{Labels: deploy.LabelManaged + "," + wellknown.LabelGatewayName}
	core := o.Client.Kube.CoreV1()
	d.made = map[schema.GroupVersionResource]cache.SharedIndexInformer{
		kinds[0]: client.Informer(core.ServiceAccounts(""), &corev1.ServiceAccount{}, selection),
		kinds[1]: client.Informer(core.Services(""), &corev1.Service{}, selection),
		kinds[2]: client.Informer(o.Client.Kube.AppsV1().Deployments(""), &appsv1.Deployment{}, selection),
		kinds[3]: client.Informer(o.Client.Kube.AutoscalingV2().HorizontalPodAutoscalers(""), &autoscalingv2.HorizontalPodAutoscaler{}, selection),
		kinds[4]: client.Informer(o.Client.Kube.PolicyV1().PodDisruptionBudgets(""), &policyv1.PodDisruptionBudget{}, selection),
	}
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	defer d.queue.ShutDown()
	var synced []cache.InformerSynced
	for _, informer := range d.made {
		if err := d.follow(informer); err != nil {
			return fmt.Errorf("deployer: %w", err)
		}
		wg.Go(func() { informer.RunWithContext(ctx) })
		synced = append(synced, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx ended
	}
	d.take()
	wg.Go(func() { d.classes(ctx) })
	for range workers {
		wg.Go(func() { d.work(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.Changed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		d.take()
	}
}

// take queues the Gateways that differ from those of before, and those that are no
// longer to run.
func (d *deployer) take() {
	next := map[types.NamespacedName]*deploy.Plan{}
	for _, p := range d.Gateways() {
		next[types.NamespacedName{Namespace: p.Gateway.Namespace, Name: p.Gateway.Name}] = p
	}
	d.mu.Lock()
	before := d.gateways
	d.gateways = next
	d.mu.Unlock()
	for k, g := range next {
		if before[k] != g { // the registry keeps what did not change
			d.queue.Add(k)
		}
	}
	for k := range before {
		if next[k] == nil {
			d.queue.Add(k)
		}
	}
}

// follow queues the Gateway of an object that somebody changes or deletes.
func (d *deployer) follow(informer cache.SharedIndexInformer) error {
	if err := informer.SetTransform(trim); err != nil {
		return err
	}
	add := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if o, ok := obj.(metav1.Object); ok {
			d.queue.Add(gatewayOf(o))
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, DeleteFunc: add,
		UpdateFunc: func(old, now any) {
			if !onlyStatus(old, now) {
				add(now)
			}
		},
	})
	return err
}

// onlyStatus reports whether an update changed neither spec nor labels. Only
// Deployments count the generations of their spec.
func onlyStatus(old, now any) bool {
	o, ok1 := old.(*appsv1.Deployment)
	n, ok2 := now.(*appsv1.Deployment)
	return ok1 && ok2 && o.Generation == n.Generation && maps.Equal(o.Labels, n.Labels)
}

func gatewayOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[wellknown.LabelGatewayName]}
}

// trim forgets what is not looked at.
func trim(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
	}
	switch o := obj.(type) {
	case *appsv1.Deployment:
		o.Spec, o.Status = appsv1.DeploymentSpec{}, appsv1.DeploymentStatus{}
	case *corev1.Service:
		o.Spec, o.Status = corev1.ServiceSpec{}, corev1.ServiceStatus{}
	case *autoscalingv2.HorizontalPodAutoscaler:
		o.Spec, o.Status = autoscalingv2.HorizontalPodAutoscalerSpec{}, autoscalingv2.HorizontalPodAutoscalerStatus{}
	case *policyv1.PodDisruptionBudget:
		o.Spec, o.Status = policyv1.PodDisruptionBudgetSpec{}, policyv1.PodDisruptionBudgetStatus{}
	}
	return obj, nil
}

func (d *deployer) work(ctx context.Context) {
	for {
		k, shutdown := d.queue.Get()
		if shutdown {
			return
		}
		err := d.reconcile(ctx, k)
		switch {
		case err == nil || ctx.Err() != nil:
			d.queue.Forget(k)
		default:
			if n := d.queue.NumRequeues(k); n == 0 || n == 5 {
				d.Logger.Warn("cannot run the proxies of a Gateway; trying again", "gateway", k.String(), "error", err)
			}
			d.queue.AddRateLimited(k)
		}
		d.queue.Done(k)
	}
}

// reconcile makes the objects of a Gateway what they should be.
func (d *deployer) reconcile(ctx context.Context, k types.NamespacedName) error {
	d.mu.Lock()
	p := d.gateways[k]
	d.mu.Unlock()
	if p == nil {
		return d.abandoned(ctx, k)
	}
	if p.Err != nil {
		return nil //nolint:nilerr // the Gateway's status has it; what runs stays
	}
	want, ok, err := deploy.For(p.Gateway, d.Settings, p.Overlays...)
	if err != nil {
		return err
	}
	if !ok {
		return d.prune(ctx, k, nil)
	}
	keep := map[schema.GroupVersionResource]string{}
	objects := []metav1.Object{want.ServiceAccount, want.Service, want.Deployment, nil, nil}
	if want.Autoscaler != nil {
		objects[3] = want.Autoscaler
	}
	if want.Budget != nil {
		objects[4] = want.Budget
	}
	for i, o := range objects {
		if o == nil {
			continue
		}
		keep[kinds[i]] = o.GetName()
		if err := d.apply(ctx, kinds[i], o); err != nil {
			return err
		}
	}
	return d.prune(ctx, k, keep)
}

// apply writes the fields of an object that are Ambit's. An object of that name that
// was not made for a Gateway is somebody's own.
func (d *deployer) apply(ctx context.Context, gvr schema.GroupVersionResource, o metav1.Object) error {
	api := d.Client.Dynamic.Resource(gvr).Namespace(o.GetNamespace())
	if _, known, err := d.made[gvr].GetStore().GetByKey(o.GetNamespace() + "/" + o.GetName()); err == nil && !known {
		have, err := api.Get(ctx, o.GetName(), metav1.GetOptions{})
		if err == nil && have.GetLabels()[deploy.LabelManaged] == "" {
			return fmt.Errorf("%s %s/%s exists and was not made for a Gateway (rename one of the two, or label it %s)",
				gvr.Resource, o.GetNamespace(), o.GetName(), deploy.LabelManaged)
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(body, "status")
	for _, path := range [][]string{{"metadata", "creationTimestamp"}, {"spec", "template", "metadata", "creationTimestamp"}} {
		unstructured.RemoveNestedField(body, path...)
	}
	_, err = api.Apply(ctx, o.GetName(), &unstructured.Unstructured{Object: body}, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

// abandoned deletes what was made for a Gateway that is gone, or that is of another
// class now. One that another control plane looks after keeps its proxies.
func (d *deployer) abandoned(ctx context.Context, k types.NamespacedName) error {
	o, err := d.Client.Dynamic.Resource(gatewayResource("gateways")).Namespace(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return d.prune(ctx, k, nil)
	}
	if err != nil {
		return err
	}
	g := &gatewayv1.Gateway{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, g); err != nil {
		return err
	}
	if deploy.Managed(g) {
		return nil
	}
	return d.prune(ctx, k, nil)
}

// prune deletes what was made for a Gateway, but for one object of each kind.
func (d *deployer) prune(ctx context.Context, k types.NamespacedName, keep map[schema.GroupVersionResource]string) error {
	var failures []error
	for _, gvr := range kinds {
		for _, obj := range d.made[gvr].GetStore().List() {
			o, ok := obj.(metav1.Object)
			if !ok || gatewayOf(o) != k || keep[gvr] == o.GetName() || !ownedBy(o, k.Name) || !deploy.Ours(o.GetLabels()[deploy.LabelManaged]) {
				continue
			}
			uid := o.GetUID()
			err := d.Client.Dynamic.Resource(gvr).Namespace(k.Namespace).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
			if err != nil && !apierrors.IsNotFound(err) {
				failures = append(failures, err)
			}
		}
	}
	return errors.Join(failures...)
}

// ownedBy reports whether an object belongs to a Gateway, also one that is gone.
func ownedBy(o metav1.Object, gateway string) bool {
	for _, r := range o.GetOwnerReferences() {
		if r.Kind == "Gateway" && r.Name == gateway {
			return true
		}
	}
	return false
}
