package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// waypointYAML is a service that uses a waypoint, with a route, and a server of its own:
// calls of the other server's address are not to pass the waypoint.
const waypointYAML = `
---
apiVersion: v1
kind: Pod
metadata: {name: routed, namespace: bench, labels: {app: routed}}
spec:
  nodeName: node1
  serviceAccountName: server
  containers: [{name: load, command: [LOAD, server, -listen, ":9000"], readinessProbe: {tcpSocket: {port: 9000}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: bench}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: routed, namespace: bench, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: routed}, ports: [{name: http, port: 80, targetPort: 9000, appProtocol: http}]}
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
	alone := *c
	alone.name, alone.title = "waypoint-alone", "CPU of the waypoint"
	alone.proxies = func(ctx context.Context) ([]int, error) {
		pids, err := c.proxies(ctx)
		return pids[min(len(proxies), len(pids)):], err
	}
	w.add(&alone, o)
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
	for _, p := range reverseProxies {
		if o.reverse[p.name] == "" || !wanted(o.only, p.name) {
			continue
		}
		if err := w.reverse(ctx, o, l, p, server, dir); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
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
