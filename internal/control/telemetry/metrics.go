package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	apitelemetry "istio.io/api/telemetry/v1alpha1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// builtinMetrics is the provider of metrics that every waypoint has.
const builtinMetrics = "prometheus"

// metrics translates the rules about metrics.
func (x *translator) metrics(list []*apitelemetry.Metrics) {
	for i, m := range list {
		at := fmt.Sprintf("spec.metrics[%d]", i)
		if m.GetReportingInterval() != nil {
			x.refuse(at+".reportingInterval", "bytes of open connections are in every scrape, and messages of gRPC are reported every 5 seconds")
		}
		ours := len(m.GetProviders()) == 0
		for j, p := range m.GetProviders() {
			if x.mesh.counts(p.GetName()) {
				ours = true
				continue
			}
			x.refuse(fmt.Sprintf("%s.providers[%d]", at, j), "metrics are served for Prometheus alone, not sent to %q", p.GetName())
		}
		if !ours {
			continue
		}
		for j, o := range m.GetOverrides() {
			if pb := x.override(fmt.Sprintf("%s.overrides[%d]", at, j), o); pb != nil {
				x.m.layer.Metrics = append(x.m.layer.Metrics, pb)
			}
		}
	}
	if err := check(&telemetrypb.Layer{Metrics: x.m.layer.Metrics}); err != nil {
		x.invalid("spec", "%v", err) // such as too many of something
		x.m.layer.Metrics = nil
	}
}

// counts reports whether a provider is that of Prometheus.
func (m *Mesh) counts(name string) bool {
	if m != nil && m.unchecked || name == builtinMetrics {
		return true
	}
	return m != nil && m.providers[name] != nil && m.providers[name].kind == builtinMetrics
}

func (x *translator) override(at string, o *apitelemetry.MetricsOverrides) *telemetrypb.MetricOverride {
	if !x.serves(at, o.GetMatch().GetMode()) {
		return nil
	}
	out := &telemetrypb.MetricOverride{}
	switch m := o.GetMatch().GetMetricMatch().(type) {
	case *apitelemetry.MetricSelector_CustomMetric:
		x.refuse(at+".match.customMetric", "a waypoint has Istio's standard metrics alone")
		return nil
	case *apitelemetry.MetricSelector_Metric:
		if m.Metric != apitelemetry.MetricSelector_ALL_METRICS {
			out.Metrics = []string{m.Metric.String()}
		}
	}
	if o.GetDisabled() != nil {
		out.Disabled = proto.Bool(o.GetDisabled().GetValue())
	}
	for _, name := range slices.Sorted(maps.Keys(o.GetTagOverrides())) {
		t, where := o.GetTagOverrides()[name], at+".tagOverrides["+name+"]"
		tag := &telemetrypb.TagOverride{Name: name, Remove: t.GetOperation() == apitelemetry.MetricsOverrides_TagOverride_REMOVE}
		if !tag.Remove {
			value, ok := constant(t.GetValue())
			if !ok {
				x.refuse(where, "only a constant is possible, such as \"'a'\": a label made of each request could have any number of values")
				continue
			}
			tag.Value = value
		}
		if err := check(&telemetrypb.Layer{Metrics: []*telemetrypb.MetricOverride{{Tags: []*telemetrypb.TagOverride{tag}}}}); err != nil {
			x.invalid(where, "%v", err)
			continue
		}
		out.Tags = append(out.Tags, tag)
	}
	if out.Disabled == nil && len(out.Tags) == 0 {
		return nil
	}
	return out
}

// constant returns the text of a literal of CEL.
func constant(expression string) (string, bool) {
	s := strings.TrimSpace(expression)
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' {
		return "", false
	}
	inner := s[1 : len(s)-1]
	if strings.ContainsAny(inner, "\"'\\\n") {
		return "", false
	}
	_, err := strconv.Unquote(`"` + inner + `"`)
	return inner, err == nil
}
