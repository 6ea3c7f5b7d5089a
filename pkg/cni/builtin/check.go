package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// check is the verb CHECK: whether the pod still has what ADD gave it. What is on the host's side (the bridge, rules) is
// shared by pods and made anew with the next of them, so it is not looked at.
func (p *Plugins) check(ctx context.Context, name string, r *Request) error {
	switch name {
	case "loopback":
		return ns.WithNetNSPath(r.NetNS, func(ns.NetNS) error { return checkInterface(loopback, nil) })
	case "bridge":
		var conf types.PluginConf
		if err := json.Unmarshal(r.Config, &conf); err != nil {
			return err
		}
		prev, err := prevResult(&conf)
		if err != nil {
			return err
		}
		if prev == nil {
			return errors.New("bridge: there is no prevResult")
		}
		err = ns.WithNetNSPath(r.NetNS, func(ns.NetNS) error { return checkInterface(r.IfName, addressesOn(r.IfName, prev)) })
		return errors.Join(err, p.delegated(ctx, name, r))
	}
	return nil
}

// addressesOn are those of a result that an interface has.
func addressesOn(ifname string, result *current.Result) []*net.IPNet {
	var out []*net.IPNet
	for _, addr := range result.IPs {
		if i := addr.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) && result.Interfaces[*i].Name == ifname {
			out = append(out, &addr.Address)
		}
	}
	return out
}

// checkInterface wants an interface of this namespace up, with these addresses and perhaps others.
func checkInterface(name string, addrs []*net.IPNet) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s is down", name)
	}
	have, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, want := range addrs {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() }) {
			return fmt.Errorf("%s has lost its address %s", name, want)
		}
	}
	return nil
}
