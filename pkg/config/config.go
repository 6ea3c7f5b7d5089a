// Package config reads the daemon's TOML file, and those in the directory beside it.
//
// The struct Config is the whole of it: its tags are the keys and, as comments,
// their description, from which Document makes the commented file that
// `criserver config` prints and deploy/config.toml is. Default has every value, so no
// file is needed and each key may be left out.
//
// Files are taken whole or not at all. A key that is unknown, a value of the wrong
// type or out of its range is an error that names file, line and key, so that
// no setting is ever ignored silently. To add a key, add a field with its tags and
// default, check it in check, and honour it.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is read when no file is named, if it exists.
const DefaultPath = "/etc/criserver/config.toml"

// maxSize in bytes is far more than any configuration needs.
const maxSize = 1 << 20

// Config is the configuration of the daemon.
type Config struct {
	Listen    string `toml:"listen" comment:"Unix socket on which CRI is served."`
	Root      string `toml:"root" comment:"Directory for what outlives a boot: images, records, writable layers."`
	State     string `toml:"state" comment:"Directory for what ends with a boot: sockets, namespaces, mounts. Its path must be short, for sockets are in it."`
	LogLevel  string `toml:"log_level" comment:"error, warn, info or debug; debug adds a line for each RPC. [reload]"`
	LogFormat string `toml:"log_format" comment:"text or json. [reload]"`

	Image     Image              `toml:"image"`
	CNI       CNI                `toml:"cni"`
	NRI       NRI                `toml:"nri"`
	CDI       CDI                `toml:"cdi"`
	Streaming Streaming          `toml:"streaming"`
	Telemetry Telemetry          `toml:"telemetry"`
	Defaults  Defaults           `toml:"defaults" comment:"What containers get for which CRI has no field or whose field is not set."`
	Handler   map[string]Handler `toml:"handler" comment:"Runtime handlers, the \"handler\" of a RuntimeClass, beside the default one: a table [handler.NAME] each, with ulimits, writable_cgroups and annotations."`
}

// Image is about pulling and keeping images.
type Image struct {
	RegistryDir     string   `toml:"registry_dir" comment:"Directory of HOST/hosts.toml files, in containerd's format. While the default does not exist, /etc/containerd/certs.d is used. [reload]"`
	Pinned          []string `toml:"pinned" comment:"Images that the kubelet must not remove: names with * and ?, such as \"registry.example/base/*\". [reload]"`
	Parallel        int      `toml:"parallel" comment:"Layers of an image that are fetched at the same time. [reload]"`
	ProgressTimeout Duration `toml:"progress_timeout" comment:"A pull that brings nothing for this long fails; \"0s\": never. [reload]"`
}

// CNI is about pod networks.
type CNI struct {
	ConfDir string   `toml:"conf_dir" comment:"Directory of CNI configurations; the first file by name is used. Changes take effect at once."`
	BinDirs []string `toml:"bin_dirs" comment:"Directories of CNI plugins."`
	Builtin bool     `toml:"builtin" comment:"Run loopback, bridge, host-local and portmap in process, and serve a bridge network of our own while conf_dir has no configuration."`
	Prefer  string   `toml:"prefer" comment:"Family of the primary address of a pod that has both, ipv4 or ipv6; empty: as the network says."`
}

// NRI is about plugins that have a say in the life of pods and containers.
type NRI struct {
	Socket    string `toml:"socket" comment:"Unix socket on which plugins of the Node Resource Interface connect; empty: no plugins at all."`
	PluginDir string `toml:"plugin_dir" comment:"Directory of plugins that are started with the daemon: programs with names such as \"10-name\"."`
	ConfDir   string `toml:"conf_dir" comment:"Directory of their configurations: \"10-name.conf\" or \"name.conf\"."`
}

// CDI is about devices that their vendors describe in files.
type CDI struct {
	SpecDirs []string `toml:"spec_dirs" comment:"Directories of descriptions of the Container Device Interface; a later one wins. Changes take effect at once."`
}

// Streaming is about the server for exec, attach and port-forward.
type Streaming struct {
	Address     string   `toml:"address" comment:"IP address and port; port 0 is any free one. The kubelet connects to it."`
	IdleTimeout Duration `toml:"idle_timeout" comment:"A session without traffic for this long is closed."`
}

// Telemetry is about what the daemon tells of its work.
type Telemetry struct {
	Metrics  string  `toml:"metrics" comment:"IP address and port on which Prometheus finds /metrics; empty: only on the socket debug.sock in the state directory."`
	Endpoint string  `toml:"endpoint" comment:"URL of a collector that takes OpenTelemetry's traces by OTLP over gRPC, such as \"http://127.0.0.1:4317\"; empty: none."`
	Ratio    float64 `toml:"ratio" comment:"Share of the RPCs whose traces are sent, 0 to 1. Where the kubelet traces, it decides."`
}

// Defaults are settings of containers for which CRI has no field, or whose field is not set.
type Defaults struct {
	CgroupManager     string   `toml:"cgroup_manager" comment:"cgroupfs, systemd, or auto: systemd where that is pid 1. The kubelet asks for it and uses the same."`
	SeccompProfile    string   `toml:"seccomp_profile" comment:"JSON file, in the form of OCI's linux.seccomp, to be used as RuntimeDefault; empty: the built-in profile."`
	AppArmorProfile   string   `toml:"apparmor_profile" comment:"Name of a loaded AppArmor profile to be used as RuntimeDefault, and for containers that name none; empty: the built-in profile, criserver-default. It has no effect without AppArmor."`
	PidsLimit         int64    `toml:"pids_limit" comment:"Most processes and threads of a container; 0: no limit but the pod's."`
	Ulimits           []string `toml:"ulimits" comment:"Resource limits, such as \"nofile=1024:4096\" (soft:hard; -1 is unlimited)."`
	UnprivilegedPorts bool     `toml:"unprivileged_ports" comment:"Pods with a network of their own may use ports below 1024, and ping, without capabilities."`
}

// Handler is a runtime handler: what its pods get beside the defaults.
type Handler struct {
	Ulimits         []string `toml:"ulimits,omitempty" comment:"Resource limits, each in the place of that of defaults.ulimits."`
	WritableCgroups bool     `toml:"writable_cgroups,omitempty" comment:"Containers may make cgroups below their own. Needs cgroup v2."`
	Annotations     []string `toml:"annotations,omitempty" comment:"Annotations criserver.github.io/NAME of pods that are honoured: ulimits, writable-cgroups. Whoever may make a pod decides by them."`
}

// Default returns the configuration of a node without a file.
func Default() *Config {
	return &Config{
		Listen:    "/run/criserver/criserver.sock",
		Root:      "/var/lib/criserver",
		State:     "/run/criserver",
		LogLevel:  "info",
		LogFormat: "text",
		Image: Image{
			RegistryDir:     defaultRegistryDir,
			Pinned:          []string{},
			Parallel:        3,
			ProgressTimeout: Duration(5 * time.Minute),
		},
		CNI: CNI{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin: true,
		},
		NRI:       NRI{Socket: "/var/run/nri/nri.sock", PluginDir: "/opt/nri/plugins", ConfDir: "/etc/nri/conf.d"},
		CDI:       CDI{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Streaming: Streaming{Address: "127.0.0.1:0", IdleTimeout: Duration(4 * time.Hour)},
		Telemetry: Telemetry{Ratio: 1},
		Defaults:  Defaults{CgroupManager: "auto", Ulimits: []string{}, UnprivilegedPorts: true},
		Handler:   map[string]Handler{},
	}
}

// file is one that configures; path is for errors.
type file struct {
	path string
	text []byte
}

// Load reads the file at path and then, by name, the *.toml files of the directory beside it that is called like it with
// ".d" in the place of ".toml"; each changes what those before it said. With an empty path it reads DefaultPath, which then
// need not exist, nor need the directory.
func Load(path string) (*Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	paths := []string{path}
	dir := strings.TrimSuffix(path, ".toml") + ".d"
	entries, err := os.ReadDir(dir) // sorted
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	var files []file
	for i, path := range paths {
		text, err := read(path)
		if optional && i == 0 && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		files = append(files, file{path, text})
	}
	return merge(files...)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxSize)
	}
	return text, err
}

// merge lets each file change the defaults and what the files before it said, and checks what comes of it.
func merge(files ...file) (*Config, error) {
	c := Default()
	for _, f := range files {
		d := toml.NewDecoder(bytes.NewReader(f.text)).DisallowUnknownFields()
		if err := d.Decode(c); err != nil {
			return nil, describe(f.path, err)
		}
	}
	err := c.Check()
	var p *problem
	if !errors.As(err, &p) {
		return c, err
	}
	for _, f := range slices.Backward(files) { // the last that says something of the key is the one at fault
		if line := lineOf(f.text, p.key); line > 0 {
			return nil, fmt.Errorf("%s:%d: %w", f.path, line, err)
		}
	}
	return nil, fmt.Errorf("configuration: %w", err)
}

// Document is the configuration as a file that has every key with its description, and which Load reads back.
func (c *Config) Document() string {
	var b strings.Builder
	b.WriteString("# Configuration of criserver: every key with its value. What is left out has its default.\n" +
		"# Keys marked [reload] take effect at SIGHUP, others at a restart.\n\n")
	if err := toml.NewEncoder(&b).Encode(c); err != nil {
		panic(err) // the types of Config are such that it cannot happen
	}
	return b.String()
}

// MarshalJSON writes the configuration, for tools, with the keys that the file has.
func (c *Config) MarshalJSON() ([]byte, error) {
	var keys map[string]any
	if err := toml.Unmarshal([]byte(c.Document()), &keys); err != nil {
		return nil, err
	}
	return json.Marshal(keys)
}

// Duration is a time.Duration that a file has as a string such as "5m" or "1h30m".
type Duration time.Duration

// MarshalText writes the duration without the parts that are zero.
func (d Duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// UnmarshalText takes what time.ParseDuration takes.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"5m\" or \"1h30m\"", text)
	}
	*d = Duration(v)
	return nil
}
