package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// A mesh that is uninstalled leaves running pods as they were before it: they
// talk to each other without a restart, and no rule is left on any node. It is
// installed again afterwards.
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
	if mesh.Own == nil {
		return
	}
	nodes, err := mesh.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		if err := noRules(t.Context(), node); err != nil {
			t.Error(err)
		}
	}
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
