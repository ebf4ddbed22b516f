package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rawOutput lists the functions of the command line that may write to a
// terminal past the printer, and why.
var rawOutput = map[string]string{
	"internal/cli/session/kube.go Client":                 "warnings of the API server, written by client-go",
	"internal/cli/labcmd/exec.go execPlain":               "the program's own output, for which it was started",
	"internal/cli/install.go showTTY":                     "writes over its own line",
	"internal/cli/install.go newScreen":                   "asks whether it is a terminal",
	"internal/cli/install.go printPlan":                   "manifests of the project's charts with the user's values",
	"internal/cli/install.go manifestCommand":             "manifests of the project's charts with the user's values",
	"internal/lab/process/podinit.go PodInit":             "makes a printer",
	"internal/lab/supervisor/supervisor.go newSupervisor": "a log, which quotes",
	"internal/lab/tty.go Interactive":                     "the program's own output, for which it was started",
}

// TestOutputIsEscaped: the command line writes to a terminal by package printer
// alone, which escapes what others chose.
func TestOutputIsEscaped(t *testing.T) {
	used := map[string]bool{}
	for _, dir := range []string{"internal/cli", "internal/lab"} {
		var files []string
		err := filepath.WalkDir("../../"+dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".go" {
				files = append(files, path)
			}
			return err
		})
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files in %s: %v", len(files), dir, err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				for _, place := range rawWrites(t, file) {
					place = strings.TrimPrefix(filepath.Dir(file), "../../") + "/" + place
					used[place] = true
					if rawOutput[place] == "" {
						t.Errorf("%s writes past package printer: use its Printf and Table", place)
					}
				}
			}
		}
	}
	for place := range rawOutput {
		if !used[place] {
			t.Errorf("%s does not write past package printer: take it from the list", place)
		}
	}
}

// rawWrites lists the functions of a file that name the process's own output,
// print to it, or take what a printer writes to.
func rawWrites(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var places []string
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if raw(n) {
				places = append(places, filepath.Base(file)+" "+fn.Name.Name)
			}
			return true
		})
	}
	slices.Sort(places)
	return slices.Compact(places)
}

func raw(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.SelectorExpr:
		switch of, _ := n.X.(*ast.Ident); {
		case of == nil:
		case of.Name == "os" && (n.Sel.Name == "Stdout" || n.Sel.Name == "Stderr"):
			return true
		case of.Name == "fmt" && strings.HasPrefix(n.Sel.Name, "Print"):
			return true
		}
	case *ast.CallExpr:
		if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Under" {
			return true
		}
		if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
			return true
		}
		return formatsRaw(n)
	}
	return false
}

// formatsRaw reports whether n is fmt.Fprint… to an output of the command
// line: its values would be escaped as text, in which line breaks stay.
func formatsRaw(n *ast.CallExpr) bool {
	fn, ok := n.Fun.(*ast.SelectorExpr)
	if !ok || len(n.Args) == 0 || !strings.HasPrefix(fn.Sel.Name, "Fprint") {
		return false
	}
	to, ok := n.Args[0].(*ast.SelectorExpr)
	return ok && (to.Sel.Name == "out" || to.Sel.Name == "err")
}
