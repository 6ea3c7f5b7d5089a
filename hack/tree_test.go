package hack

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTreeKnowsNoMachine looks in every file that git tracks or would add for the
// paths of the machine it is on: where it is checked out, and the caller's home.
func TestTreeKnowsNoMachine(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	foreign := []string{root + "/"}
	if home, err := os.UserHomeDir(); err == nil && strings.Count(home, "/") > 1 { // not /root, which is everywhere
		foreign = append(foreign, home+"/")
	}
	for _, name := range treeFiles(t) {
		b, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			continue // a directory of a submodule, or removed meanwhile
		}
		for _, w := range foreign {
			if i := bytes.Index(b, []byte(w)); i >= 0 {
				t.Errorf("%s:%d has %q", name, 1+bytes.Count(b[:i], []byte("\n")), w)
			}
		}
	}
}

func TestNoLeftovers(t *testing.T) {
	words := []string{"TO" + "DO", "FIX" + "ME"}
	for _, name := range treeFiles(t) {
		switch filepath.Ext(name) {
		case ".go", ".c", ".sh", ".toml":
		default:
			continue
		}
		b, _ := os.ReadFile(filepath.Join("..", name))
		for i, line := range strings.Split(string(b), "\n") {
			for _, w := range words {
				if strings.Contains(line, w+":") || strings.Contains(line, w+" ") || strings.HasSuffix(line, w) {
					t.Errorf("%s:%d: finish it, or file an issue: %s", name, i+1, strings.TrimSpace(line))
				}
			}
		}
	}
}

// treeFiles lists the project's files, relative to its root: what git knows or would add, or all when there is no git.
func treeFiles(t *testing.T) []string {
	t.Helper()
	git := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = ".."
	if out, err := git.Output(); err == nil && len(out) > 0 {
		return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	}
	var names []string
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel("..", p)
		if d.IsDir() && (rel == ".cache" || rel == "bin" || rel == ".git") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			names = append(names, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
