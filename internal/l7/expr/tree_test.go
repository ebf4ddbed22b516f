package expr

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/condition"
)

// seen are attributes of a connection, by the numbers that trees have for them.
type seen map[telemetrypb.Expression_Attribute]any

// Attribute implements condition.Attributes.
func (s seen) Attribute(a telemetrypb.Expression_Attribute) condition.Value {
	switch v := s[a].(type) {
	case string:
		return condition.Text(v)
	case int64:
		return condition.Number(v)
	case bool:
		return condition.Truth(v)
	default:
		return condition.Value{}
	}
}

// asCEL are the same attributes for cel-go.
func (s seen) asCEL() Attributes {
	out := Attributes{}
	for root, names := range connection {
		out[root] = map[string]any{}
		for name, a := range names {
			if v, has := s[a]; has {
				out[root][name] = v
			}
		}
	}
	return out
}

// agree fails when a tree and cel-go differ about an expression.
func agree(t interface {
	Fatalf(string, ...any)
	Helper()
}, text string, s seen,
) (compiles bool) {
	t.Helper()
	v, err := CompileValue(text)
	if err != nil {
		return false
	}
	tree, err := v.Tree()
	if err != nil {
		return false
	}
	// As it travels.
	body, err := proto.Marshal(tree)
	if err != nil {
		return false // a text that is not UTF-8
	}
	var back telemetrypb.Expression
	if err := proto.Unmarshal(body, &back); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	x, err := condition.New(text, &back)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	got, ok := x.Text(s)
	want, has := v.Text(s.asCEL())
	if got != want || ok != has {
		t.Fatalf("%s over %v is %q (%v), and %q (%v) in CEL", text, s, got, ok, want, has)
	}
	if x.ID() != v.ID() {
		t.Fatalf("%s: %s is not %s", text, x.ID(), v.ID())
	}
	if c, err := Compile(text); err == nil {
		want, err := c.Holds(s.asCEL())
		if got := x.Holds(s); got != (want && err == nil) {
			t.Fatalf("%s over %v holds: %v, and %v in CEL (error %v)", text, s, got, want, err)
		}
	}
	return true
}

// drawn are generated attributes. Any may be missing.
func drawn(t *rapid.T) seen {
	s := seen{}
	for root, names := range connection {
		for name, a := range names {
			label := root + "." + name
			if !rapid.Bool().Draw(t, label+"?") {
				continue
			}
			switch name {
			case "port":
				s[a] = rapid.Int64Range(0, 3).Draw(t, label)
			case "mtls":
				s[a] = rapid.Bool().Draw(t, label)
			default:
				s[a] = rapid.SampledFrom(texts).Draw(t, label)
			}
		}
	}
	return s
}

var (
	texts    = []string{"", "a", "b", "ab", "é", "1", "-2.5", "true", "10.0.0.1:80", "spiffe://cluster.local/ns/shop/sa/web"}
	patterns = []string{"", "a", "^a$", "^[ab]*$", "b|é", "(?i)A", `\d+`, "a{2,3}"}
	numbers  = []string{"0", "1", "2", "3", "-1", "80", fmt.Sprint(math.MaxInt64), "-9223372036854775807", "-9223372036854775808", "4611686018427387904", "3037000500"}
	doubles  = []string{"0.0", "1.0", "-1.5", "2.5", "1e300", "1e18", "80.0", "1e-7", "123456789.0"}
)

// generated is a text of an expression, of any types.
func generated(t *rapid.T, depth int) string {
	if depth == 0 || rapid.IntRange(0, 3).Draw(t, "leaf") == 0 {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			return "'" + rapid.SampledFrom(texts).Draw(t, "text") + "'"
		case 1:
			return "(" + rapid.SampledFrom(numbers).Draw(t, "number") + ")"
		case 2:
			return "(" + rapid.SampledFrom(doubles).Draw(t, "double") + ")"
		case 3:
			return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "truth")
		}
		root := rapid.SampledFrom([]string{"source", "destination", "connection"}).Draw(t, "root")
		var names []string
		for _, n := range []string{
			"address", "port", "principal", "workload", "namespace", "service", "mtls", "uri_san_peer_certificate", "termination_details", "requested_server_name",
		} {
			if connection[root][n] != 0 {
				names = append(names, n)
			}
		}
		name := rapid.SampledFrom(names).Draw(t, "name")
		return fmt.Sprintf(rapid.SampledFrom([]string{"%s.%s", "%s.%s", "has(%s.%s)", "%s['%s']", "dyn(%s.%s)"}).Draw(t, "access"), root, name)
	}
	x := func() any { return generated(t, depth-1) }
	switch op := rapid.SampledFrom([]string{
		"&&", "||", "&&", "||", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "in", "!", "neg", "?", "startsWith", "endsWith", "contains", "matches", "size", "string", "int", "double",
	}).Draw(t, "op"); op {
	case "in":
		list := make([]string, rapid.IntRange(0, 3).Draw(t, "length"))
		for i := range list {
			list[i] = "dyn(" + generated(t, depth-1) + ")"
		}
		return fmt.Sprintf("(dyn(%s) in [%s])", x(), strings.Join(list, ", "))
	case "!":
		return fmt.Sprintf("!(dyn(%s))", x())
	case "neg":
		return fmt.Sprintf("(-dyn(%s))", x())
	case "?":
		return fmt.Sprintf("(dyn(%s) ? dyn(%s) : dyn(%s))", x(), x(), x())
	case "startsWith", "endsWith", "contains":
		return fmt.Sprintf("dyn(%s).%s(dyn(%s))", x(), op, x())
	case "matches":
		return fmt.Sprintf("dyn(%s).matches('%s')", x(), strings.ReplaceAll(rapid.SampledFrom(patterns).Draw(t, "pattern"), `\`, `\\`))
	case "size", "string", "int", "double":
		return fmt.Sprintf("%s(dyn(%s))", op, x())
	default:
		return fmt.Sprintf("(dyn(%s) %s dyn(%s))", x(), op, x())
	}
}

// TestAgreesWithCEL: what a node proxy evaluates is what CEL says, for every operation, type
// and attribute, also where there is no value.
func TestAgreesWithCEL(t *testing.T) {
	compiled, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		all++
		if agree(t, generated(t, rapid.IntRange(0, 4).Draw(t, "depth")), drawn(t)) {
			compiled++
		}
	})
	if compiled < all*9/10 {
		t.Errorf("%d of %d are compiled", compiled, all)
	}
}

// TestTrees: the cases in which CEL is not as one may expect.
func TestTrees(t *testing.T) {
	s := seen{
		telemetrypb.Expression_SOURCE_WORKLOAD: "web", telemetrypb.Expression_SOURCE_PORT: int64(80), telemetrypb.Expression_CONNECTION_MTLS: true,
		telemetrypb.Expression_SOURCE_NAMESPACE: "é\xff",
	}
	for text, want := range map[string]string{
		"source.workload == 'web' || source.principal == 'x'": "true",
		"source.principal == 'x' || source.workload == 'web'": "true",
		"source.principal == 'x' && source.workload == 'db'":  "false",
		"source.principal == 'x' && source.workload == 'web'": "",
		"!(source.principal == 'x')":                          "",
		"source.port == '80'":                                 "false",
		"source.port == 80.0":                                 "true",
		"source.port in ['80', 80]":                           "true",
		"source.port in [80, source.principal]":               "",
		"1 in []":                                             "false",
		"source.principal in []":                              "false",
		"source.port < '9'":                                   "",
		"source.port + 1":                                     "81",
		"source.port + '1'":                                   "",
		"source.port / 0":                                     "",
		"9223372036854775807 + source.port":                   "",
		"-9223372036854775808 * -1 == 1":                      "",
		"0.0 / 0.0 < 1.0":                                     "",
		"0.0 / 0.0 == 0.0 / 0.0":                              "false",
		"1.0 / 0.0":                                           "+Inf",
		"1e21":                                                "1e+21",
		"size(source.namespace)":                              "2",
		"source.namespace":                                    "é?",
		"source.workload.matches('^w.b$')":                    "true",
		"matches(source.workload, 'e')":                       "true",
		"source['workload']":                                  "web",
		"has(source.principal) ? source.principal : 'none'":   "none",
		"source.principal ? 1 : 2":                            "",
		"source.workload ? 1 : 2":                             "",
		"source.workload + '/' + string(source.port)":         "web/80",
		"int('12') + int(2.9)":                                "14",
		"int(source.workload)":                                "",
		"double('1.5')":                                       "1.5",
		"string(connection.mtls)":                             "true",
		"connection.mtls > false":                             "true",
		"dyn(1) && true":                                      "",
		"dyn(1) || true":                                      "true",
		"-source.port":                                        "-80",
		"7 % 4":                                               "3",
		"-7 / 2":                                              "-3",
	} {
		if !agree(t, text, s) {
			t.Errorf("%s is refused", text)
			continue
		}
		v, err := CompileValue(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := v.Text(s.asCEL()); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}

// TestNoTree: what node proxies do not evaluate is refused by its name.
func TestNoTree(t *testing.T) {
	for text, named := range map[string]string{
		"[1, 2].all(x, x > 0)":                                                  "the macro all",
		"['a'].exists(x, x == source.workload)":                                 "the macro exists",
		"source.exists(x, x == 'workload')":                                     "the macro exists",
		"timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-01T00:00:01Z')": "timestamp()",
		"duration('1s') == duration('1s')":                                      "duration()",
		"source == destination":                                                 "source as a whole",
		"'workload' in source":                                                  "in, but before a list in brackets",
		"[1] == [1]":                                                            "a list, but on the right of in",
		"size([1]) == 1":                                                        "a list",
		"{'a': 1}['a'] == 1":                                                    "the field a of a value",
		"b'a' == b'a'":                                                          "literals of the type bytes",
		"1u == 1u":                                                              "literals of the type uint",
		"source.workload == null":                                               "literals of the type null",
		"type(source.port) == int":                                              "type()",
		"bool('true')":                                                          "bool()",
		"source.workload.matches(source.principal)":                             "pattern of matches",
		"source.workload.matches('((x{30}){30}){30}')":                          "invalid repeat count",
		"source.workload.matches('(?:[a-z]{10}[0-9]{500}){2}')":                 "too large",
		"source[source.workload] == 'x'":                                        "an index that is not a text",
		"source['kort'] == 1":                                                   "no attribute source.kort",
		"request.method == 'GET'":                                               "no attribute request.method",
		"source.workload.matches('" + strings.Repeat("a", 1025) + "')":          "longer than 1024 bytes",
		"source.port in [" + strings.Repeat("1, ", 600) + "1]":                  "more than 512",
	} {
		c, err := Compile(text)
		if err != nil {
			if strings.Contains(err.Error(), named) {
				continue // CEL itself refuses it
			}
			t.Errorf("%.60s: %v", text, err)
			continue
		}
		if tree, err := c.Tree(); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%.60s: %v, error %v", text, tree, err)
		}
	}
}

// FuzzTree: what users write is refused, or evaluated as CEL does.
func FuzzTree(f *testing.F) {
	for _, s := range []string{"source.port == 80 || has(source.workload)", "source.workload in ['a'] ? 1 : 2.5", "[1].all(x, x > 0)", "'é'.size() + int('1')"} {
		f.Add(s)
	}
	s := seen{telemetrypb.Expression_SOURCE_WORKLOAD: "a", telemetrypb.Expression_SOURCE_PORT: int64(80)}
	f.Fuzz(func(t *testing.T, text string) { agree(t, text, s) })
}
