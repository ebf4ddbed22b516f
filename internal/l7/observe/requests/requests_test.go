package requests

import (
	"testing"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/observe/connections"
)

// TestRoles: each role refuses what is for the other one.
func TestRoles(t *testing.T) {
	checked := &telemetrypb.Expression{Kind: &telemetrypb.Expression_Truth{Truth: true}}
	filter := func(c *telemetrypb.Expression) *telemetrypb.Layer {
		return &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{{Filter: "true", Checked: c}}}
	}
	label := func(c *telemetrypb.Expression) *telemetrypb.Layer {
		return &telemetrypb.Layer{Metrics: []*telemetrypb.MetricOverride{{Tags: []*telemetrypb.TagOverride{{Name: "a", Expression: "true", Checked: c}}}}}
	}
	format := func(json bool) *telemetrypb.Layer {
		return &telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{{Providers: []*telemetrypb.LogProvider{{Name: "a", Text: "x", Json: json, Labels: []*telemetrypb.Label{{Name: "a", Format: "x"}}}}}}}
	}
	for name, tt := range map[string]struct {
		layer              *telemetrypb.Layer
		waypoint, nodeSays string // the error; "" for none
	}{
		"a filter of text":    {filter(nil), "", "accessLogging[0]: filter.expression: " + "it comes as text alone: the control plane is older than this program (upgrade ambitd first)"},
		"a checked filter":    {filter(checked), "accessLogging[0]: filter.expression: it is for node proxies alone", ""},
		"a label of text":     {label(nil), "", "metrics.overrides[0]: tagOverrides[a]: value: it comes as text alone: the control plane is older than this program (upgrade ambitd first)"},
		"a checked label":     {label(checked), "metrics.overrides[0]: tagOverrides[a]: value: it is for node proxies alone", ""},
		"a filter of nothing": {filter(&telemetrypb.Expression{}), "accessLogging[0]: filter.expression: it is for node proxies alone", "accessLogging[0]: filter.expression: an operation or a value is missing"},
		"a format of text":    {format(false), "", `accessLogging[0]: provider "a": formats of lines are for waypoints: node proxies have their own`},
		"a format of labels":  {format(true), "", `accessLogging[0]: provider "a": formats of lines are for waypoints: node proxies have their own`},
	} {
		for g, want := range map[*observe.Language]string{Language: tt.waypoint, connections.Language: tt.nodeSays} {
			_, err := g.Compile(tt.layer, nil, nil)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
}
