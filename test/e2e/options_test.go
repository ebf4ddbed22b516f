package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

const (
	notReady = "cni.istio.io/not-ready"
	apart    = "e2e-apart" // a label of namespaces that the mesh does not look at
)

// options are those that all other tests leave as they are.
const options = `
meshConfig:
  discoverySelectors: [{matchExpressions: [{key: ` + apart + `, operator: DoesNotExist}]}]
values:
  global:
    networkPolicy: {enabled: true}
    priorityClassName: system-cluster-critical
  pilot:
    taint: {enabled: true}
  cni:
    excludeNamespaces: [kube-system, $EXCLUDED]
    resourceQuotas: {enabled: true}
  ztunnel:
    resourceQuotas: {enabled: true}
`

// A mesh that is installed with options does what they say, and without them
// again what it did before.
func TestOptions(t *testing.T) {
	from, to := twoNodes(t)
	excluded := mesh.Namespace(t, "excluded", kit.Ambient())
	server := excluded.Pod("server", kit.OnNode(to))
	excluded.Service("server")
	load := excluded.StartLoad("load", excluded.URL("server"), 100, kit.OnNode(from))
	excluded.Tunnelled("load", excluded.URL("server"), server)
	restored := false
	back := func(ctx context.Context) {
		if restored {
			return
		}
		if err := mesh.Install(ctx); err != nil {
			t.Error(err)
			return
		}
		restored = true
	}
	t.Cleanup(func() { back(context.Background()) })
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(strings.ReplaceAll(options, "$EXCLUDED", excluded.Name)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mesh.Upgrade(t.Context(), "-f", values); err != nil {
		t.Fatal(err)
	}
	mesh.ControlPlane(t, 1)
	mesh.RolledOut(t, agents)
	mesh.RolledOut(t, "ztunnel")

	t.Run("ExcludedNamespace", func(t *testing.T) {
		excluded.Redirected("server", false)
		excluded.Redirected("load", false)
	})
	t.Run("Objects", optionalObjects)
	t.Run("DiscoverySelectors", discovered)
	t.Run("LabelledAndLeftOut", leftOut)
	t.Run("Taint", func(t *testing.T) { untainted(t, excluded) })

	back(t.Context())
	mesh.RolledOut(t, agents)
	mesh.RolledOut(t, "ztunnel")
	excluded.Redirected("server", true)
	excluded.Tunnelled("load", excluded.URL("server"), server)
	load.Clean()
	policies, err := mesh.Kube.NetworkingV1().NetworkPolicies(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(policies.Items) > 0 {
		t.Errorf("%d policies are left, %v", len(policies.Items), err)
	}
}

// optionalObjects looks at what the API server has made of what it was given.
func optionalObjects(t *testing.T) {
	ctx, system := t.Context(), kit.SystemNamespace
	nodes, err := mesh.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ambitd", agents, "ztunnel"} {
		p, err := mesh.Kube.NetworkingV1().NetworkPolicies(system).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Error(err)
			continue
		}
		pods, err := mesh.Kube.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&p.Spec.PodSelector)})
		if err != nil || len(pods.Items) == 0 || len(p.Spec.Ingress) == 0 {
			t.Errorf("NetworkPolicy %s selects %d pods and admits %v: %v", name, len(pods.Items), p.Spec.Ingress, err)
			continue
		}
		want := map[string]string{"ambitd": "system-cluster-critical"}[name]
		if want == "" {
			want = "system-node-critical"
		}
		for _, pod := range pods.Items {
			if pod.Spec.PriorityClassName != want || *pod.Spec.Priority < 2_000_000_000 {
				t.Errorf("%s has the priority %d (%s)", pod.Name, *pod.Spec.Priority, pod.Spec.PriorityClassName)
			}
		}
	}
	kit.Eventually(t, "the disruption budget and the quotas count", func(ctx context.Context) error {
		var b policyv1.PodDisruptionBudget
		err := object(ctx, schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, "ambitd", &b)
		if err == nil && (b.Status.ExpectedPods != 1 || b.Status.DisruptionsAllowed != 1) {
			err = fmt.Errorf("the budget of ambitd: %+v", b.Status)
		}
		for _, name := range []string{agents, "ztunnel"} {
			var q corev1.ResourceQuota
			qerr := object(ctx, schema.GroupVersionResource{Version: "v1", Resource: "resourcequotas"}, name, &q)
			if qerr == nil && q.Status.Used.Pods().Value() != int64(2*len(nodes)) {
				qerr = fmt.Errorf("quota %s: %+v", name, q.Status)
			}
			err = errors.Join(err, qerr)
		}
		return err
	})
}

// object reads an object of the mesh.
func object(ctx context.Context, kind schema.GroupVersionResource, name string, into any) error {
	o, err := mesh.Dynamic.Resource(kind).Namespace(kit.SystemNamespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into)
}

// discovered has a namespace enter and leave what the mesh looks at, by its
// labels. The control plane goes on as it is.
func discovered(t *testing.T) {
	from, to := twoNodes(t)
	control := ambitd(t)
	in := mesh.Namespace(t, "looked-at", kit.Ambient())
	out := mesh.Namespace(t, "apart", map[string]string{apart: ""})
	in.Pod("client", kit.OnNode(from))
	server := out.Pod("server", kit.OnNode(to))
	out.Service("server")
	known := func(want bool) {
		t.Helper()
		kit.Eventually(t, fmt.Sprintf("the proxy on %s knows pod and service of %s: %t", from, out.Name, want), func(ctx context.Context) error {
			for _, what := range []string{"workload", "service"} {
				text, err := mesh.Ambit(ctx, "ztunnel-config", what, "--node", from, "--"+what+"-namespace", out.Name)
				if err != nil {
					return err
				}
				if strings.Contains(text, "server") != want {
					return fmt.Errorf("of the %ss it says:\n%s", what, text)
				}
			}
			return nil
		})
	}
	rooted := func(n *kit.Namespace) bool {
		t.Helper()
		_, err := mesh.Kube.CoreV1().ConfigMaps(n.Name).Get(t.Context(), trust.Roots.ConfigMap, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	has := func(n *kit.Namespace) {
		t.Helper()
		kit.Eventually(t, "namespace "+n.Name+" has the roots", func(context.Context) error {
			if !rooted(n) {
				return errors.New("it has not")
			}
			return nil
		})
	}
	in.Redirected("client", true)
	in.MustGet("client", out.URL("server")) // as it reaches what is outside of the cluster
	says(t, []string{"client"}, "ztunnel-config", "workload", "--node", from, "--workload-namespace", in.Name)
	known(false)
	has(in)
	if rooted(out) {
		t.Errorf("namespace %s has the roots of a mesh that does not look at it", out.Name)
	}

	out.Label(map[string]*string{apart: nil})
	known(true)
	out.Enrol(true)
	in.Tunnelled("client", out.URL("server"), server)
	has(out)
	out.Enrol(false)
	out.Redirected("server", false)
	yes := ""
	out.Label(map[string]*string{apart: &yes})
	known(false)
	in.MustGet("client", out.URL("server"))
	if now := ambitd(t); now != control {
		t.Errorf("%s has become %s", control, now)
	}
}

// leftOut labels a namespace for the mesh that the control plane does not look
// at: its pods keep their network, and every tool reports why they are out.
func leftOut(t *testing.T) {
	from, to := twoNodes(t)
	yes := ""
	labels := kit.Ambient()
	labels[apart] = yes
	n := mesh.Namespace(t, "left-out", labels)
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	n.Pod("client", kit.OnNode(from))
	warned(t, n, "client", "no discovery selector of the mesh matches it")
	n.MustGet("client", n.URL("server"))
	n.Redirected("client", false)
	says(t, []string{"AMB0036", "Namespace " + n.Name}, "analyze", "-n", n.Name)
	says(t, []string{"namespace " + n.Name, "discoverySelectors"}, "check")
	says(t, []string{"AMB0036"}, "describe", "pod", "client", "-n", n.Name)

	// Both sides follow the labels, and no pod restarts.
	n.Label(map[string]*string{apart: nil})
	n.Tunnelled("client", n.URL("server"), server)
	n.Label(map[string]*string{apart: &yes})
	n.Redirected("client", false)
	n.Redirected("server", false)
	n.MustGet("client", n.URL("server"))
}

// untainted has a node wait with pods until both its agent and its proxy are
// ready. What the mesh leaves alone does not wait for either.
func untainted(t *testing.T, excluded *kit.Namespace) {
	node, to := twoNodes(t)
	n := mesh.Namespace(t, "taint", kit.Ambient())
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	agent := without(t, agents, node)
	proxy := without(t, "ztunnel", node)
	// The test's context has ended then.
	t.Cleanup(func() { noTaint(context.Background(), t, node) })
	taint(t.Context(), t, node)
	scheduled(t, excluded, node)

	n.Create("late", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} })
	excluded.Pod("late", kit.OnNode(node))
	waits := func() {
		t.Helper()
		kit.Eventually(t, "a pod for "+node+" cannot be scheduled", func(ctx context.Context) error {
			pod, err := mesh.Kube.CoreV1().Pods(n.Name).Get(ctx, "late", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if unschedulable(pod) {
				return nil
			}
			return fmt.Errorf("it is on %q: %+v", pod.Spec.NodeName, pod.Status.Conditions)
		})
		time.Sleep(2 * time.Second) // whoever is too early is seen
		if !tainted(t.Context(), t, node) {
			t.Errorf("the taint of %s is gone too early", node)
		}
	}
	waits()
	agent()
	mesh.RolledOut(t, agents)
	waits() // for the proxy
	proxy()
	kit.Eventually(t, "the taint of "+node+" is gone", func(ctx context.Context) error {
		if tainted(ctx, t, node) {
			return errors.New("it is there")
		}
		return nil
	})
	n.Ready("late")
	n.Tunnelled("late", n.URL("server"), server)
}

// scheduled waits until the scheduler itself has received the node's taint: it
// has a cache of its own, and places a pod that is created before by that.
func scheduled(t *testing.T, n *kit.Namespace, node string) {
	t.Helper()
	try := 0
	kit.Eventually(t, "the scheduler has the taint of "+node, func(ctx context.Context) error {
		if !tainted(ctx, t, node) {
			t.Fatalf("the taint of %s is gone, and neither agent nor proxy is there", node)
		}
		try++
		name := fmt.Sprintf("placed-%d", try)
		n.Create(name, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} })
		defer func() { _ = mesh.Kube.CoreV1().Pods(n.Name).Delete(ctx, name, metav1.DeleteOptions{}) }()
		for {
			pod, err := mesh.Kube.CoreV1().Pods(n.Name).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if pod.Spec.NodeName != "" {
				return errors.New("it still places pods there")
			}
			if unschedulable(pod) {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

// unschedulable reports whether the scheduler has refused a pod for a taint.
func unschedulable(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable && strings.Contains(c.Message, "taint")
	})
}

func taints(ctx context.Context, t *testing.T, node string) []corev1.Taint {
	t.Helper()
	n, err := mesh.Kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n.Spec.Taints
}

func tainted(ctx context.Context, t *testing.T, node string) bool {
	t.Helper()
	return slices.ContainsFunc(taints(ctx, t, node), func(taint corev1.Taint) bool { return taint.Key == notReady })
}

// taint makes a node one that has just joined the cluster.
func taint(ctx context.Context, t *testing.T, node string) {
	t.Helper()
	setTaints(ctx, t, node, append(taints(ctx, t, node), corev1.Taint{Key: notReady, Effect: corev1.TaintEffectNoSchedule}))
}

func noTaint(ctx context.Context, t *testing.T, node string) {
	t.Helper()
	if tainted(ctx, t, node) {
		setTaints(ctx, t, node, slices.DeleteFunc(taints(ctx, t, node), func(taint corev1.Taint) bool { return taint.Key == notReady }))
	}
}

func setTaints(ctx context.Context, t *testing.T, node string, taints []corev1.Taint) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": taints}})
	if err == nil {
		_, err = mesh.Kube.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}
