package observe

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// Metric is what is changed of one metric.
type Metric struct {
	Disabled bool
	Remove   []string          // labels
	Set      map[string]string // labels and their values
	// From has the labels whose values are made of each request.
	From map[string]Value
}

// MetricNames are those of Istio's enum.
var MetricNames = []string{
	"REQUEST_COUNT", "REQUEST_DURATION", "REQUEST_SIZE", "RESPONSE_SIZE", "TCP_OPENED_CONNECTIONS", "TCP_CLOSED_CONNECTIONS",
	"TCP_SENT_BYTES", "TCP_RECEIVED_BYTES", "GRPC_REQUEST_MESSAGES", "GRPC_RESPONSE_MESSAGES",
}

// Bounds of a layer's changes.
const (
	maxOverrides   = 64
	maxLabels      = 32
	maxExpressions = 16
)

// MaxValues bounds the expressions of all layers that are evaluated for a request. The
// labels of others have no value.
const MaxValues = 32

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,127}$`)

// metric compiles one change. Expressions are compiled into values, by their texts.
func (c *compiler) metric(p *telemetrypb.MetricOverride, values map[string]Value) error {
	for _, name := range p.GetMetrics() {
		if !slices.Contains(MetricNames, name) {
			return fmt.Errorf("there is no metric %q", name)
		}
	}
	if n := len(p.GetTags()); n > maxLabels {
		return fmt.Errorf("tagOverrides: there are %d (at most %d are possible)", n, maxLabels)
	}
	for _, t := range p.GetTags() {
		if err := c.label(t, values); err != nil {
			return fmt.Errorf("tagOverrides[%s]: %w", t.GetName(), err)
		}
	}
	return nil
}

// label compiles the change of one label.
func (c *compiler) label(t *telemetrypb.TagOverride, values map[string]Value) (err error) {
	name, value, text := t.GetName(), t.GetValue(), t.GetExpression()
	switch {
	case !labelName.MatchString(name):
		return fmt.Errorf("%q is no name of a label", name)
	case name == "le" || name == "quantile" || strings.HasPrefix(name, "__"):
		return fmt.Errorf("the label %q is kept for Prometheus (choose another name)", name)
	case t.GetRemove() && (value != "" || text != ""), value != "" && text != "":
		return errors.New("it has more than one of a removal, a value and an expression")
	case t.GetRemove():
		return nil
	case text == "" && (value == "" || len(value) > maxTagValue || !utf8.ValidString(value)):
		return fmt.Errorf("it needs a value of at most %d bytes", maxTagValue)
	case text == "" || values[text] != nil:
		return nil
	}
	if values[text], err = c.language.Value(text, t.GetChecked()); err != nil {
		delete(values, text)
		return fmt.Errorf("value: %w", err)
	}
	if len(values) > maxExpressions {
		return fmt.Errorf("value: there are more than %d different expressions", maxExpressions)
	}
	return nil
}

// metrics are the changes in effect, by metric.
type metrics map[string]*Metric

// merge applies the changes of a layer, in order, to what earlier layers say.
func (m *metrics) merge(l *Layer) {
	for _, p := range l.metrics {
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
				one = &Metric{Set: map[string]string{}, From: map[string]Value{}}
				(*m)[name] = one
			}
			if p.Disabled != nil {
				one.Disabled = p.GetDisabled()
			}
			for _, t := range p.GetTags() {
				one.Remove = slices.DeleteFunc(slices.Clone(one.Remove), func(s string) bool { return s == t.GetName() })
				delete(one.Set, t.GetName())
				delete(one.From, t.GetName())
				switch {
				case t.GetRemove():
					one.Remove = append(one.Remove, t.GetName())
				case t.GetExpression() != "":
					one.From[t.GetName()] = l.values[t.GetExpression()]
				default:
					one.Set[t.GetName()] = t.GetValue()
				}
			}
		}
	}
}

// values returns the expressions of the metrics that are served, in order.
func (m metrics) values() []Value {
	all := map[string]Value{}
	for _, one := range m {
		if !one.Disabled {
			for _, v := range one.From {
				all[v.String()] = v
			}
		}
	}
	var out []Value
	for _, text := range slices.Sorted(maps.Keys(all)) {
		if len(out) < MaxValues {
			out = append(out, all[text])
		}
	}
	return out
}
