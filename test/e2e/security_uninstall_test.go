package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// A mesh that is uninstalled leaves running pods as they were before it: they
// talk to each other without a restart, and no rule is left on any node. A purge
// takes the rest. It is installed again afterwards.
func TestUninstallRestoresRunningPods(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "uninstall", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("client", kit.OnNode(far))
	n.Tunnelled("client", n.URL("server"), server)
	before := restarts(t, n.Name)

	t.Cleanup(func() {
		if err := mesh.Install(context.Background()); err != nil {
			t.Errorf("the mesh is not installed for the tests that follow: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := mesh.Ambit(ctx, "uninstall", "-y"); err != nil {
		t.Fatal(err)
	}
	n.Redirected("server", false)
	n.Redirected("client", false)
	for _, url := range []string{n.URL("server"), "http://" + net.JoinHostPort(server.Status.PodIP, "8080") + "/"} {
		if out, err := n.Get(t.Context(), "client", url); err != nil {
			t.Errorf("%s after the mesh: %q, %v", url, out, err)
		}
	}
	if after := restarts(t, n.Name); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	n.Pod("late", kit.OnNode(near)) // and new pods start without it
	noTraces(ctx, t)
	purge(ctx, t)
}

// purge removes what an uninstallation leaves, and looks for what is left even so.
func purge(ctx context.Context, t *testing.T) {
	t.Helper()
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	left := func(ctx context.Context) (found []string, err error) {
		maps, err := mesh.Kube.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + trust.Roots.ConfigMap})
		if err != nil {
			return nil, err
		}
		for _, m := range maps.Items {
			found = append(found, "ConfigMap "+m.Namespace+"/"+m.Name)
		}
		for name, api := range map[string]dynamic.ResourceInterface{
			"authorizationpolicies.security.istio.io": mesh.Dynamic.Resource(crds),
			trust.BundleName:    mesh.Dynamic.Resource(bundles),
			kit.SystemNamespace: mesh.Dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}),
		} {
			_, err := api.Get(ctx, name, metav1.GetOptions{})
			switch {
			case err == nil:
				found = append(found, name)
			case !apierrors.IsNotFound(err):
				return nil, err
			}
		}
		return found, nil
	}
	before, err := left(ctx)
	if err != nil || len(before) < 4 {
		t.Errorf("an uninstallation leaves %q, %v", before, err)
	}
	if _, err := mesh.Ambit(ctx, "uninstall", "--purge", "-y"); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "nothing is left of the mesh", func(ctx context.Context) error {
		found, err := left(ctx)
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("there are %q", found)
		}
		return err
	})
}

// noRules looks into every network namespace of a node.
func noRules(ctx context.Context, node string) error {
	tables, err := mesh.Own.Output(ctx, node, "nft", "list", "tables")
	if err != nil {
		return err
	}
	if strings.Contains(tables, nft.HostTableName) {
		return fmt.Errorf("%s has tables %s", node, tables)
	}
	const look = `for ns in /run/netns/* /var/run/netns/*; do [ -e "$ns" ] || continue; echo "$ns"; nsenter --net="$ns" nft list tables; nsenter --net="$ns" ip rule; done`
	out, err := mesh.Own.Output(ctx, node, "sh", "-c", look)
	if err != nil {
		return err
	}
	if !strings.Contains(out, "netns/") {
		return fmt.Errorf("%s has no network namespaces to look into: %s", node, out)
	}
	if strings.Contains(out, nft.TableName) || strings.Contains(out, fmt.Sprintf("fwmark %#x", wellknown.MarkReturn)) {
		return fmt.Errorf("rules are left on %s:\n%s", node, out)
	}
	return nil
}
