package expr

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/internal/mesh/condition"
)

// TestValues: a value is a text, whatever scalar the expression yields. What has no value is
// reported, and texts are bounded and valid.
func TestValues(t *testing.T) {
	long := strings.Repeat("é", condition.MaxValue) // two bytes each
	a := Attributes{
		"request":  {"host": "shop", "url_path": "/a/b", "headers": map[string]string{"x-long": long, "x-bytes": "a\xff\xfeb", "x-odd": "x" + long}},
		"response": {"code": int64(503)},
	}
	for text, want := range map[string]string{
		"request.host":                          "shop",
		"request.url_path":                      "/a/b",
		"response.code":                         "503",
		"response.code >= 500":                  "true",
		"string(response.code / 10)":            "50",
		"1.5":                                   "1.5",
		"'x' + request.host":                    "xshop",
		"response.code >= 500 ? 'bad' : 'good'": "bad",
		"has(request.id) ? request.id : 'none'": "none",
		"request.url_path.startsWith('/a/')":    "true",
		"''":                                    "",
		"request.headers['x-bytes']":            "a?b",
		"request.headers['x-long']":             long[:condition.MaxValue],
		"request.headers['x-odd']":              "x" + long[:condition.MaxValue-2],
	} {
		v, err := CompileValue(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, ok := v.Text(a)
		if !ok || got != want || len(got) > condition.MaxValue || !utf8.ValidString(got) {
			t.Errorf("%s is %q (%v), want %q", text, got, ok, want)
		}
	}
	dear := strings.Repeat("request.headers['x-long'].matches('(é|e)*$') && ", 20) + "true"
	for _, text := range []string{"request.id", "request.headers['none']", "request.headers", "source.port", "xds.route_name", dear} {
		v, err := CompileValue(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, ok := v.Text(a); ok || got != "" {
			t.Errorf("%s is %q", text, got)
		}
	}
	for text, want := range map[string]string{
		"request.nothing": "no attribute", "reqest.host": "undeclared", "[1, 2]": "list", "{'a': 1}": "map", "request.host +": "Syntax", "": "Syntax",
		"istio_operationId": "undeclared", strings.Repeat("a", maxText+1): "longer", "duration('1s')": "must be",
	} {
		if v, err := CompileValue(text); err == nil || v != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v", text, err)
		}
	}
}
