package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// marketYAML is the world of the second act, what a waypoint does: two versions of
// a server, one pod of the first whose program does not listen, and a client.
const marketYAML = `
---
apiVersion: v1
kind: Namespace
metadata: {name: market}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: carol, namespace: market}
---
apiVersion: v1
kind: Pod
metadata: {name: carol, namespace: market}
spec:
  nodeName: node2
  serviceAccountName: carol
  containers: [{name: shell}]
---
apiVersion: v1
kind: Pod
metadata: {name: stable, namespace: market, labels: {tier: server, version: stable}}
spec:
  nodeName: node1
  containers:
  - name: server
    command: [ECHO, server]
    readinessProbe: {tcpSocket: {port: 8080}}
---
apiVersion: v1
kind: Pod
metadata: {name: canary, namespace: market, labels: {tier: server, version: canary}}
spec:
  nodeName: node1
  containers:
  - name: server
    command: [ECHO, server]
    readinessProbe: {tcpSocket: {port: 8080}}
---
apiVersion: v1
kind: Service
metadata: {name: market, namespace: market}
spec: {selector: {tier: server}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: stable, namespace: market}
spec: {selector: {version: stable}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: canary, namespace: market}
spec: {selector: {version: canary}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`

const (
	waypoint = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: market, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`
	split = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: market}
spec:
  parentRefs: [{group: "", kind: Service, name: market}]
  rules:
  - matches: [{headers: [{name: x-version, value: canary}]}]
    backendRefs: [{name: canary, port: 80}]
  - backendRefs: [{name: stable, port: 80, weight: 90}, {name: canary, port: 80, weight: 10}]
`
	noAdmin = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: market}
spec:
  targetRefs: [{group: "", kind: Service, name: market}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
`
	// broken is ready for Kubernetes, and nothing listens in it.
	broken = `
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: market, labels: {tier: server, version: stable}}
spec:
  nodeName: node2
  containers: [{name: shell}]
`
)

const (
	marketURL  = "http://market/"
	marketRate = 100 // requests per second
)

var carol = lab.InPod("market", "carol")

// waypointPod returns the name of the waypoint's pod, and its program's processes.
func (d *demo) waypointPod(ctx context.Context) (string, []int, error) {
	st, err := d.l.Status(ctx)
	if err != nil {
		return "", nil, err
	}
	for _, p := range st.Pods {
		if p.Namespace == "market" && strings.HasPrefix(p.Name, "waypoint-") {
			return p.Name, p.PIDs, nil
		}
	}
	return "", nil, errors.New("the waypoint has no pod")
}

// ask makes n requests from carol, and counts the servers that answered. It also
// returns every address that a server was called by.
func (d *demo) ask(ctx context.Context, n int, argv ...string) (servers map[string]int, callers map[string]bool, err error) {
	out, err := d.l.Run(ctx, carol, append([]string{d.echo(), "get", "-url", marketURL, "-n", strconv.Itoa(n)}, argv...)...)
	servers, callers = map[string]int{}, map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "answers" {
			servers[f[0]]++
			callers[f[2]] = true
		}
	}
	return servers, callers, err
}

func (d *demo) addWaypoint(ctx context.Context) ([]string, error) {
	if err := d.l.Label(ctx, "namespace", "", "market", ambient(true)); err != nil {
		return nil, err
	}
	if err := d.known(ctx, "HBONE", "market/stable", "market/canary", "market/carol"); err != nil {
		return nil, err
	}
	load, err := d.startLoad(context.WithoutCancel(ctx), carol, marketURL, marketRate)
	if err != nil {
		return nil, err
	}
	d.marketLoad = load
	if _, err := d.marketLoad.seconds(ctx, 1); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := d.l.Apply(ctx, waypoint); err != nil {
		return nil, err
	}
	// A service that is bound to a waypoint before that is ready refuses connections.
	if out, err := exec.CommandContext(ctx, filepath.Join(d.bin, "ambit"), "waypoint", "status", "-n", "market", "waypoint", "--wait", "--state-dir", d.state).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ambit waypoint status: %w: %s", err, out)
	}
	name, _, err := d.waypointPod(ctx)
	if err != nil {
		return nil, err
	}
	use := "waypoint"
	if err := d.l.Label(ctx, "service", "market", "market", map[string]*string{"istio.io/use-waypoint": &use}); err != nil {
		return nil, err
	}
	addrs, err := d.addrs(ctx, "market", name)
	if err != nil {
		return nil, err
	}
	d.waypoint = addrs
	err = until(ctx, "requests do not go through the waypoint", func() (bool, error) {
		_, callers, err := d.ask(ctx, 1)
		return len(callers) > 0 && d.byWaypoint(callers) == nil, err
	})
	if err != nil {
		return nil, err
	}
	seen := []string{fmt.Sprintf("pod %s runs, and has all requests %.1f s after the Gateway was made", name, time.Since(began).Seconds())}
	line, err := d.marketLoad.clean(ctx, traffic.Report{})
	return append(seen, line), err
}

// byWaypoint returns an error when a server was called by somebody else.
func (d *demo) byWaypoint(callers map[string]bool) error {
	for _, c := range slices.Sorted(maps.Keys(callers)) {
		if a, err := netip.ParseAddr(c); err != nil || !slices.Contains(d.waypoint, a.Unmap()) {
			return fmt.Errorf("a server was called by %s, and the waypoint is %v", c, d.waypoint)
		}
	}
	return nil
}

func (d *demo) canary(ctx context.Context) ([]string, error) {
	before, err := d.marketLoad.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := d.l.Apply(ctx, split); err != nil {
		return nil, err
	}
	const n = 200
	header := []string{"-H", "x-version:canary"}
	err = until(ctx, "the route is not in effect", func() (bool, error) {
		servers, _, err := d.ask(ctx, 20, header...)
		return servers["canary"] == 20, err
	})
	if err != nil {
		return nil, err
	}
	servers, callers, err := d.ask(ctx, n)
	if err != nil {
		return nil, err
	}
	seen := []string{
		"with the header x-version: canary, 20 of 20 requests: canary",
		fmt.Sprintf("without it, %d requests: stable %d, canary %d", n, servers["stable"], servers["canary"]),
	}
	// Of 200 at 10 %, fewer than 4 or more than 50 come once in a hundred thousand runs.
	if c := servers["canary"]; c < 4 || c > 50 || c+servers["stable"] != n {
		return seen, errors.New("that is not 90 to 10")
	}
	line, err := d.marketLoad.clean(ctx, before)
	return append(seen, line), errors.Join(err, d.byWaypoint(callers))
}

// why asks what would happen to a request of carol, and returns the exit code, and of
// what is said the lines that decide and the last ones.
func (d *demo) why(ctx context.Context, path string) (code int, seen []string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ambit"), "why", "carol.market", "http://market"+path, "--state-dir", d.state)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
		if code == 2 {
			return code, nil, fmt.Errorf("ambit why: %s", exit.Stderr)
		}
	}
	seen = []string{fmt.Sprintf("$ ambit why carol.market http://market%s   (exit code %d)", path, code)}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		switch f := strings.Fields(line); {
		case len(f) == 0:
		case f[0] == "*", f[0] == "route" && strings.Contains(line, "the request matches"), f[0] == "backend", f[0] == "allowed:", f[0] == "refused":
			seen = append(seen, strings.Join(f, " "))
		}
	}
	return code, seen, err
}

func (d *demo) explain(ctx context.Context) ([]string, error) {
	before, err := d.marketLoad.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := d.l.Apply(ctx, noAdmin); err != nil {
		return nil, err
	}
	refused := func() error {
		_, err := d.l.Run(ctx, carol, d.echo(), "get", "-url", marketURL+"admin", "-n", "1")
		return err
	}
	var answer error
	err = until(ctx, "the request is not refused", func() (bool, error) { answer = refused(); return answer != nil, nil })
	if err != nil {
		return nil, err
	}
	code, seen, err := d.why(ctx, "/")
	if err != nil || code != 0 {
		return seen, fmt.Errorf("exit code %d, and the request is answered: %w", code, err)
	}
	code, more, err := d.why(ctx, "/admin")
	seen = append(seen, more...)
	if err != nil || code != 1 || !strings.Contains(strings.Join(more, "\n"), "AuthorizationPolicy market/no-admin, rule 0") {
		return seen, fmt.Errorf("exit code %d, and the request is refused: %w", code, err)
	}
	seen = append(seen, "and really: "+last(answer.Error()))
	line, err := d.marketLoad.clean(ctx, before)
	return append(seen, line), errors.Join(err, d.l.Delete(ctx, "AuthorizationPolicy", "market", "no-admin"))
}

func (d *demo) retry(ctx context.Context) ([]string, error) {
	before, err := d.marketLoad.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := d.l.Apply(ctx, broken); err != nil {
		return nil, err
	}
	if err := d.known(ctx, "HBONE", "market/broken"); err != nil {
		return nil, err
	}
	name, _, err := d.waypointPod(ctx)
	if err != nil {
		return nil, err
	}
	var metric string
	err = until(ctx, "the waypoint has not tried the pod", func() (bool, error) {
		b, err := d.l.Get(ctx, lab.InPod("market", name), "http://127.0.0.1:15020/metrics")
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "istio_requests_total") && strings.Contains(line, `response_code="200"`) && strings.Contains(line, `reporter="waypoint"`) {
				metric = pick(line)
			}
		}
		return metric != "", err
	})
	if err != nil {
		return nil, err
	}
	line, err := d.marketLoad.clean(ctx, before)
	return []string{"pod broken is one of two endpoints of stable, and refuses all connections", line, metric}, err
}

func (d *demo) deadWaypoint(ctx context.Context) ([]string, error) {
	if err := errors.Join(d.marketLoad.cmd.Signal(unix.SIGTERM), d.marketLoad.wait()); err != nil {
		return nil, err
	}
	d.marketLoad = nil
	until3 := time.Now().Add(3 * time.Second)
	killed, asked, answered := 0, 0, 0
	for time.Now().Before(until3) {
		name, pids, err := d.waypointPod(ctx)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if _, err := d.l.Run(ctx, lab.InPod("market", name), "/bin/sh", "-c", "kill -9 "+strconv.Itoa(pid)); err == nil {
				killed++
			}
		}
		servers, callers, _ := d.ask(ctx, 1) // which fails while there is no waypoint
		asked++
		for _, n := range servers {
			answered += n
		}
		if err := d.byWaypoint(callers); err != nil {
			return nil, err
		}
	}
	seen := []string{fmt.Sprintf("its program was killed %d times in 3 s: of %d requests %d were answered, none around the waypoint", killed, asked, answered)}
	if killed == 0 {
		return seen, errors.New("the program was never killed")
	}
	err := until(ctx, "the waypoint does not come back", func() (bool, error) {
		_, _, err := d.ask(ctx, 5)
		return err == nil, err
	})
	return append(seen, "left alone, it is back by itself: 5 of 5 requests are answered"), err
}

func (d *demo) deleteWaypoint(ctx context.Context) ([]string, error) {
	name, _, err := d.waypointPod(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.l.Label(ctx, "service", "market", "market", map[string]*string{"istio.io/use-waypoint": nil}); err != nil {
		return nil, err
	}
	err = until(ctx, "requests still go through the waypoint", func() (bool, error) {
		_, callers, err := d.ask(ctx, 1)
		return len(callers) > 0 && d.byWaypoint(callers) != nil, err
	})
	if err != nil {
		return nil, err
	}
	if err := d.l.Delete(ctx, "Gateway", "market", "waypoint"); err != nil {
		return nil, err
	}
	err = until(ctx, "the waypoint's pod stays", func() (bool, error) {
		_, _, err := d.waypointPod(ctx)
		return err != nil, nil
	})
	return []string{fmt.Sprintf("the label is gone, carol calls the servers herself; pod %s is gone", path.Base(name))}, err
}
