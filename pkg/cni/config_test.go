package cni

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func bridgeNamed(name string) string {
	return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"bridge"}]}`
}

// rows: D-140
func TestLoad(t *testing.T) {
	huge := append([]byte(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}],"a":"`), bytes.Repeat([]byte("a"), maxConfigSize)...)
	many := strings.Repeat(`{"type":"bridge"},`, maxPlugins)
	for name, c := range map[string]struct {
		files   map[string]string
		network string // in force; empty: none
		err     string // part of the error
	}{
		"nothing":              {},
		"other files":          {files: map[string]string{"README": "x", "a.conflist.bak": "x"}},
		"first by name":        {files: map[string]string{"20.conflist": bridgeNamed("b"), "10.json": bridgeNamed("a"), "05.txt": "x"}, network: "a"},
		"single plugin":        {files: map[string]string{"a.conf": `{"cniVersion":"0.4.0","name":"one","type":"bridge"}`}, network: "one"},
		"plugins in files":     {files: map[string]string{"a.conflist": `{"cniVersion":"1.1.0","name":"dir"}`, "dir/1.conf": `{"type":"bridge"}`}, network: "dir"},
		"first one is invalid": {files: map[string]string{"10.conflist": "{", "20.conflist": bridgeNamed("b")}, err: "10.conflist"},
		"not JSON":             {files: map[string]string{"a.conflist": "name: x"}, err: "invalid character"},
		"no name":              {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`}, err: "name"},
		"path as name":         {files: map[string]string{"a.conflist": bridgeNamed("../x")}, err: "name"},
		"no plugins":           {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[]}`}, err: "no plugins"},
		"no plugins at all":    {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x"}`}, err: "no plugins"},
		"too many plugins":     {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[` + many + `{"type":"bridge"}]}`}, err: "the limit is 64"},
		"path as type":         {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../../bin/sh"}]}`}, err: `plugins[0].type "../../bin/sh"`},
		"path as IPAM type":    {files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","ipam":{"type":"/bin/sh"}}]}`}, err: "ipam.type"},
		"unknown version":      {files: map[string]string{"a.conflist": strings.Replace(bridgeNamed("x"), "1.0.0", "9.0.0", 1)}, err: "cniVersion"},
		"too large":            {files: map[string]string{"a.conflist": string(huge) + `"}`}, err: "10 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range c.files {
				writeConf(t, filepath.Join(dir, filepath.Dir(name)), filepath.Base(name), data)
			}
			conf, err := load(dir)
			switch {
			case c.err != "":
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), dir) {
					t.Errorf("load = %v, want an error with %q", err, c.err)
				}
			case err != nil:
				t.Error(err)
			case c.network == "" && conf != nil:
				t.Errorf("load = %s", conf.list.Bytes)
			case c.network != "" && (conf == nil || conf.list.Name != c.network || len(conf.list.Plugins) != 1):
				t.Errorf("load = %+v, want network %s with one plugin", conf, c.network)
			}
		})
	}
}

func inForce(n *Network) string {
	if conf := n.current(); conf != nil {
		return conf.list.Name
	}
	return ""
}

// TestReload walks through what an administrator may do to the directory.
// rows: D-141, Q-02
func TestReload(t *testing.T) {
	n := openWith(t, "", func(o *Options) { o.Builtin = false })
	if err := n.Status(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), n.confDir) {
		t.Errorf("Status without a configuration = %v", err)
	}
	if n.Config() != nil {
		t.Errorf("Config = %s", n.Config())
	}
	if _, err := n.Setup(t.Context(), Pod{ID: "x"}); !errdefs.IsUnavailable(err) {
		t.Errorf("Setup without a configuration = %v", err)
	}
	is := func(network string, ready bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("network %q is in force, ready: %v", network, ready), func() bool {
			return inForce(n) == network && (n.Status() == nil) == ready
		})
	}
	writeConf(t, n.confDir, "20.conflist", bridgeNamed("b"))
	is("b", true)
	writeConf(t, n.confDir, "10.conflist", bridgeNamed("a"))
	is("a", true)
	writeConf(t, n.confDir, "10.conflist", bridgeNamed("a")[:20])
	is("a", false) // the pods' network stays; the node says why it is not ready
	if err := n.Status(); !strings.Contains(err.Error(), "10.conflist") {
		t.Errorf("Status = %v", err)
	}
	if err := os.Remove(filepath.Join(n.confDir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	is("b", true)
	// The directory is replaced, as a package manager or a volume would.
	next := n.confDir + ".next"
	writeConf(t, next, "10.conflist", bridgeNamed("c"))
	if err := os.Rename(n.confDir, n.confDir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, n.confDir); err != nil {
		t.Fatal(err)
	}
	is("c", true)
	writeConf(t, n.confDir, "10.conflist", bridgeNamed("d"))
	is("d", true)
	if err := os.RemoveAll(n.confDir); err != nil {
		t.Fatal(err)
	}
	is("", false)
	writeConf(t, n.confDir, "10.conflist", bridgeNamed("e"))
	is("e", true)
}

// TestFileReplacesBuiltinNetwork: and its removal brings the built-in network back.
func TestFileReplacesBuiltinNetwork(t *testing.T) {
	n := openWith(t, "")
	if inForce(n) != "criserver" {
		t.Fatalf("network %q is in force", inForce(n))
	}
	writeConf(t, n.confDir, "10.conflist", bridgeNamed("a"))
	eventually(t, "the file is in force", func() bool { return inForce(n) == "a" })
	if err := os.Remove(filepath.Join(n.confDir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the built-in network is in force", func() bool { return inForce(n) == "criserver" })
}

// TestStatusVerb: plugins of CNI 1.1 say when they are ready.
// rows: D-145
func TestStatusVerb(t *testing.T) {
	dir := t.TempDir()
	n := openWith(t, `{"cniVersion":"1.1.0","name":"status","plugins":[{"type":"fake"},{"type":"bridge","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}]}`,
		func(o *Options) {
			o.BinDirs = []string{fakePlugins(t, "fake", `[ -e `+dir+`/ready ] && exit; echo '{"code":50,"msg":"agent is not running"}'; exit 1`)}
		})
	eventually(t, "the plugin's words are in the status", func() bool {
		err := n.Status()
		return errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "agent is not running") && strings.Contains(err.Error(), "STATUS")
	})
	if err := os.WriteFile(dir+"/ready", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the network is ready", func() bool { return n.Status() == nil })
}

// TestGCVerb: plugins of CNI 1.1 are told which attachments are valid.
// rows: D-146
func TestGCVerb(t *testing.T) {
	dir := t.TempDir()
	n := openWith(t, `{"cniVersion":"1.1.0","name":"gcverb","plugins":[{"type":"fake"},{"type":"bridge","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}]}`,
		func(o *Options) {
			o.BinDirs = []string{fakePlugins(t, "fake", `[ $CNI_COMMAND = GC ] && cat > `+dir+`/conf; exit 0`)}
		})
	if err := n.GC(t.Context(), []Pod{{ID: "kept"}}); err != nil {
		t.Fatal(err)
	}
	want := `"cni.dev/valid-attachments":[{"containerID":"kept","ifname":"eth0"}]`
	if conf, _ := os.ReadFile(dir + "/conf"); !strings.Contains(string(conf), want) {
		t.Errorf("the plugin was told %s, want %s", conf, want)
	}
}
