package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPageIsCurrent(t *testing.T) {
	want, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the tests declare: run `go run ./hack/conformance`", page)
	}
}

const rowsOfTest = "#- a comment\n# Part\nR-01\tone\nR-02\ttwo\tv2\nR-03\tthree | <b>\n"

// tree is a small tree with rows, a table of specs and one file of tests.
func tree(t *testing.T, rows, test string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"test/conformance/rows.tsv":    rows,
		"test/conformance/critest.tsv": "",
		"pkg/a/a_test.go":              test,
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestGenerate(t *testing.T) {
	text, err := generate(tree(t, rowsOfTest, `package a

// TestOne does one thing.
// rows: R-01
func TestOne(t *testing.T) {
	// rows: R-03, R-01
}

func FuzzTwo(f *testing.F) {
	// rows: R-03
}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| R-01 | one | yes | pkg/a.TestOne |",
		"| R-02 | two | not here (v2) |  |",
		`| R-03 | three \| &lt;b> | yes | pkg/a.FuzzTwo, pkg/a.TestOne |`,
		"| Part | 2 | 0 | 1 |",
	} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
}

func TestGenerateRefuses(t *testing.T) {
	for name, c := range map[string]struct{ rows, test, says string }{
		"an unknown row":         {rowsOfTest, "package a\n\nfunc TestA() {\n\t// rows: R-99\n}\n", `a_test.go:4:2: no row has the ID "R-99"`},
		"rows outside of a test": {rowsOfTest, "package a\n\nfunc helper() {\n\t// rows: R-01\n}\n", "a_test.go:4:2"},
		"rows at TestMain":       {rowsOfTest, "package a\n\nfunc TestMain() {\n\t// rows: R-01\n}\n", "a_test.go:4:2"},
		"a row twice":            {rowsOfTest + "R-01\tagain\n", "package a\n", "R-01"},
		"a row without a title":  {"# Part\nR-01\n", "package a\n", "rows.tsv:2"},
		"no section":             {"R-01\tone\n", "package a\n", "rows.tsv:1"},
		"no ID":                  {"# Part\nr 1\tone\n", "package a\n", "rows.tsv:2"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := generate(tree(t, c.rows, c.test))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
		})
	}
}
