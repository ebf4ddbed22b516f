package expr

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
)

// MaxValue bounds the text of a value, in bytes. What is longer is cut.
const MaxValue = 128

// Value is a compiled expression that yields a text. It is immutable, and may be used by
// any goroutine.
type Value struct {
	compiled
	id string
}

// idSize is how many bytes of a hash an expression is named by.
const idSize = 9

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
	sum := sha256.Sum256([]byte(text))
	return &Value{*c, base64.RawURLEncoding.EncodeToString(sum[:idSize])}, nil
}

// Text evaluates the expression. It reports false where there is no value: a field is
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
	return cut(s), ok
}

// cut returns the beginning of a text that is at most MaxValue bytes, as valid UTF-8.
func cut(s string) string {
	if len(s) > MaxValue {
		n := MaxValue
		for n > MaxValue-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
