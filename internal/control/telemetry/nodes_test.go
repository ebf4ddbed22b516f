package telemetry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	"sigs.k8s.io/yaml"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// TestNodes: what node proxies get of an object, in which half, and what is said to act on
// requests alone.
func TestNodes(t *testing.T) {
	mesh := ReadMesh(&meshv1alpha1.MeshConfig{ExtensionProviders: []*meshv1alpha1.MeshConfig_ExtensionProvider{
		{Name: "otel", Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_Opentelemetry{Opentelemetry: &meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider{Service: "a.b.svc.cluster.local", Port: 4317}}},
		{Name: "records", Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyOtelAls{EnvoyOtelAls: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider{Service: "a.b.svc.cluster.local", Port: 4317}}},
	}})
	for _, tt := range []struct {
		name, spec string
		sides      string // of the layers, with what is in them
		refused    string // a part of the only text; "" for none
		invalid    string
	}{
		{"tracing", `tracing: [{randomSamplingPercentage: 5, providers: [{name: otel}]}]`, "both:t", "", ""},
		{"one half", `tracing: [{match: {mode: CLIENT}, randomSamplingPercentage: 5}]`, "client:t", "", ""},
		{"two halves", `tracing: [{match: {mode: CLIENT}, randomSamplingPercentage: 5}, {match: {mode: SERVER}, randomSamplingPercentage: 6}]`, "client:t server:t", "", ""},
		{"propagation", `tracing: [{disableContextPropagation: true}]`, "both:t", "disableContextPropagation: it acts at waypoints", ""},
		{"a header", `tracing: [{customTags: {a: {header: {name: x, defaultValue: z}}}}]`, "both:t", "customTags[a].header: headers are of requests", ""},
		{"too many", `tracing: [{randomSamplingPercentage: 500}]`, "both:t", "", "randomSamplingPercentage"},
		{"no provider", `tracing: [{providers: [{name: absent}]}]`, "both:t", "", `no provider "absent"`},
		{"lines", `accessLogging: [{providers: [{name: envoy}]}]`, "both:l", "", ""},
		{"lines elsewhere", `accessLogging: [{providers: [{name: records}], disabled: true}]`, "", "only waypoints send lines to collectors", ""},
		{"a filter", `accessLogging: [{filter: {expression: "source.port == 1"}}]`, "both:l", "", ""},
		{"of requests", `accessLogging: [{filter: {expression: "request.method == 'GET'"}}]`, "", "the filter names request", ""},
		{"a macro", `accessLogging: [{filter: {expression: "['a', 'b'].exists(x, x == source.workload)"}}]`, "", "node proxies do not evaluate the macro exists: the rule acts at waypoints", ""},
		{"a pattern of many steps", `accessLogging: [{filter: {expression: "source.workload.matches('([a-z]{9}[0-9]{9}){99}')"}}]`, "", "too large when its repetitions are written out", ""},
		{"a label of time", `metrics: [{overrides: [{tagOverrides: {a: {value: "string(timestamp('2026-01-01T00:00:00Z'))"}}}]}]`, "", "node proxies do not evaluate timestamp(): the value is for waypoints", ""},
		{"a bad filter", `accessLogging: [{filter: {expression: "source.kort == 1"}}]`, "", "", "source.kort"},
		{"metrics", `metrics: [{overrides: [{match: {metric: TCP_SENT_BYTES, mode: SERVER}, disabled: true}]}]`, "server:m", "", ""},
		{"metrics of requests", `metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, disabled: true}]}]`, "", "REQUEST_COUNT is of requests", ""},
		{"a label", `metrics: [{overrides: [{tagOverrides: {a: {value: source.workload}, b: {value: request.host}}}]}]`, "both:m", "tagOverrides[b]: the value names request", ""},
	} {
		o := &telemetryv1.Telemetry{}
		if err := yaml.UnmarshalStrict([]byte(tt.spec), &o.Spec); err != nil {
			t.Fatal(err)
		}
		n := Translate(o, mesh, func(string) (string, bool) { return "", false }).Nodes
		var got []string
		if n.Effective {
			for side, body := range n.Messages(false, []string{"uid"}) {
				var l telemetrypb.Layer
				if err := proto.Unmarshal(body, &l); err != nil {
					t.Fatal(err)
				}
				if l.Scope != telemetrypb.Scope_WORKLOAD || len(l.Workloads) != 1 {
					t.Errorf("%s: %v", tt.name, &l)
				}
				parts := ""
				for part, has := range map[string]bool{"t": l.Tracing != nil, "l": len(l.AccessLogging) > 0, "m": len(l.Metrics) > 0} {
					if has {
						parts += part
					}
				}
				got = append(got, side+":"+parts)
			}
		}
		slices.Sort(got)
		only := func(what string, list []string, want string) {
			if (len(list) == 1) != (want != "") || !strings.Contains(fmt.Sprint(list), want) {
				t.Errorf("%s: %s %q", tt.name, what, list)
			}
		}
		only("refused", n.Refused, tt.refused)
		only("invalid", n.Invalid, tt.invalid)
		if strings.Join(got, " ") != tt.sides {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.sides)
		}
	}
}
