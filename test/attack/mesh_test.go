package attack

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// strict refuses plaintext in the shop.
const strict = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

// market returns a second tenant: an enrolled namespace with a server on node1
// and a pod on each node that an attacker controls.
func market() string {
	return rig.NamespaceObject("market", true) +
		rig.ServerObject("market", "stall", "node1", "app: stall") +
		rig.ServiceObject("market", "stall", "stall", "{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}") +
		rig.PodObject("market", "thief1", "node1", "app: thief1") +
		rig.PodObject("market", "thief2", "node2", "app: thief2")
}

var (
	thief1 = lab.InPod("market", "thief1")
	thief2 = lab.InPod("market", "thief2")
)

// start runs the shop, which is STRICT, and the market.
func start(t *testing.T, more string) *rig.World {
	t.Helper()
	return rig.Start(t, lab.Config{YAML: rig.Shop + strict + market() + more})
}

// TestStage checks the starting point of the attacks: the shop serves its own
// clients and other tenants by mutual TLS, and refuses the stranger's plaintext.
func TestStage(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		for _, from := range []lab.Where{rig.Near, rig.Far, thief1, thief2} {
			w.MustGet(from, web)
		}
		w.Refused(rig.Stranger, web)
	})
}
