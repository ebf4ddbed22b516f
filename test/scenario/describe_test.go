package scenario

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestDescribe: what the command line says about a lab is what its mesh does.
func TestDescribe(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	says := func(want []string, command string, args ...string) {
		t.Helper()
		w.Eventually(strings.Join(append([]string{"ambit", command}, args...), " "), func() error {
			out, err := w.Ambit(command, args...)
			for _, s := range want {
				if err == nil && !strings.Contains(out, s) {
					err = fmt.Errorf("it does not say %q:\n%s", s, out)
				}
			}
			return err
		})
	}
	says([]string{
		"In the mesh:   yes", "ambit-cni/node1: enabled, rules are in the kernel, served by ztunnel",
		"ztunnel/node1: Up in the pod", "reaches it by HBONE, Healthy", "spiffe://cluster.local/ns/shop/sa/web", "Available, until",
		"web (", "accepted: everyone",
	}, "describe", "pod", "web", "-n", "shop")
	says([]string{"Known as:      web.shop.svc.cluster.local", "web on node1: ready, HBONE"}, "describe", "service", "web.shop")
	says([]string{
		"In the mesh:   no", "ambit lab label namespace street istio.io/dataplane-mode=ambient --state-dir " + w.StateDir(),
	}, "describe", "pod", "stranger", "-n", "street")

	w.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/near]}}]}]
`)
	says([]string{
		"AuthorizationPolicy shop/callers (Allow), enforced by ztunnel/node1",
		"accepted: from cluster.local/ns/shop/sa/near (shop/callers)", "refused:  everyone else",
	}, "describe", "pod", "web", "-n", "shop")

	// Without --node, the levels of all proxies; each says so.
	says([]string{"ztunnel/node1:\ncurrent log level is info,access=debug\n", "ztunnel/node2:\ncurrent log level is info,access=debug\n"},
		"ztunnel-config", "log", "--level", "info,access=debug")
	says([]string{"ztunnel/node1:\ncurrent log level is info\n"}, "ztunnel-config", "log", "--node", "node1", "--reset")
	says([]string{"ztunnel/node2:\ncurrent log level is info,access=debug\n"}, "ztunnel-config", "log")
}
