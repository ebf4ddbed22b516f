package nodestate

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
)

var web = node.Pod{UID: "u-1", Name: "web", Namespace: "shop"}

func webPod(uid types.UID) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: uid, Annotations: map[string]string{"other": "stays"}}}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func start(t *testing.T, s *kubetest.Server) *State {
	t.Helper()
	state := New(s.Client(), "node1", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- state.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return state
}

func TestAnnotate(t *testing.T) {
	s := kubetest.Start(t, webPod("u-1"))
	state := New(s.Client(), "node1", slog.New(slog.DiscardHandler))
	get := func() map[string]string {
		pod := webPod("")
		if !s.Get(pod) {
			t.Fatal("the pod is gone")
		}
		return pod.Annotations
	}
	for _, value := range []string{"pending", "enabled", ""} {
		if err := state.Annotate(t.Context(), web, value); err != nil {
			t.Fatal(err)
		}
		if got := get(); got[wellknown.AnnotationRedirection] != value || got["other"] != "stays" {
			t.Errorf("after %q: %v", value, got)
		}
	}
	if n := s.Requests()["patch pods/status"]; n != 3 {
		t.Errorf("%d patches of the status", n)
	}
	other := web
	other.UID = "u-0"
	if err := state.Annotate(t.Context(), other, "enabled"); err != nil {
		t.Errorf("another pod has the name now: %v", err)
	}
	if got := get()[wellknown.AnnotationRedirection]; got != "" {
		t.Errorf("another pod is announced as %q", got)
	}
	gone := web
	gone.Name = "gone"
	if err := state.Annotate(t.Context(), gone, "enabled"); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
	s.Stop()
	if err := state.Annotate(t.Context(), web, "enabled"); err == nil {
		t.Error("nobody was told, and that is no error")
	}
}

func TestEvents(t *testing.T) {
	s := kubetest.Start(t, webPod("u-1"))
	state := start(t, s)
	for range 100 { // of which an owner is to see few
		state.Tell(web, node.Notice{Warning: true, Reason: node.ReasonWaiting, Message: "see the ztunnel pod"})
	}
	events := func() []corev1.Event {
		list, err := s.Client().Kube.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	eventually(t, "an event", func() bool { return len(events()) > 0 })
	e := events()[0]
	if e.InvolvedObject.UID != "u-1" || e.InvolvedObject.Name != "web" || e.Type != corev1.EventTypeWarning || e.Reason != node.ReasonWaiting || e.Source.Component != "ambit-cni" {
		t.Errorf("%+v", e)
	}
	time.Sleep(200 * time.Millisecond)
	if n := len(events()); n != 1 {
		t.Errorf("%d events", n)
	}
	if made := s.Requests()["create events"] + s.Requests()["patch events"]; made > 30 {
		t.Errorf("%d requests for 100 times the same", made)
	}
}

func TestCondition(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	s := kubetest.Start(t, n)
	state := start(t, s)
	condition := func() (c corev1.NodeCondition) {
		var now corev1.Node
		now.Name = "node1"
		if !s.Get(&now) {
			t.Fatal("the node is gone")
		}
		ready := false
		for _, have := range now.Status.Conditions {
			if have.Type == Condition {
				c = have
			}
			ready = ready || have.Type == corev1.NodeReady
		}
		if !ready {
			t.Error("the kubelet's condition is lost")
		}
		return c
	}
	state.SetCondition(false, "RedirectionFailed", "no nf_tables")
	eventually(t, "the condition is false", func() bool { return condition().Status == corev1.ConditionFalse })
	state.SetCondition(true, "RedirectionProven", "fine")
	eventually(t, "the condition is true", func() bool { return condition().Status == corev1.ConditionTrue })
	if c := condition(); c.Reason != "RedirectionProven" || c.LastTransitionTime.IsZero() {
		t.Errorf("%+v", c)
	}
	patches := s.Requests()["patch nodes/status"]
	gets := s.Requests()["get nodes"]
	state.SetCondition(true, "RedirectionProven", "fine")
	eventually(t, "another look", func() bool { return s.Requests()["get nodes"] > gets })
	if now := s.Requests()["patch nodes/status"]; now != patches {
		t.Error("what the node has is written again")
	}
	// The API server is away when there is something to say.
	s.Stop()
	state.SetCondition(false, "RedirectionFailed", "again")
	time.Sleep(100 * time.Millisecond)
	s.Restart()
	eventually(t, "the condition is written late", func() bool { return condition().Message == "again" })
	if err := state.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := condition(); c.Type != "" {
		t.Errorf("it is not forgotten: %+v", c)
	}
}

func agentObjects() (*appsv1.DaemonSet, *corev1.Pod) {
	yes := true
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "ambit-cni", Namespace: "istio-system", UID: "d-1"}}
	return ds, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "ambit-cni-x", Namespace: "istio-system", UID: "p-1",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "ambit-cni", UID: "d-1", Controller: &yes}}}}
}

func TestDaemonSet(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(t *testing.T, s *kubetest.Server, ds *appsv1.DaemonSet)
		deleted bool
		unknown bool
	}{
		"the pod is replaced":    {happens: func(*testing.T, *kubetest.Server, *appsv1.DaemonSet) {}},
		"deleted":                {happens: func(_ *testing.T, s *kubetest.Server, ds *appsv1.DaemonSet) { s.Delete(ds) }, deleted: true},
		"made anew":              {happens: func(_ *testing.T, s *kubetest.Server, ds *appsv1.DaemonSet) { s.Delete(ds); ds.UID = "d-2"; s.Add(ds) }},
		"the API server is gone": {happens: func(_ *testing.T, s *kubetest.Server, _ *appsv1.DaemonSet) { s.Stop() }, unknown: true},
		"no right to ask":        {happens: func(_ *testing.T, s *kubetest.Server, _ *appsv1.DaemonSet) { forbid(s) }, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			ds, pod := agentObjects()
			s := kubetest.Start(t, ds, pod)
			d := follow(t, s)
			c.happens(t, s, ds)
			deleted, err := d.Deleted(t.Context())
			if deleted != c.deleted || (err != nil) != c.unknown {
				t.Errorf("deleted %v, %v", deleted, err)
			}
		})
	}
}

// helm deletes the right to ask at once after the DaemonSet.
func TestDaemonSetIsDeletedWithItsRights(t *testing.T) {
	ds, pod := agentObjects()
	s := kubetest.Start(t, ds, pod)
	d := follow(t, s)
	s.Delete(ds)
	eventually(t, "the news", d.gone.Load)
	forbid(s)
	if deleted, err := d.Deleted(t.Context()); !deleted || err != nil {
		t.Errorf("deleted %v, %v", deleted, err)
	}
}

func TestPodWithoutDaemonSet(t *testing.T) {
	_, pod := agentObjects()
	pod.OwnerReferences = nil
	s := kubetest.Start(t, pod)
	d := NewDaemonSet(s.Client(), "istio-system", "ambit-cni-x", slog.New(slog.DiscardHandler))
	if deleted, err := d.Deleted(t.Context()); deleted || err == nil || !strings.Contains(err.Error(), "no DaemonSet") {
		t.Errorf("deleted %v, %v", deleted, err)
	}
}

func forbid(s *kubetest.Server) {
	s.OnRequest(func(string, string) int { return http.StatusForbidden })
}

func follow(t *testing.T, s *kubetest.Server) *DaemonSet {
	t.Helper()
	d := NewDaemonSet(s.Client(), "istio-system", "ambit-cni-x", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the DaemonSet is watched", func() bool { return s.Requests()["watch daemonsets"] > 0 })
	return d
}
