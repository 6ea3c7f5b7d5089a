package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	maxConfigSize = 10 << 20 // bytes of a configuration file
	maxPlugins    = 64       // of a network
)

// config is a network configuration that can be used.
type config struct {
	list   *libcni.NetworkConfigList // its Bytes contain all plugins
	source string                    // file; empty for the built-in network
}

// capable says whether a plugin of the network declares a capability (CNI SPEC section 2, "capabilities").
func (c *config) capable(capability string) bool {
	return slices.ContainsFunc(c.list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// speaksStatus says whether the configuration asks for a version of CNI that has the verbs STATUS and GC (1.1).
func (c *config) speaksStatus() bool {
	ok, err := version.GreaterThanOrEqualTo(c.list.CNIVersion, "1.1.0")
	return ok && err == nil
}

// load reads the first configuration file of a directory by name. It returns nil without an error if there is none.
func load(dir string) (*config, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cni: read the configuration directory: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() || !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		list, err := loadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cni: configuration file %s: %w; correct or remove it: %w", path, err, errdefs.ErrInvalidArgument)
		}
		return &config{list: list, source: path}, nil
	}
	return nil, nil
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	data, err := readLimited(path, maxConfigSize)
	if err != nil {
		return nil, err
	}
	return parse(data, filepath.Dir(path))
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("it is not a regular file"), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it has more than %d MiB", limit>>20)
	}
	return data, err
}

// parse reads a list of plugins, or a single plugin as configuration files before CNI 0.3 have it. Plugins of a list may
// also be files of the directory named after the network (CNI SPEC 1.1 section 1).
func parse(data []byte, dir string) (*libcni.NetworkConfigList, error) {
	var kind struct {
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	var err error
	if kind.Type != "" && kind.Plugins == nil {
		var single *libcni.PluginConfig
		if single, err = libcni.NetworkPluginConfFromBytes(data); err == nil {
			list, err = libcni.ConfListFromConf(single)
		}
	} else {
		list, err = libcni.NetworkConfFromBytes(data)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	if !list.LoadOnlyInlinedPlugins {
		if err := inline(list, dir); err != nil {
			return nil, err
		}
	}
	return list, check(list)
}

// inline adds the plugins of the network's directory to the list and to its bytes, which DEL will read.
func inline(list *libcni.NetworkConfigList, dir string) error {
	files, err := libcni.NetworkPluginConfsFromFiles(dir, list.Name)
	if err != nil || len(files) == 0 {
		return err
	}
	list.Plugins = append(list.Plugins, files...)
	var whole map[string]any
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return err
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	whole["plugins"], whole["loadOnlyInlinedPlugins"] = plugins, true
	list.Bytes, err = json.Marshal(whole)
	return err
}

func check(list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 {
		return errors.New("it has no plugins")
	}
	if len(list.Plugins) > maxPlugins {
		return fmt.Errorf("it has %d plugins; the limit is %d", len(list.Plugins), maxPlugins)
	}
	if list.CNIVersion != "" && !slices.Contains(version.All.SupportedVersions(), list.CNIVersion) {
		return fmt.Errorf("cniVersion %q is none of %v", list.CNIVersion, version.All.SupportedVersions())
	}
	for i, p := range list.Plugins {
		if !pluginName(p.Network.Type) {
			return fmt.Errorf("plugins[%d].type %q is not the name of a program", i, p.Network.Type)
		}
		if t := p.Network.IPAM.Type; t != "" && !pluginName(t) {
			return fmt.Errorf("plugins[%d].ipam.type %q is not the name of a program", i, t)
		}
	}
	return nil
}

// pluginName says whether a type is a bare file name: a path would run any program of the host (CVE-2021-20206).
func pluginName(s string) bool {
	return s != "" && s != "." && s != ".." && filepath.Base(s) == s
}
