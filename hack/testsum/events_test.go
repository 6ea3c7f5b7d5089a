package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The counts are those of the real go command over small modules of every sort.
func TestCounts(t *testing.T) {
	for _, c := range []struct {
		name, test string
		want       tally
		says       string
	}{
		{"passes", `func TestA(t *testing.T) {}; func TestB(t *testing.T) {}`, tally{passed: 2}, "pass example.org/m"},
		{"subtests count, their parent does not", `func TestA(t *testing.T) { t.Run("x", TestB); t.Run("y", TestB) }; func TestB(t *testing.T) {}`, tally{passed: 3}, ""},
		{"a failed subtest is one failure", `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.Error("broke it") }); t.Run("y", func(t *testing.T) {}) }`, tally{passed: 1, failed: 1}, "broke it"},
		{"a parent that fails by itself", `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Error("after all") }`, tally{passed: 1, failed: 1}, "after all"},
		{"skips are not passes", `func TestA(t *testing.T) { t.Skip("no such kernel") }`, tally{skipped: 1}, "no such kernel"},
		{"a build that fails", `func TestA(t *testing.T) { undefined() }`, tally{failed: 1}, "undefined: undefined"},
		{"a panic", `func TestA(t *testing.T) { panic("boom") }`, tally{failed: 1}, "boom"},
		{"an exit behind the tests' back", `func TestA(t *testing.T) { os.Exit(3) }`, tally{failed: 1}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module example.org/m\n\ngo 1.26\n")
			write(t, filepath.Join(dir, "m_test.go"), "package m\nimport (\"os\"; \"testing\")\nvar _ = os.Exit\n"+c.test+"\n")
			cmd := exec.Command("go", "test", "-json", "./...")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
			out, _ := cmd.Output() // fails where the tests do
			var shown strings.Builder
			r := reader{out: &shown}
			if got := r.read(strings.NewReader(string(out))); got != c.want {
				t.Errorf("counted %+v, want %+v in\n%s", got, c.want, out)
			}
			if !strings.Contains(shown.String(), c.says) {
				t.Errorf("%q is not in\n%s", c.says, shown.String())
			}
		})
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
