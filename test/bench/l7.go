package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// waypointYAML is a service of the server that uses a waypoint, with a route.
const waypointYAML = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: bench}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: routed, namespace: bench, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 9000, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: routed, namespace: bench}
spec:
  parentRefs: [{group: "", kind: Service, name: routed}]
  rules: [{matches: [{path: {value: /a}}], backendRefs: [{name: routed, port: 80}]}]
`

// Rows of requests.
const (
	rowHTTP1, rowHTTP64       = "HTTP/1.1 1 KiB, 1 connection", "HTTP/1.1 1 KiB, 64 connections"
	rowHTTPCPU1, rowHTTPCPU64 = "CPU per request, 1 connection", "CPU per request, 64 connections"
	rowHTTPP50, rowHTTPP99    = "HTTP/1.1 at 1,000/s, p50", "HTTP/1.1 at 1,000/s, p99"
)

var l7Rows = []row{
	{rowHTTP1, "1/s", true}, {rowHTTP64, "1/s", true},
	{rowHTTPCPU1, "CPU-µs", false}, {rowHTTPCPU64, "CPU-µs", false},
	{rowHTTPP50, "µs", false}, {rowHTTPP99, "µs", false},
}

// l7Cells are measurements of requests.
func l7Cells(o options) []cell {
	d := o.duration.String()
	requests := func(name, conns, rate, cpu string) cell {
		return costed(o, name, []string{"http", "-conns", conns}, func(r loadResult, used time.Duration) map[string]float64 {
			v := map[string]float64{rate: r.PerSecond}
			if used > 0 {
				v[cpu] = float64(used.Microseconds()) / (r.PerSecond * r.Seconds)
			}
			return v
		})
	}
	return []cell{
		requests("requests on 1", "1", rowHTTP1, rowHTTPCPU1),
		requests("requests on 64", "64", rowHTTP64, rowHTTPCPU64),
		{name: "latency of requests", rounds: o.rounds, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			r, err := c.load(ctx, "httprate", "-conns", "4", "-rate", "1000", "-duration", d)
			return map[string]float64{rowHTTPP50: r.P50Micros, rowHTTPP99: r.P99Micros}, err
		}},
	}
}

// waypoint adds the way of requests over both node proxies and a waypoint between them,
// once the waypoint has carried one.
func (w *world) waypoint(ctx context.Context, o options, l *lab.Lab) error {
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	addr := ""
	for _, s := range st.Services {
		if s.Namespace == "bench" && s.Name == "routed" && len(s.IPs) > 0 {
			addr = s.IPs[0] + ":80"
		}
	}
	if addr == "" {
		return errors.New("service bench/routed has no address")
	}
	c := &contender{name: "waypoint", title: "waypoint", lab: l, client: lab.InPod("bench", "client"), addr: addr}
	c.proxies = func(ctx context.Context) ([]int, error) {
		st, err := l.Status(ctx)
		if err != nil {
			return nil, err
		}
		var pids []int
		for _, n := range proxies {
			p, _ := st.Component(n)
			pids = append(pids, p.PID)
		}
		for _, p := range st.Pods {
			if p.Namespace == "bench" && strings.HasPrefix(p.Name, "waypoint-") {
				pids = append(pids, p.PIDs...)
			}
		}
		if len(pids) <= len(proxies) {
			return nil, errors.New("the waypoint does not run")
		}
		return pids, nil
	}
	w.add(c, o)
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("waited 30 s"))
	defer cancel()
	for {
		_, err := c.load(ctx, "http", "-duration", "50ms")
		if err == nil {
			err = c.requested(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("requests do not go through the waypoint: %w (%w)", err, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// requests adds the contenders of requests only.
func (w *world) requests(ctx context.Context, o options, l *lab.Lab, server, dir string) error {
	if wanted(o.only, "waypoint") {
		if err := w.waypoint(ctx, o, l); err != nil {
			return err
		}
	}
	if o.envoy == "" || !wanted(o.only, "envoy") {
		return nil
	}
	return w.envoy(ctx, o, l, server, dir)
}

// requested checks that the waypoint has counted a request.
func (c *contender) requested(ctx context.Context) error {
	st, err := c.lab.Status(ctx)
	if err != nil {
		return err
	}
	for _, p := range st.Pods {
		if p.Namespace != "bench" || !strings.HasPrefix(p.Name, "waypoint-") {
			continue
		}
		b, err := c.lab.Get(ctx, lab.InPod(p.Namespace, p.Name), "http://127.0.0.1:15020/stats/prometheus")
		if err != nil {
			return err
		}
		if strings.Contains(string(b), `istio_requests_total{reporter="waypoint"`) {
			return nil
		}
	}
	return errors.New("it has counted none")
}

// envoyConfig is Envoy as a plain reverse proxy: no TLS, no mesh, one route.
const envoyConfig = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 7003}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /a}, route: {cluster: server}}]}]}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  clusters:
  - name: server
    type: STATIC
    load_assignment: {cluster_name: server, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: SERVER, port_value: 9000}}}}]}]}
`

// envoy adds Envoy beside the client outside of the mesh.
func (w *world) envoy(ctx context.Context, o options, l *lab.Lab, server, dir string) error {
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(envoyConfig, "SERVER", server)), 0o600); err != nil {
		return err
	}
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // one line is all that is read
	cmd, err := l.Exec(ctx, lab.InPod("plain", "client"), lab.ExecOptions{Stdout: out, Stderr: os.Stderr}, "/bin/sh", "-c",
		`echo $$; exec "$0" "$@" >/dev/null`, o.envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "off")
	_ = out.Close()
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() {
		_ = cmd.Signal(lab.SIGTERM)
		_, _ = cmd.Wait()
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, perr); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	c := &contender{name: "envoy", title: path.Base(o.envoy) + ", plain", lab: l, client: lab.InPod("plain", "client"), addr: "127.0.0.1:7003"}
	c.proxies = func(context.Context) ([]int, error) { return []int{pid}, nil }
	w.add(c, o)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err = c.load(ctx, "http", "-duration", "50ms"); err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}
