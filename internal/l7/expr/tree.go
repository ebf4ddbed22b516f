package expr

import (
	"fmt"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/overloads"
	"github.com/google/cel-go/common/types"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/condition"
)

// connection are the attributes of connections.
var connection = map[string]map[string]telemetrypb.Expression_Attribute{
	"source": {
		"address": telemetrypb.Expression_SOURCE_ADDRESS, "port": telemetrypb.Expression_SOURCE_PORT, "principal": telemetrypb.Expression_SOURCE_PRINCIPAL,
		"workload": telemetrypb.Expression_SOURCE_WORKLOAD, "namespace": telemetrypb.Expression_SOURCE_NAMESPACE,
	},
	"destination": {
		"address": telemetrypb.Expression_DESTINATION_ADDRESS, "port": telemetrypb.Expression_DESTINATION_PORT, "principal": telemetrypb.Expression_DESTINATION_PRINCIPAL,
		"workload": telemetrypb.Expression_DESTINATION_WORKLOAD, "namespace": telemetrypb.Expression_DESTINATION_NAMESPACE, "service": telemetrypb.Expression_DESTINATION_SERVICE,
	},
	"connection": {
		"mtls": telemetrypb.Expression_CONNECTION_MTLS, "uri_san_peer_certificate": telemetrypb.Expression_CONNECTION_URI_SAN_PEER_CERTIFICATE,
		"termination_details": telemetrypb.Expression_CONNECTION_TERMINATION_DETAILS, "requested_server_name": telemetrypb.Expression_CONNECTION_REQUESTED_SERVER_NAME,
	},
}

// functions are what a tree has a function for.
var functions = map[string]telemetrypb.Expression_Function{
	operators.LogicalAnd: telemetrypb.Expression_AND, operators.LogicalOr: telemetrypb.Expression_OR, operators.LogicalNot: telemetrypb.Expression_NOT,
	operators.Conditional: telemetrypb.Expression_CHOICE, operators.Equals: telemetrypb.Expression_EQUAL, operators.NotEquals: telemetrypb.Expression_UNEQUAL,
	operators.Less: telemetrypb.Expression_LESS, operators.LessEquals: telemetrypb.Expression_LESS_OR_EQUAL, operators.Greater: telemetrypb.Expression_GREATER,
	operators.GreaterEquals: telemetrypb.Expression_GREATER_OR_EQUAL, operators.Add: telemetrypb.Expression_ADD, operators.Subtract: telemetrypb.Expression_SUBTRACT,
	operators.Multiply: telemetrypb.Expression_MULTIPLY, operators.Divide: telemetrypb.Expression_DIVIDE, operators.Modulo: telemetrypb.Expression_REMAINDER,
	operators.Negate: telemetrypb.Expression_NEGATE, overloads.StartsWith: telemetrypb.Expression_STARTS_WITH, overloads.EndsWith: telemetrypb.Expression_ENDS_WITH,
	overloads.Contains: telemetrypb.Expression_CONTAINS, overloads.Matches: telemetrypb.Expression_MATCHES, overloads.Size: telemetrypb.Expression_SIZE,
	overloads.TypeConvertString: telemetrypb.Expression_TO_TEXT, overloads.TypeConvertInt: telemetrypb.Expression_TO_NUMBER,
	overloads.TypeConvertDouble: telemetrypb.Expression_TO_FRACTION,
}

// Tree returns the expression as node proxies evaluate it. An expression with something
// that their trees do not have is refused, and the error names it.
func (c *compiled) Tree() (*telemetrypb.Expression, error) {
	t, err := c.tree(c.checked.Expr())
	if err != nil {
		return nil, err
	}
	if _, err := condition.New(c.text, t); err != nil {
		return nil, err
	}
	return t, nil
}

func refused(what string) error { return fmt.Errorf("node proxies do not evaluate %s", what) }

func (c *compiled) tree(e ast.Expr) (*telemetrypb.Expression, error) {
	switch e.Kind() {
	case ast.LiteralKind:
		return literal(e)
	case ast.CallKind:
		return c.call(e.AsCall())
	case ast.SelectKind:
		s := e.AsSelect()
		a, err := attribute(s.Operand(), s.FieldName())
		if err == nil && s.IsTestOnly() {
			return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Present{Present: a}}, nil
		}
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Attribute_{Attribute: a}}, err
	case ast.ComprehensionKind:
		name := "macros"
		if m, is := c.checked.SourceInfo().GetMacroCall(e.ID()); is {
			name = "the macro " + m.AsCall().FunctionName()
		}
		return nil, refused(name)
	case ast.IdentKind:
		return nil, refused(e.AsIdent() + " as a whole: write one of its attributes")
	case ast.ListKind:
		return nil, refused("a list, but on the right of in")
	case ast.MapKind, ast.StructKind:
		return nil, refused("a map or a message")
	default:
		return nil, refused("a part of the expression")
	}
}

func literal(e ast.Expr) (*telemetrypb.Expression, error) {
	switch v := e.AsLiteral().(type) {
	case types.String:
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Text{Text: string(v)}}, nil
	case types.Int:
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Number{Number: int64(v)}}, nil
	case types.Double:
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Fraction{Fraction: float64(v)}}, nil
	case types.Bool:
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Truth{Truth: bool(v)}}, nil
	default:
		return nil, refused(fmt.Sprintf("literals of the type %s", v.Type().TypeName()))
	}
}

func attribute(of ast.Expr, name string) (telemetrypb.Expression_Attribute, error) {
	if of.Kind() != ast.IdentKind {
		return 0, refused("the field " + name + " of a value")
	}
	a, is := connection[of.AsIdent()][name]
	if !is {
		return 0, fmt.Errorf("connections have no attribute %s.%s", of.AsIdent(), name)
	}
	return a, nil
}

func (c *compiled) call(call ast.CallExpr) (*telemetrypb.Expression, error) {
	name := call.FunctionName()
	arguments := call.Args()
	if call.IsMemberFunction() {
		arguments = append([]ast.Expr{call.Target()}, arguments...)
	}
	f, is := functions[name]
	switch {
	case name == operators.In:
		f = telemetrypb.Expression_IN
		list := arguments[1]
		if list.Kind() != ast.ListKind || len(list.AsList().OptionalIndices()) > 0 {
			return nil, refused("in, but before a list in brackets")
		}
		arguments = append([]ast.Expr{arguments[0]}, list.AsList().Elements()...)
	case name == operators.Index && arguments[1].Kind() == ast.LiteralKind:
		key, isText := arguments[1].AsLiteral().(types.String)
		if !isText {
			return nil, refused("an index that is not a text")
		}
		a, err := attribute(arguments[0], string(key))
		return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Attribute_{Attribute: a}}, err
	case name == operators.Index:
		return nil, refused("an index that is not a text")
	case name == overloads.TypeConvertDyn:
		return c.tree(arguments[0])
	case !is:
		return nil, refused(name + "()")
	}
	out := &telemetrypb.Expression_Call{Function: f}
	for _, a := range arguments {
		one, err := c.tree(a)
		if err != nil {
			return nil, err
		}
		out.Arguments = append(out.Arguments, one)
	}
	return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Call_{Call: out}}, nil
}
