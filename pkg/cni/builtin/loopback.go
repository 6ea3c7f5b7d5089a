package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

const loopback = "lo"

// LoopbackUp sets the loopback interface of the namespace at path up.
func LoopbackUp(path string) error {
	return ns.WithNetNSPath(path, func(ns.NetNS) error { return setLoopback(netlink.LinkSetUp) })
}

func setLoopback(set func(netlink.Link) error) error {
	link, err := netlinksafe.LinkByName(loopback)
	if err != nil {
		return fmt.Errorf("find %s: %w", loopback, err)
	}
	return set(link)
}

func (p *Plugins) loopbackAdd(_ context.Context, r *Request) (types.Result, error) {
	var conf types.PluginConf
	if err := json.Unmarshal(r.Config, &conf); err != nil {
		return nil, err
	}
	var addrs []netlink.Addr
	err := ns.WithNetNSPath(r.NetNS, func(ns.NetNS) error {
		return setLoopback(func(link netlink.Link) (err error) {
			if err = netlink.LinkSetUp(link); err == nil {
				addrs, err = netlinksafe.AddrList(link, netlink.FAMILY_ALL)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if prev, err := prevResult(&conf); prev != nil || err != nil {
		return prev, err
	}
	result := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: loopback, Mac: "00:00:00:00:00:00", Sandbox: r.NetNS}},
	}
	for _, addr := range addrs {
		if !addr.IP.IsLoopback() {
			return nil, fmt.Errorf("%s has %s, which is not a loopback address", loopback, addr.IPNet)
		}
		result.IPs = append(result.IPs, &current.IPConfig{Interface: current.Int(0), Address: *addr.IPNet})
	}
	return result, nil
}

func (p *Plugins) loopbackDel(_ context.Context, r *Request) error {
	if r.NetNS == "" {
		return nil
	}
	err := ns.WithNetNSPath(r.NetNS, func(ns.NetNS) error { return setLoopback(netlink.LinkSetDown) })
	if namespaceGone(err) {
		return nil
	}
	return err
}

// namespaceGone is true if there is no namespace at a path: no file, or one that nothing is mounted on any more.
func namespaceGone(err error) bool {
	var missing ns.NSPathNotExistErr
	var unmounted ns.NSPathNotNSErr
	return errors.As(err, &missing) || errors.As(err, &unmounted)
}
