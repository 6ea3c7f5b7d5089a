package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
)

// proof says that a test proves a row.
type proof struct {
	id   string
	test string // package directory and function: test/blackbox.TestAttach
	at   string // where that is declared, for messages
}

const mark = "// rows:"

// declarations collects what the tests below root declare. One that stands outside of a test is an error: it would be lost.
func declarations(root string) (proofs []proof, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		more, err := inFile(path, dir)
		proofs = append(proofs, more...)
		return err
	})
	return proofs, err
}

// inFile collects the declarations of one file of the package in dir.
func inFile(path, dir string) (proofs []proof, err error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, group := range f.Comments {
		for _, c := range group.List {
			list, ok := strings.CutPrefix(c.Text, mark)
			if !ok {
				continue
			}
			at := fset.Position(c.Pos()).String()
			test := testAround(f, c.Pos())
			if test == "" {
				errs = append(errs, fmt.Errorf("%s: the rows stand outside of a test", at))
				continue
			}
			for _, id := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
				proofs = append(proofs, proof{id: id, test: dir + "." + test, at: at})
			}
		}
	}
	return proofs, errors.Join(errs...)
}

// testAround is the test or fuzz function whose comment or body has the position, "" when there is none.
func testAround(f *ast.File, pos token.Pos) string {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") && !strings.HasPrefix(fn.Name.Name, "Fuzz") || fn.Name.Name == "TestMain" {
			continue
		}
		from := fn.Pos()
		if fn.Doc != nil {
			from = fn.Doc.Pos()
		}
		if from <= pos && pos < fn.End() {
			return fn.Name.Name
		}
	}
	return ""
}
