package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/test/cluster/local"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// outage is how long the API server is away: longer than watches, leases and
// the patience of most clients last.
const outage = 2 * time.Minute

// stage is what a fault happens to: a client under load and a server on
// another node, all in the mesh.
type stage struct {
	*kit.Namespace
	t        *testing.T
	from, to string
	load     *kit.Load
}

func newStage(t *testing.T, name string, rate int) *stage {
	t.Helper()
	from, to := twoNodes(t)
	s := &stage{Namespace: mesh.Namespace(t, name, kit.Ambient()), t: t, from: from, to: to}
	server := s.Pod("server", kit.OnNode(to))
	s.Service("server")
	s.Pod("probe", kit.OnNode(from))
	s.Tunnelled("probe", s.URL("server"), server)
	s.load = s.StartLoad("load", s.URL("server"), rate, kit.OnNode(from))
	return s
}

// delivers shows that a change of the configuration reaches the node proxies,
// there and back.
func (s *stage) delivers() {
	s.t.Helper()
	policy := strings.ReplaceAll(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-probe}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/probe]}}]}]
`, "$NS", s.Name)
	// A control plane that was just replaced is asked for its judgement as soon
	// as every node knows its new address.
	kit.Eventually(s.t, "a policy is taken", func(ctx context.Context) error { return s.Apply(ctx, s.Name, policy) })
	s.MustRefuse("probe", s.URL("server"))
	if err := mesh.Dynamic.Resource(policies).Namespace(s.Name).Delete(s.t.Context(), "deny-probe", metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	s.MustGet("probe", s.URL("server"))
}

// starts shows that new pods join the mesh.
func (s *stage) starts(name string) {
	s.t.Helper()
	late := s.Pod(name, kit.OnNode(s.to))
	s.Service(name)
	s.Tunnelled("probe", s.URL(name), late)
}

// ambitd is the control plane, of which there is one.
func ambitd(t *testing.T) string {
	t.Helper()
	pods, err := mesh.Ambitds(t.Context())
	if err != nil || len(pods) != 1 {
		t.Fatalf("want one ambitd, there are %d: %v", len(pods), err)
	}
	return pods[0].Name
}

// connections are since when the clients of an ambitd have been connected.
func connections(t *testing.T, ambitd string) map[string]time.Time {
	t.Helper()
	all, err := mesh.Followers(t.Context(), ambitd)
	if err != nil {
		t.Fatal(err)
	}
	since := map[string]time.Time{}
	for _, f := range all {
		since[f.Name] = f.Connected
	}
	return since
}

// addressMetric is a counter of an ambitd of workloads and services.
func addressMetric(t *testing.T, ambitd, name string) float64 {
	t.Helper()
	n, err := mesh.Metric(t.Context(), ambitd, name, "type", "Address")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const (
	pushed  = "ambit_xds_pushed_resources_total"
	changes = "ambit_registry_changes_total"
)

// ownChanges are those that the API server makes of itself: its Service loses
// its endpoint, and has it again.
const ownChanges = 2

// atRest waits until what earlier tests have made is gone, and the control
// plane has heard so: nothing but what a test does changes anything from then on.
func atRest(t *testing.T, control string) {
	t.Helper()
	kit.Eventually(t, "what earlier tests have made is gone", func(ctx context.Context) error {
		list, err := mesh.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, ns := range list.Items {
			if ns.DeletionTimestamp != nil {
				return fmt.Errorf("namespace %s is being deleted", ns.Name)
			}
		}
		return nil
	})
	kit.Eventually(t, "nothing changes any more", func(context.Context) error {
		first := addressMetric(t, control, changes)
		time.Sleep(restTime)
		if now := addressMetric(t, control, changes); now != first {
			return fmt.Errorf("%v more workloads and services have changed", now-first)
		}
		return nil
	})
}

// restTime is longer than from the end of an object to the last change that
// follows from it.
const restTime = 3 * time.Second

// withoutAPIServer takes the API server away until back is called, and at the
// latest until the test has ended. The controllers go with it: those that live on
// take every node for dead when the API server returns, which is not what is
// tested here.
func withoutAPIServer(t *testing.T, own *local.Cluster) (back func()) {
	t.Helper()
	const controllers = "kube-controller-manager"
	start := func(ctx context.Context) error {
		if err := own.StartAPIServer(ctx); err != nil {
			return err
		}
		return own.Start(local.ControlPlane, controllers)
	}
	t.Cleanup(func() {
		// The test's context has ended. What runs already stays as it is.
		ctx, cancel := context.WithTimeout(context.Background(), kit.Patience)
		defer cancel()
		if err := start(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := own.Stop(local.ControlPlane, controllers); err != nil {
		t.Fatal(err)
	}
	if err := own.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The machine with the API server is lost for two minutes. Nobody who has a
// connection or wants one notices; when it is back, the mesh follows it again,
// without a restart and without anything sent that had not changed.
func TestAPIServerAway(t *testing.T) {
	own := mesh.Machines(t)
	s := newStage(t, "noapi", 200)
	s.delivers()
	control := ambitd(t)
	atRest(t, control)
	before, followers := restarts(t, kit.SystemNamespace), connections(t, control)
	sent, changed := addressMetric(t, control, pushed), addressMetric(t, control, changes)

	back := withoutAPIServer(t, own)
	time.Sleep(outage)
	back()
	s.load.Seconds(2)
	s.delivers()

	if after := restarts(t, kit.SystemNamespace); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	if now := connections(t, control); !maps.EqualFunc(followers, now, time.Time.Equal) {
		t.Errorf("node proxies were connected since %v, and now %v", followers, now)
	}
	sent, changed = addressMetric(t, control, pushed)-sent, addressMetric(t, control, changes)-changed
	if changed > ownChanges || sent > changed*float64(len(followers)) {
		t.Errorf("%v workloads and services were sent to %d proxies and %v had changed, where only the API server's own Service has", sent, len(followers), changed)
	}
	s.starts("late")
	s.load.Clean()
}

// scaleControlPlane has as many ambitds run, and waits until they do.
func scaleControlPlane(t *testing.T, replicas int) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	kit.Eventually(t, fmt.Sprintf("ambitd is scaled to %d", replicas), func(ctx context.Context) error {
		return mesh.Kube.AppsV1().RESTClient().Patch(types.MergePatchType).Namespace(kit.SystemNamespace).
			Resource("deployments").Name("ambitd").SubResource("scale").Body([]byte(patch)).Do(ctx).Error()
	})
	mesh.ControlPlane(t, replicas)
}

// The control plane crashes, becomes two, one again, and is upgraded with
// other settings. Traffic never depends on it, and each time it is back it is
// followed.
func TestControlPlaneReplaced(t *testing.T) {
	s := newStage(t, "replaced", 200)
	crashed := ambitd(t)
	mesh.Kill(t, crashed)
	mesh.ControlPlane(t, 1)
	if now := ambitd(t); now == crashed {
		t.Fatalf("%s outlived its death", now)
	}
	s.delivers()

	scale := func(replicas int) {
		t.Helper()
		scaleControlPlane(t, replicas)
		s.delivers()
	}
	scale(2)
	// Whichever leads is killed: the other one takes over.
	pods, err := mesh.Ambitds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mesh.Kill(t, pods[0].Name)
	s.delivers()
	mesh.ControlPlane(t, 2)
	scale(1)

	old := ambitd(t)
	t.Cleanup(func() {
		if err := mesh.Install(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := mesh.Upgrade(t.Context(), "--set", "values.pilot.podAnnotations.e2e=upgraded"); err != nil {
		t.Fatal(err)
	}
	mesh.ControlPlane(t, 1)
	if now := ambitd(t); now == old {
		t.Errorf("%s was not replaced by an upgrade", now)
	}
	s.delivers()
	s.starts("late")
	s.load.Clean()
}

// Every node proxy is replaced while a thousand requests are made each second.
func TestZtunnelRolled(t *testing.T) {
	s := newStage(t, "rolled", 1000)
	proxies := func() (names []string) {
		for _, node := range []string{s.from, s.to} {
			name, err := mesh.ZtunnelOn(t.Context(), node)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		return names
	}
	before := proxies()
	mesh.Roll(t, "ztunnel")
	for _, name := range proxies() {
		if slices.Contains(before, name) {
			t.Errorf("%s was not replaced", name)
		}
	}
	s.load.Seconds(3)
	s.starts("late")
	sum := s.load.Clean()
	t.Logf("%d requests", sum.Sent)
}
