package telemetry

import (
	"errors"
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

// metrics translates the rules about metrics. A label with a mistake has none of them in
// effect: half of an object would be another one.
func (x *translator) metrics(list []*apitelemetry.Metrics) {
	sound := true
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
			pb, ok := x.override(fmt.Sprintf("%s.overrides[%d]", at, j), o)
			if x.connections() {
				pb = x.countConnections(fmt.Sprintf("%s.overrides[%d]", at, j), pb)
			}
			if sound = sound && ok; pb != nil {
				x.m.layer.Metrics = append(x.m.layer.Metrics, pb)
			}
		}
	}
	if err := x.check(&telemetrypb.Layer{Metrics: x.m.layer.Metrics}); sound && err != nil {
		x.invalid("spec", "%v", err) // such as too many of something
		sound = false
	}
	if !sound {
		last := &x.m.Invalid[len(x.m.Invalid)-1]
		*last += " (until then no override of the object is in effect)"
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

// override translates one change; nil when it has no effect. It reports false for a label
// with a mistake.
func (x *translator) override(at string, o *apitelemetry.MetricsOverrides) (out *telemetrypb.MetricOverride, sound bool) {
	if !x.serves(at, o.GetMatch().GetMode()) {
		return nil, true
	}
	out, sound = &telemetrypb.MetricOverride{}, true
	switch m := o.GetMatch().GetMetricMatch().(type) {
	case *apitelemetry.MetricSelector_CustomMetric:
		x.refuse(at+".match.customMetric", "there are Istio's standard metrics alone")
		return nil, true
	case *apitelemetry.MetricSelector_Metric:
		if m.Metric != apitelemetry.MetricSelector_ALL_METRICS {
			out.Metrics = []string{m.Metric.String()}
		}
	}
	if o.GetDisabled() != nil {
		out.Disabled = proto.Bool(o.GetDisabled().GetValue())
	}
	for _, name := range slices.Sorted(maps.Keys(o.GetTagOverrides())) {
		t := o.GetTagOverrides()[name]
		tag := &telemetrypb.TagOverride{Name: name, Remove: t.GetOperation() == apitelemetry.MetricsOverrides_TagOverride_REMOVE}
		if !tag.Remove {
			if value, ok := constant(t.GetValue()); ok {
				tag.Value = value
			} else {
				tag.Expression = t.GetValue()
			}
		}
		if err := check(&telemetrypb.Layer{Metrics: []*telemetrypb.MetricOverride{{Tags: []*telemetrypb.TagOverride{tag}}}}); err != nil {
			x.invalid(at, "%v", unwrapped(err))
			sound = false
			continue
		}
		out.Tags = append(out.Tags, tag)
	}
	if out.Disabled == nil && len(out.Tags) == 0 {
		return nil, sound
	}
	return out, sound
}

// unwrapped returns the error of a label, without the place that it has in a message of
// its own.
func unwrapped(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
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
