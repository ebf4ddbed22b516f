package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/kube/nodestate"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node/selftest"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
	"github.com/ambit-mesh/ambit/test/traffic"
)

const agents = "ambit-cni"

// without takes a DaemonSet's pod away from one node, and keeps it away until
// back is called: what would replace it has an image that does not exist.
func without(t *testing.T, daemonset, node string) (back func()) {
	t.Helper()
	return changed(t, daemonset, node, map[string]any{"image": "localhost/ambit-missing:none"})
}

// changed has one node run a DaemonSet's pod with another container, of which
// the fields that differ are given, until back is called.
func changed(t *testing.T, daemonset, node string, fields map[string]any) (back func()) {
	t.Helper()
	ds, err := mesh.Kube.AppsV1().DaemonSets(kit.SystemNamespace).Get(t.Context(), daemonset, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	container, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&ds.Spec.Template.Spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	set := func(ctx context.Context, strategy any, fields map[string]any) {
		named := map[string]any{"name": container["name"]}
		maps.Copy(named, fields)
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{
			"updateStrategy": strategy,
			"template":       map[string]any{"spec": map[string]any{"containers": []any{named}}},
		}})
		if err == nil {
			err = mesh.PatchDaemonSet(ctx, daemonset, string(patch))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	restored := false
	back = func() {
		if restored {
			return
		}
		// Also when the test has failed, and its context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), kit.Patience)
		defer cancel()
		before := map[string]any{}
		for field := range fields {
			before[field] = container[field]
		}
		set(ctx, ds.Spec.UpdateStrategy, before)
		restored = true
	}
	t.Cleanup(back)
	set(t.Context(), map[string]any{"type": "OnDelete", "rollingUpdate": nil}, fields)
	pods, err := mesh.Kube.CoreV1().Pods(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector), FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		t.Fatal(err)
	}
	// One that is about to end may be there beside its successor.
	there := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(there) != 1 {
		t.Fatalf("want one pod of %s on %s, there are %d", daemonset, node, len(there))
	}
	mesh.Kill(t, there[0].Name)
	return back
}

// Pods that start while their node has no agent wait, and say why. When it is
// back they start, captured.
func TestAgentDeadWhilePodsStart(t *testing.T) {
	s := newStage(t, "noagent", 100)
	back := without(t, agents, s.from)
	names := []string{"late1", "late2", "late3"}
	for _, name := range names {
		s.Create(name, kit.OnNode(s.from))
	}
	for _, name := range names {
		warned(t, s.Namespace, name, "the mesh's node agent (ambit-cni) does not run on this node")
	}
	for _, name := range names {
		pod, err := mesh.Kube.CoreV1().Pods(s.Name).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range pod.Status.ContainerStatuses {
			if c.State.Waiting == nil || c.LastTerminationState.Terminated != nil {
				t.Errorf("%s has run without the mesh: %+v", name, c.State)
			}
		}
	}
	back()
	mesh.RolledOut(t, agents)
	s.Service("late")
	server, err := mesh.Kube.CoreV1().Pods(s.Name).Get(t.Context(), "server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s.Ready(name)
		s.Tunnelled(name, s.URL("server"), server)
	}
	s.load.Clean()
}

// warned waits for an event that tells the owner of a pod what is wrong.
func warned(t *testing.T, n *kit.Namespace, pod, text string) {
	t.Helper()
	kit.Eventually(t, pod+" says why it waits", func(ctx context.Context) error {
		events, err := mesh.Kube.CoreV1().Events(n.Name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
		if err != nil {
			return err
		}
		var said []string
		for _, e := range events.Items {
			if e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, text) {
				return nil
			}
			said = append(said, e.Message)
		}
		return fmt.Errorf("its events are %q", said)
	})
}

// redirects waits until a node says of itself whether it redirects, and why.
func redirects(t *testing.T, node, reason string) {
	t.Helper()
	kit.Eventually(t, node+" says "+reason, func(ctx context.Context) error {
		n, err := mesh.Kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type != nodestate.Condition {
				continue
			}
			if ready := reason == selftest.ReasonProven; c.Reason == reason && (c.Status == corev1.ConditionTrue) == ready {
				return nil
			}
			return fmt.Errorf("it says %s, %s: %s", c.Status, c.Reason, c.Message)
		}
		return fmt.Errorf("it has no condition %s", nodestate.Condition)
	})
}

// A node whose agent lacks a right that redirection takes says so: pods that
// belong into the mesh wait there, others start, and those that are in it stay.
// When the agent has the right, what has waited starts, captured.
func TestNodeThatDoesNotRedirect(t *testing.T) {
	node, to := twoNodes(t)
	for _, n := range []string{node, to} {
		redirects(t, n, selftest.ReasonProven)
	}
	n := mesh.Namespace(t, "noredirect", kit.Ambient())
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	n.Pod("early", kit.OnNode(node))
	n.Tunnelled("early", n.URL("server"), server)

	ds, err := mesh.Kube.AppsV1().DaemonSets(kit.SystemNamespace).Get(t.Context(), agents, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rights := ds.Spec.Template.Spec.Containers[0].SecurityContext.DeepCopy()
	rights.Capabilities.Add = slices.DeleteFunc(rights.Capabilities.Add, func(c corev1.Capability) bool { return c == "NET_ADMIN" })
	back := changed(t, agents, node, map[string]any{"securityContext": rights})
	redirects(t, node, selftest.ReasonFailed)
	n.Create("late", kit.OnNode(node))
	warned(t, n, "late", "no pod of this node is enrolled: ")
	mesh.Namespace(t, "plain", nil).Pod("plain", kit.OnNode(node))
	n.Tunnelled("early", n.URL("server"), server)
	if out, err := mesh.Ambit(t.Context(), "check"); err == nil || !strings.Contains(out, "pods of this node stay out of the mesh until this is mended") {
		t.Errorf("ambit check: %v\n%s", err, out)
	}

	back()
	mesh.RolledOut(t, agents)
	redirects(t, node, selftest.ReasonProven)
	n.Ready("late")
	n.Tunnelled("late", n.URL("server"), server)
}

// caller makes requests from the moment it starts.
func caller(account, url string) kit.Option {
	return func(p *corev1.Pod) {
		p.Spec.ServiceAccountName = account
		p.Spec.Containers[0].Command = []string{"/echo", "load", "-url", url, "-rate", "20", "-workers", "2", "-per-conn", "1", "-duration", "0"}
		p.Spec.Containers[0].ReadinessProbe = nil
	}
}

// A node loses its power and is back. From their first packet on, its pods
// speak with their identity: a server that takes nothing else sees no stranger.
func TestNodeLosesPower(t *testing.T) {
	own := mesh.Machines(t)
	lost, to := twoNodes(t)
	n := mesh.Namespace(t, "power", kit.Ambient())
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	server := n.Pod("server", kit.OnNode(to))
	n.Service("server")
	plain := mesh.Namespace(t, "plain", nil)
	plain.Pod("stranger", kit.OnNode(to))
	began := time.Now()
	plain.MustRefuse("stranger", n.URL("server"))
	if line := n.Logged(server, began, `direction="inbound"`, "error="); strings.Contains(line, "src.identity") {
		t.Fatalf("strangers cannot be told from this: %s", line)
	}
	if err := mesh.Kube.CoreV1().Pods(plain.Name).Delete(t.Context(), "stranger", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	pods := n.Deployment("caller", 3, kit.OnNode(lost), caller("caller", n.URL("server")))
	n.Logged(server, began, `direction="inbound"`, `/sa/caller"`)

	t.Cleanup(func() {
		if err := own.PowerOn(lost); err != nil {
			t.Error(err)
		}
	})
	if err := own.PowerOff(lost); err != nil {
		t.Fatal(err)
	}
	// The clock of the log is of whole seconds.
	time.Sleep(2 * time.Second)
	since := time.Now()
	if err := own.PowerOn(lost); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		kit.Eventually(t, p.Name+" is answered after the reboot", func(ctx context.Context) error {
			reports, err := mesh.Reports(ctx, n.Name, p.Name, since)
			if err != nil {
				return err
			}
			if sum := traffic.Total(reports); sum.OK == 0 {
				return fmt.Errorf("of %d requests none was answered: %v", sum.Sent, sum.Errors)
			}
			return nil
		})
	}
	time.Sleep(3 * time.Second) // whoever is late with being captured is seen
	arrivals(t, n, server, since, `src.identity="spiffe://`+wellknown.DefaultDomain+"/ns/"+n.Name+`/sa/caller"`)
	for _, p := range pods {
		n.Redirected(p.Name, true)
	}
	mesh.RolledOut(t, agents)
	mesh.RolledOut(t, "ztunnel")
}

// arrivals checks that all connections to a pod since a moment, of which there
// are some, have a text in the log.
func arrivals(t *testing.T, n *kit.Namespace, to *corev1.Pod, since time.Time, text string) {
	t.Helper()
	zt, err := mesh.ZtunnelOn(t.Context(), to.Spec.NodeName)
	if err != nil {
		t.Fatal(err)
	}
	log, err := mesh.Logs(t.Context(), kit.SystemNamespace, zt, "", since)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `dst.workload="`+to.Name+`"`) || !strings.Contains(line, `dst.namespace="`+n.Name+`"`) || !strings.Contains(line, `direction="inbound"`) {
			continue
		}
		seen++
		if !strings.Contains(line, text) {
			t.Errorf("a connection without %s: %s", text, line)
		}
	}
	if seen == 0 {
		t.Errorf("no connection to %s was logged", to.Name)
	}
}

// addresses hands out the pod addresses of a node of the project's cluster.
type addresses struct {
	t    *testing.T
	n    *kit.Namespace
	node string
}

// place makes a pod with an address, as soon as that is free.
func (a addresses) place(address, name string, opts ...kit.Option) *corev1.Pod {
	a.t.Helper()
	mesh.GiveNext(a.t, a.node, address)
	pod := a.n.Pod(name, append([]kit.Option{kit.OnNode(a.node)}, opts...)...)
	if pod.Status.PodIP != address {
		a.t.Fatalf("%s has the address %s and not %s: did another pod start on %s meanwhile?", name, pod.Status.PodIP, address, a.node)
	}
	return pod
}

// An address goes from one pod to the next at once, while the API still knows
// the one before by it. Nobody is ever taken for who had the address before.
func TestAddressReused(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "reuse", kit.Ambient())
	a := addresses{t, n, far}
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("probe", kit.OnNode(near))
	for _, account := range []string{"alice", "mallory"} {
		n.Account(account)
	}
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-alice}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/alice]}}]}]
`)
	n.MustRefuse("probe", n.URL("server"))
	remove := func(name string) {
		t.Helper()
		if err := mesh.Kube.CoreV1().Pods(n.Name).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
			t.Fatal(err)
		}
	}
	reports := func(name string) (all []traffic.Report) {
		t.Helper()
		kit.Eventually(t, name+" has made requests", func(ctx context.Context) (err error) {
			if all, err = mesh.Reports(ctx, n.Name, name, time.Time{}); err == nil && len(all) < 3 {
				err = fmt.Errorf("%d reports", len(all))
			}
			return err
		})
		return all
	}

	// Alice ends by herself; the API keeps her, with her address.
	n.Create("first", kit.OnNode(far), caller("alice", ""), kit.WithCommand("/echo", "get", "-n", "3", "-url", n.URL("server")), func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	})
	var address string
	kit.Eventually(t, "first has ended", func(ctx context.Context) error {
		p, err := mesh.Kube.CoreV1().Pods(n.Name).Get(ctx, "first", metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodSucceeded {
			err = fmt.Errorf("it is %s", p.Status.Phase)
		}
		if err == nil {
			address = p.Status.PodIP
		}
		return err
	})

	since := time.Now()
	a.place(address, "second", caller("mallory", n.URL("server")))
	if sum := traffic.Total(reports("second")); sum.OK > 0 || sum.Failed == 0 {
		t.Errorf("mallory, at the address that alice had, made %d requests, of which %d were answered", sum.Sent, sum.OK)
	}
	n.Logged(server, since, "error=", `src.identity="spiffe://`+wellknown.DefaultDomain+"/ns/"+n.Name+`/sa/mallory"`)
	remove("second")

	a.place(address, "third", caller("alice", n.URL("server")))
	all := reports("third")
	if last := all[len(all)-1]; last.Failed > 0 || last.OK == 0 {
		t.Errorf("alice, at the address that mallory had, is refused: %+v", last)
	}
	remove("third")

	// The other way round: who calls the address reaches who has it now.
	for _, name := range []string{"fourth", "fifth"} {
		pod := a.place(address, name)
		n.Tunnelled("probe", "http://"+address+":8080/", pod)
		if answer := n.MustGet("probe", "http://"+address+":8080/"); !strings.HasPrefix(answer, name+" ") {
			t.Errorf("%s has the address, and who answers is: %s", name, answer)
		}
		remove(name)
	}
}
