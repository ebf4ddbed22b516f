package observe

import (
	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/logline"
)

// language is that of waypoints, whose package imports this one.
var language = &Language{
	Condition: func(text string, _ *telemetrypb.Expression) (Condition, error) { return expr.Compile(text) },
	Value:     func(text string, _ *telemetrypb.Expression) (Value, error) { return expr.CompileValue(text) },
	Text:      func(text string) (Format, error) { return logline.Text(text) },
	JSON:      func([]*telemetrypb.Label, bool) (Format, error) { return logline.JSON(nil, false) },
}
