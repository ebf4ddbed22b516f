package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestHTTPRoute: a route whose parent is the waypoint itself is refused in its
// status, and traffic goes on as if it did not exist. A route with a mistake is
// reported by file and field.
func TestHTTPRoute(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + gateway("service", "", `{type: IPAddress, value: "10.0.0.77"}`)})
	w := world.For(t)
	path := filepath.Join(w.StateDir(), "config", "route.yaml")
	const route = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: waypoint}, {name: not-there}]
  rules: [{matches: [{path: {type: PathPrefix, %s: /never}}], backendRefs: [{name: nothing, port: 80}]}]
`
	ask := func(argv ...string) string {
		return w.MustRun(lab.LAN, append([]string{rig.Bin("ambit")}, argv...)...)
	}
	write(t, path, fmt.Sprintf(route, "value"))
	w.Eventually("the parent has a status", func() error {
		out := ask("status", "--address", "127.0.0.1:8080")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "HTTPRoute") && strings.Contains(line, "Accepted (parents waypoint)") && strings.Contains(line, "NotAllowedByListeners") {
				if strings.Contains(out, "not-there") {
					return errors.New("a Gateway that does not exist has a status: " + out)
				}
				return nil
			}
		}
		return errors.New(out)
	})
	w.MustGet(near, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
	write(t, path, fmt.Sprintf(route, "valeu"))
	w.Eventually("the mistake is reported", func() error {
		_, problems, _ := strings.Cut(ask("status", "--address", "127.0.0.1:8080"), "Problems")
		return contains(problems, path, "valeu")
	})
}
