// Package condition is conditions on connections and values made of them, as node proxies
// evaluate them: CEL that the control plane has parsed, checked and sent as a small tree.
package condition

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// Bounds of an expression.
const (
	MaxNodes   = 512
	MaxDepth   = 64
	MaxText    = 4 << 10 // bytes of all texts together
	maxPattern = 1 << 10 // bytes
	maxSteps   = 2000    // of a compiled pattern, about
)

// Attributes are those of one connection.
type Attributes interface {
	// Attribute returns the zero Value for an attribute without a value.
	Attribute(a telemetrypb.Expression_Attribute) Value
}

// node is one operation with its arguments, a literal, or an attribute.
type node struct {
	function  telemetrypb.Expression_Function
	attribute telemetrypb.Expression_Attribute
	present   bool  // of an attribute: reports whether it has a value
	literal   Value // without function and attribute
	pattern   *regexp.Regexp
	arguments []node
}

// Expression is an expression that can be evaluated. It is immutable, and may be used by
// any goroutine.
type Expression struct {
	text string
	root node
}

// New returns the expression of a text in CEL, or what is wrong with its tree.
func New(text string, p *telemetrypb.Expression) (*Expression, error) {
	c := compiler{}
	root, err := c.node(p, 1)
	if err != nil {
		return nil, err
	}
	return &Expression{text: text, root: root}, nil
}

// String returns the text of the expression.
func (x *Expression) String() string { return x.text }

// ID returns a short text that stands for the expression.
func (x *Expression) ID() string { return ID(x.text) }

// Holds evaluates a condition. One without a value does not hold: an attribute is missing,
// or it is neither true nor false.
func (x *Expression) Holds(a Attributes) bool {
	v := x.root.eval(a)
	return v.kind == isTruth && v.number != 0
}

// Text evaluates the expression as a text of at most MaxValue bytes. It reports false where
// there is no value.
func (x *Expression) Text(a Attributes) (string, bool) {
	v := toText(x.root.eval(a))
	if v.kind != isText {
		return "", false
	}
	return Cut(v.text), true
}

// arity is how many arguments a function has: at least, and at most.
type arity struct{ least, most int }

var (
	one  = arity{1, 1}
	two  = arity{2, 2}
	many = arity{2, math.MaxInt}
)

// arities are those of all functions.
var arities = [...]arity{
	telemetrypb.Expression_AND: many, telemetrypb.Expression_OR: many, telemetrypb.Expression_NOT: one, telemetrypb.Expression_CHOICE: {3, 3},
	telemetrypb.Expression_EQUAL: two, telemetrypb.Expression_UNEQUAL: two, telemetrypb.Expression_LESS: two, telemetrypb.Expression_LESS_OR_EQUAL: two,
	telemetrypb.Expression_GREATER: two, telemetrypb.Expression_GREATER_OR_EQUAL: two, telemetrypb.Expression_IN: {1, math.MaxInt},
	telemetrypb.Expression_ADD: two, telemetrypb.Expression_SUBTRACT: two, telemetrypb.Expression_MULTIPLY: two, telemetrypb.Expression_DIVIDE: two,
	telemetrypb.Expression_REMAINDER: two, telemetrypb.Expression_NEGATE: one, telemetrypb.Expression_STARTS_WITH: two, telemetrypb.Expression_ENDS_WITH: two,
	telemetrypb.Expression_CONTAINS: two, telemetrypb.Expression_MATCHES: two, telemetrypb.Expression_SIZE: one, telemetrypb.Expression_TO_TEXT: one,
	telemetrypb.Expression_TO_NUMBER: one, telemetrypb.Expression_TO_FRACTION: one,
}

// compiler counts what an expression has so far.
type compiler struct{ nodes, text int }

func (c *compiler) node(p *telemetrypb.Expression, depth int) (n node, err error) {
	if c.nodes++; c.nodes > MaxNodes {
		return n, fmt.Errorf("it has more than %d operations and values", MaxNodes)
	}
	if depth > MaxDepth {
		return n, fmt.Errorf("it is nested more than %d times", MaxDepth)
	}
	switch k := p.GetKind().(type) {
	case *telemetrypb.Expression_Text:
		if c.text += len(k.Text); c.text > MaxText {
			return n, fmt.Errorf("its texts are longer than %d bytes", MaxText)
		}
		n.literal = Text(k.Text)
	case *telemetrypb.Expression_Number:
		n.literal = Number(k.Number)
	case *telemetrypb.Expression_Fraction:
		n.literal = Fraction(k.Fraction)
	case *telemetrypb.Expression_Truth:
		n.literal = Truth(k.Truth)
	case *telemetrypb.Expression_Attribute_:
		n.attribute, err = known(k.Attribute)
	case *telemetrypb.Expression_Present:
		n.present = true
		n.attribute, err = known(k.Present)
	case *telemetrypb.Expression_Call_:
		err = c.call(&n, k.Call, depth)
	default:
		err = errors.New("an operation or a value is missing")
	}
	return n, err
}

func known(a telemetrypb.Expression_Attribute) (telemetrypb.Expression_Attribute, error) {
	if a <= telemetrypb.Expression_NO_ATTRIBUTE || a > telemetrypb.Expression_CONNECTION_REQUESTED_SERVER_NAME {
		return 0, fmt.Errorf("there is no attribute %d", a)
	}
	return a, nil
}

func (c *compiler) call(n *node, p *telemetrypb.Expression_Call, depth int) error {
	n.function = p.GetFunction()
	if n.function <= telemetrypb.Expression_NO_FUNCTION || int(n.function) >= len(arities) {
		return fmt.Errorf("there is no function %d", n.function)
	}
	if have, want := len(p.GetArguments()), arities[n.function]; have < want.least || have > want.most {
		return fmt.Errorf("%s has %d arguments (%d are needed)", n.function, have, want.least)
	}
	for _, a := range p.GetArguments() {
		one, err := c.node(a, depth+1)
		if err != nil {
			return err
		}
		n.arguments = append(n.arguments, one)
	}
	if n.function != telemetrypb.Expression_MATCHES {
		return nil
	}
	pattern := &n.arguments[1]
	if pattern.literal.kind != isText {
		return errors.New("the pattern of matches is not a text in quotes")
	}
	var err error
	n.pattern, err = compilePattern(pattern.literal.text)
	return err
}

// compilePattern compiles a regular expression of bounded size. What it would take is
// counted first: few bytes can be a program of many megabytes.
func compilePattern(text string) (*regexp.Regexp, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("a pattern is longer than %d bytes", maxPattern)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if steps(tree) > maxSteps {
		return nil, fmt.Errorf("the pattern %q is too large when its repetitions are written out", text)
	}
	return regexp.Compile(text)
}

// steps returns about how many steps a pattern compiles to, at most a little over maxSteps.
func steps(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		if n += steps(sub); n > maxSteps {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return n
}
