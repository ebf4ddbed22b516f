package scenario

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// expectLines fails unless the node's access log has a line with all parts.
func expectLines(w *rig.World, node string, parts ...string) error {
	if len(w.AccessLines(node, parts...)) == 0 {
		return fmt.Errorf("no access log line of %s has all of %q", node, parts)
	}
	return nil
}

// logs waits for an access log line with all parts.
func logs(w *rig.World, node string, parts ...string) {
	w.T().Helper()
	w.Eventually("the access log of "+node, func() error { return expectLines(w, node, parts...) })
}

// becomesRefused waits until requests are refused, and makes sure that they
// stay so.
func becomesRefused(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	refused := func() error {
		if a, err := w.Get(from, to); err == nil {
			return fmt.Errorf("%s is still answered by %s", from, a.Name)
		}
		return nil
	}
	w.Eventually(fmt.Sprintf("%s is refused at %s", from, to), refused)
	for range 3 {
		if err := refused(); err != nil {
			w.T().Fatal(err)
		}
	}
}

// becomesAnswered waits until requests are answered, and makes sure that they
// stay so.
func becomesAnswered(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s is answered at %s", from, to), func() error { _, err := w.Get(from, to); return err })
	for range 3 {
		w.MustGet(from, to)
	}
}

// answers asks n times from a pod, on new connections, and counts who answers.
func answers(w *rig.World, from lab.Where, to netip.AddrPort, n int) map[string]int {
	w.T().Helper()
	out := w.MustRun(from, rig.Bin("echo"), "get", "-url", "http://"+to.String()+"/", "-n", fmt.Sprint(n))
	count := map[string]int{}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		count[name]++
	}
	return count
}

// server is a pod that runs test/echo.
func server(namespace, name, node, labels string, args ...string) string {
	return pod(namespace, name, node, labels, append([]string{"ECHO", "server"}, args...)...) +
		"    readinessProbe: {tcpSocket: {port: 9000}}\n"
}

// pod is a pod of a service account of its own name. Without a command it waits.
func pod(namespace, name, node, labels string, command ...string) string {
	y := fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {%[4]s}}
spec:
  nodeName: %[3]s
  serviceAccountName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
`, namespace, name, node, labels)
	if len(command) > 0 {
		y += `    command: ["` + strings.Join(command, `", "`) + "\"]\n"
	}
	return y
}

// namespace is one, in the mesh or not.
func namespace(name string, ambient bool) string {
	labels := ""
	if ambient {
		labels = "istio.io/dataplane-mode: ambient"
	}
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

// service is a dual stack one for the pods with label app.
func service(namespace, name, app, ports string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {selector: {app: %s}, ipFamilyPolicy: PreferDualStack, ports: [%s]}
`, name, namespace, app, ports)
}

// policy is an AuthorizationPolicy.
func policy(namespace, name, action, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: %s}
spec: {action: %s, %s}
`, name, namespace, action, rest)
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// contains fails unless one line of a text has all parts.
func contains(text string, parts ...string) error {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return nil
		}
	}
	return fmt.Errorf("no line has all of %q", parts)
}

// certificates are the accounts of the shop of whom a node's proxy has a
// certificate, sorted.
func certificates(w *rig.World, node string) []string {
	w.T().Helper()
	b, err := w.Admin(w.T().Context(), "ztunnel/"+node, "/config_dump")
	if err != nil {
		w.T().Fatal(err)
	}
	var d struct {
		Certificates []struct {
			Identity  string
			State     string
			CertChain []struct{ SerialNumber string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		w.T().Fatal(err)
	}
	var out []string
	for _, c := range d.Certificates {
		if c.State == "Available" && len(c.CertChain) > 0 {
			out = append(out, strings.TrimPrefix(c.Identity, "spiffe://cluster.local/ns/shop/sa/"))
		}
	}
	slices.Sort(out)
	return out
}
