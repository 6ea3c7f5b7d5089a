package cni

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// defaultNetwork is the network of a node that has no configuration: a bridge, masquerading, host ports. Its ranges and
// the directory of its addresses are filled in.
//
//go:embed default.conflist
var defaultNetwork []byte

// defaultBridge is the bridge of the built-in network.
const defaultBridge = "cri0"

// Ranges of the built-in network. The first that the host has no other route into is taken.
var (
	defaultV4 = []string{"10.88.0.0/16", "10.89.0.0/16", "172.30.0.0/16", "192.168.192.0/20"}
	defaultV6 = []string{"fd63:7269:7365:7276::/64", "fd63:7269:7365:7277::/64"} // unique local, RFC 4193
)

// defaultConfig returns the built-in network. Once it is in force it stays as it is until the process ends; the next one
// takes the ranges that the bridge has then.
func (n *Network) defaultConfig() (*config, error) {
	if conf := n.current(); conf != nil && conf.source == "" {
		return conf, nil
	}
	var ranges [][]map[string]string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		subnet, err := defaultSubnet(family)
		if err != nil {
			return nil, err
		}
		if subnet != "" {
			ranges = append(ranges, []map[string]string{{"subnet": subnet}})
		}
	}
	data, err := fillDefault(ranges, filepath.Join(n.cache, "networks"))
	if err != nil {
		return nil, err
	}
	list, err := parse(data, n.confDir)
	if err != nil {
		return nil, fmt.Errorf("cni: built-in network: %w", err)
	}
	return &config{list: list}, nil
}

func fillDefault(ranges any, dataDir string) ([]byte, error) {
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Inline     bool             `json:"loadOnlyInlinedPlugins"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(defaultNetwork, &list); err != nil {
		return nil, fmt.Errorf("cni: built-in network: %w", err)
	}
	list.Plugins[0]["ipam"] = map[string]any{"type": "host-local", "dataDir": dataDir, "ranges": ranges}
	return json.Marshal(list)
}

// defaultSubnet chooses a range: the one that the bridge has, else the first that no route of the host leads into.
// It is empty if the host has no IPv6.
func defaultSubnet(family int) (string, error) {
	candidates := defaultV4
	if family == netlink.FAMILY_V6 {
		if disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil || strings.TrimSpace(string(disabled)) != "0" {
			return "", nil
		}
		candidates = defaultV6
	}
	own, taken, err := subnets(family)
	if err != nil {
		return "", fmt.Errorf("cni: choose the range of the built-in network: %w", err)
	}
	for _, c := range candidates {
		if slices.Contains(own, netip.MustParsePrefix(c)) {
			return c, nil
		}
	}
	for _, c := range candidates {
		if !slices.ContainsFunc(taken, netip.MustParsePrefix(c).Overlaps) {
			return c, nil
		}
	}
	return "", fmt.Errorf("cni: the host has routes into all ranges of the built-in network (%s); add a configuration with another range: %w",
		strings.Join(candidates, ", "), errdefs.ErrUnavailable)
}

// subnets returns the networks that the host has routes to: over the bridge of the built-in network, and otherwise.
// A default route leads everywhere and does not count.
func subnets(family int) (own, taken []netip.Prefix, err error) {
	bridge := -1
	if l, err := netlinksafe.LinkByName(defaultBridge); err == nil {
		bridge = l.Attrs().Index
	}
	routes, err := netlinksafe.RouteList(nil, family)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits == 0 {
			continue
		}
		prefix := netip.PrefixFrom(ip.Unmap(), bits).Masked()
		if r.LinkIndex == bridge {
			own = append(own, prefix)
		} else {
			taken = append(taken, prefix)
		}
	}
	return own, taken, nil
}
