package hack

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

const (
	maxLines  = 75 // of a function: a screen, with some patience
	maxParams = 6  // of a function: a struct where it would be more
)

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range goList(t, "./...") {
		if len(p.GoFiles)+len(p.CgoFiles) > 0 && len(strings.Fields(p.Doc)) < 4 {
			t.Errorf("%s has no package comment", strings.TrimPrefix(p.ImportPath, module))
		}
	}
}

func TestFunctionsFitAScreen(t *testing.T) {
	for _, p := range goList(t, "./...") {
		for _, name := range append(p.GoFiles, p.CgoFiles...) {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if ast.IsGenerated(f) {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					for _, complaint := range unwieldy(fset, fn) {
						t.Errorf("%s/%s: %s", strings.TrimPrefix(p.ImportPath, module), name, complaint)
					}
				}
			}
		}
	}
}

func unwieldy(fset *token.FileSet, fn *ast.FuncDecl) (complaints []string) {
	if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > maxLines {
		complaints = append(complaints, fmt.Sprintf("%s is %d lines long; a screen holds %d", fn.Name.Name, n, maxLines))
	}
	if n := fn.Type.Params.NumFields(); n > maxParams {
		complaints = append(complaints, fmt.Sprintf("%s has %d parameters; a struct would say what they are", fn.Name.Name, n))
	}
	return complaints
}

func TestUnwieldyFunctionsAreFound(t *testing.T) {
	src := "package p\nfunc long() {\n" + strings.Repeat("println()\n", maxLines) + "}\nfunc wide(a, b, c, d, e, f, g int) {}\nfunc good(a int) {}\n"
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 1, 0} {
		fn := f.Decls[i].(*ast.FuncDecl)
		if got := unwieldy(fset, fn); len(got) != want {
			t.Errorf("%s: %v", fn.Name.Name, got)
		}
	}
}
