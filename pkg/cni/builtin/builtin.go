// Package builtin holds the CNI plugins loopback, bridge, host-local and portmap as functions of this process.
//
// They take what a plugin binary takes (its environment as a Request, its standard input as Request.Config) and give
// what it prints, so a caller of binaries can call them instead. What they leave in the world is what the reference
// plugins of github.com/containernetworking/plugins v1.9.1 leave: the same address files, bridges, veth pairs, tables,
// chains, rules and comments. Either kind can therefore undo what the other did, and a node can go back at any time.
//
// They differ from the reference in how, not in what:
//
//   - Nothing is executed on the way of a pod without host ports. Links, addresses and nftables rules go through
//     netlink. Only the iptables backend and nftables conditions, which are text, need their tools.
//   - Masquerading uses nftables where the configuration leaves the backend open. The reference removes both kinds.
//   - DEL of a bridge port does not wait for the kernel to take the veth pair apart (see reaper).
//   - DEL of portmap removes the container's rules even if the configuration no longer names a port.
//   - The pod ignores router advertisements, and its addresses are usable at once unless enabledad is set.
//
// A configuration with a key that is not known here is for the real binary: Supports says so.
// All verbs are here.
package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Request is one call of a plugin: the parameters of CNI SPEC section 2, and the configuration it reads from standard input.
type Request struct {
	Command     string // ADD, DEL, CHECK, STATUS, GC
	ContainerID string
	NetNS       string // path; may be empty or gone for DEL
	IfName      string
	Args        string // CNI_ARGS
	Path        string // CNI_PATH
	Config      []byte
}

// Exec runs a plugin that is not built in, for an IPAM plugin that bridge delegates to.
type Exec func(ctx context.Context, plugin string, r Request) ([]byte, error)

// Plugins is the set of built-in plugins and what they keep between calls. It is safe for concurrent use.
// It works in the network namespace of the process.
type Plugins struct {
	exec   Exec
	log    *logrus.Entry
	host   netlinksafe.Handle
	stores stores
	reaper *reaper
	nft    nftConn
	ports  portMapper
}

// New opens the netlink socket of the host. Close ends what it started.
func New(exec Exec, log *logrus.Entry) (*Plugins, error) {
	host, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Plugins{exec: exec, log: log, host: host, reaper: newReaper(host, log)}, nil
}

// Close deletes the links that are still to be deleted and releases the sockets.
func (p *Plugins) Close() error {
	p.reaper.flush()
	p.nft.close()
	p.host.Close()
	return nil
}

// keys are the top-level configuration keys of each built-in plugin, beside those that every plugin may have.
var keys = map[string][]string{"loopback": nil, "bridge": bridgeKeys, "host-local": nil, "portmap": portmapKeys}

var commonKeys = []string{
	"cniVersion", "name", "type", "capabilities", "runtimeConfig", "prevResult", "args", "dns", "ipam",
	"cni.dev/valid-attachments", "cni.dev/attachments",
}

// Has says whether a plugin of this type is built in.
func Has(plugin string) bool {
	_, ok := keys[plugin]
	return ok
}

// Supports is nil if the built-in plugin understands the whole of a configuration. Otherwise the error names the key
// that it does not know, and the real binary must be run.
func Supports(plugin string, config []byte) error {
	if !Has(plugin) {
		return fmt.Errorf("plugin %q is not built in", plugin)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(config, &top); err != nil {
		return fmt.Errorf("configuration of plugin %q: %w", plugin, err)
	}
	if key := unknownKey(top, commonKeys, keys[plugin]); key != "" {
		return fmt.Errorf("key %q is not known to the built-in plugin %q", key, plugin)
	}
	var ipam map[string]json.RawMessage
	if raw, ok := top["ipam"]; ok && json.Unmarshal(raw, &ipam) == nil && string(ipam["type"]) == `"host-local"` {
		if key := unknownKey(ipam, hostLocalKeys); key != "" {
			return fmt.Errorf("key %q is not known to the built-in plugin %q", "ipam."+key, "host-local")
		}
	}
	return nil
}

// unknownKey compares without case, as encoding/json does for the reference plugins.
func unknownKey(conf map[string]json.RawMessage, known ...[]string) string {
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		match := func(k string) bool { return strings.EqualFold(k, key) }
		if !slices.ContainsFunc(known, func(keys []string) bool { return slices.ContainsFunc(keys, match) }) {
			return key
		}
	}
	return ""
}

// Run calls a built-in plugin. The result of ADD is JSON in the version that the configuration asks for.
// Errors are *types.Error, as a binary would print them.
func (p *Plugins) Run(ctx context.Context, name string, r Request) ([]byte, error) {
	out, err := p.run(ctx, name, &r)
	if err == nil {
		return out, nil
	}
	if e, ok := err.(*types.Error); ok {
		return nil, e
	}
	return nil, types.NewError(types.ErrInternal, err.Error(), "")
}

func (p *Plugins) run(ctx context.Context, name string, r *Request) ([]byte, error) {
	if !Has(name) {
		return nil, fmt.Errorf("plugin %q is not built in", name)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	confVersion, err := (&version.ConfigDecoder{}).Decode(r.Config)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if err := (&version.Reconciler{}).Check(confVersion, version.All); err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, err.Error(), "")
	}
	switch r.Command {
	case "ADD":
		result, err := p.add(ctx, name, r)
		if err != nil {
			return nil, err
		}
		if result, err = result.GetAsVersion(confVersion); err != nil {
			return nil, err
		}
		return json.Marshal(result)
	case "DEL":
		return nil, p.del(ctx, name, r)
	case "CHECK":
		return nil, p.check(ctx, name, r)
	case "STATUS", "GC":
		return nil, p.delegated(ctx, name, r)
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("built-in plugin %q: verb %q is not here", name, r.Command), "")
}

func (p *Plugins) add(ctx context.Context, name string, r *Request) (types.Result, error) {
	switch name {
	case "loopback":
		return p.loopbackAdd(ctx, r)
	case "bridge":
		return p.bridgeAdd(ctx, r)
	case "host-local":
		return p.hostLocalAdd(ctx, r)
	}
	return p.portmapAdd(ctx, r)
}

func (p *Plugins) del(ctx context.Context, name string, r *Request) error {
	switch name {
	case "loopback":
		return p.loopbackDel(ctx, r)
	case "bridge":
		return p.bridgeDel(ctx, r)
	case "host-local":
		return p.hostLocalDel(ctx, r)
	}
	return p.portmapDel(ctx, r)
}

// delegated passes CHECK, STATUS and GC of a bridge on to its IPAM plugin. The built-in plugins themselves are always ready
// and have nothing to collect: the caller runs DEL for each attachment that it finds in Attachments.
func (p *Plugins) delegated(ctx context.Context, name string, r *Request) error {
	if name != "bridge" {
		return nil
	}
	var conf struct {
		IPAM types.IPAM `json:"ipam"`
	}
	if err := json.Unmarshal(r.Config, &conf); err != nil {
		return err
	}
	if conf.IPAM.Type == "" || Has(conf.IPAM.Type) {
		return nil
	}
	_, err := p.ipam(ctx, conf.IPAM.Type, *r)
	return err
}

// ipam calls an IPAM plugin with the whole configuration of the plugin that delegates to it (CNI SPEC section 4).
func (p *Plugins) ipam(ctx context.Context, name string, r Request) ([]byte, error) {
	if name == "host-local" {
		return p.run(ctx, name, &r)
	}
	return p.exec(ctx, name, r)
}

// prevResult returns the result that the configuration brings along, nil if it brings none.
func prevResult(conf *types.PluginConf) (*current.Result, error) {
	if conf.RawPrevResult == nil {
		return nil, nil
	}
	if err := version.ParsePrevResult(conf); err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	return current.NewResultFromResult(conf.PrevResult)
}
