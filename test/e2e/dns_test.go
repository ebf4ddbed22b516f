package e2e

import (
	"strings"
	"testing"

	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// TestLookUpsOfTheCluster: pods whose look-ups are captured find what the cluster's name
// server has: the API server, and aliases, which lead to a host that only the mesh has.
func TestLookUpsOfTheCluster(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "lookups", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Pod("client", kit.OnNode(far))
	n.MustApply(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ledger}
spec:
  hosts: [ledger.$NS.example]
  addresses: [240.240.7.1]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: server}}
---
apiVersion: v1
kind: Service
metadata: {name: books}
spec:
  type: ExternalName
  externalName: ledger.$NS.example
`)
	n.Label(map[string]*string{wellknown.LabelDNSCapture: ptr.To("true")})
	n.Tunnelled("client", "http://books."+n.Name+".svc.cluster.local/", server)
	out, err := mesh.Exec(t.Context(), n.Name, "client", "/echo", "get", "-insecure", "-url", "https://kubernetes.default.svc.cluster.local/version")
	if err != nil || !strings.Contains(out, "gitVersion") {
		t.Errorf("the API server: %q, %v", out, err)
	}
}
