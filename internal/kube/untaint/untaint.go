// Package untaint frees new nodes: a node that is created with a taint of the
// mesh gets its first pods only when its node agent and its node proxy are ready,
// so that no pod starts before there is anybody to capture it.
package untaint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Labels of the pods that a node has to have, unless Options say otherwise.
const (
	DefaultAgentSelector = "k8s-app=istio-cni-node"
	DefaultProxySelector = "app=ztunnel"
)

// patience bounds one request.
const patience = 10 * time.Second

// Options are Run's.
type Options struct {
	Client *client.Client
	Taint  string // its key; any effect
	// Namespace and selectors of the pods that have to be ready.
	Namespace     string
	AgentSelector string // default DefaultAgentSelector
	ProxySelector string // default DefaultProxySelector
	Logger        *slog.Logger
}

// Run takes the taint off nodes until the context ends. There should be one at a
// time in a cluster.
func Run(ctx context.Context, o Options) error {
	if o.Taint == "" || o.Namespace == "" {
		return errors.New("untaint: a taint and a namespace have to be named")
	}
	if o.AgentSelector == "" {
		o.AgentSelector = DefaultAgentSelector
	}
	if o.ProxySelector == "" {
		o.ProxySelector = DefaultProxySelector
	}
	u := &untainter{Options: o, queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())}
	return u.run(ctx)
}

type untainter struct {
	Options
	queue         workqueue.TypedRateLimitingInterface[string] // names of nodes
	nodes         cache.SharedIndexInformer
	agents, proxy cache.SharedIndexInformer
}

const byNode = "node"

func (u *untainter) run(ctx context.Context) error {
	defer u.queue.ShutDown()
	core := u.Client.Kube.CoreV1()
	u.nodes = client.Informer(core.Nodes(), &corev1.Node{}, client.Selection{})
	if err := u.follow(u.nodes, trimNode, nameOf); err != nil {
		return err
	}
	all := []cache.SharedIndexInformer{u.nodes}
	for selector, keep := range map[string]*cache.SharedIndexInformer{u.AgentSelector: &u.agents, u.ProxySelector: &u.proxy} {
		*keep = client.Informer(core.Pods(u.Namespace), &corev1.Pod{}, client.Selection{Labels: selector})
		if err := (*keep).AddIndexers(cache.Indexers{byNode: func(obj any) ([]string, error) { return []string{nodeOf(obj)}, nil }}); err != nil {
			return err
		}
		if err := u.follow(*keep, trimPod, nodeOf); err != nil {
			return err
		}
		all = append(all, *keep)
	}
	var synced []cache.InformerSynced
	for _, informer := range all {
		go informer.RunWithContext(ctx)
		synced = append(synced, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	stop := context.AfterFunc(ctx, u.queue.ShutDown)
	defer stop()
	for u.next(ctx) {
	}
	return nil
}

// follow has a node looked at whenever an object that belongs to it changes.
func (u *untainter) follow(i cache.SharedIndexInformer, trim cache.TransformFunc, node func(any) string) error {
	if err := i.SetTransform(trim); err != nil {
		return err
	}
	add := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if name := node(obj); name != "" {
			u.queue.Add(name)
		}
	}
	_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, now any) { add(now) }, DeleteFunc: add})
	return err
}

func (u *untainter) next(ctx context.Context) bool {
	name, shutdown := u.queue.Get()
	if shutdown {
		return false
	}
	defer u.queue.Done(name)
	if err := u.look(ctx, name); err != nil && ctx.Err() == nil {
		u.Logger.Warn("cannot take the taint off a node, trying again", "node", name, "taint", u.Taint, "error", err)
		u.queue.AddRateLimited(name)
		return true
	}
	u.queue.Forget(name)
	return true
}

func (u *untainter) look(ctx context.Context, name string) error {
	obj, exists, err := u.nodes.GetStore().GetByKey(name)
	if err != nil || !exists {
		return err
	}
	node, ok := obj.(*corev1.Node)
	if !ok || !u.anyReady(u.agents, name) || !u.anyReady(u.proxy, name) {
		return nil
	}
	patch := removal(node.Spec.Taints, u.Taint)
	if patch == nil {
		return nil
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, selector := range []string{u.AgentSelector, u.ProxySelector} {
		if there, err := u.confirm(ctx, selector, name); err != nil || !there {
			return err // a pod that comes has the node looked at again
		}
	}
	_, err = u.Client.Kube.CoreV1().Nodes().Patch(ctx, name, types.JSONPatchType, text, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		u.Logger.Info("node is ready for pods: its node agent and its ztunnel are", "node", name, "taint", u.Taint)
	}
	return err
}

// confirm asks the API server whether a node has a ready pod of a selector. The
// caches may be behind: a node that is new again under its old name would be freed
// because of its former pods.
func (u *untainter) confirm(ctx context.Context, selector, node string) (bool, error) {
	pods, err := u.Client.Kube.CoreV1().Pods(u.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector, FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool { return ready(&pod) }), nil
}

func (u *untainter) anyReady(i cache.SharedIndexInformer, node string) bool {
	pods, err := i.GetIndexer().ByIndex(byNode, node)
	if err != nil {
		return false
	}
	for _, obj := range pods {
		if pod, ok := obj.(*corev1.Pod); ok && ready(pod) {
			return true
		}
	}
	return false
}

func ready(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// operation is one of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// removal is the patch that takes the taints with a key out of a list and no
// other, also when somebody else has changed the list meanwhile: then it is
// refused. It is nil when there is nothing to do.
func removal(taints []corev1.Taint, key string) []operation {
	var patch []operation
	for i := len(taints) - 1; i >= 0; i-- { // from the end, so that places stay
		if taints[i].Key == key {
			path := fmt.Sprintf("/spec/taints/%d", i)
			patch = append(patch, operation{Op: "test", Path: path + "/key", Value: key}, operation{Op: "remove", Path: path})
		}
	}
	return patch
}

func nameOf(obj any) string {
	if n, ok := obj.(*corev1.Node); ok {
		return n.Name
	}
	return ""
}

func nodeOf(obj any) string {
	if p, ok := obj.(*corev1.Pod); ok {
		return p.Spec.NodeName
	}
	return ""
}

// trimNode and trimPod keep what is looked at: a cluster has thousands.
func trimNode(obj any) (any, error) {
	if n, ok := obj.(*corev1.Node); ok {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
			Spec:       corev1.NodeSpec{Taints: n.Spec.Taints},
		}, nil
	}
	return obj, nil
}

func trimPod(obj any) (any, error) {
	if p, ok := obj.(*corev1.Pod); ok {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, DeletionTimestamp: p.DeletionTimestamp},
			Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName},
			Status:     corev1.PodStatus{Conditions: p.Status.Conditions},
		}, nil
	}
	return obj, nil
}
