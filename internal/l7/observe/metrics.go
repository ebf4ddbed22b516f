package observe

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// Metric is what is changed of one metric.
type Metric struct {
	Disabled bool
	Remove   []string          // labels
	Set      map[string]string // labels and their values
}

// MetricNames are those of Istio's enum.
var MetricNames = []string{
	"REQUEST_COUNT", "REQUEST_DURATION", "REQUEST_SIZE", "RESPONSE_SIZE", "TCP_OPENED_CONNECTIONS", "TCP_CLOSED_CONNECTIONS",
	"TCP_SENT_BYTES", "TCP_RECEIVED_BYTES", "GRPC_REQUEST_MESSAGES", "GRPC_RESPONSE_MESSAGES",
}

// Bounds of a layer's changes.
const (
	maxOverrides = 64
	maxLabels    = 32
)

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,127}$`)

// metric compiles one change.
func metric(p *telemetrypb.MetricOverride) error {
	for _, name := range p.GetMetrics() {
		if !slices.Contains(MetricNames, name) {
			return fmt.Errorf("there is no metric %q", name)
		}
	}
	if n := len(p.GetTags()); n > maxLabels {
		return fmt.Errorf("tagOverrides: there are %d (at most %d are possible)", n, maxLabels)
	}
	for _, t := range p.GetTags() {
		switch {
		case !labelName.MatchString(t.GetName()):
			return fmt.Errorf("tagOverrides: %q is no name of a label", t.GetName())
		case !t.GetRemove() && (t.GetValue() == "" || len(t.GetValue()) > maxTagValue):
			return fmt.Errorf("tagOverrides.%s: it needs a value of at most %d bytes", t.GetName(), maxTagValue)
		}
	}
	return nil
}

// metrics are the changes in effect, by metric.
type metrics map[string]*Metric

// merge applies the changes of a layer, in order, to what earlier layers say.
func (m *metrics) merge(list []*telemetrypb.MetricOverride) {
	for _, p := range list {
		names := p.GetMetrics()
		if len(names) == 0 {
			names = MetricNames
		}
		for _, name := range names {
			if *m == nil {
				*m = metrics{}
			}
			one := (*m)[name]
			if one == nil {
				one = &Metric{Set: map[string]string{}}
				(*m)[name] = one
			}
			if p.Disabled != nil {
				one.Disabled = p.GetDisabled()
			}
			for _, t := range p.GetTags() {
				one.Remove = slices.DeleteFunc(slices.Clone(one.Remove), func(s string) bool { return s == t.GetName() })
				one.Set = maps.Clone(one.Set)
				delete(one.Set, t.GetName())
				if t.GetRemove() {
					one.Remove = append(one.Remove, t.GetName())
				} else {
					one.Set[t.GetName()] = t.GetValue()
				}
			}
		}
	}
}
