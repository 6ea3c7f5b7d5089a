package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/criserver/criserver/pkg/ulimit"
)

const (
	defaultRegistryDir    = "/etc/criserver/certs.d"
	containerdRegistryDir = "/etc/containerd/certs.d"

	maxParallel = 64
	// maxSocketPath in bytes: sun_path of unix(7) with its final zero is 108.
	maxSocketPath = 107
	// maxStatePath in bytes leaves room for what is below the state directory.
	maxStatePath = 80
)

// problem is a value that cannot be.
type problem struct{ key, text string }

func (p *problem) Error() string { return p.key + ": " + p.text }

// Check says what is wrong with the values, the first one found.
func (c *Config) Check() error {
	for _, check := range []func() *problem{c.checkTop, c.checkImage, c.checkCNI, c.checkNRI, c.checkStreaming, c.checkTelemetry, c.checkDefaults, c.checkHandlers} {
		if p := check(); p != nil {
			return p
		}
	}
	return nil
}

func (c *Config) checkTop() *problem {
	if p := absolute("listen", c.Listen, maxSocketPath); p != nil {
		return p
	}
	if p := absolute("root", c.Root, 0); p != nil {
		return p
	}
	if p := absolute("state", c.State, maxStatePath); p != nil {
		return p
	}
	if c.Root == c.State {
		return &problem{"state", "must be another directory than root"}
	}
	if p := oneOf("log_level", c.LogLevel, "error", "warn", "info", "debug"); p != nil {
		return p
	}
	return oneOf("log_format", c.LogFormat, "text", "json")
}

func (c *Config) checkImage() *problem {
	if p := absolute("image.registry_dir", c.Image.RegistryDir, 0); p != nil {
		return p
	}
	for _, pattern := range c.Image.Pinned {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return &problem{"image.pinned", fmt.Sprintf("%q is not a pattern", pattern)}
		}
	}
	if n := c.Image.Parallel; n < 1 || n > maxParallel {
		return &problem{"image.parallel", fmt.Sprintf("must be 1 to %d, is %d", maxParallel, n)}
	}
	if c.Image.ProgressTimeout < 0 {
		return &problem{"image.progress_timeout", "must not be negative"}
	}
	return nil
}

func (c *Config) checkCNI() *problem {
	if p := absolute("cni.conf_dir", c.CNI.ConfDir, 0); p != nil {
		return p
	}
	for _, d := range c.CNI.BinDirs {
		if p := absolute("cni.bin_dirs", d, 0); p != nil {
			return p
		}
	}
	return oneOf("cni.prefer", c.CNI.Prefer, "", "ipv4", "ipv6")
}

func (c *Config) checkNRI() *problem {
	if c.NRI.Socket != "" {
		if p := absolute("nri.socket", c.NRI.Socket, maxSocketPath); p != nil {
			return p
		}
	}
	if p := absolute("nri.plugin_dir", c.NRI.PluginDir, 0); p != nil {
		return p
	}
	if p := absolute("nri.conf_dir", c.NRI.ConfDir, 0); p != nil {
		return p
	}
	for _, d := range c.CDI.SpecDirs {
		if p := absolute("cdi.spec_dirs", d, 0); p != nil {
			return p
		}
	}
	return nil
}

func (c *Config) checkStreaming() *problem {
	if p := address("streaming.address", c.Streaming.Address); p != nil {
		return p
	}
	if c.Streaming.IdleTimeout <= 0 {
		return &problem{"streaming.idle_timeout", "must be more than zero"}
	}
	return nil
}

func (c *Config) checkTelemetry() *problem {
	t := c.Telemetry
	if t.Metrics != "" {
		if p := address("telemetry.metrics", t.Metrics); p != nil {
			return p
		}
	}
	if t.Endpoint != "" {
		if u, err := url.Parse(t.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return &problem{"telemetry.endpoint", "is not a URL such as \"http://127.0.0.1:4317\""} // which may have a secret in it
		}
	}
	if !(t.Ratio >= 0 && t.Ratio <= 1) {
		return &problem{"telemetry.ratio", fmt.Sprintf("must be 0 to 1, is %v", t.Ratio)}
	}
	return nil
}

func (c *Config) checkDefaults() *problem {
	if p := oneOf("defaults.cgroup_manager", c.Defaults.CgroupManager, "auto", "cgroupfs", "systemd"); p != nil {
		return p
	}
	if f := c.Defaults.SeccompProfile; f != "" {
		if p := absolute("defaults.seccomp_profile", f, 0); p != nil {
			return p
		}
	}
	if name := c.Defaults.AppArmorProfile; name == "unconfined" || strings.ContainsFunc(name, unicode.IsControl) {
		return &problem{"defaults.apparmor_profile", fmt.Sprintf("%q is not the name of a profile", name)}
	}
	if c.Defaults.PidsLimit < 0 {
		return &problem{"defaults.pids_limit", "must not be negative"}
	}
	if _, err := ulimit.Parse(c.Defaults.Ulimits); err != nil {
		return &problem{"defaults.ulimits", err.Error()}
	}
	return nil
}

// handlerName is what a RuntimeClass may have as its handler: a DNS label (node.k8s.io/v1, RuntimeClass.handler).
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (c *Config) checkHandlers() *problem {
	for name, h := range c.Handler {
		if !handlerName.MatchString(name) {
			return &problem{"handler." + name, "the name must be of at most 63 small letters, digits and inner dashes"}
		}
		if _, err := ulimit.Parse(h.Ulimits); err != nil {
			return &problem{"handler." + name + ".ulimits", err.Error()}
		}
		for _, a := range h.Annotations {
			if p := oneOf("handler."+name+".annotations", a, "ulimits", "writable-cgroups"); p != nil {
				return p
			}
		}
	}
	return nil
}

// address checks an IP address with a port.
func address(key, a string) *problem {
	host, port, err := net.SplitHostPort(a)
	_, hostErr := netip.ParseAddr(host)
	_, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || hostErr != nil || portErr != nil {
		return &problem{key, fmt.Sprintf("%q is not an IP address and a port such as \"127.0.0.1:0\" or \"[::1]:10010\"", a)}
	}
	return nil
}

// absolute checks a path; limit is its greatest length in bytes, 0 none.
func absolute(key, p string, limit int) *problem {
	if !filepath.IsAbs(p) || filepath.Clean(p) != p {
		return &problem{key, fmt.Sprintf("%q is not an absolute path in its shortest form", p)}
	}
	if limit > 0 && len(p) > limit {
		return &problem{key, fmt.Sprintf("%q is longer than %d bytes", p, limit)}
	}
	return nil
}

func oneOf(key, value string, values ...string) *problem {
	if !slices.Contains(values, value) {
		return &problem{key, fmt.Sprintf("must be %s, is %q", strings.Join(values, " or "), value)}
	}
	return nil
}

// HostsDir is the directory of hosts.toml files to use: containerd's, where a node has that one and not ours.
func (i Image) HostsDir() string {
	if i.RegistryDir == defaultRegistryDir && !exists(defaultRegistryDir) && exists(containerdRegistryDir) {
		return containerdRegistryDir
	}
	return i.RegistryDir
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
