package attack

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// relic is a static pod of node2: a node makes such an object with its own
// credentials, in any namespace, without a service account.
const relic = `
---
apiVersion: v1
kind: Pod
metadata:
  name: relic-node2
  namespace: market
  labels: {app: relic}
  annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    command: [ECHO, server]
    readinessProbe: {tcpSocket: {port: 9000}}
`

// TestStaticPodHasNoIdentity checks that a static pod does not give the identity
// of an account to its node: it is captured, policies hold for it, it is reached in
// plaintext only, and it cannot call a pod of the mesh.
func TestStaticPodHasNoIdentity(t *testing.T) {
	t.Parallel()
	w := start(t, relic)
	static := lab.InPod("market", "relic-node2")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		to := netip.AddrPortFrom(w.Pod("market", "relic-node2", v6), 8080)
		for _, from := range []lab.Where{rig.Far, thief2, rig.Stranger} {
			w.MustGet(from, to)
		}
		w.Refused(static, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		w.Refused(static, netip.AddrPortFrom(w.Pod("market", "stall", v6), 8080))
		w.Logs("node2", "CERTIFICATE_UNAVAILABLE", "relic-node2")
	})
	for _, node := range []string{"node1", "node2"} {
		d, err := w.Dump(node)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range d.Certificates {
			if strings.HasSuffix(c.Identity, "/ns/market/sa/default") || strings.Contains(c.Identity, wellknown.NoServiceAccount) {
				t.Errorf("the proxy of %s has asked for a certificate of %s", node, c.Identity)
			}
		}
	}
	w.MustApply(rig.PolicyObject("market", "closed", "DENY", "selector: {matchLabels: {app: relic}}, rules: [{}]"))
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		w.BecomesRefused(rig.Stranger, netip.AddrPortFrom(w.Pod("market", "relic-node2", v6), 8080))
	})
}
