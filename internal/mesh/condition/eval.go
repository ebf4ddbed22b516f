package condition

import (
	"cmp"
	"math"
	"strings"
	"unicode/utf8"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// eval evaluates a node. An operation on no value has none, but for those that decide
// without it: a false in AND, a true in OR, and the value that CHOICE does not take.
func (n *node) eval(a Attributes) Value {
	switch {
	case n.present:
		return Truth(a.Attribute(n.attribute).kind != missing)
	case n.attribute != 0:
		return a.Attribute(n.attribute)
	case n.function == 0:
		return n.literal
	}
	switch n.function {
	case telemetrypb.Expression_AND:
		return n.all(a, 1)
	case telemetrypb.Expression_OR:
		return n.all(a, 0)
	case telemetrypb.Expression_CHOICE:
		switch c := n.arguments[0].eval(a); {
		case c.kind != isTruth:
			return Value{}
		case c.number != 0:
			return n.arguments[1].eval(a)
		default:
			return n.arguments[2].eval(a)
		}
	case telemetrypb.Expression_IN:
		return n.in(a)
	default:
	}
	x := n.arguments[0].eval(a)
	if x.kind == missing {
		return Value{}
	}
	if len(n.arguments) == 1 {
		return n.unary(x)
	}
	y := n.arguments[1].eval(a)
	if y.kind == missing {
		return Value{}
	}
	return n.binary(x, y)
}

// all returns whether all arguments are true, for neutral 1, or one of them is, for 0.
func (n *node) all(a Attributes, neutral int64) Value {
	failed := false
	for i := range n.arguments {
		switch v := n.arguments[i].eval(a); {
		case v.kind != isTruth:
			failed = true
		case v.number != neutral:
			return v
		}
	}
	if failed {
		return Value{}
	}
	return Value{number: neutral, kind: isTruth}
}

// in returns whether a value equals one of some others, which all need a value. In an empty
// list is nothing, not even what has no value: so does cel-go.
func (n *node) in(a Attributes) Value {
	if len(n.arguments) == 1 {
		return Truth(false)
	}
	x := n.arguments[0].eval(a)
	if x.kind == missing {
		return Value{}
	}
	found := false
	for i := 1; i < len(n.arguments); i++ {
		y := n.arguments[i].eval(a)
		if y.kind == missing {
			return Value{}
		}
		found = found || equal(x, y)
	}
	return Truth(found)
}

func (n *node) unary(x Value) Value {
	switch n.function {
	case telemetrypb.Expression_NOT:
		if x.kind == isTruth {
			return Truth(x.number == 0)
		}
	case telemetrypb.Expression_NEGATE:
		switch {
		case x.kind == isFraction:
			return Fraction(-x.fraction())
		case x.kind == isNumber && x.number != math.MinInt64:
			return Number(-x.number)
		}
	case telemetrypb.Expression_SIZE:
		if x.kind == isText {
			return Number(int64(utf8.RuneCountInString(x.text)))
		}
	case telemetrypb.Expression_TO_TEXT:
		return toText(x)
	case telemetrypb.Expression_TO_NUMBER:
		return toNumber(x)
	case telemetrypb.Expression_TO_FRACTION:
		return toFraction(x)
	default:
	}
	return Value{}
}

func (n *node) binary(x, y Value) Value {
	switch n.function {
	case telemetrypb.Expression_EQUAL:
		return Truth(equal(x, y))
	case telemetrypb.Expression_UNEQUAL:
		return Truth(!equal(x, y))
	case telemetrypb.Expression_LESS, telemetrypb.Expression_LESS_OR_EQUAL, telemetrypb.Expression_GREATER, telemetrypb.Expression_GREATER_OR_EQUAL:
		return n.ordered(x, y)
	case telemetrypb.Expression_STARTS_WITH, telemetrypb.Expression_ENDS_WITH, telemetrypb.Expression_CONTAINS, telemetrypb.Expression_MATCHES:
		return n.search(x, y)
	default:
	}
	switch {
	case x.kind != y.kind:
		return Value{}
	case x.kind == isText && n.function == telemetrypb.Expression_ADD:
		return Text(x.text + y.text)
	case x.kind == isNumber:
		return numbers(n.function, x.number, y.number)
	case x.kind == isFraction:
		return fractions(n.function, x.fraction(), y.fraction())
	}
	return Value{}
}

func (n *node) ordered(x, y Value) Value {
	c, ok := compare(x, y)
	switch {
	case !ok:
		return Value{}
	case n.function == telemetrypb.Expression_LESS:
		return Truth(c < 0)
	case n.function == telemetrypb.Expression_LESS_OR_EQUAL:
		return Truth(c <= 0)
	case n.function == telemetrypb.Expression_GREATER:
		return Truth(c > 0)
	default:
		return Truth(c >= 0)
	}
}

func (n *node) search(x, y Value) Value {
	switch {
	case x.kind != isText || y.kind != isText:
		return Value{}
	case n.function == telemetrypb.Expression_STARTS_WITH:
		return Truth(strings.HasPrefix(x.text, y.text))
	case n.function == telemetrypb.Expression_ENDS_WITH:
		return Truth(strings.HasSuffix(x.text, y.text))
	case n.function == telemetrypb.Expression_CONTAINS:
		return Truth(strings.Contains(x.text, y.text))
	default:
		return Truth(n.pattern.MatchString(x.text))
	}
}

// equal compares two values. Those of different types differ, but numbers compare by their
// value.
func equal(x, y Value) bool {
	if x.kind == y.kind && x.kind != isFraction {
		return x.text == y.text && x.number == y.number
	}
	if x.kind != isNumber && x.kind != isFraction || y.kind != isNumber && y.kind != isFraction {
		return false
	}
	c, ok := compare(x, y)
	return ok && c == 0
}

// compare orders two values of one type, or two numbers. It reports false for others, and
// for what is not a number.
func compare(x, y Value) (int, bool) {
	switch {
	case x.kind == isText && y.kind == isText:
		return strings.Compare(x.text, y.text), true
	case x.kind == isTruth && y.kind == isTruth, x.kind == isNumber && y.kind == isNumber:
		return cmp.Compare(x.number, y.number), true
	case x.kind == isFraction && y.kind == isFraction:
		return fractionsOrder(x.fraction(), y.fraction())
	case x.kind == isFraction && y.kind == isNumber:
		return fractionsOrder(x.fraction(), float64(y.number))
	case x.kind == isNumber && y.kind == isFraction:
		return fractionsOrder(float64(x.number), y.fraction())
	}
	return 0, false
}

func fractionsOrder(x, y float64) (int, bool) {
	return cmp.Compare(x, y), !math.IsNaN(x) && !math.IsNaN(y)
}

// numbers computes with integers. What does not fit has no value, nor has a division by zero.
func numbers(f telemetrypb.Expression_Function, x, y int64) Value {
	switch f {
	case telemetrypb.Expression_ADD:
		if z := x + y; (z > x) == (y > 0) {
			return Number(z)
		}
	case telemetrypb.Expression_SUBTRACT:
		if z := x - y; (z < x) == (y > 0) {
			return Number(z)
		}
	case telemetrypb.Expression_MULTIPLY:
		switch z := x * y; {
		case x == 0 || y == 0:
			return Number(0)
		case x == -1 && y == math.MinInt64 || y == -1 && x == math.MinInt64:
		case z/y == x:
			return Number(z)
		}
	case telemetrypb.Expression_DIVIDE:
		if y != 0 && (x != math.MinInt64 || y != -1) {
			return Number(x / y)
		}
	case telemetrypb.Expression_REMAINDER:
		if y != 0 && (x != math.MinInt64 || y != -1) {
			return Number(x % y)
		}
	default:
	}
	return Value{}
}

func fractions(f telemetrypb.Expression_Function, x, y float64) Value {
	switch f {
	case telemetrypb.Expression_ADD:
		return Fraction(x + y)
	case telemetrypb.Expression_SUBTRACT:
		return Fraction(x - y)
	case telemetrypb.Expression_MULTIPLY:
		return Fraction(x * y)
	case telemetrypb.Expression_DIVIDE:
		return Fraction(x / y)
	default:
		return Value{} // there is no remainder of fractions
	}
}
