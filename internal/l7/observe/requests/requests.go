// Package requests is the language of waypoints: expressions in CEL over requests, and formats
// of lines with Envoy's command operators.
package requests

import (
	"errors"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/logline"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
)

// Language compiles for waypoints. Its conditions are *expr.Condition, its values *expr.Value,
// its formats *logline.Format.
var Language = &observe.Language{Condition: condition, Value: value, Text: text, JSON: labels}

// errChecked is the error of a layer that is for node proxies.
var errChecked = errors.New("it is for node proxies alone")

func condition(text string, checked *telemetrypb.Expression) (observe.Condition, error) {
	if checked != nil {
		return nil, errChecked
	}
	c, err := expr.Compile(text)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func value(text string, checked *telemetrypb.Expression) (observe.Value, error) {
	if checked != nil {
		return nil, errChecked
	}
	v, err := expr.CompileValue(text)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func text(format string) (observe.Format, error) {
	f, err := logline.Text(format)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func labels(list []*telemetrypb.Label, omitEmpty bool) (observe.Format, error) {
	all := make([]logline.Label, 0, len(list))
	for _, one := range list {
		all = append(all, logline.Label{Name: one.GetName(), Format: one.GetFormat()})
	}
	f, err := logline.JSON(all, omitEmpty)
	if err != nil {
		return nil, err
	}
	return f, nil
}
