package condition

import (
	"crypto/sha256"
	"encoding/base64"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// kind is the type of a value. The zero kind is that of no value.
type kind uint8

const (
	missing kind = iota // no value: an attribute is missing, or an operation has failed
	isText
	isNumber
	isFraction
	isTruth
)

// Value is a value of an expression. The zero Value is none.
type Value struct {
	text   string
	number int64 // also the bits of a fraction, and 1 for true
	kind   kind
}

// Text returns a text as a value.
func Text(s string) Value { return Value{text: s, kind: isText} }

// Number returns an integer as a value.
func Number(n int64) Value { return Value{number: n, kind: isNumber} }

// Fraction returns a floating-point number as a value.
func Fraction(f float64) Value { return Value{number: int64(math.Float64bits(f)), kind: isFraction} } //nolint:gosec // bits

// Truth returns true or false as a value.
func Truth(b bool) Value {
	v := Value{kind: isTruth}
	if b {
		v.number = 1
	}
	return v
}

func (v Value) fraction() float64 { return math.Float64frombits(uint64(v.number)) } //nolint:gosec // bits

// toText converts to a text, as string() does.
func toText(v Value) Value {
	switch v.kind {
	case isText:
		return v
	case isNumber:
		return Text(strconv.FormatInt(v.number, 10))
	case isFraction:
		return Text(strconv.FormatFloat(v.fraction(), 'g', -1, 64))
	case isTruth:
		return Text(strconv.FormatBool(v.number != 0))
	default:
		return Value{}
	}
}

// toNumber converts to an integer, as int() does.
func toNumber(v Value) Value {
	switch v.kind {
	case isText:
		if n, err := strconv.ParseInt(v.text, 10, 64); err == nil {
			return Number(n)
		}
	case isNumber:
		return v
	case isFraction:
		if f := v.fraction(); f > math.MinInt64 && f < math.MaxInt64 {
			return Number(int64(f))
		}
	default:
	}
	return Value{}
}

// toFraction converts to a floating-point number, as double() does.
func toFraction(v Value) Value {
	switch v.kind {
	case isText:
		if f, err := strconv.ParseFloat(v.text, 64); err == nil {
			return Fraction(f)
		}
	case isNumber:
		return Fraction(float64(v.number))
	case isFraction:
		return v
	default:
	}
	return Value{}
}

// MaxValue bounds the text of a value that becomes a label, in bytes. What is longer is cut.
const MaxValue = 128

// Cut returns the beginning of a text that is at most MaxValue bytes, as valid UTF-8.
func Cut(s string) string {
	if len(s) > MaxValue {
		n := MaxValue
		for n > MaxValue-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}

// idSize is how many bytes of a hash an expression is named by.
const idSize = 9

// ID returns a short text that stands for an expression.
func ID(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:idSize])
}
