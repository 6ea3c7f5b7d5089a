package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/apparmor"
	"github.com/criserver/criserver/pkg/config"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/ulimit"
)

// maxProfile is the largest seccomp profile that is read, in bytes.
const maxProfile = 1 << 20

// containerDefaults are what the configuration says about all containers.
func containerDefaults(c *config.Config) (spec.Defaults, error) {
	limits, err := ulimit.Parse(c.Defaults.Ulimits)
	if err != nil {
		return spec.Defaults{}, fmt.Errorf("defaults.ulimits: %w", err)
	}
	d := spec.Defaults{
		SystemdCgroup:     c.Defaults.CgroupManager == "systemd" || c.Defaults.CgroupManager == "auto" && systemdIsInit(),
		PidsLimit:         c.Defaults.PidsLimit,
		Ulimits:           limits,
		UnprivilegedPorts: c.Defaults.UnprivilegedPorts,
		StorageRoots:      []string{c.Root, c.State},
	}
	if path := c.Defaults.SeccompProfile; path != "" {
		if d.SeccompProfile, err = readSeccomp(path); err != nil {
			return spec.Defaults{}, fmt.Errorf("defaults.seccomp_profile: %w", err)
		}
	}
	return d, nil
}

// appArmorProfile names the profile of containers that ask for RuntimeDefault or for none: the one that is configured,
// which must be loaded, or ours. Where ours cannot be loaded there is none, for want of a program that not every node has.
func (s *server) appArmorProfile(ctx context.Context, configured string) (string, error) {
	if configured != "" {
		loaded, err := apparmor.Loaded(configured)
		if err == nil && !loaded {
			err = fmt.Errorf("profile %q is not loaded: load it, with apparmor_parser, before criserver starts", configured)
		}
		if err != nil {
			return "", fmt.Errorf("defaults.apparmor_profile: %w", err)
		}
		return configured, nil
	}
	if err := apparmor.LoadDefault(ctx); err != nil {
		s.log.WithError(err).Warn("AppArmor confines no containers but those that name a profile; RuntimeDefault is refused")
		return "", nil
	}
	return apparmor.Default, nil
}

// runtimeHandlers are what the configuration says about the pods of each handler.
func runtimeHandlers(c *config.Config, host spec.Host) (map[string]spec.Handler, error) {
	handlers := make(map[string]spec.Handler, len(c.Handler))
	for name, h := range c.Handler {
		limits, err := ulimit.Parse(h.Ulimits)
		if err != nil {
			return nil, fmt.Errorf("handler.%s.ulimits: %w", name, err)
		}
		if h.WritableCgroups && !host.CgroupV2 {
			return nil, fmt.Errorf("handler.%s.writable_cgroups: needs cgroup v2, which this host has not", name)
		}
		handlers[name] = spec.Handler{Ulimits: limits, WritableCgroups: h.WritableCgroups, Annotations: h.Annotations}
	}
	return handlers, nil
}

// systemdIsInit is sd_booted(3).
func systemdIsInit() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// readSeccomp reads a profile in OCI's form. Docker's has further fields, which decide by a container's capabilities
// and would be lost here: an unknown field is an error.
func readSeccomp(path string) (*specs.LinuxSeccomp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxProfile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxProfile)
	}
	var profile specs.LinuxSeccomp
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&profile); err != nil {
		return nil, fmt.Errorf("%s is not a profile in OCI's form (linux.seccomp of the runtime spec): %w", path, err)
	}
	if profile.DefaultAction == "" {
		return nil, fmt.Errorf("%s: defaultAction is missing", path)
	}
	return &profile, nil
}
