package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// unwatched are packages that start goroutines and have no test that could see them stay:
// tests of the programs that they are a part of do.
var unwatched = map[string]string{
	"internal/cli/labcmd":    "ends with its process",
	"internal/proxy/process": "the life of a process: cmd/ztunnel and internal/gateway/app run it",
}

// TestGoroutinesAreWatched: the tests of a package that starts goroutines fail when one
// of them stays (testutil/leak).
func TestGoroutinesAreWatched(t *testing.T) {
	starts, watches := map[string]bool{}, map[string]bool{}
	for _, root := range []string{"internal", "cmd"} {
		err := filepath.WalkDir("../../"+root, func(file string, d fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(file) == ".go" {
				goroutines(t, file, starts, watches)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir := range starts {
		switch why, excused := unwatched[dir]; {
		case !watches[dir] && !excused:
			t.Errorf("%s starts goroutines, and its tests do not see them stay: add func TestMain(m *testing.M) { leak.Main(m) }", dir)
		case excused && watches[dir]:
			t.Errorf("%s is excused without need (%s): take it from the list", dir, why)
		}
	}
	for dir, why := range unwatched {
		if !starts[dir] {
			t.Errorf("%s starts no goroutine (%s): take it from the list", dir, why)
		}
	}
}

// goroutines notes whether a file starts a goroutine, outside of tests, and whether it
// calls package leak. Packages for tests alone do not count.
func goroutines(t *testing.T, file string, starts, watches map[string]bool) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(file)), "../../")
	if strings.HasSuffix(dir, "test") {
		return
	}
	test := strings.HasSuffix(file, "_test.go")
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			if !test {
				starts[dir] = true
			}
		case *ast.CallExpr:
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Main" || sel.Sel.Name == "Run") {
				if of, ok := sel.X.(*ast.Ident); ok && of.Name == "leak" {
					watches[dir] = true
				}
			}
		}
		return true
	})
}
