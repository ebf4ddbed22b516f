package scenario

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestSOCKSNames: a program that connects by SOCKS5 to a port with a TLSRoute gets its reply
// before it sends the name, and goes where the name leads; without a route it is reset.
func TestSOCKSNames(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal(err)
	}
	yaml := confined + rig.ServiceObject("shop", "secure", "secure", "{name: tls, port: 443, targetPort: 8443}")
	for _, v := range []string{"v1", "v2"} {
		yaml += rig.ServerObject("shop", v, "node1", "app: secure, version: "+v, "-name", v, "-tls", ":8443") + fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec: {selector: {version: %[1]s}, ports: [{name: tls, port: 443, targetPort: 8443}]}
`, v)
	}
	w := rig.Start(t, lab.Config{Env: socksEnv, YAML: yaml + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: named, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: secure, port: 443}]
  hostnames: [a.example.org]
  rules: [{backendRefs: [{name: v2, port: 443}]}]
`})
	ask := func(name string) (string, error) {
		return w.Run(t.Context(), far, "curl", "-sSk", "--noproxy", "", "--max-time", "20", "--socks5-hostname", socksAt(false).String(),
			"--connect-to", name+":443:secure.shop:443", "https://"+name+"/")
	}
	w.Eventually("the name leads to v2", func() error {
		for range 5 {
			if out, err := ask("a.example.org"); err != nil || !strings.HasPrefix(out, "v2 answers ") {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
		return nil
	})
	if out, err := ask("example.com"); err == nil {
		t.Errorf("a name without a route is answered: %s", out)
	}
	w.Logs("node2", `reason="NO_ROUTE"`, "a connection of TLS to example.com")
}
