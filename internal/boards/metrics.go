package boards

import (
	_ "embed"
	"fmt"
	"strings"
)

// Metric is one that a program of the mesh has at /metrics.
type Metric struct {
	Name, Type, Help string
	Programs, Labels []string
}

//go:embed metrics.txt
var metricsText string

// all stands for every program of the mesh.
const all = "all"

// connectionLabels are the labels of metrics of connections, requestLabels those of requests.
var (
	party = "reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace source_principal source_app source_version source_cluster " +
		"destination_service destination_service_namespace destination_service_name destination_workload destination_canonical_service destination_canonical_revision " +
		"destination_workload_namespace destination_principal destination_app destination_version destination_cluster request_protocol response_flags connection_security_policy"
	connectionLabels = party + " source_region source_zone destination_region destination_zone"
	requestLabels    = party + " response_code grpc_response_status"
)

// Metrics returns the metrics of the mesh's own programs, without those of Go and of the
// process, which client_golang has.
func Metrics() ([]Metric, error) {
	var out []Metric
	for n, line := range strings.Split(metricsText, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(line, "|", 5)
		if len(f) != 5 {
			return nil, fmt.Errorf("metrics.txt: line %d has %d fields, not 5", n+1, len(f))
		}
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		labels := strings.NewReplacer("CONNECTION", connectionLabels, "REQUEST", requestLabels).Replace(f[3])
		out = append(out, Metric{Name: f[0], Type: f[1], Programs: strings.Fields(f[2]), Labels: strings.Fields(labels), Help: f[4]})
	}
	return out, nil
}

// Of reports whether a program has the metric.
func (m *Metric) Of(program string) bool {
	for _, p := range m.Programs {
		if p == program || p == all {
			return true
		}
	}
	return false
}

// shared are texts of tables in place of many labels.
var shared = map[string]string{connectionLabels: "those of [connections](#labels)", requestLabels: "those of [requests](#labels)"}

// Page returns the page of the reference with all metrics.
func Page() (string, error) {
	list, err := Metrics()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(`# Metrics

This page is generated: ` + "`make generate`" + `. A test compares it with what the programs of a lab serve. Names that say "unstable" may change.

| program | where |
|---|---|
| ` + "`ambitd`, `ambit-cni`" + ` | port 15014, ` + "`/metrics`" + ` |
| ` + "`ztunnel`, `waypoint`" + ` | port 15020, ` + "`/stats/prometheus` or `/metrics`" + ` |

All have the metrics of Go and of the process too: ` + "`go_…`, `process_…`" + `. [Boards and alerts](../observability.md#boards-and-alerts) are made of them.

| metric | type | of | labels | what |
|---|---|---|---|---|
`)
	for _, m := range list {
		labels := shared[strings.Join(m.Labels, " ")]
		if labels == "" && len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Programs, ", "), labels, m.Help)
	}
	b.WriteString("\n## Labels\n\n")
	for _, one := range []struct{ what, labels string }{{"connections", connectionLabels}, {"requests", requestLabels}} {
		fmt.Fprintf(&b, "Of %s: `%s`.\n\n", one.what, strings.ReplaceAll(one.labels, " ", "`, `"))
	}
	b.WriteString("`reporter` is `source` or `destination` for node proxies, at the client or the server, and `waypoint` for waypoints. Each connection between two pods of the\n" +
		"mesh is counted on both sides. `response_flags` is `-` for success; [reasons](../operations.md#reasons) lists the others.\n")
	return b.String(), nil
}
