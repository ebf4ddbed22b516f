package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// managed is a waypoint whose proxies the mesh runs.
const managed = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`

// gatewayPod returns the place of the only proxy of the managed waypoint.
func gatewayPod(w *rig.World) (lab.Where, error) {
	s, err := w.Status(w.T().Context())
	if err != nil {
		return "", err
	}
	for _, p := range s.Pods {
		if p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") {
			return lab.InPod(p.Namespace, p.Name), nil
		}
	}
	return "", fmt.Errorf("the waypoint has no pod")
}

// TestGatewayIsDeployed: a Gateway of a waypoint class is enough for a proxy of its
// own identity to run, and to be ready.
func TestGatewayIsDeployed(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop + managed})
	if out, err := w.Ambit("waypoint status", "-n", "shop", "--wait"); err != nil || !strings.Contains(out, "True") {
		t.Errorf("%s, error %v", out, err)
	}
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	var dump admin.Waypoint
	b, err := w.Lab.Get(t.Context(), at, "http://127.0.0.1:15000"+admin.PathDump)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &dump); err != nil {
		t.Fatal(err)
	}
	if c := dump.Certificates; len(c) != 1 || c[0].Identity != waypointID || c[0].State != "Available" {
		t.Errorf("certificates %+v", c)
	}
	// It has been given its own workload by name.
	if len(dump.Workloads) != 1 || !strings.HasSuffix(string(at), dump.Workloads[0].Name) {
		t.Errorf("workloads %+v", dump.Workloads)
	}

	// What its start has left behind is given back once it has nothing to do.
	w.Eventually("memory is given back to the kernel", func() error {
		b, err := w.Lab.Get(t.Context(), at, "http://127.0.0.1:15000/debug/pprof/heap?debug=1")
		if err == nil && (!bytes.Contains(b, []byte("# NumForcedGC = ")) || bytes.Contains(b, []byte("# NumForcedGC = 0\n"))) {
			err = errors.New("no collection was asked for")
		}
		return err
	})

	// By command line as well: another one comes, and goes with its pod.
	if out, err := w.Ambit("waypoint apply", "-n", "shop", "--name", "second", "--wait"); err != nil {
		t.Fatalf("%s, error %v", out, err)
	}
	if out, err := w.Ambit("waypoint list", "-A"); err != nil || !strings.Contains(out, "second") {
		t.Errorf("%s, error %v", out, err)
	}
	if out, err := w.Ambit("waypoint delete", "-n", "shop", "second"); err != nil {
		t.Fatalf("%s, error %v", out, err)
	}
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Pods {
		if strings.HasPrefix(p.Name, "second-") {
			t.Errorf("pod %s of the deleted waypoint is left", p.Name)
		}
	}
}

// versions are two versions of a server, a service of each, and a service in front
// that uses the waypoint.
func versions() string {
	y := rig.NamespaceObject("shop", true) + rig.PodObject("shop", "far", "node2", "")
	for _, v := range []string{"v1", "v2"} {
		y += rig.ServerObject("shop", v, "node1", "app: "+v+", tier: server") +
			rig.ServiceObject("shop", v, v, "{name: http, port: 80, targetPort: 8080, appProtocol: http}")
	}
	return y + managed + `
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`
}

// split is a route of front: nine of ten requests go to v1, and those with a header
// to v2.
const split = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front}]
  rules:
  - matches: [{headers: [{name: x-version, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]
`

// asker makes requests from far to the service front.
type asker struct {
	w  *rig.World
	c  *http.Client
	to netip.Addr
	// from are the waypoint's addresses: those that servers are called by. It chooses
	// the family itself.
	from [2]netip.Addr
}

func newAsker(w *rig.World, v6 bool) *asker {
	a := &asker{w: w, c: w.HTTP(far), to: w.Service("shop", "front", v6)}
	w.T().Cleanup(a.c.CloseIdleConnections)
	at, err := gatewayPod(w)
	if err != nil {
		w.T().Fatal(err)
	}
	for i, v6 := range []bool{false, true} {
		a.from[i] = w.Pod("shop", path.Base(string(at)), v6)
	}
	return a
}

// ask makes one request and returns which server answered. A server that was called
// by another than the waypoint fails the test.
func (a *asker) ask(headers ...string) (string, error) {
	req, err := http.NewRequestWithContext(a.w.T().Context(), http.MethodGet, "http://"+netip.AddrPortFrom(a.to, 80).String()+"/", nil)
	if err != nil {
		return "", err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := a.c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	f := strings.Fields(string(b))
	if len(f) < 3 || f[1] != "answers" {
		return "", fmt.Errorf("the answer is %q", b)
	}
	if caller, err := netip.ParseAddr(f[2]); err != nil || !slices.Contains(a.from[:], caller.Unmap()) {
		a.w.T().Errorf("%s was called by %s, which is none of the waypoint's addresses %v", f[0], f[2], a.from)
	}
	return f[0], nil
}

// replicated is managed with a number of pods.
func replicated(n int) string {
	return strings.Replace(managed, "spec:\n", "spec:\n  infrastructure: {parametersRef: {group: \"\", kind: ConfigMap, name: parameters}}\n", 1) + fmt.Sprintf(`
---
apiVersion: v1
kind: ConfigMap
metadata: {name: parameters, namespace: shop}
data: {deployment: "spec: {replicas: %d}"}
`, n)
}

// gatewayPods reports why the waypoint has not n pods.
func gatewayPods(w *rig.World, n int) error {
	s, err := w.Status(w.T().Context())
	if err != nil {
		return err
	}
	got := 0
	for _, p := range s.Pods {
		if p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") {
			got++
		}
	}
	if got != n {
		return fmt.Errorf("there are %d", got)
	}
	return nil
}

// kill keeps the waypoint's program from running until stop is called.
func kill(w *rig.World) (stop func()) {
	ctx, cancel := context.WithCancel(w.T().Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			at, err := gatewayPod(w)
			if err != nil {
				continue
			}
			s, err := w.Status(ctx)
			if err != nil {
				continue
			}
			p, _ := s.Pod("shop", path.Base(string(at)))
			for _, pid := range p.PIDs {
				_, _ = w.Run(ctx, at, "/bin/sh", "-c", "kill -9 "+strconv.Itoa(pid)) // it may have ended meanwhile
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return sync.OnceFunc(func() { cancel(); <-done })
}
