package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
)

const (
	// writers are the requests under way to the API server while objects are
	// made.
	writers = 48
	// renewal is how often every lease is renewed.
	renewal = 15 * time.Second
	// cleanWait bounds taking everything away.
	cleanWait = 10 * time.Minute
)

// world is the generated objects in the cluster.
type world struct {
	shape
	kube    *client.Typed
	dynamic dynamic.Interface
}

// connect finds the cluster. This program asks as much as it wants.
func connect(kubeconfig string, s shape) (*world, error) {
	c, err := client.New(client.Options{Kubeconfig: kubeconfig, UserAgent: "ambit-scale", QPS: -1})
	if err != nil {
		return nil, err
	}
	return &world{shape: s, kube: c.Kube, dynamic: c.Dynamic}, nil
}

// each is parallel, and says what it has done.
func each(ctx context.Context, what string, n int, f func(context.Context, int) error) error {
	began := time.Now()
	if err := parallel(ctx, n, f); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	progress("%s: %d in %.1f s", what, n, time.Since(began).Seconds())
	return nil
}

// parallel calls f for 0 to n-1, several at a time, until one fails.
func parallel(ctx context.Context, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(writers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// create makes all objects. What an earlier run has left cannot be used: its
// nodes have not been heard of, and so the cluster has given its pods up.
func (w *world) create(ctx context.Context) error {
	switch _, err := w.kube.CoreV1().Namespaces().Get(ctx, systemNamespace, metav1.GetOptions{}); {
	case err == nil:
		progress("taking away what an earlier run has left")
		if err := w.remove(ctx); err != nil {
			return err
		}
	case !apierrors.IsNotFound(err):
		return err
	}
	if err := w.absent(ctx); err != nil {
		return err
	}
	none := metav1.CreateOptions{}
	core := w.kube.CoreV1()
	err := inTurn(ctx, []step{
		{"namespaces", w.namespaces() + 1, func(ctx context.Context, i int) error {
			name := systemNamespace
			if i > 0 {
				name = namespaceName(i - 1)
			}
			_, err := core.Namespaces().Create(ctx, namespace(name, i > 0 && i <= w.waypoints), none)
			return err
		}},
		{"nodes", w.nodes, w.createNode},
		{"service accounts", w.services + 1, func(ctx context.Context, i int) error {
			a := account(systemNamespace, proxyAccount)
			if i > 0 {
				a = account(home(i-1), serviceName(i-1))
			}
			_, err := core.ServiceAccounts(a.Namespace).Create(ctx, a, none)
			return err
		}},
		{"node proxies", w.nodes, func(ctx context.Context, i int) error { return w.createPod(ctx, proxyPod(i)) }},
		{"pods", w.pods, func(ctx context.Context, i int) error { return w.createPod(ctx, w.pod(i)) }},
		{"services", w.services, w.createService},
	})
	if err != nil {
		return err
	}
	return w.createWaypoints(ctx)
}

// step makes n objects of a kind.
type step struct {
	what string
	n    int
	make func(context.Context, int) error
}

// inTurn takes one step after the other, until one fails.
func inTurn(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := each(ctx, s.what, s.n, s.make); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) createNode(ctx context.Context, i int) error {
	n := clusterNode(i)
	_, err := w.kube.CoordinationV1().Leases(leaseNamespace).Create(ctx, lease(i), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made, err := w.kube.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made.Status = n.Status
	made.ResourceVersion = "" // others may write it at the same time
	_, err = w.kube.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}

func (w *world) createPod(ctx context.Context, p *corev1.Pod) error {
	made, err := w.kube.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made.Status = p.Status
	_, err = w.kube.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}

func (w *world) createService(ctx context.Context, i int) error {
	if _, err := w.kube.CoreV1().Services(home(i)).Create(ctx, service(i), metav1.CreateOptions{}); err != nil || !external(i) {
		return err
	}
	_, err := w.kube.DiscoveryV1().EndpointSlices(home(i)).Create(ctx, slice(i), metav1.CreateOptions{})
	return err
}

// heartbeat keeps the nodes alive until ctx ends.
func (w *world) heartbeat(ctx context.Context) {
	t := time.NewTicker(renewal)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := w.renew(ctx); err != nil && ctx.Err() == nil {
				progress("renewing leases: %v", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// renew does so for several nodes at a time: one that is late loses its pods.
func (w *world) renew(ctx context.Context) error {
	leases := w.kube.CoordinationV1().Leases(leaseNamespace)
	return parallel(ctx, w.nodes, func(ctx context.Context, i int) error {
		patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format(metav1.RFC3339Micro))
		_, err := leases.Patch(ctx, nodeName(i), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return ignoreMissing(err)
	})
}

// absent refuses a cluster with another mesh: both would write one bundle.
func (w *world) absent(ctx context.Context) error {
	for _, r := range w.bundles() {
		if _, err := r.Get(ctx, trust.BundleName, metav1.GetOptions{}); err == nil {
			return fmt.Errorf("the cluster has a mesh already (ClusterTrustBundle %s): use another cluster", trust.BundleName)
		}
	}
	return nil
}

func (w *world) bundles() []dynamic.ResourceInterface {
	var all []dynamic.ResourceInterface
	for _, version := range []string{"v1", "v1beta1", "v1alpha1"} {
		all = append(all, w.dynamic.Resource(schema.GroupVersionResource{Group: "certificates.k8s.io", Version: version, Resource: "clustertrustbundles"}))
	}
	return all
}

// remove takes everything away and waits until it is gone. Pods are ended
// without grace: nobody runs who could grant it.
func (w *world) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanWait)
	defer cancel()
	ours := metav1.ListOptions{LabelSelector: ownLabel}
	core := w.kube.CoreV1()
	list, err := core.Namespaces().List(ctx, ours)
	if err != nil {
		return err
	}
	err = errors.Join(w.removeGatewayAPI(ctx), w.empty(ctx, list.Items))
	err = errors.Join(err, core.Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, ours),
		w.kube.CoordinationV1().Leases(leaseNamespace).DeleteCollection(ctx, metav1.DeleteOptions{}, ours))
	if len(list.Items) == 0 {
		return err // nothing ran, and the bundle is somebody else's
	}
	for _, r := range w.bundles() {
		if gone := r.Delete(ctx, trust.BundleName, metav1.DeleteOptions{}); gone == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	for {
		list, err := core.Namespaces().List(ctx, ours)
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("%d namespaces are not gone, such as %s: %w", len(list.Items), list.Items[0].Name, ctx.Err())
		}
	}
}

// empty deletes the namespaces, and before them their pods: one by one, which
// is several at a time, while the API server deletes a collection in turn.
func (w *world) empty(ctx context.Context, namespaces []corev1.Namespace) error {
	core := w.kube.CoreV1()
	var pods []metav1.ObjectMeta
	for _, ns := range namespaces {
		list, err := core.Pods(ns.Name).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for i := range list.Items {
			pods = append(pods, metav1.ObjectMeta{Namespace: ns.Name, Name: list.Items[i].Name})
		}
	}
	err := each(ctx, "pods deleted", len(pods), func(ctx context.Context, i int) error {
		return ignoreMissing(core.Pods(pods[i].Namespace).Delete(ctx, pods[i].Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	})
	if err != nil {
		return err
	}
	return each(ctx, "namespaces deleted", len(namespaces), func(ctx context.Context, i int) error {
		return ignoreMissing(core.Namespaces().Delete(ctx, namespaces[i].Name, metav1.DeleteOptions{}))
	})
}

func ignoreMissing(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
