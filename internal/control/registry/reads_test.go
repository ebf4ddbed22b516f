package registry

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestDerivationsRemember: what a derivation reads without Fetch or Lookup is
// not remembered, and its row goes stale. Functions that are given a Reader, and
// the methods of describer, which has one, do not read in another way.
func TestDerivationsRemember(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			var typ *ast.FuncType
			var body *ast.BlockStmt
			switch n := n.(type) {
			case *ast.FuncDecl:
				typ, body = n.Type, n.Body
				if n.Recv != nil && isNamed(n.Recv.List[0].Type, "describer") {
					typ = &ast.FuncType{Params: &ast.FieldList{List: []*ast.Field{{Type: ast.NewIdent("describer")}}}}
				}
			case *ast.FuncLit:
				typ, body = n.Type, n.Body
			}
			if typ == nil || !readsTracked(typ) {
				return true
			}
			checked++
			ast.Inspect(body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Get" || sel.Sel.Name == "All" || sel.Sel.Name == "Len") {
					if at, ok := sel.X.(*ast.SelectorExpr); ok {
						t.Errorf("%s: a derivation calls %s.%s: use collection.Fetch or collection.Lookup", name, at.Sel.Name, sel.Sel.Name)
					}
				}
				return true
			})
			return true
		})
	}
	if checked < 30 {
		t.Errorf("only %d derivations were found", checked)
	}
}

// readsTracked reports whether a function is given a Reader or a describer.
func readsTracked(f *ast.FuncType) bool {
	for _, p := range f.Params.List {
		if isNamed(p.Type, "Reader") || isNamed(p.Type, "describer") {
			return true
		}
	}
	return false
}

func isNamed(e ast.Expr, name string) bool {
	switch e := e.(type) {
	case *ast.StarExpr:
		return isNamed(e.X, name)
	case *ast.SelectorExpr:
		return e.Sel.Name == name
	case *ast.Ident:
		return e.Name == name
	}
	return false
}
