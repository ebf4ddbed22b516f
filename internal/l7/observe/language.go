package observe

import (
	"fmt"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// Condition selects requests or connections. Its role evaluates it.
type Condition interface{ fmt.Stringer }

// Value is what labels of metrics are made of. Its role evaluates it.
type Value interface {
	fmt.Stringer
	// ID returns a short text that stands for the expression.
	ID() string
}

// Format is that of a line of the access log. Its role writes it.
type Format any

// Language compiles what users write for the proxies of one role. An expression comes as
// text, for node proxies also as a tree that the control plane has checked.
type Language struct {
	Condition func(text string, checked *telemetrypb.Expression) (Condition, error)
	Value     func(text string, checked *telemetrypb.Expression) (Value, error)
	// Text compiles a format of text, JSON one of labels.
	Text func(text string) (Format, error)
	JSON func(labels []*telemetrypb.Label, omitEmpty bool) (Format, error)
}
