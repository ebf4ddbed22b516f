package kubetest

import (
	"context"
	"slices"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

func pod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{PodIP: "10.0.0.1"},
	}
}

func TestTypedClientReadsAndWrites(t *testing.T) {
	ctx := t.Context()
	s := Start(t, pod("a", "p1", "n1"), pod("a", "p2", "n2"), pod("b", "p3", "n1"))
	pods := s.Client().Kube.CoreV1().Pods("a")

	list, err := s.Client().Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil || len(list.Items) != 2 || list.Items[0].Name != "p1" || list.Items[1].Name != "p3" || list.Items[0].Status.PodIP != "10.0.0.1" {
		t.Fatalf("pods of n1: %v, %v", list, err)
	}
	list, err = pods.List(ctx, metav1.ListOptions{LabelSelector: "app in (p2)"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "p2" {
		t.Fatalf("by label: %v, %v", list, err)
	}

	p, err := pods.Get(ctx, "p1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stale := p.DeepCopy()
	p.Spec.NodeName = "n9"
	p.Status.PodIP = "10.9.9.9"
	p, err = pods.Update(ctx, p, metav1.UpdateOptions{})
	if err != nil || p.Spec.NodeName != "n9" || p.Status.PodIP != "10.0.0.1" || p.Generation != 2 {
		t.Fatalf("update must not touch the status: %+v, %v", p, err)
	}
	if _, err = pods.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Fatalf("stale update: %v", err)
	}
	p.Status.PodIP, p.Spec.NodeName = "10.9.9.9", "n10"
	p, err = pods.UpdateStatus(ctx, p, metav1.UpdateOptions{})
	if err != nil || p.Spec.NodeName != "n9" || p.Status.PodIP != "10.9.9.9" || p.Generation != 2 {
		t.Fatalf("status update must touch nothing else: %+v, %v", p, err)
	}
	rv := p.ResourceVersion
	if p, err = pods.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil || p.ResourceVersion != rv {
		t.Fatalf("an update without a change has no version: %s then %s, %v", rv, p.ResourceVersion, err)
	}

	if _, err = pods.Create(ctx, pod("a", "p1", ""), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Fatalf("create again: %v", err)
	}
	wrong := types.UID("other")
	if err := pods.Delete(ctx, "p1", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}}); !apierrors.IsConflict(err) {
		t.Fatalf("delete of another: %v", err)
	}
	if err := pods.Delete(ctx, "p1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(ctx, "p1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("after delete: %v", err)
	}
	if got := s.Requests(); got["list pods"] != 2 || got["update pods/status"] != 2 || got["delete pods"] != 2 {
		t.Errorf("requests: %v", got)
	}
}

func TestPatches(t *testing.T) {
	ctx := t.Context()
	s := Start(t, pod("a", "p", "n"))
	pods := s.Client().Kube.CoreV1().Pods("a")
	patch := func(kind types.PatchType, body string, sub ...string) (*corev1.Pod, error) {
		return pods.Patch(ctx, "p", kind, []byte(body), metav1.PatchOptions{}, sub...)
	}
	p, err := patch(types.MergePatchType, `{"metadata":{"annotations":{"a":"1"}}}`, "status")
	if err != nil || p.Annotations["a"] != "1" {
		t.Fatalf("merge: %v, %v", p, err)
	}
	if _, err = patch(types.MergePatchType, `{"metadata":{"uid":"other","annotations":{"a":"2"}}}`, "status"); !apierrors.IsConflict(err) {
		t.Fatalf("merge with another's UID: %v", err)
	}
	p, err = patch(types.JSONPatchType, `[{"op":"remove","path":"/metadata/annotations/a"},{"op":"add","path":"/metadata/labels/x","value":"y"}]`)
	if err != nil || len(p.Annotations) != 0 || p.Labels["x"] != "y" {
		t.Fatalf("json: %v, %v", p, err)
	}
	for _, kind := range []string{"A", "B"} {
		p, err = patch(types.StrategicMergePatchType, `{"status":{"conditions":[{"type":"`+kind+`","status":"True"}]}}`, "status")
	}
	if err != nil || len(p.Status.Conditions) != 2 {
		t.Fatalf("strategic: %v, %v", p, err)
	}
	maps := s.Client().Kube.CoreV1().ConfigMaps("a")
	for _, key := range []string{"one", "two"} {
		body := `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "a"}, "data": {"` + key + `": "x"}}`
		cm, err := maps.Patch(ctx, "m", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: "t", Force: ptr.To(true)})
		if err != nil || cm.Data[key] != "x" {
			t.Fatalf("apply: %v, %v", cm, err)
		}
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "m"}}
	if !s.Get(cm) || len(cm.Data) != 2 {
		t.Fatalf("applied twice: %v", cm)
	}
}

func TestPagesAreOneMoment(t *testing.T) {
	ctx := t.Context()
	s := Start(t, pod("a", "p1", "n"), pod("a", "p2", "n"), pod("a", "p3", "n"))
	pods := s.Client().Kube.CoreV1().Pods("")
	first, err := pods.List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil || len(first.Items) != 2 || first.Continue == "" {
		t.Fatalf("first page: %v, %v", first, err)
	}
	s.Delete(pod("a", "p3", ""))
	s.Add(pod("a", "p4", ""))
	second, err := pods.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue})
	if err != nil || len(second.Items) != 1 || second.Items[0].Name != "p3" || second.ResourceVersion != first.ResourceVersion {
		t.Fatalf("second page: %v, %v", second, err)
	}
	s.Compact()
	if _, err = pods.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue}); !apierrors.IsResourceExpired(err) {
		t.Fatalf("after compaction: %v", err)
	}
}

func next(t *testing.T, w watch.Interface, want watch.EventType) watch.Event {
	t.Helper()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch has ended")
			}
			if e.Type == watch.Bookmark && want != watch.Bookmark {
				continue
			}
			if e.Type != want {
				t.Fatalf("%s %v, want %s", e.Type, e.Object, want)
			}
			return e
		case <-time.After(10 * time.Second):
			t.Fatalf("no %s", want)
		}
	}
}

func TestWatchSeesWhatItsSelectorSees(t *testing.T) {
	ctx := t.Context()
	s := Start(t, pod("a", "p1", "n1"))
	pods := s.Client().Kube.CoreV1().Pods("")
	list, _ := pods.List(ctx, metav1.ListOptions{})
	opts := metav1.ListOptions{ResourceVersion: list.ResourceVersion, FieldSelector: "spec.nodeName=n1", AllowWatchBookmarks: true}
	w, err := pods.Watch(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.Stop() }()
	s.Add(pod("a", "p2", ""))
	s.Update(pod("a", "p2", "n1"))
	if p := next(t, w, watch.Added).Object.(*corev1.Pod); p.Name != "p2" {
		t.Fatalf("added %s", p.Name)
	}
	s.Delete(pod("a", "p1", ""))
	next(t, w, watch.Deleted)
	s.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
	next(t, w, watch.Bookmark)

	s.Compact()
	w.Stop()
	if w, err = pods.Watch(ctx, opts); err != nil {
		t.Fatal(err)
	}
	if err := apierrors.FromObject(next(t, w, watch.Error).Object); !apierrors.IsResourceExpired(err) {
		t.Fatalf("old version: %v", err)
	}
}

func TestRestartKeepsState(t *testing.T) {
	ctx := t.Context()
	s := Start(t, pod("a", "p1", "n1"))
	c := s.Client()
	w, err := c.Kube.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next(t, w, watch.Added)
	s.Stop()
	for range w.ResultChan() { // must end
		continue
	}
	if _, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); err == nil {
		t.Fatal("served while stopped")
	}
	s.Restart()
	list, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("after restart: %v, %v", list, err)
	}
}

func TestInformersAndMetadata(t *testing.T) {
	s := Start(t, pod("a", "p1", "n1"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	informer := client.Informer(s.Client().Kube.CoreV1().Pods(""), &corev1.Pod{}, client.Selection{})
	stopped := make(chan struct{})
	go func() { defer close(stopped); informer.RunWithContext(ctx) }()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("not synced")
	}
	s.Add(pod("a", "p2", "n1"))
	for deadline := time.Now().Add(10 * time.Second); len(informer.GetStore().List()) != 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("informer has %v", informer.GetStore().ListKeys())
		}
	}
	cancel()
	<-stopped
	meta, err := metadata.NewForConfig(s.Client().Config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := meta.Resource(corev1.SchemeGroupVersion.WithResource("pods")).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 || list.Items[0].Labels["app"] != "p1" {
		t.Fatalf("metadata: %v, %v", list, err)
	}
}

func TestCustomResourcesComeAndGo(t *testing.T) {
	ctx := t.Context()
	s := Start(t)
	widgets := schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "widgets"}
	c := s.Client()
	if _, err := c.Dynamic.Resource(widgets).List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("before the definition: %v", err)
	}
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "widgets.example.org"},
		"spec": map[string]any{
			"group": "example.org", "scope": "Namespaced",
			"names":    map[string]any{"kind": "Widget", "plural": "widgets"},
			"versions": []any{map[string]any{"name": "v1beta1", "served": true}, map[string]any{"name": "v1", "served": true}},
		},
	}}
	crds := c.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if _, err := crds.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	widget := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.org/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"}, "spec": map[string]any{"n": int64(1)}}}
	if _, err := c.Dynamic.Resource(widgets).Namespace("a").Create(ctx, widget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	widgets.Version = "v1beta1"
	got, err := c.Dynamic.Resource(widgets).Namespace("a").Get(ctx, "w", metav1.GetOptions{})
	if err != nil || got.GetAPIVersion() != "example.org/v1beta1" {
		t.Fatalf("in the other version: %v, %v", got, err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	groups, _, err := d.ServerGroupsAndResources()
	if err != nil || !slices.ContainsFunc(groups, func(g *metav1.APIGroup) bool {
		return g.Name == "example.org" && g.PreferredVersion.Version == "v1"
	}) {
		t.Fatalf("discovery: %v, %v", groups, err)
	}
	if err := crds.Delete(ctx, "widgets.example.org", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dynamic.Resource(widgets).List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("after the definition: %v", err)
	}
}

func TestTokenReview(t *testing.T) {
	s := Start(t)
	c := s.Client()
	s.OnTokenReview(func(r *authenticationv1.TokenReview) {
		r.Status.Authenticated = r.Spec.Token == "good"
	})
	for token, want := range map[string]bool{"good": true, "bad": false} {
		r, err := c.Kube.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil || r.Status.Authenticated != want {
			t.Errorf("token %s: %v, %v", token, r, err)
		}
	}
}

func TestFinalizersAndNamespaces(t *testing.T) {
	ctx := t.Context()
	held := pod("a", "held", "n")
	held.Finalizers = []string{"x/y"}
	s := Start(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, held, pod("b", "p", "n"))
	pods := s.Client().Kube.CoreV1().Pods("a")
	if err := pods.Delete(ctx, "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := pods.Get(ctx, "held", metav1.GetOptions{})
	if err != nil || p.DeletionTimestamp == nil {
		t.Fatalf("held by a finalizer: %v, %v", p, err)
	}
	if _, err := pods.Patch(ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if s.Get(held) {
		t.Fatal("outlived its finalizer")
	}
	if err := s.Client().Kube.CoreV1().Namespaces().Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s.Get(pod("b", "p", "")) {
		t.Fatal("outlived its namespace")
	}
}

func TestFaults(t *testing.T) {
	s := Start(t)
	s.OnRequest(func(verb, resource string) int {
		if verb == "list" && resource == "pods" {
			return 403
		}
		return 0
	})
	if _, err := s.Client().Kube.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("pods: %v", err)
	}
	if _, err := s.Client().Kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatalf("nodes: %v", err)
	}
}
