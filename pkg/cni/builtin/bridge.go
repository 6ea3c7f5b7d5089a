package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/link"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

var bridgeKeys = []string{
	"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode",
	"promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad", "disableContainerInterface",
	"portIsolation",
}

// bridgeConf is the configuration of the bridge plugin.
type bridgeConf struct {
	types.PluginConf
	Bridge                    string      `json:"bridge"`
	IsGateway                 bool        `json:"isGateway"`
	IsDefaultGateway          bool        `json:"isDefaultGateway"`
	ForceAddress              bool        `json:"forceAddress"`
	IPMasq                    bool        `json:"ipMasq"`
	IPMasqBackend             string      `json:"ipMasqBackend"`
	MTU                       int         `json:"mtu"`
	HairpinMode               bool        `json:"hairpinMode"`
	PromiscMode               bool        `json:"promiscMode"`
	Vlan                      int         `json:"vlan"`
	VlanTrunk                 []vlanRange `json:"vlanTrunk"`
	PreserveDefaultVlan       bool        `json:"preserveDefaultVlan"`
	MacSpoofChk               bool        `json:"macspoofchk"`
	EnableDAD                 bool        `json:"enabledad"`
	DisableContainerInterface bool        `json:"disableContainerInterface"`
	PortIsolation             bool        `json:"portIsolation"`

	Args struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	mac   net.HardwareAddr // asked for; nil: any
	trunk []int            // VLANs of VlanTrunk, sorted
}

// parseBridge reads a configuration and refuses what contradicts itself.
func parseBridge(r *Request) (*bridgeConf, error) {
	conf := &bridgeConf{Bridge: "cni0"}
	if err := json.Unmarshal(r.Config, conf); err != nil {
		return nil, fmt.Errorf("bridge: configuration: %w", err)
	}
	conf.IsGateway = conf.IsGateway || conf.IsDefaultGateway
	switch {
	case conf.Vlan < 0 || conf.Vlan > maxVlan:
		return nil, fmt.Errorf("bridge: vlan %d is not between 0 and %d", conf.Vlan, maxVlan)
	case conf.IPAM.Type != "" && conf.DisableContainerInterface:
		return nil, errors.New("bridge: disableContainerInterface excludes ipam")
	case conf.HairpinMode && conf.PromiscMode:
		return nil, errors.New("bridge: hairpinMode excludes promiscMode")
	}
	var err error
	if conf.trunk, err = trunkVlans(conf.VlanTrunk); err != nil {
		return nil, err
	}
	conf.mac, err = requestedMAC(conf, r.Args)
	return conf, err
}

// requestedMAC is the hardware address asked for: by the runtime, else the configuration, else CNI_ARGS.
func requestedMAC(conf *bridgeConf, args string) (net.HardwareAddr, error) {
	var env struct {
		types.CommonArgs
		MAC types.UnmarshallableString
	}
	if args != "" {
		if err := types.LoadArgs(args, &env); err != nil {
			return nil, fmt.Errorf("bridge: CNI_ARGS: %w", err)
		}
	}
	for _, mac := range []string{conf.RuntimeConfig.MAC, conf.Args.CNI.MAC, string(env.MAC)} {
		if mac != "" {
			return net.ParseMAC(mac)
		}
	}
	return nil, nil
}

func (p *Plugins) bridgeAdd(ctx context.Context, r *Request) (types.Result, error) {
	conf, err := parseBridge(r)
	if err != nil {
		return nil, err
	}
	br, err := p.ensureBridge(conf)
	if err != nil {
		return nil, err
	}
	netns, err := ns.GetNS(r.NetNS)
	if err != nil {
		return nil, fmt.Errorf("bridge: network namespace: %w", err)
	}
	defer netns.Close()
	host, pod, err := p.plugIn(netns, br, conf, r.IfName)
	if err != nil {
		return nil, err
	}
	result := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: br.Name, Mac: br.HardwareAddr.String()},
			{Name: host.Name, Mac: host.HardwareAddr.String()},
			{Name: r.IfName, Mac: pod.HardwareAddr.String(), Sandbox: r.NetNS},
		},
		DNS: conf.DNS,
	}
	if conf.MacSpoofChk {
		if err := link.NewSpoofChecker(host.Name, pod.HardwareAddr.String(), spoofID(r)).Setup(); err != nil {
			return nil, err
		}
	}
	switch {
	case conf.IPAM.Type != "":
		err = p.address(ctx, r, conf, netns, br, result)
	case !conf.DisableContainerInterface:
		err = netns.Do(func(ns.NetNS) error { return netlink.LinkSetUp(&netlink.Veth{LinkAttrs: *pod}) })
	}
	if err != nil {
		return nil, err
	}
	if conf.DisableContainerInterface {
		return result, nil
	}
	// The port first: the bridge has no carrier without one.
	for _, link := range []*netlink.LinkAttrs{host, br.Attrs()} {
		if err := p.awaitCarrier(ctx, link); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// spoofID names the macspoofchk rules of an interface.
func spoofID(r *Request) string { return r.ContainerID + "-" + r.IfName }

// address gives the pod what IPAM says: addresses and routes in its namespace; and the host its part of them.
func (p *Plugins) address(ctx context.Context, r *Request, conf *bridgeConf, netns ns.NetNS, br *netlink.Bridge, result *current.Result) error {
	out, err := p.ipam(ctx, conf.IPAM.Type, *r)
	if err != nil {
		return err
	}
	given, err := create.CreateFromBytes(out)
	if err != nil {
		return fmt.Errorf("bridge: result of IPAM plugin %q: %w", conf.IPAM.Type, err)
	}
	leased, err := current.NewResultFromResult(given)
	if err != nil {
		return fmt.Errorf("bridge: result of IPAM plugin %q: %w", conf.IPAM.Type, err)
	}
	if len(leased.IPs) == 0 {
		return fmt.Errorf("bridge: IPAM plugin %q gave no address", conf.IPAM.Type)
	}
	result.IPs, result.Routes = leased.IPs, leased.Routes
	if dnsEmpty(conf.DNS) {
		result.DNS = leased.DNS
	}
	gateways, err := gatewaysOf(conf, result)
	if err != nil {
		return err
	}
	if err := configurePod(netns, r.IfName, conf.EnableDAD, result); err != nil {
		return fmt.Errorf("bridge: interface %s of the pod: %w", r.IfName, err)
	}
	if err := p.ensureGateways(conf, br, gateways, result); err != nil {
		return err
	}
	if conf.IPMasq {
		return p.masquerade(conf, result.IPs, instance{conf.Name, r.IfName, r.ContainerID})
	}
	return nil
}

func dnsEmpty(dns types.DNS) bool {
	return dns.Nameservers == nil && dns.Search == nil && dns.Options == nil && dns.Domain == ""
}

// gatewaysOf points the addresses at the pod's interface and returns the addresses that the bridge needs as their
// gateway, in the order of the families. It adds the default routes of isDefaultGateway to the result.
func gatewaysOf(conf *bridgeConf, result *current.Result) ([]net.IPNet, error) {
	var v4, v6 []net.IPNet
	defaults := map[string]bool{}
	for _, addr := range result.IPs {
		all := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		gateways := &v6
		if addr.Address.IP.To4() != nil {
			all = net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
			gateways = &v4
		} else if len(addr.Address.IP) != net.IPv6len {
			return nil, fmt.Errorf("bridge: IPAM plugin %q gave %v, which is not an address", conf.IPAM.Type, addr.Address)
		}
		addr.Interface = current.Int(2)
		if !conf.IsGateway {
			continue
		}
		if addr.Gateway == nil {
			addr.Gateway = ip.NextIP(addr.Address.IP.Mask(addr.Address.Mask))
		}
		*gateways = append(*gateways, net.IPNet{IP: addr.Gateway, Mask: addr.Address.Mask})
		if !conf.IsDefaultGateway || defaults[all.String()] {
			continue
		}
		defaults[all.String()] = true
		given := func(route *types.Route) bool { return route.GW != nil && route.Dst.String() == all.String() }
		if !slices.ContainsFunc(result.Routes, given) {
			result.Routes = append(result.Routes, &types.Route{Dst: all, GW: addr.Gateway})
		}
	}
	return append(v4, v6...), nil
}

// awaitCarrier waits until a link is reported to be up: the kernel makes a carrier effective in the background, and what
// is sent before is lost.
func (p *Plugins) awaitCarrier(ctx context.Context, link *netlink.LinkAttrs) error {
	const giveUp = 2550 * time.Millisecond // as the reference
	deadline := time.Now().Add(giveUp)
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		l, err := p.host.LinkByIndex(link.Index)
		if err != nil {
			return fmt.Errorf("bridge: link %s: %w", link.Name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("bridge: link %s stays in state %s", link.Name, l.Attrs().OperState)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bridge: wait for link %s: %w", link.Name, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (p *Plugins) bridgeDel(ctx context.Context, r *Request) error {
	conf, err := parseBridge(r)
	if err != nil {
		return err
	}
	prev, err := prevResult(&conf.PluginConf)
	if err != nil {
		p.log.WithError(err).WithField("container", r.ContainerID).Warn("bridge: DEL goes on without the result of ADD")
	}
	addrs, err := p.unplug(r, conf, prev)
	if err != nil {
		return err
	}
	if conf.MacSpoofChk {
		if err := link.NewSpoofChecker("", "", spoofID(r)).Teardown(); err != nil {
			p.log.WithError(err).WithField("container", r.ContainerID).Debug("bridge: macspoofchk rules")
		}
	}
	if conf.IPAM.Type == "" {
		return nil
	}
	if conf.IPMasq {
		if err := p.unmasquerade(addrs, instance{conf.Name, r.IfName, r.ContainerID}); err != nil {
			return err
		}
	}
	// Last, so that nobody gets the address while something of its former owner is left.
	_, err = p.ipam(ctx, conf.IPAM.Type, *r)
	return err
}

// unplug makes the pod unreachable and returns the addresses it had, if they are known.
//
// With the result of ADD the host's end is known and is cut off the bridge, which takes microseconds; the pair goes with
// the pod's namespace, or else by the reaper. Without it the pod's end is deleted, which waits for the kernel.
func (p *Plugins) unplug(r *Request, conf *bridgeConf, prev *current.Result) ([]*net.IPNet, error) {
	if prev != nil {
		for _, i := range prev.Interfaces {
			if i.Sandbox == "" && i.Name != conf.Bridge && p.cutOff(i, conf.Bridge) {
				return addressesOf(prev), nil
			}
		}
	}
	var addrs []*net.IPNet
	if prev != nil {
		addrs = addressesOf(prev)
	}
	if r.NetNS == "" {
		return addrs, nil
	}
	err := ns.WithNetNSPath(r.NetNS, func(ns.NetNS) error {
		had, err := ip.DelLinkByNameAddr(r.IfName)
		if len(had) > 0 {
			addrs = had
		}
		return err
	})
	if errors.Is(err, ip.ErrLinkNotFound) || namespaceGone(err) {
		err = nil
	}
	return addrs, err
}

func addressesOf(result *current.Result) []*net.IPNet {
	var addrs []*net.IPNet
	for _, addr := range result.IPs {
		addrs = append(addrs, &addr.Address)
	}
	return addrs
}

// cutOff stops all traffic between the bridge and the host's end of a pair, and leaves the pair to the reaper.
// It is false if there is no such port.
func (p *Plugins) cutOff(port *current.Interface, bridge string) bool {
	l, err := p.host.LinkByName(port.Name)
	if err != nil || l.Type() != "veth" || l.Attrs().HardwareAddr.String() != port.Mac {
		return false
	}
	br, err := p.host.LinkByName(bridge)
	if err != nil || l.Attrs().MasterIndex != br.Attrs().Index {
		return false
	}
	if err := setPortState(l.Attrs().Index, portDisabled); err != nil {
		p.log.WithError(err).WithField("link", port.Name).Warn("bridge: cut off the port; deleting it instead")
		return false
	}
	p.reaper.add(l.Attrs().Index, port.Name)
	return true
}
