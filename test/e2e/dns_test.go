package e2e

import (
	"strings"
	"testing"

	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// Pods whose look-ups are captured find the hosts of ServiceEntries, which the cluster's
// name server does not know, and go on finding everything else; the label of the namespace
// turns it on and off.
func TestLookUps(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "lookups", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
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
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [{name: http, port: 8080}]
`)
	n.Pod("near", kit.OnNode(near))
	n.Pod("far", kit.OnNode(far))
	ledger := "http://ledger." + n.Name + ".example/"
	for _, from := range []string{"near", "far"} {
		if out, err := mesh.Exec(t.Context(), n.Name, from, "/echo", "get", "-url", ledger); err == nil {
			t.Errorf("%s finds a host that no name server has: %s", from, out)
		}
	}
	n.Label(map[string]*string{wellknown.LabelDNSCapture: ptr.To("true")})
	for _, from := range []string{"near", "far"} {
		t.Run("from "+from, func(t *testing.T) {
			n.Tunnelled(from, ledger, server)
			n.Tunnelled(from, n.URL("server"), server)
			n.Tunnelled(from, "http://server/", server)
			n.Tunnelled(from, "http://books."+n.Name+".svc.cluster.local/", server)
			n.Tunnelled(from, "http://headless."+n.Name+".svc.cluster.local:8080/", server)
			n.Tunnelled(from, "http://server.headless."+n.Name+".svc.cluster.local:8080/", server)
			out, err := mesh.Exec(t.Context(), n.Name, from, "/echo", "get", "-insecure", "-url", "https://kubernetes.default.svc.cluster.local/version")
			if err != nil || !strings.Contains(out, "gitVersion") {
				t.Errorf("the API server: %q, %v", out, err)
			}
		})
	}
}
