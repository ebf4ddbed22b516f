package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/test/otlp"
)

// collectorYAML is a program that prints the spans that it gets.
const collectorYAML = `
---
apiVersion: v1
kind: Pod
metadata: {name: otel, namespace: market, labels: {app: otel}}
spec:
  nodeName: node1
  containers:
  - name: collector
    command: [ECHO, collector]
    readinessProbe: {tcpSocket: {port: 4318}}
---
apiVersion: v1
kind: Service
metadata: {name: otel, namespace: market}
spec: {selector: {app: otel}, ports: [{name: http, port: 4318, appProtocol: http}]}
`

const (
	meshConfig = `
extensionProviders:
- name: otel
  opentelemetry: {service: otel.market.svc.cluster.local, port: 4318, http: {path: /v1/traces}}
`
	traces = `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: traces, namespace: market}
spec:
  tracing: [{randomSamplingPercentage: 100, providers: [{name: otel}]}]
`
)

// writeMeshConfig returns the path of the settings of the mesh.
func (d *demo) writeMeshConfig() (string, error) {
	path := filepath.Join(filepath.Dir(d.state), "mesh.yaml")
	return path, os.WriteFile(path, []byte(meshConfig), 0o600)
}

// spans returns what the collector has received.
func (d *demo) spans() (all []otlp.Span) {
	b, err := os.ReadFile(d.l.LogPath("pod/market/otel/collector"))
	if err != nil {
		return nil
	}
	for _, m := range otlp.Messages(string(b)) {
		all = append(all, m.Spans...)
	}
	return all
}

// oneTrace shows one request of carol, as her node proxy and the waypoint report it.
func (d *demo) oneTrace(ctx context.Context) ([]string, error) {
	if err := d.l.Apply(ctx, traces); err != nil {
		return nil, err
	}
	before := d.mark(inNode2)
	var server, client otlp.Span
	err := until(ctx, "no request has the spans of a server and a client", func() (bool, error) {
		if _, err := d.l.Run(ctx, carol, d.echo(), "get", "-url", marketURL+"traced", "-n", "1"); err != nil {
			return false, err
		}
		all := d.spans()
		for _, s := range all {
			if s.Kind != otlp.Server || s.Attributes["url.path"] != "/traced" {
				continue
			}
			for _, c := range all {
				if c.Trace == s.Trace && c.Parent == s.ID {
					server, client = s, c
					return true, nil
				}
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	line, err := d.logged(ctx, before, `trace_id="`+server.Trace+`"`, `src.workload="carol"`)
	if err != nil {
		return nil, err
	}
	_, fields, _ := strings.Cut(line, "connection complete ")
	var seen []string
	seen = append(seen, "trace "+server.Trace+":")
	for f := range strings.FieldsSeq(fields) {
		if strings.HasPrefix(f, "duration=") {
			seen = append(seen, "  node proxy of node2: carol's connection to the waypoint, "+f)
		}
	}
	seen = append(seen,
		fmt.Sprintf("  waypoint, server: %s, %d µs", server.Name, server.Took.Microseconds()),
		fmt.Sprintf("  waypoint, client: %s, %d µs", client.Name, client.Took.Microseconds()))
	if len(seen) != 4 {
		err = errors.New("the line of the node proxy has no duration: " + line)
	}
	return seen, errors.Join(err, d.l.Delete(ctx, "Telemetry", "market", "traces"))
}
