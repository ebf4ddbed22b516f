package untaint

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

const taint = "cni.istio.io/not-ready"

func newNode(name string, taints ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, key := range taints {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

func newPod(namespace, node, key, value string, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: value + "-" + node, Namespace: namespace, Labels: map[string]string{key: value}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func agent(node string, ready bool) *corev1.Pod {
	return newPod("istio-system", node, "k8s-app", "istio-cni-node", ready)
}
func proxy(node string, ready bool) *corev1.Pod {
	return newPod("istio-system", node, "app", "ztunnel", ready)
}

func taints(t *testing.T, s *kubetest.Server, name string) []string {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if !s.Get(n) {
		t.Fatalf("node %s is gone", name)
	}
	var keys []string
	for _, x := range n.Spec.Taints {
		keys = append(keys, x.Key)
	}
	return keys
}

func run(t *testing.T, s *kubetest.Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Client: s.Client(), Taint: taint, Namespace: "istio-system", Logger: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func freed(t *testing.T, s *kubetest.Server, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); slices.Contains(taints(t, s, name), taint); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s keeps its taint", name)
		}
	}
}

func TestBothHaveToBeReady(t *testing.T) {
	leaving := agent("leaving", true)
	now := metav1.Now()
	leaving.DeletionTimestamp, leaving.Finalizers = &now, []string{"x/y"}
	s := kubetest.Start(t,
		newNode("both", "a", taint, "b"), agent("both", true), proxy("both", true),
		newNode("none", taint),
		newNode("agent", taint), agent("agent", true), proxy("agent", false),
		newNode("proxy", taint), proxy("proxy", true),
		newNode("leaving", taint), leaving, proxy("leaving", true),
		newNode("impostor", taint), newPod("default", "impostor", "k8s-app", "istio-cni-node", true), proxy("impostor", true),
		newNode("free", "a"), agent("free", true), proxy("free", true))
	run(t, s)
	freed(t, s, "both")
	s.Update(proxy("agent", true))
	freed(t, s, "agent")
	s.Add(newNode("late", taint, taint)) // with two effects
	s.Add(agent("late", true))
	s.Add(proxy("late", true))
	freed(t, s, "late")
	time.Sleep(200 * time.Millisecond)
	for name, want := range map[string][]string{
		"both": {"a", "b"}, "none": {taint}, "proxy": {taint}, "leaving": {taint}, "impostor": {taint}, "free": {"a"},
	} {
		if diff := cmp.Diff(want, taints(t, s, name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	// An event between a patch and the word of it makes for one more, which is
	// refused; what goes on is not that.
	if n := s.Requests()["patch nodes"]; n < 3 || n > 6 {
		t.Errorf("%d patches for 3 nodes", n)
	}
}

// TestFormerPodsDoNotFreeANode: the caches still have pods that are gone.
func TestFormerPodsDoNotFreeANode(t *testing.T) {
	s := kubetest.Start(t)
	s.Add(newNode("n1", taint))
	s.Add(agent("n1", true))
	core := s.Client().Kube.CoreV1()
	u := &untainter{Options: Options{
		Client: s.Client(), Taint: taint, Namespace: "istio-system", Logger: slog.New(slog.DiscardHandler),
		AgentSelector: DefaultAgentSelector, ProxySelector: DefaultProxySelector,
	}}
	u.nodes = client.Informer(core.Nodes(), &corev1.Node{}, client.Selection{})
	for pod, keep := range map[*corev1.Pod]*cache.SharedIndexInformer{agent("n1", true): &u.agents, proxy("n1", true): &u.proxy} {
		*keep = client.Informer(core.Pods(u.Namespace), &corev1.Pod{}, client.Selection{})
		if err := (*keep).AddIndexers(cache.Indexers{byNode: func(obj any) ([]string, error) { return []string{nodeOf(obj)}, nil }}); err != nil {
			t.Fatal(err)
		}
		if err := (*keep).GetIndexer().Add(pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.nodes.GetStore().Add(newNode("n1", taint)); err != nil {
		t.Fatal(err)
	}
	if err := u.look(t.Context(), "n1"); err != nil || !slices.Contains(taints(t, s, "n1"), taint) {
		t.Errorf("the node was freed without a ztunnel: %v", err)
	}
	s.Add(proxy("n1", true))
	if err := u.look(t.Context(), "n1"); err != nil || slices.Contains(taints(t, s, "n1"), taint) {
		t.Errorf("the node was not freed: %v", err)
	}
}

func TestFailuresAreTriedAgain(t *testing.T) {
	s := kubetest.Start(t, newNode("n", taint), agent("n", true), proxy("n", true))
	var refused atomic.Int32
	s.OnRequest(func(verb, resource string) int {
		if verb == "patch" && resource == "nodes" && refused.Add(1) <= 3 {
			return http.StatusInternalServerError
		}
		return 0
	})
	run(t, s)
	freed(t, s, "n")
}

// The list may be another by the time the patch arrives.
func TestRemovalTakesNothingElse(t *testing.T) {
	key := func(keys ...string) (list []corev1.Taint) {
		for _, k := range keys {
			list = append(list, corev1.Taint{Key: k})
		}
		return list
	}
	if removal(key("a", "b"), taint) != nil {
		t.Error("there is nothing to do")
	}
	for _, c := range []struct {
		seen, now []string
		want      []string
		refused   bool
	}{
		{seen: []string{"a", taint}, now: []string{"a", taint}, want: []string{"a"}},
		{seen: []string{taint, "a", taint}, now: []string{taint, "a", taint}, want: []string{"a"}},
		{seen: []string{"a", taint}, now: []string{"a", taint, "b"}, want: []string{"a", "b"}},
		{seen: []string{"a", taint}, now: []string{taint, "b"}, refused: true},
		{seen: []string{"a", taint}, now: []string{"a"}, refused: true},
	} {
		text, err := json.Marshal(removal(key(c.seen...), taint))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(text)
		if err != nil {
			t.Fatal(err)
		}
		node, _ := json.Marshal(corev1.Node{Spec: corev1.NodeSpec{Taints: key(c.now...)}})
		out, err := patch.Apply(node)
		if (err != nil) != c.refused {
			t.Errorf("%v: %v", c, err)
		}
		if err != nil {
			continue
		}
		var got corev1.Node
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprint(key(c.want...)), fmt.Sprint(got.Spec.Taints)); diff != "" {
			t.Errorf("%v: %s", c, diff)
		}
	}
}

func TestOptions(t *testing.T) {
	if err := Run(t.Context(), Options{Namespace: "x"}); err == nil {
		t.Error("no taint is named, and that is no error")
	}
}
