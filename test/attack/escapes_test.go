package attack

import (
	"strings"
	"testing"
	"unicode"
)

// escapes are objects whose names a terminal obeys: a color, the title of the
// window, a line of their own. File mode takes them; the webhook refuses them.
const escapes = `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: esc, namespace: market}
spec:
  hosts: ["red\u001b[31mRED\u001b]0;title\u0007\nFORGED.example"]
  addresses: [240.9.9.9]
  ports: [{number: 80, name: "http\u001b[5m", protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.9.9.9}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: esc, namespace: market}
spec: {address: "host\u001b[31m\nFORGED.example", serviceAccount: "sa\u001b[32m", network: "net\u001b[33m\u202e", locality: "r\u001b[34m/z"}
`

// TestTerminalEscapes: an author of objects sends commands to the terminal of
// an operator who looks at the mesh.
func TestTerminalEscapes(t *testing.T) {
	t.Parallel()
	w := start(t, escapes)
	for _, args := range [][]string{
		{"status"}, {"lab", "status"}, {"proxy-status"}, {"proxy-status", "-o", "json"}, {"proxy-status", "-o", "yaml"},
		{"ztunnel-config", "all"}, {"ztunnel-config", "all", "-o", "json"}, {"ztunnel-config", "all", "-o", "yaml"},
		{"describe", "pod", "web", "-n", "shop"}, {"describe", "service", "esc", "-n", "market"},
	} {
		out, err := w.Ambit(args[0], args[1:]...)
		if err != nil {
			out += err.Error()
		}
		for _, r := range out {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				t.Errorf("ambit %s prints %U: %q", strings.Join(args, " "), r, out)
				break
			}
		}
		if strings.Contains(out, "\nFORGED") {
			t.Errorf("ambit %s prints a forged row: %q", strings.Join(args, " "), out)
		}
	}
}
