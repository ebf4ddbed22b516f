package expr

import (
	"strings"
	"testing"
	"time"
)

func example() Attributes {
	return Attributes{
		"request":    {"path": "/v1beta3?x=1", "url_path": "/v1beta3", "method": "GET", "headers": map[string]string{"x-a": "b"}, "size": int64(7), "time": time.Unix(1, 0)},
		"response":   {"code": int64(503), "flags": "UF"},
		"connection": {"mtls": true},
	}
}

// TestConditions: Istio's examples, and what they say of a request.
func TestConditions(t *testing.T) {
	for text, want := range map[string]bool{
		"response.code >= 400": true, "response.code == 200": false,
		"connection.mtls && request.url_path.contains('v1beta3')":                                           true,
		`!has(request.useragent) || !(request.useragent.startsWith("Amazon-Route53-Health-Check-Service"))`: true,
		`request.headers["x-a"] == "b"`:                                                                     true, `"x-b" in request.headers`: false, "true": true,
		"request.size > 5 && request.method in ['GET', 'HEAD']": true,
	} {
		c, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := c.Holds(example()); err != nil || got != want {
			t.Errorf("%s is %v, error %v", text, got, err)
		}
	}
}

// TestMistakes: what is no condition is refused when it is compiled, by name.
func TestMistakes(t *testing.T) {
	for text, named := range map[string]string{
		"response.code >": "Syntax error", "response.kode == 1": "response.kode", "nothing.code == 1": "undeclared", "'a'": "must be true or false",
		strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000): "", "response.code + 1 == " + strings.Repeat("1", 5000): "longer", "": "",
	} {
		if c, err := Compile(text); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%.40q: %v, %v", text, c, err)
		}
	}
}

// TestCostIsBounded: a condition whose cost grows with what a client sends ends with an
// error, soon.
func TestCostIsBounded(t *testing.T) {
	c, err := Compile("request.headers.all(a, request.headers.all(b, request.headers.all(c, a != 'x' || b != c)))")
	if err != nil {
		t.Fatal(err)
	}
	headers := map[string]string{}
	for i := range 200 {
		headers[strings.Repeat("h", i+1)] = "v"
	}
	if _, err := c.Holds(Attributes{"request": {"headers": headers}}); err == nil || !strings.Contains(err.Error(), "cost limit") {
		t.Errorf("error %v", err)
	}
	missing, err := Compile("response.code == 1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := missing.Holds(Attributes{}); err == nil || got {
		t.Errorf("a missing field: %v, %v", got, err)
	}
}

func BenchmarkCondition(b *testing.B) {
	c, err := Compile("response.code >= 400")
	if err != nil {
		b.Fatal(err)
	}
	a := example()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Holds(a)
	}
}

// FuzzCondition: whatever is written, it compiles and is evaluated, or is refused.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{"response.code >= 400", "has(request.a)", "request.headers.exists(h, h == 'a')", "[1,2].map(x, x*x) == [1,4]"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		if c, err := Compile(text); err == nil {
			_, _ = c.Holds(example())
		}
	})
}

// BenchmarkDearest is a condition that costs as much as one may.
func BenchmarkDearest(b *testing.B) {
	c, err := Compile("request.headers.all(a, request.headers.all(b, a != 'x' || b != a))")
	if err != nil {
		b.Fatal(err)
	}
	headers := map[string]string{}
	for i := range 100 {
		headers[strings.Repeat("h", i+1)] = "v"
	}
	a := Attributes{"request": {"headers": headers}}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Holds(a)
	}
}
