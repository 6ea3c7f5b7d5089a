package hack

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/criserver/criserver/"

// goPackage is the part of `go list -json` that the rules look at.
type goPackage struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	GoFiles    []string
	CgoFiles   []string
}

// goList lists packages of the main module, from its root.
func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Doc,Imports,GoFiles,CgoFiles"}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	var pkgs []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// layers is layers.txt.
type layers struct {
	may   map[string][]string // package -> the packages of this module that it may import
	only  []exclusion         // no other package may import it
	never []exclusion         // these may not even link it
}

// exclusion is about packages and the import path of something below which they are alone, or which they never touch.
type exclusion struct {
	packages []string
	prefix   string
}

func (e exclusion) covers(importPath string) bool {
	return importPath == e.prefix || strings.HasPrefix(importPath, e.prefix+"/")
}

func readLayers(r io.Reader) (layers, error) {
	l := layers{may: map[string][]string{}}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line, _, _ := strings.Cut(s.Text(), "#")
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case (f[0] == "only" || f[0] == "never") && len(f) == 3:
			e := exclusion{packages: strings.Split(f[1], ","), prefix: f[2]}
			if f[0] == "only" {
				l.only = append(l.only, e)
			} else {
				l.never = append(l.never, e)
			}
		case strings.HasSuffix(f[0], ":"):
			l.may[strings.TrimSuffix(f[0], ":")] = f[1:]
		default:
			return l, fmt.Errorf("layers.txt:%d: want `package: packages...`, `only packages path` or `never packages path`", n)
		}
	}
	return l, s.Err()
}

// violations are the imports of one package that the table does not allow.
func (l layers) violations(pkg string, imports []string) []string {
	may, known := l.may[pkg]
	if !known {
		return []string{"has no line in layers.txt"}
	}
	var bad []string
	for _, imp := range imports {
		ours, isOurs := strings.CutPrefix(imp, module)
		if isOurs && !slices.Contains(may, ours) && !slices.Contains(may, "*") {
			bad = append(bad, "may not import "+ours)
		}
		for _, o := range l.only {
			if o.covers(imp) && !slices.Contains(o.packages, pkg) {
				bad = append(bad, fmt.Sprintf("may not import %s: only %s may", imp, strings.Join(o.packages, ", ")))
			}
		}
	}
	return bad
}

func loadLayers(t *testing.T) layers {
	t.Helper()
	f, err := os.Open("layers.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := readLayers(f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayers(t *testing.T) {
	l := loadLayers(t)
	stale := map[string]bool{}
	for p := range l.may {
		stale[p] = true
	}
	for _, p := range goList(t, "./cmd/...", "./pkg/...", "./hack/...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		delete(stale, name)
		for _, v := range l.violations(name, p.Imports) {
			t.Errorf("%s %s", name, v)
		}
	}
	for p := range stale {
		t.Errorf("layers.txt has a line for %s, which does not exist", p)
	}
}

// TestNeverLinked looks at all that ends up in a binary, by whatever way.
func TestNeverLinked(t *testing.T) {
	linked := map[string][]goPackage{} // one go list for each program
	for _, n := range loadLayers(t).never {
		for _, pkg := range n.packages {
			if linked[pkg] == nil {
				linked[pkg] = goList(t, "-deps", "-tags", "netgo osusergo seccomp runc_nocriu", "./"+pkg)
			}
			for _, d := range linked[pkg] {
				if n.covers(d.ImportPath) {
					t.Errorf("%s links %s; `go list -deps ./%s` and `go mod why` tell by way of what", pkg, d.ImportPath, pkg)
				}
			}
		}
	}
}

// The rules themselves find what they are for.
func TestLayersFindViolations(t *testing.T) {
	l, err := readLayers(strings.NewReader("pkg/a: pkg/b\npkg/b:\ncmd/x: *\nonly pkg/a example.org/lib  # a comment\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"pkg/a", module + "pkg/b", true},
		{"pkg/b", module + "pkg/a", false},
		{"cmd/x", module + "pkg/b", true},
		{"pkg/a", "example.org/lib/deep", true},
		{"pkg/b", "example.org/lib/deep", false},
		{"cmd/x", "example.org/lib", false},
		{"pkg/b", "example.org/library", true},
		{"pkg/new", "fmt", false},
	} {
		if got := l.violations(c.pkg, []string{c.imp}); (len(got) == 0) != c.ok {
			t.Errorf("%s imports %s: %v", c.pkg, c.imp, got)
		}
	}
	if _, err := readLayers(strings.NewReader("pkg/a pkg/b")); err == nil {
		t.Error("a line without a colon was taken")
	}
}
