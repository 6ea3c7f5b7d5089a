package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type rec struct{ Name string }

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPutLoadDelete(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{"first", "second"} {
		if err := s.Put(Pods, "a", rec{name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "pods", ".tmp-b"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	recs, damaged, err := s.Load(Pods)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	var got rec
	if err := json.Unmarshal(recs["a"], &got); err != nil || len(recs) != 1 || got.Name != "second" {
		t.Fatalf("loaded %d records, the first %q (%v); want one, second", len(recs), got.Name, err)
	}
	for range 2 {
		if err := s.Delete(Pods, "a"); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "pods"))
	if err != nil || len(left) != 0 {
		t.Fatalf("after Delete %v is left (%v)", left, err)
	}
}

// TestDamage changes every byte of a record, and cuts it at every length: each damage must be seen and put aside.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Put(Containers, "c", rec{"x"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "containers", "c.json")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		recs, damaged, err := s.Load(Containers)
		if err != nil || len(recs) != 0 || len(damaged) != 1 || !strings.Contains(damaged[0].Error(), "containers/c") {
			t.Fatalf("%s: %d records, damaged %v, error %v", what, len(recs), damaged, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "quarantine", "containers-c.json")); err != nil {
			t.Fatal(what, err)
		}
	}
	for i := range whole {
		check("cut", whole[:i])
		flipped := append([]byte(nil), whole...)
		flipped[i] ^= 1
		check("flip", flipped)
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b, b.TempDir())
	r := rec{strings.Repeat("x", 4096)}
	for b.Loop() {
		if err := s.Put(Pods, "a", r); err != nil {
			b.Fatal(err)
		}
	}
}
