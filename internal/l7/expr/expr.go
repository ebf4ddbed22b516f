// Package expr is conditions on requests and values made of them, written in CEL over
// Envoy's attributes. Each is compiled once; what it may cost is bounded.
package expr

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types/ref"
)

// Bounds of a condition.
const (
	maxText  = 4 << 10 // bytes
	maxDepth = 64
	maxCost  = 500 // in units of CEL: about one for each operation and each ten bytes of text
)

// roots are the attributes that there are, each with fields.
var roots = []string{"request", "response", "source", "destination", "connection", "upstream", "xds", "metadata"}

var environment = sync.OnceValues(func() (*cel.Env, error) {
	options := []cel.EnvOption{cel.EnableMacroCallTracking(), cel.ParserRecursionLimit(maxDepth), cel.ParserExpressionSizeLimit(maxText)}
	for _, r := range roots {
		options = append(options, cel.Variable(r, cel.MapType(cel.StringType, cel.DynType)))
	}
	return cel.NewEnv(options...)
})

// compiled is an expression that is compiled.
type compiled struct {
	text    string
	checked *ast.AST
	program cel.Program
	used    map[string]bool // roots that it names
}

// Condition is a compiled condition. It is immutable, and may be used by any goroutine.
type Condition struct{ compiled }

// Compile compiles a condition, or returns what is wrong with it.
func Compile(text string) (*Condition, error) {
	c, err := compile(text, func(t *cel.Type) error {
		if !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
			return fmt.Errorf("it is a %s, and must be true or false", t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Condition{*c}, nil
}

// compile compiles a text whose type suits.
func compile(text string, suits func(*cel.Type) error) (*compiled, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("it is longer than %d bytes", maxText)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if err := suits(checked.OutputType()); err != nil {
		return nil, err
	}
	c := &compiled{text: text, checked: checked.NativeRep(), used: map[string]bool{}}
	var unknown error
	ast.PostOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			c.used[e.AsIdent()] = true
		case ast.SelectKind:
			s := e.AsSelect()
			if o := s.Operand(); o.Kind() == ast.IdentKind {
				if known, is := fields[o.AsIdent()]; is && !known[s.FieldName()] {
					unknown = fmt.Errorf("there is no attribute %s.%s", o.AsIdent(), s.FieldName())
				}
			}
		default: // names no attribute itself
		}
	}))
	if unknown != nil {
		return nil, unknown
	}
	c.program, err = env.Program(checked, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	return c, err
}

// fields are the attributes of each root.
var fields = map[string]map[string]bool{
	"request":     set("path", "url_path", "host", "scheme", "method", "headers", "referer", "useragent", "time", "id", "protocol", "query", "duration", "size", "total_size"),
	"response":    set("code", "code_details", "flags", "grpc_status", "size", "total_size"),
	"source":      set("address", "port", "principal", "workload", "namespace"),
	"destination": set("address", "port", "principal", "workload", "namespace", "service"),
	"connection":  set("mtls", "uri_san_peer_certificate", "termination_details", "requested_server_name"),
	"upstream":    set("address", "port", "transport_failure_reason", "request_attempt_count"),
	"xds":         set("cluster_name", "route_name"),
	"metadata":    set("filter_metadata"),
}

func set(names ...string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

// String returns the text of the expression.
func (c *compiled) String() string { return c.text }

// Uses reports whether the expression names a root, such as request.
func (c *compiled) Uses(root string) bool { return c.used[root] }

// Attributes are the fields of the roots that a condition uses. One without a value is
// left out, so that has() finds it missing.
type Attributes map[string]map[string]any

// errCondition is the error of a condition that could not be evaluated.
var errCondition = errors.New("the condition has no value")

// eval evaluates the expression over the roots that it names.
func (c *compiled) eval(a Attributes) (ref.Val, error) {
	in := map[string]any{}
	for _, r := range roots {
		if c.used[r] {
			in[r] = a[r]
			if a[r] == nil {
				in[r] = map[string]any{}
			}
		}
	}
	v, _, err := c.program.Eval(in)
	return v, err
}

// Holds evaluates the condition. An error is one of the request: a field that is missing,
// or a cost beyond the bound.
func (c *Condition) Holds(a Attributes) (bool, error) {
	v, err := c.eval(a)
	if err != nil {
		return false, err
	}
	b, err := v.ConvertToNative(reflect.TypeFor[bool]())
	if err != nil {
		return false, err
	}
	holds, ok := b.(bool)
	if !ok {
		return false, errCondition
	}
	return holds, nil
}
