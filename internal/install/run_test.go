package install

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

// controllers stand in for those of a real cluster: what is deployed becomes
// ready, unless it is held.
type controllers struct {
	server *kubetest.Server
	mu     sync.Mutex
	held   map[string]bool
}

func (c *controllers) hold(name string, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[name] = held
}

func (c *controllers) run(t *testing.T) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				c.turn()
			}
		}
	})
	t.Cleanup(func() { close(done); wg.Wait() })
}

func (c *controllers) turn() {
	ctx, api := context.Background(), c.server.Client().Kube
	c.mu.Lock()
	defer c.mu.Unlock()
	if list, err := api.AppsV1().Deployments("").List(ctx, metav1.ListOptions{}); err == nil {
		for _, d := range list.Items {
			if d.Status.ObservedGeneration != d.Generation && !c.held[d.Name] {
				d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1}
				_, _ = api.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
			}
		}
	}
	if list, err := api.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{}); err == nil {
		for _, d := range list.Items {
			if d.Status.ObservedGeneration != d.Generation && !c.held[d.Name] {
				d.Status = appsv1.DaemonSetStatus{ObservedGeneration: d.Generation, DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2}
				_, _ = api.AppsV1().DaemonSets(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
			}
		}
	}
}

func start(t *testing.T) (*kubetest.Server, *controllers) {
	t.Helper()
	s := kubetest.Start(t)
	c := &controllers{server: s, held: map[string]bool{}}
	c.run(t)
	return s, c
}

func installer(t *testing.T, s *kubetest.Server, settings ...string) *Installer {
	t.Helper()
	spec, err := Parse(nil, settings)
	if err != nil {
		t.Fatal(err)
	}
	return &Installer{Client: s.Client(), Spec: withoutBase(spec), Version: "v1.2.0", Timeout: 20 * time.Second}
}

func deployment(name string) *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "istio-system"}}
}

func daemonSet(name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "istio-system"}}
}

func TestInstallInOrderAndTwice(t *testing.T) {
	s, ctl := start(t)
	ctl.hold("ambitd", true)
	i := installer(t, s)
	result := make(chan error, 1)
	go func() { result <- i.Install(t.Context()) }()
	eventually(t, "ambitd", func() bool { return s.Get(deployment("ambitd")) })
	time.Sleep(100 * time.Millisecond)
	if s.Get(daemonSet("ztunnel")) {
		t.Error("the node proxy is there before the control plane is ready")
	}
	ctl.hold("ambitd", false)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ambit-cni", "ztunnel"} {
		if !s.Get(daemonSet(name)) {
			t.Errorf("DaemonSet %s is missing", name)
		}
	}
	plan, err := i.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if plan.From != "v1.2.0" || plan.Count(Create)+plan.Count(Update)+plan.Count(Delete) != 0 {
		t.Errorf("installing the same again changes something: %+v", plan.Changes)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	s, _ := start(t)
	plan, err := installer(t, s).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if plan.Count(Create) < 10 || plan.Count(Create) != len(plan.Changes) {
		t.Errorf("%+v", plan.Changes)
	}
	if s.Get(deployment("ambitd")) || s.Get(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}) {
		t.Error("a plan made objects")
	}
}

func TestUpgradeSaysWhatChanges(t *testing.T) {
	s, _ := start(t)
	if err := installer(t, s, "values.global.networkPolicy.enabled=true").Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := installer(t, s)
	next.Version = "v1.3.0"
	plan, err := next.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, c := range plan.Changes {
		text = append(text, c.String())
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{
		"delete NetworkPolicy istio-system/ambitd",
		"update Deployment istio-system/ambitd: ",
		"spec.template.spec.containers[0].image",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	if err := next.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	after, err := next.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.From != "v1.3.0" || after.Count(Delete)+after.Count(Update)+after.Count(Create) != 0 {
		t.Errorf("after the upgrade: %+v", after.Changes)
	}
	back := installer(t, s)
	if _, err := back.Plan(t.Context()); err == nil || !strings.Contains(err.Error(), "going back") {
		t.Errorf("going back: %v", err)
	}
}

// What others installed is not taken over, unless somebody says so.
func TestForeignObjects(t *testing.T) {
	for name, labels := range map[string]map[string]string{"another mesh": {"app": "istiod"}, "Helm": {labelPartOf: partOf, labelManagedBy: "Helm"}} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t)
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: "istio-system", Labels: labels}}
			if name == "Helm" {
				svc.Annotations = map[string]string{helmRelease: "istiod", helmRelSpace: "istio-system"}
			}
			s.Add(svc)
			i := installer(t, s)
			if err := i.Install(t.Context()); err == nil || !strings.Contains(err.Error(), "Service istio-system/istiod") {
				t.Fatalf("taken over: %v", err)
			}
			if s.Get(deployment("ambitd")) {
				t.Error("half of it was installed")
			}
			i.Force = true
			plan, err := i.Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := i.Apply(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			s.Get(svc)
			if svc.Labels[labelManagedBy] != managedByUs || svc.Annotations[helmRelease] != "" {
				t.Errorf("not taken over: %v, %v", svc.Labels, svc.Annotations)
			}
			if want := name == "Helm"; slices.Equal(plan.TakenOver, []string{"istio-system/istiod"}) != want {
				t.Errorf("taken over: %v", plan.TakenOver)
			}
		})
	}
}

// A namespace that would keep node agent and proxy out is refused before
// anything is made.
func TestPodSecurity(t *testing.T) {
	s, _ := start(t)
	s.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{labelPodSecurity: "baseline"}}})
	if _, err := installer(t, s).Plan(t.Context()); err == nil || !strings.Contains(err.Error(), "kubectl label namespace istio-system") {
		t.Errorf("%v", err)
	}
	if _, err := installer(t, s, "profile=minimal").Plan(t.Context()); err != nil {
		t.Errorf("the control plane alone needs no privilege: %v", err)
	}
}

// A pod that does not come up is told of, with its reason.
func TestReasonWhenNotReady(t *testing.T) {
	s, ctl := start(t)
	ctl.hold("ambitd", true)
	s.Add(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "ambitd-1", Namespace: "istio-system", Labels: map[string]string{"app": "istiod", "istio.io/rev": "default"}},
		Spec:       corev1.PodSpec{NodeName: "node1"},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			Name: "discovery", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image\nand more"}},
		}}},
	})
	i := installer(t, s)
	i.Timeout = 300 * time.Millisecond
	err := i.Install(t.Context())
	for _, want := range []string{"Deployment istio-system/ambitd: 0 of 1 ready", "pod ambitd-1 on node1: ImagePullBackOff: no such image"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

// Two parts are waited for, and the first takes all the time there is: the
// other's state is told of as well.
func TestReasonOfTheSecondOfTwo(t *testing.T) {
	s, ctl := start(t)
	for _, name := range []string{"ambit-cni", "ztunnel"} {
		ctl.hold(name, true)
	}
	i := installer(t, s)
	i.Timeout = 4 * time.Second
	err := i.Install(t.Context())
	for _, want := range []string{"DaemonSet istio-system/ambit-cni: not seen", "DaemonSet istio-system/ztunnel: not seen"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestPassingErrorsAreRetried(t *testing.T) {
	s, _ := start(t)
	var mu sync.Mutex
	failed := map[string]bool{}
	s.OnRequest(func(verb, resource string) int {
		mu.Lock()
		defer mu.Unlock()
		if verb == "patch" && !failed[resource] {
			failed[resource] = true
			return http.StatusServiceUnavailable
		}
		return 0
	})
	if err := installer(t, s).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(failed) == 0 {
		t.Error("nothing failed: the test shows nothing")
	}
}

func TestUninstall(t *testing.T) {
	s, _ := start(t)
	s.Define("certificates.k8s.io", "ClusterTrustBundle", "clustertrustbundles", false, "v1beta1")
	i := installer(t, s)
	if err := i.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	mine, lease := reference("v1", "ConfigMap", "istio-system", "mine"), reference("coordination.k8s.io/v1", "Lease", "istio-system", "mine")
	s.Add(mine)
	s.Add(lease)
	// What the control plane makes stays, is said to stay, and goes with a purge.
	made := map[*unstructured.Unstructured]string{
		reference("v1", "Secret", "istio-system", "istio-ca-secret"):                                       "Secret istio-system/istio-ca-secret",
		reference("v1", "ConfigMap", "default", "istio-ca-root-cert"):                                      "istio-ca-root-cert",
		reference("v1", "ConfigMap", "default", "istio-ca-crl"):                                            "istio-ca-crl",
		reference("certificates.k8s.io/v1beta1", "ClusterTrustBundle", "", "istio.io:istiod-ca:root-cert"): "ClusterTrustBundle istio.io:istiod-ca:root-cert",
		reference("coordination.k8s.io/v1", "Lease", "istio-system", "ambit-ca-leader"):                    "Leases istio-system/ambit-*-leader",
		reference("coordination.k8s.io/v1", "Lease", "istio-system", "ambit-status-canary-leader"):         "Leases istio-system/ambit-*-leader",
		reference("coordination.k8s.io/v1", "Lease", "istio-system", "ambit-untaint-leader"):               "Leases istio-system/ambit-*-leader",
	}
	for obj := range made {
		s.Add(obj)
	}

	var deleted []string
	var mu sync.Mutex
	s.OnRequest(func(verb, resource string) int {
		mu.Lock()
		defer mu.Unlock()
		if verb == "delete" {
			deleted = append(deleted, resource)
		}
		return 0
	})
	u := &Uninstaller{Client: s.Client(), Namespace: "istio-system", Timeout: 5 * time.Second}
	kept := strings.Join(remove(t, u).Kept, "\n")
	if s.Get(deployment("ambitd")) || s.Get(daemonSet("ztunnel")) || s.Get(daemonSet("ambit-cni")) {
		t.Error("workloads are left")
	}
	for obj, words := range made {
		if !s.Get(obj) || !strings.Contains(kept, words) {
			t.Errorf("%s is there: %t; kept is said to be:\n%s", title(obj), s.Get(obj), kept)
		}
	}
	if !s.Get(mine) {
		t.Error("a user's object is gone")
	}
	if at := slices.Index(deleted, "clusterroles"); at >= 0 && at < slices.Index(deleted, "deployments") {
		t.Errorf("rights were taken before the agent could clean up: %v", deleted)
	}
	if again, err := u.Look(t.Context()); err != nil || !again.Empty() {
		t.Errorf("left: %+v, %v", again, err)
	}

	u.Purge = true
	purge := remove(t, u)
	purged := strings.Join(purge.Kept, "\n")
	if condition := "istio.io/WaypointBound"; !strings.Contains(kept, condition) || !strings.Contains(purged, condition) {
		t.Errorf("conditions of Services stay; kept is said to be:\n%s\nand by a purge:\n%s", kept, purged)
	}
	for obj := range made {
		if s.Get(obj) {
			t.Errorf("%s is there after a purge", title(obj))
		}
	}
	if slices.Contains(purge.Objects, title(lease)) {
		t.Error("a purge removes a user's lease")
	}
	if !s.Get(mine) && s.Get(reference("v1", "Namespace", "", "istio-system")) {
		t.Error("a purge removed a user's object, and not with the namespace")
	}
}

// What a purge removes is what any other mesh of the cluster needs.
func TestNoPurgeWhileAnotherMeshRuns(t *testing.T) {
	s, _ := start(t)
	if err := installer(t, s).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Add(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{
		Name: "ztunnel", Namespace: "mesh-b", Labels: map[string]string{labelPartOf: partOf, labelManagedBy: "Helm"},
		Annotations: map[string]string{helmRelease: "zt", helmRelSpace: "mesh-b"},
	}})
	u := &Uninstaller{Client: s.Client(), Namespace: "istio-system", Timeout: 5 * time.Second, Purge: true}
	if _, err := u.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "helm uninstall zt -n mesh-b") {
		t.Errorf("purge: %v", err)
	}
	u.Purge = false
	if _, err := u.Look(t.Context()); err != nil {
		t.Error(err)
	}
}

func remove(t *testing.T, u *Uninstaller) *Removal {
	t.Helper()
	r, err := u.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Empty() {
		t.Fatal("nothing to remove")
	}
	if err := u.Remove(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUninstallNamesPodsInTheMesh(t *testing.T) {
	s, _ := start(t)
	if err := installer(t, s, "revision=canary").Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}}}
	s.Add(in)
	s.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "out", Namespace: "shop"}})
	ended := in.DeepCopy()
	ended.Name, ended.Status.Phase = "job", corev1.PodSucceeded
	s.Add(ended)
	r, err := (&Uninstaller{Client: s.Client(), Namespace: "istio-system"}).Look(t.Context())
	if err != nil || !slices.Equal(r.Enrolled, []string{"shop/web"}) {
		t.Errorf("%v, %v", r.Enrolled, err)
	}
}

// The agent's pods end before the proxy's DaemonSet goes.
func TestUninstallWaitsForTheAgent(t *testing.T) {
	s, _ := start(t)
	if err := installer(t, s).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "ambit-cni-1", Namespace: "istio-system", Labels: map[string]string{"k8s-app": "istio-cni-node"}}}
	s.Add(pod)
	u := &Uninstaller{Client: s.Client(), Namespace: "istio-system", Timeout: 20 * time.Second}
	r, err := u.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- u.Remove(t.Context(), r) }()
	eventually(t, "the agent's DaemonSet to go", func() bool { return !s.Get(daemonSet("ambit-cni")) })
	time.Sleep(100 * time.Millisecond)
	if !s.Get(daemonSet("ztunnel")) {
		t.Error("the proxy went while the agent was still taking pods out of the mesh")
	}
	s.Delete(pod)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if s.Get(daemonSet("ztunnel")) {
		t.Error("the proxy is left")
	}
}

// Two revisions: removing one leaves the other, and the agents of both.
func TestRevisions(t *testing.T) {
	s, _ := start(t)
	if err := installer(t, s).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := installer(t, s, "revision=canary").Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	remove(t, &Uninstaller{Client: s.Client(), Namespace: "istio-system", Revision: "default", Timeout: 5 * time.Second})
	if s.Get(deployment("ambitd")) || !s.Get(deployment("ambitd-canary")) || !s.Get(daemonSet("ztunnel")) {
		t.Error("the wrong revision was removed, or the agents")
	}
}

func TestDifferences(t *testing.T) {
	a := map[string]any{"metadata": map[string]any{"resourceVersion": "1", "labels": map[string]any{"a": "b"}}, "spec": map[string]any{"list": []any{"x", map[string]any{"y": int64(1)}}}}
	b := map[string]any{"metadata": map[string]any{"resourceVersion": "2"}, "spec": map[string]any{"list": []any{"x", map[string]any{"y": int64(2)}}, "new": true}}
	want := []string{"metadata.labels", "spec.list[1].y", "spec.new"}
	if got := differences(a, b); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestReadiness(t *testing.T) {
	ds := func(generation, observed, desired, updated, available int64) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"kind": "DaemonSet", "metadata": map[string]any{"generation": generation},
			"status": map[string]any{"observedGeneration": observed, "desiredNumberScheduled": desired, "updatedNumberScheduled": updated, "numberAvailable": available},
		}}
	}
	for _, c := range []struct {
		name string
		obj  *unstructured.Unstructured
		want bool
	}{
		{"not seen yet", ds(2, 1, 0, 0, 0), false},
		{"all", ds(2, 2, 3, 3, 3), true},
		{"old pods", ds(2, 2, 3, 1, 3), false},
		{"not available", ds(2, 2, 3, 3, 2), false},
		{"no node", ds(1, 1, 0, 0, 0), true},
	} {
		if got, why := readiness(c.obj); got != c.want {
			t.Errorf("%s: %v (%s)", c.name, got, why)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not in time", what)
}

// Kinds of the Gateway API that somebody else installed are not touched; ours
// are upgraded.
func TestGatewayAPIOfOthers(t *testing.T) {
	const name = "gateways.gateway.networking.k8s.io"
	for _, c := range []struct {
		who    string
		labels map[string]any
		want   bool
	}{{"nobody", nil, true}, {"others", map[string]any{}, false}, {"us", map[string]any{labelPartOf: partOf}, true}} {
		t.Run(c.who, func(t *testing.T) {
			s := kubetest.Start(t)
			if c.labels != nil {
				s.Add(&unstructured.Unstructured{Object: map[string]any{
					"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
					"metadata": map[string]any{"name": name, "labels": c.labels},
					"spec": map[string]any{
						"group": "gateway.networking.k8s.io", "scope": "Namespaced",
						"names":    map[string]any{"kind": "Gateway", "plural": "gateways"},
						"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true}},
					},
				}})
			}
			objects, err := renderChart(Base, map[string]any{"base": map[string]any{"enableCRDTemplates": false}}, "istio-system", RenderOptions{Config: s.Client().Config})
			if err != nil {
				t.Fatal(err)
			}
			got := slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetName() == name })
			if got != c.want || len(objects) < 5 {
				t.Errorf("applied: %v, want %v (of %d kinds)", got, c.want, len(objects))
			}
		})
	}
}
