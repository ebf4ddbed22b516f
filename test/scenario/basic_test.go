package scenario

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// shop is a namespace in the mesh with a server on node1 and clients on both
// nodes, and a namespace outside of it.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: street}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}, {name: first, port: 9100}, {name: odd, port: 9321}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: node1
  serviceAccountName: web
  containers:
  - name: web
    command: [ECHO, server, -first, ":9100"]
    readinessProbe: {tcpSocket: {port: 8080}}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: node1, serviceAccountName: near, containers: [{name: shell}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: node2, serviceAccountName: far, containers: [{name: shell}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: street}
spec: {nodeName: node2, containers: [{name: shell}]}
`

var (
	near     = lab.InPod("shop", "near")
	far      = lab.InPod("shop", "far")
	web      = lab.InPod("shop", "web")
	stranger = lab.InPod("street", "stranger")
)

// TestCaptured: programs on one node and on two reach each other through the
// mesh, by pod and by service, and the server sees who really called.
func TestCaptured(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		for _, to := range []netip.AddrPort{pod, vip} {
			for name, from := range map[string]lab.Where{"near": near, "far": far} {
				if a := w.MustGet(from, to); a.Name != "web" || a.Caller != w.Pod("shop", name, v6) {
					t.Errorf("from %s to %s: %s answered and saw %s", name, to, a.Name, a.Caller)
				}
			}
			// A client outside the mesh is let in, in plaintext.
			w.MustGet(stranger, to)
		}
		w.Eventually("both ends logged an identity", func() error {
			return expectLines(w, "node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/far"`, `dst.hbone_addr=`+pod.String())
		})
	})
}
