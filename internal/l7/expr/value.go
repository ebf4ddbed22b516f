package expr

import (
	"fmt"
	"slices"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"

	"github.com/ambit-mesh/ambit/internal/mesh/condition"
)

// Value is a compiled expression that yields a text. It is immutable, and may be used by
// any goroutine.
type Value struct {
	compiled
	id string
}

// ID returns a short text that stands for the expression.
func (v *Value) ID() string { return v.id }

// scalar are the types that a value may have.
var scalar = []*cel.Type{cel.StringType, cel.IntType, cel.UintType, cel.DoubleType, cel.BoolType, cel.DynType}

// CompileValue compiles an expression that yields a text, a number, or true or false. It
// returns an error when the text is not one.
func CompileValue(text string) (*Value, error) {
	c, err := compile(text, func(t *cel.Type) error {
		if !slices.ContainsFunc(scalar, t.IsExactType) {
			return fmt.Errorf("it is a %s, and must be a text, a number, or true or false", t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Value{*c, condition.ID(text)}, nil
}

// Text evaluates the expression as a text of at most condition.MaxValue bytes. It reports false where there is no value: a field is
// missing, the cost is beyond the bound, or it is a list or a map.
func (v *Value) Text(a Attributes) (string, bool) {
	got, err := v.eval(a)
	if err != nil {
		return "", false
	}
	switch got.Type() {
	case types.StringType, types.IntType, types.UintType, types.DoubleType, types.BoolType:
	default:
		return "", false
	}
	s, ok := got.ConvertToType(types.StringType).Value().(string)
	return condition.Cut(s), ok
}
