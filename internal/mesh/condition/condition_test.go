package condition

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// That it evaluates as CEL does is tested beside what makes trees, in l7/expr.

type attributes struct{ workload string }

func (a *attributes) Attribute(n telemetrypb.Expression_Attribute) Value {
	if n == telemetrypb.Expression_SOURCE_WORKLOAD {
		return Text(a.workload)
	}
	return Value{}
}

func text(s string) *telemetrypb.Expression {
	return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Text{Text: s}}
}

func attribute(a telemetrypb.Expression_Attribute) *telemetrypb.Expression {
	return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Attribute_{Attribute: a}}
}

func call(f telemetrypb.Expression_Function, arguments ...*telemetrypb.Expression) *telemetrypb.Expression {
	return &telemetrypb.Expression{Kind: &telemetrypb.Expression_Call_{Call: &telemetrypb.Expression_Call{Function: f, Arguments: arguments}}}
}

// nested is a tree of a depth.
func nested(depth int) *telemetrypb.Expression {
	x := text("x")
	for range depth - 1 {
		x = call(telemetrypb.Expression_NOT, x)
	}
	return x
}

// TestBounds: a tree beyond a bound, or that makes no sense, is refused, and the error has
// the cause.
func TestBounds(t *testing.T) {
	workload := attribute(telemetrypb.Expression_SOURCE_WORKLOAD)
	wide := func(n int) *telemetrypb.Expression {
		list := []*telemetrypb.Expression{workload}
		for range n {
			list = append(list, text(""))
		}
		return call(telemetrypb.Expression_IN, list...)
	}
	for name, tt := range map[string]struct {
		tree *telemetrypb.Expression
		err  string // "" when it is sound
	}{
		"nothing":               {nil, "is missing"},
		"no kind":               {&telemetrypb.Expression{}, "is missing"},
		"no kind inside":        {call(telemetrypb.Expression_NOT, nil), "is missing"},
		"a call of nothing":     {&telemetrypb.Expression{Kind: &telemetrypb.Expression_Call_{}}, "no function 0"},
		"deepest":               {nested(MaxDepth), ""},
		"too deep":              {nested(MaxDepth + 1), "nested more than"},
		"widest":                {wide(MaxNodes - 2), ""},
		"too wide":              {wide(MaxNodes), "more than 512"},
		"longest":               {text(strings.Repeat("x", MaxText)), ""},
		"too long":              {call(telemetrypb.Expression_ADD, text(strings.Repeat("x", MaxText)), text("x")), "longer than"},
		"an unknown function":   {call(99, workload), "no function 99"},
		"a negative function":   {call(-1, workload), "no function -1"},
		"an unknown attribute":  {attribute(99), "no attribute 99"},
		"no attribute":          {attribute(0), "no attribute 0"},
		"a negative attribute":  {attribute(-1), "no attribute -1"},
		"has() of nothing":      {&telemetrypb.Expression{Kind: &telemetrypb.Expression_Present{}}, "no attribute 0"},
		"too few arguments":     {call(telemetrypb.Expression_EQUAL, workload), "EQUAL has 1 arguments (2 are needed)"},
		"too many arguments":    {call(telemetrypb.Expression_NOT, workload, workload), "NOT has 2"},
		"half a choice":         {call(telemetrypb.Expression_CHOICE, workload, workload), "CHOICE has 2"},
		"a pattern":             {call(telemetrypb.Expression_MATCHES, workload, text("a.c")), ""},
		"a pattern that is not": {call(telemetrypb.Expression_MATCHES, workload, text("(")), "missing closing"},
		"a made pattern":        {call(telemetrypb.Expression_MATCHES, workload, workload), "not a text in quotes"},
		"a long pattern":        {call(telemetrypb.Expression_MATCHES, workload, text(strings.Repeat("a", maxPattern+1))), "longer than 1024"},
		"a large pattern":       {call(telemetrypb.Expression_MATCHES, workload, text("(abcdefghij){1000}")), "too large"},
		"repeated repetitions":  {call(telemetrypb.Expression_MATCHES, workload, text("((a{10}){10}){10}bcdefg((a{10}){10}){10}")), "too large"},
	} {
		_, err := New("x", tt.tree)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCut: texts of labels are bounded and valid.
func TestCut(t *testing.T) {
	for s, want := range map[string]string{
		"a\xffb": "a?b", strings.Repeat("é", MaxValue): strings.Repeat("é", MaxValue/2), "x" + strings.Repeat("é", MaxValue): "x" + strings.Repeat("é", MaxValue/2-1),
	} {
		if got := Cut(s); got != want {
			t.Errorf("%q is %q", s, got)
		}
	}
}

// FuzzNew: whatever travels, it is refused or evaluated, within bounds.
func FuzzNew(f *testing.F) {
	for _, x := range []*telemetrypb.Expression{
		text("a"), nested(70), call(telemetrypb.Expression_MATCHES, text("a"), text("(a|b){3}")),
		call(telemetrypb.Expression_CHOICE, attribute(telemetrypb.Expression_CONNECTION_MTLS), text("a"), text("b")),
	} {
		body, err := proto.Marshal(x)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var p telemetrypb.Expression
		if proto.Unmarshal(body, &p) != nil {
			return
		}
		x, err := New("x", &p)
		if err != nil {
			return
		}
		a := &attributes{"web"}
		x.Holds(a)
		if s, ok := x.Text(a); len(s) > MaxValue+MaxText || !ok && s != "" {
			t.Errorf("%q", s)
		}
	})
}

// BenchmarkHolds is a usual filter.
func BenchmarkHolds(b *testing.B) {
	x, err := New("x", call(telemetrypb.Expression_OR,
		call(telemetrypb.Expression_EQUAL, attribute(telemetrypb.Expression_SOURCE_WORKLOAD), text("db")),
		call(telemetrypb.Expression_IN, attribute(telemetrypb.Expression_SOURCE_WORKLOAD), text("a"), text("b"), text("web"))))
	if err != nil {
		b.Fatal(err)
	}
	a := &attributes{"web"}
	b.ReportAllocs()
	for b.Loop() {
		if !x.Holds(a) {
			b.Fatal("it does not hold")
		}
	}
}

// TestAllocates: evaluation allocates nothing.
func TestAllocates(t *testing.T) {
	x, err := New("x", call(telemetrypb.Expression_AND,
		call(telemetrypb.Expression_MATCHES, attribute(telemetrypb.Expression_SOURCE_WORKLOAD), text("^w.*$")),
		call(telemetrypb.Expression_LESS, call(telemetrypb.Expression_SIZE, attribute(telemetrypb.Expression_SOURCE_WORKLOAD)),
			&telemetrypb.Expression{Kind: &telemetrypb.Expression_Fraction{Fraction: 7.5}})))
	if err != nil {
		t.Fatal(err)
	}
	a := &attributes{"web"}
	if n := testing.AllocsPerRun(1000, func() {
		if !x.Holds(a) {
			t.Fatal("it does not hold")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
