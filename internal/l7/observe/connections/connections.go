// Package connections is the language of node proxies: expressions over connections that the
// control plane has checked. Formats of lines are for waypoints.
package connections

import (
	"errors"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/condition"
)

// Language compiles for node proxies. Its conditions and values are *condition.Expression.
var Language = &observe.Language{
	Condition: func(text string, checked *telemetrypb.Expression) (observe.Condition, error) {
		return compile(text, checked)
	},
	Value: func(text string, checked *telemetrypb.Expression) (observe.Value, error) {
		return compile(text, checked)
	},
	Text: func(string) (observe.Format, error) { return nil, errFormat },
	JSON: func([]*telemetrypb.Label, bool) (observe.Format, error) { return nil, errFormat },
}

var (
	errFormat    = errors.New("formats of lines are for waypoints: node proxies have their own")
	errUnchecked = errors.New("it comes as text alone: the control plane is older than this program (upgrade ambitd first)")
)

// expression is both of what an expression can be.
type expression interface {
	observe.Condition
	observe.Value
}

func compile(text string, checked *telemetrypb.Expression) (expression, error) {
	if checked == nil {
		return nil, errUnchecked
	}
	x, err := condition.New(text, checked)
	if err != nil {
		return nil, err
	}
	return x, nil
}
