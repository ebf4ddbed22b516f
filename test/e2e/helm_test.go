package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/nodestate"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// The charts alone, with nothing but helm, are a mesh as the command line makes
// it; a mesh moves from one to the other while its pods talk; and neither
// touches what is the other's.
func TestHelm(t *testing.T) {
	helm := mesh.Helm(t)
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "helm", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("client", kit.OnNode(far))
	n.Tunnelled("client", n.URL("server"), server)
	t.Cleanup(func() { backToCommandLine(t, helm) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	if err := helm.Chart(ctx, "install", "ztunnel", "ztunnel"); err == nil || !strings.Contains(err.Error(), "ownership") {
		t.Fatalf("helm takes what `ambit install` installed: %v", err)
	}
	load := n.StartLoad("load", n.URL("server"), 100, kit.OnNode(far))
	helmInstall(ctx, t, helm, "--take-ownership", "--force-conflicts")
	load.Clean()
	belongsToHelm(ctx, t)
	n.Tunnelled("client", n.URL("server"), server)

	helmUninstall(ctx, t, helm)
	n.Redirected("server", false)
	n.Redirected("client", false)
	if out, err := n.Get(ctx, "client", n.URL("server")); err != nil {
		t.Errorf("after the mesh: %q, %v", out, err)
	}
	noTraces(ctx, t)

	helmInstall(ctx, t, helm)
	n.Redirected("server", true)
	n.Tunnelled("client", n.URL("server"), server)
	if err := helm.Chart(ctx, "upgrade", "ztunnel", "ztunnel", "--wait", "--set", "terminationGracePeriodSeconds=10"); err != nil {
		t.Fatal(err)
	}
	n.Tunnelled("client", n.URL("server"), server)
	since := time.Now()
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/nobody]}}]}]
`)
	_ = n.MustRefuse("client", n.URL("server"))
	n.Logged(server, since, `reason="NOT_ALLOWED"`, `direction="inbound"`)
}

// helmInstall installs the charts as the documentation says.
func helmInstall(ctx context.Context, t *testing.T, helm *kit.Helm, more ...string) {
	t.Helper()
	for _, r := range kit.Releases {
		if err := helm.Chart(ctx, "install", r.Name, r.Chart, append([]string{"--wait", "--create-namespace"}, more...)...); err != nil {
			t.Fatal(err)
		}
	}
}

// helmUninstall takes the charts away as the documentation says: the agents
// first, and as long as they have their rights.
func helmUninstall(ctx context.Context, t *testing.T, helm *kit.Helm) {
	t.Helper()
	foreground := metav1.DeletePropagationForeground
	sets := mesh.Kube.AppsV1().DaemonSets(kit.SystemNamespace)
	if err := sets.Delete(ctx, "ambit-cni", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the node agents have left", func(ctx context.Context) error {
		_, err := sets.Get(ctx, "ambit-cni", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("DaemonSet ambit-cni is still there (%w)", err)
	})
	if _, err := helm.Run(ctx, "uninstall", "ambit-cni", "ztunnel", "ambitd", "ambit-base", "--wait"); err != nil {
		t.Fatal(err)
	}
}

// belongsToHelm checks that the command line leaves Helm's mesh alone.
func belongsToHelm(ctx context.Context, t *testing.T) {
	t.Helper()
	if out, err := mesh.Ambit(ctx, "install", "-y"); err == nil || !strings.Contains(err.Error(), "helm upgrade") {
		t.Errorf("ambit install over Helm's: %v\n%s", err, out)
	}
	if out, err := mesh.Ambit(ctx, "uninstall", "--purge", "-y"); err == nil || !strings.Contains(err.Error(), "helm uninstall") {
		t.Errorf("a purge under Helm's mesh: %v\n%s", err, out)
	}
	checked(t)
}

// noTraces looks for what agents leave on their nodes.
func noTraces(ctx context.Context, t *testing.T) {
	t.Helper()
	nodes, err := mesh.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == nodestate.Condition {
				t.Errorf("%s keeps its condition %s", node.Name, c.Type)
			}
		}
		if mesh.Own == nil {
			continue
		}
		if err := noRules(ctx, node.Name); err != nil {
			t.Error(err)
		}
	}
}

// backToCommandLine gives the mesh back to `ambit install`, for the tests that
// follow.
func backToCommandLine(t *testing.T, helm *kit.Helm) {
	ctx := context.Background() // the test's has ended
	if err := mesh.Install(ctx, "--force"); err != nil {
		t.Errorf("the mesh is not installed for the tests that follow: %v", err)
	}
	// What helm knows of it must not be taken for an installation.
	for _, r := range kit.Releases {
		if _, err := helm.Run(ctx, "uninstall", r.Name, "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	}
	out, err := mesh.Ambit(ctx, "check")
	for began := time.Now(); err != nil && time.Since(began) < kit.Patience; time.Sleep(time.Second) {
		out, err = mesh.Ambit(ctx, "check")
	}
	if err != nil {
		t.Errorf("after Helm: %v\n%s", err, out)
	}
}
