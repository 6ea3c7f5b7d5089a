package cdi

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

// describe writes a file of a vendor with a device that sets a variable and is /dev/null.
func describe(t *testing.T, dir, vendor, device, value string) {
	t.Helper()
	text := "cdiVersion: 0.5.0\nkind: " + vendor + "/gpu\ncontainerEdits:\n  env: [ALL=" + value + "]\ndevices:\n" +
		"- name: " + device + "\n  containerEdits:\n    env: [DEVICE=" + value + "]\n    deviceNodes: [{path: /dev/" + device + ", hostPath: /dev/null}]\n"
	write(t, filepath.Join(dir, vendor+".yaml"), text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dirs ...string) *Devices {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	d, err := Open(dirs, logrus.NewEntry(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// inject injects into an empty spec and returns its variables and devices.
func inject(d *Devices, names ...string) (env []string, devices []string, err error) {
	s := &specs.Spec{Process: &specs.Process{}}
	err = d.Inject(s, names)
	if s.Linux != nil {
		for _, n := range s.Linux.Devices {
			devices = append(devices, n.Path)
		}
	}
	return s.Process.Env, devices, err
}

func TestInject(t *testing.T) {
	dir := t.TempDir()
	describe(t, dir, "one.example", "x", "1")
	d := open(t, dir)
	env, devices, err := inject(d, "one.example/gpu=x")
	if err != nil || !slices.Equal(env, []string{"ALL=1", "DEVICE=1"}) || !slices.Equal(devices, []string{"/dev/x"}) {
		t.Errorf("got %v, %v, %v", env, devices, err)
	}
	if env, devices, err := inject(d); err != nil || env != nil || devices != nil {
		t.Errorf("nothing asked for gave %v, %v, %v", env, devices, err)
	}
}

// What is written later, also in a directory that was not there, is found at once: no time passes in this test.
func TestRefresh(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	d := open(t, t.TempDir(), dir)
	if _, _, err := inject(d, "one.example/gpu=x"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "one.example/gpu=x") ||
		!strings.Contains(err.Error(), dir) {
		t.Errorf("an unknown device: %v", err)
	}
	describe(t, dir, "one.example", "x", "1")
	if _, devices, err := inject(d, "one.example/gpu=x"); err != nil || len(devices) != 1 {
		t.Errorf("a new file: %v, %v", devices, err)
	}
	describe(t, dir, "one.example", "y", "2")
	if env, _, err := inject(d, "one.example/gpu=y"); err != nil || !slices.Contains(env, "DEVICE=2") {
		t.Errorf("a file that changed: %v, %v", env, err)
	}
}

// The directories are in the order of their precedence.
func TestLaterDirectoryCounts(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	describe(t, first, "one.example", "x", "first")
	describe(t, second, "one.example", "x", "second")
	if env, _, err := inject(open(t, first, second), "one.example/gpu=x"); err != nil || !slices.Contains(env, "DEVICE=second") {
		t.Errorf("got %v, %v", env, err)
	}
}

// A broken file harms nobody else, and whoever misses a device of it is told.
func TestBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	describe(t, dir, "one.example", "x", "1")
	for name, text := range map[string]string{
		"yaml.yaml": "\t{", "version.yaml": "cdiVersion: 99.0.0\nkind: two.example/gpu\n", "empty.json": "",
		"path.yaml": "cdiVersion: 0.5.0\nkind: two.example/gpu\ndevices: [{name: y, containerEdits: {hooks: [{hookName: nonsense, path: ../x}]}}]\n",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	d := open(t, dir)
	if _, devices, err := inject(d, "one.example/gpu=x"); err != nil || len(devices) != 1 {
		t.Errorf("a device of another vendor: %v, %v", devices, err)
	}
	_, _, err := inject(d, "two.example/gpu=y")
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("a device of a broken file: %v", err)
	}
	for _, file := range []string{"yaml.yaml", "version.yaml", "path.yaml"} {
		if !strings.Contains(err.Error(), file) {
			t.Errorf("%v does not name %s", err, file)
		}
	}
}
