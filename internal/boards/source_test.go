package boards

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// named is what names of metrics look like in the code.
var named = regexp.MustCompile(`^(istio|ambit|pilot|citadel|galley|ztunnel|waypoint|workload_manager|nodeagent)_[a-z0-9_]*[a-z0-9]$`)

// TestEveryMetricOfTheCodeIsListed: a metric that a program registers by a name in the code
// has a row, and every row is of a name in the code.
func TestEveryMetricOfTheCodeIsListed(t *testing.T) {
	list, err := Metrics()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range list {
		listed[m.Name] = true
	}
	registered, texts := map[string]string{}, map[string]bool{}
	for _, root := range []string{"internal", "cmd"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "internal/boards") && !strings.HasSuffix(path, ".pb.go") {
				literals(t, path, registered, texts)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(registered) < 50 {
		t.Fatalf("%d metrics in the code: does the test find them?", len(registered))
	}
	for name, file := range registered {
		if !listed[name] {
			t.Errorf("%s registers %s: add it to metrics.txt", file, name)
		}
	}
	for _, m := range list {
		if !texts[m.Name] && !composed(m.Name, texts) {
			t.Errorf("%s is not in the code", m.Name)
		}
	}
}

// composed reports whether a name is made of parts: a prefix, or what is counted.
func composed(name string, texts map[string]bool) bool {
	if rest, ok := strings.CutPrefix(name, "citadel_server_"); ok {
		return texts[rest]
	}
	for _, end := range []string{"_access_log_suppressed_total", "_sent_total", "_dropped_total"} {
		if strings.HasSuffix(name, end) {
			return texts[end]
		}
	}
	return false
}

// literals notes the texts of a file, and those that are names of metrics where they are
// registered: first arguments, and fields Name.
func literals(t *testing.T, path string, registered map[string]string, texts map[string]bool) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	usesPrometheus := false
	for _, i := range f.Imports {
		usesPrometheus = usesPrometheus || strings.Contains(i.Path.Value, "client_golang/prometheus")
	}
	note := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil && named.MatchString(s) {
				registered[s] = path
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				texts[s] = true
			}
		case *ast.CallExpr:
			if len(n.Args) > 1 && usesPrometheus {
				note(n.Args[0])
			}
		case *ast.KeyValueExpr:
			if id, ok := n.Key.(*ast.Ident); ok && id.Name == "Name" && usesPrometheus {
				note(n.Value)
			}
		}
		return true
	})
}
