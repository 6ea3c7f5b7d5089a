package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is the file that is installed: it has the defaults.
const sample = "../../deploy/config.toml"

func TestSampleIsDefault(t *testing.T) {
	want := Default().Document()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(sample, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what `criserver config` prints without a file; UPDATE=1 go test writes it anew", sample)
	}
	for i, line := range strings.Split(want, "\n") {
		if len(line) > 200 {
			t.Errorf("line %d has %d bytes", i+1, len(line))
		}
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	var walk func(v reflect.Type)
	walk = func(v reflect.Type) {
		for f := range v.Fields() {
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			} else if f.Tag.Get("toml") == "" || f.Tag.Get("comment") == "" {
				t.Errorf("%s.%s has no key or no description", v.Name(), f.Name)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	c, err := Load(write(t, `
listen = '/tmp/x.sock'
log_level = "debug"
[image]
pinned = ["a/*", "b"]
progress_timeout = "90s"
[cni]
bin_dirs = ['/x']
builtin = false
[defaults]
ulimits = ["nofile=1024:4096", "core=0", "memlock=-1"]
[handler.one]
[handler.two-2]
ulimits = ["core=0"]
writable_cgroups = true
annotations = ["ulimits", "writable-cgroups"]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Listen, want.LogLevel = "/tmp/x.sock", "debug"
	want.Image.Pinned, want.Image.ProgressTimeout = []string{"a/*", "b"}, Duration(90*time.Second)
	want.CNI.BinDirs, want.CNI.Builtin = []string{"/x"}, false
	want.Defaults.Ulimits = []string{"nofile=1024:4096", "core=0", "memlock=-1"}
	want.Handler = map[string]Handler{"one": {}, "two-2": {[]string{"core=0"}, true, []string{"ulimits", "writable-cgroups"}}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v", c)
	}
	again, err := Load(write(t, c.Document()))
	if err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("the document read back: %+v, %v", again, err)
	}
}

// TestDirectory: the files of the directory change, in their order, what the file beside it says, key by key.
// rows: D-178
func TestDirectory(t *testing.T) {
	path := write(t, "log_level = 'warn'\nlog_format = 'json'\n[image]\nparallel = 5\npinned = ['a']\n[handler.x]\nulimits = ['core=0']\n")
	dir := filepath.Join(filepath.Dir(path), "config.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("20-last.toml", "[image]\nparallel = 7\n")
	put("10-first.toml", "log_level = 'debug'\n[image]\nparallel = 6\npinned = ['b']\n[handler.x]\nwritable_cgroups = true\n[handler.y]\n")
	put("30-other.toml.bak", "no toml")
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.LogLevel, want.LogFormat = "debug", "json"
	want.Image.Parallel, want.Image.Pinned = 7, []string{"b"}
	want.Handler = map[string]Handler{"x": {Ulimits: []string{"core=0"}, WritableCgroups: true}, "y": {}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	for text, want := range map[string]string{
		"\n[image]\nparalel = 8\n":  "20-last.toml:3: unknown key image.paralel",
		"\n[image]\nparallel = 0\n": "20-last.toml:3: image.parallel: must be",
		"log_level = ''":            "20-last.toml:1: log_level",
	} {
		put("20-last.toml", text)
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil {
		t.Error("a file that is named and missing, with a directory beside it, was read")
	}
}

func TestNoFile(t *testing.T) {
	c, err := merge()
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("an empty file: %+v, %v", c, err)
	}
	if _, err := Load("/nowhere/config.toml"); err == nil || !strings.Contains(err.Error(), "/nowhere/config.toml") {
		t.Errorf("a file that is named and missing: %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
	if _, err := Load(write(t, strings.Repeat("#\n", maxSize))); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a file that is too large: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"\nlog_levle = 'info'", `:2: unknown key log_levle; do you mean log_level?`},
		{"[image]\nparalel = 3", `:2: unknown key image.paralel; do you mean image.parallel?`},
		{"parallel = 3", `:1: unknown key parallel; do you mean image.parallel?`},
		{"[images]\nparallel = 3", `unknown key images; do you mean image?`},
		{"[cni]\nregistry_dir = '/x'", `:2: unknown key cni.registry_dir; do you mean image.registry_dir?`},
		{"[defaults]\nlisten = '/x'", `:2: unknown key defaults.listen; do you mean listen?`},
		{"[metrics]\naddress = ''", `unknown key metrics`},
		{"zzzzzz = 1", "; `criserver config` prints all keys"},
		{"[handler.a]\nx = 1", `:2: unknown key handler.a.x`},
		{"root = 5", `:1: root: `},
		{"[image]\nparallel = 'three'", `:2: image.parallel: `},
		{"root = '/x", `:1: `},
		{"root = '/x'\nroot = '/y'", `:2: `},
		{"[image]\n\nprogress_timeout = '5'", `:3: image.progress_timeout: "5" is not a duration`},
		{"[image]\nprogress_timeout = '-5s'", `:2: image.progress_timeout: must not be negative`},
		{"[image]\nparallel = 0", `:2: image.parallel: must be 1 to 64, is 0`},
		{"image = { pinned = [], parallel = 65 }", `:1: image.parallel: must be`},
		{"image.parallel = 65", `:1: image.parallel: must be`},
		{"[cni]\nprefer = 'ipv5'", `:2: cni.prefer: `},
		{"[image]\npinned = ['[']", `:2: image.pinned: "["`},
		{"state = 'relative'", `:1: state: "relative" is not an absolute path`},
		{"root = '/a/../b'", `:1: root: "/a/../b" is not an absolute path in its shortest form`},
		{"listen = 'unix:///x'", `:1: listen: `},
		{"state = '/" + strings.Repeat("x", 80) + "'", `longer than 80 bytes`},
		{"root = '/x'\nstate = '/x'", `:2: state: must be another directory`},
		{"log_format = 'xml'", `:1: log_format: must be text or json, is "xml"`},
		{"[streaming]\naddress = 'localhost:0'", `:2: streaming.address: "localhost:0"`},
		{"[telemetry]\nmetrics = '9090'", `:2: telemetry.metrics: "9090"`},
		{"[telemetry]\nendpoint = 'user:secret@host'", `:2: telemetry.endpoint: is not a URL`},
		{"[telemetry]\nratio = 1.5", `:2: telemetry.ratio: must be 0 to 1`},
		{"[streaming]\nidle_timeout = '0s'", `:2: streaming.idle_timeout: `},
		{"[defaults]\ncgroup_manager = 'runc'", `:2: defaults.cgroup_manager: must be auto or cgroupfs or systemd`},
		{"[defaults]\nseccomp_profile = 'x.json'", `:2: defaults.seccomp_profile: `},
		{"[defaults]\napparmor_profile = 'unconfined'", `:2: defaults.apparmor_profile: "unconfined" is not`},
		{"[defaults]\napparmor_profile = \"a\\nb\"", `:2: defaults.apparmor_profile: "a\nb" is not`},
		{"[defaults]\npids_limit = -1", `:2: defaults.pids_limit: `},
		{"[defaults]\nulimits = ['files=1']", `:2: defaults.ulimits: "files=1" is not`},
		{"[defaults]\nulimits = ['core=2:1']", `soft limit is above`},
		{"[defaults]\nulimits = ['core=1', 'core=2']", `two of core`},
		{"[defaults]\n[handler.Kata]", `:2: handler.Kata: the name`},
		{"[handler.x]\nulimits = ['core=2:1']", `:2: handler.x.ulimits: "core=2:1": the soft limit`},
		{"[handler.x]\nannotations = ['*']", `:2: handler.x.annotations: must be ulimits or writable-cgroups, is "*"`},
		{"[handler.x]\nprivileged = true", `:2: `},
		{"[cni]\nbin_dirs = ['/a', 'b']", `:2: cni.bin_dirs: "b"`},
		{"[cni]\nconf_dir = ''", `:2: cni.conf_dir: ""`},
		{"[nri]\nsocket = 'nri.sock'", `:2: nri.socket: "nri.sock" is not an absolute path`},
		{"[nri]\nsocket = '/" + strings.Repeat("x", 107) + "'", `longer than 107 bytes`},
		{"[nri]\nplugin_dir = ''", `:2: nri.plugin_dir: ""`},
		{"[nri]\nconf_dir = 'x'", `:2: nri.conf_dir: "x"`},
		{"[cdi]\nspec_dirs = ['/etc/cdi', 'x']", `:2: cdi.spec_dirs: "x"`},
	} {
		path := write(t, c.text)
		_, err := Load(path)
		if err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
	}
}

func TestCheckWithoutFile(t *testing.T) {
	c := Default()
	c.Root = "x"
	if err := c.Check(); err == nil || err.Error() != `root: "x" is not an absolute path in its shortest form` {
		t.Errorf("got %v", err)
	}
}

func TestChanged(t *testing.T) {
	a, b := Default(), Default()
	if got := Changed(a, b); len(got) != 0 {
		t.Errorf("equal ones differ in %v", got)
	}
	b.LogLevel, b.Image.Pinned, b.Handler = "debug", []string{"x"}, map[string]Handler{"h": {}}
	if got := Changed(a, b); !slices.Equal(got, []string{"handler", "image.pinned", "log_level"}) {
		t.Errorf("got %v", got)
	}
}

func TestJSONHasTheKeysOfTheFile(t *testing.T) {
	b, err := json.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"listen":"/run/criserver/criserver.sock"`, `"image":{`, `"progress_timeout":"5m"`, `"handler":{}`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %s", b, want)
		}
	}
}

func TestHostsDir(t *testing.T) {
	if got := (Image{RegistryDir: "/mine"}).HostsDir(); got != "/mine" {
		t.Errorf("a directory that was chosen became %s", got)
	}
	want := defaultRegistryDir
	if !exists(defaultRegistryDir) && exists(containerdRegistryDir) {
		want = containerdRegistryDir
	}
	if got := Default().Image.HostsDir(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Default().Document()))
	f.Add([]byte("[handler.x]\nimage = {a=1}\n'' = 2"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := merge(file{"f", text})
		if err != nil {
			return
		}
		if again, err := merge(file{"f", []byte(c.Document())}); err != nil || len(Changed(c, again)) > 0 {
			t.Errorf("the document of %q reads back with %v, %v", text, err, Changed(c, again))
		}
	})
}
