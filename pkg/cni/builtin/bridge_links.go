package builtin

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// portDisabled is BR_STATE_DISABLED of linux/if_bridge.h: the port takes and gives no frame.
const portDisabled = 0

// writeSysctl writes a file below /proc/sys as the thread's network namespace has it.
func writeSysctl(path, value string) error { return os.WriteFile(path, []byte(value), 0o644) }

// ensureBridge returns the bridge of the configuration, and makes it if it is not there.
func (p *Plugins) ensureBridge(conf *bridgeConf) (*netlink.Bridge, error) {
	br, err := p.findBridge(conf.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		br, err = p.makeBridge(conf)
	}
	if err != nil {
		return nil, err
	}
	if conf.PromiscMode && br.Promisc == 0 {
		if err := p.host.SetPromiscOn(br); err != nil {
			return nil, fmt.Errorf("bridge %s: promiscMode: %w", conf.Bridge, err)
		}
	}
	if br.Flags&net.FlagUp == 0 {
		if err := p.host.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("bridge %s: set up: %w", conf.Bridge, err)
		}
	}
	return br, nil
}

func (p *Plugins) findBridge(name string) (*netlink.Bridge, error) {
	l, err := p.host.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	br, ok := l.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("bridge %s: there is a link of type %s with this name; remove it or name another bridge", name, l.Type())
	}
	return br, nil
}

func (p *Plugins) makeBridge(conf *bridgeConf) (*netlink.Bridge, error) {
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name, br.MTU = conf.Bridge, conf.MTU
	if conf.Vlan != 0 || conf.VlanTrunk != nil {
		filter := true
		br.VlanFiltering = &filter
	}
	err := p.host.LinkAdd(br)
	if errors.Is(err, unix.EOPNOTSUPP) && br.VlanFiltering != nil {
		return nil, fmt.Errorf("bridge %s: make: the kernel has no bridges that filter VLANs: %w", conf.Bridge, err)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("bridge %s: make: %w", conf.Bridge, err)
	}
	// The host's routes over this link are ours to make, not a router's.
	_ = writeSysctl("/proc/sys/net/ipv6/conf/"+conf.Bridge+"/accept_ra", "0")
	return p.findBridge(conf.Bridge)
}

// plugIn makes a veth pair between the bridge and the pod, and returns its two ends.
func (p *Plugins) plugIn(netns ns.NetNS, br *netlink.Bridge, conf *bridgeConf, ifname string) (host, pod *netlink.LinkAttrs, err error) {
	name, err := p.makePair(netns, conf, ifname)
	if err != nil {
		return nil, nil, err
	}
	err = netns.Do(func(ns.NetNS) error {
		l, err := netlinksafe.LinkByName(ifname)
		if err == nil {
			pod = l.Attrs()
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("bridge: %s in the pod: %w", ifname, err)
	}
	port, err := p.host.LinkByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("bridge: port %s: %w", name, err)
	}
	_ = writeSysctl("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", "0")
	if err := p.host.LinkSetMaster(port, br); err != nil {
		return nil, nil, fmt.Errorf("bridge: add port %s to %s: %w", name, br.Name, err)
	}
	if conf.HairpinMode {
		if err := p.host.LinkSetHairpin(port, true); err != nil {
			return nil, nil, fmt.Errorf("bridge: hairpinMode of port %s: %w", name, err)
		}
	}
	if conf.PortIsolation {
		if err := p.host.LinkSetIsolated(port, true); err != nil {
			return nil, nil, fmt.Errorf("bridge: portIsolation of port %s: %w", name, err)
		}
	}
	return port.Attrs(), pod, p.setPortVlans(port, conf.Vlan, conf.trunk, conf.PreserveDefaultVlan)
}

// makePair makes a veth pair with one end in the pod and one, up, in the host, and returns the name of the latter.
func (p *Plugins) makePair(netns ns.NetNS, conf *bridgeConf, ifname string) (string, error) {
	for reaped := false; ; {
		name := vethName()
		pair := &netlink.Veth{
			LinkAttrs:        netlink.NewLinkAttrs(),
			PeerName:         ifname,
			PeerHardwareAddr: conf.mac,
			PeerTxQLen:       -1, // the kernel's default
			PeerNamespace:    netlink.NsFd(int(netns.Fd())),
		}
		pair.Name, pair.MTU, pair.Flags = name, conf.MTU, net.FlagUp
		err := p.host.LinkAdd(pair)
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return "", fmt.Errorf("bridge: make the veth pair of %s: %w", ifname, err)
		}
		if _, err := p.host.LinkByName(name); err == nil {
			continue // somebody else's link has the random name
		}
		// The pod's end is there: perhaps of an attachment that DEL has just ended.
		if reaped {
			return "", fmt.Errorf("bridge: the namespace already has an interface %s; run DEL first", ifname)
		}
		p.reaper.flush()
		reaped = true
	}
}

// vethName returns a random name of the form the reference uses, which network managers know to leave alone.
func vethName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return fmt.Sprintf("veth%x", b)
}

// setPortState sets the state of a bridge port, one of BR_STATE_* of linux/if_bridge.h.
func setPortState(index int, state uint8) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{state})
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// ensureGateways gives the bridge (or the interface of its VLAN) the gateway addresses and lets the host forward.
func (p *Plugins) ensureGateways(conf *bridgeConf, br *netlink.Bridge, gateways []net.IPNet, result *current.Result) error {
	if len(gateways) == 0 {
		return nil
	}
	var holder netlink.Link = br
	if conf.Vlan != 0 {
		l, err := p.ensureVlanInterface(br, conf.Vlan, conf.PreserveDefaultVlan)
		if err != nil {
			return err
		}
		holder = l
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: l.Attrs().Name, Mac: l.Attrs().HardwareAddr.String()})
	}
	for i := range gateways {
		if err := p.ensureAddress(holder, &gateways[i], conf); err != nil {
			return err
		}
	}
	return enableForwarding(gateways)
}

// ensureAddress gives a link an address unless it has it. Another address in its place is replaced if forceAddress says
// so, and is an error otherwise: pods with that gateway would lose it.
func (p *Plugins) ensureAddress(l netlink.Link, want *net.IPNet, conf *bridgeConf) error {
	name, family := l.Attrs().Name, netlink.FAMILY_V6
	if want.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	addrs, err := p.host.AddrList(l, family)
	if err != nil {
		return fmt.Errorf("bridge: addresses of %s: %w", name, err)
	}
	for _, have := range addrs {
		if have.IPNet.String() == want.String() {
			return nil
		}
	}
	for _, have := range addrs {
		if family == netlink.FAMILY_V6 && !have.Contains(want.IP) && !want.Contains(have.IP) {
			continue
		}
		if !conf.ForceAddress {
			return fmt.Errorf("bridge: %s has the address %s, but network %q needs %s as its gateway; remove the address or set forceAddress",
				name, have.IPNet, conf.Name, want)
		}
		if err := p.host.AddrDel(l, &netlink.Addr{IPNet: have.IPNet}); err != nil {
			return fmt.Errorf("bridge: remove %s from %s: %w", have.IPNet, name, err)
		}
	}
	addr := &netlink.Addr{IPNet: want}
	if family == netlink.FAMILY_V6 && !conf.EnableDAD {
		addr.Flags = unix.IFA_F_NODAD // the first pod must not wait a second for its gateway
	}
	if err := p.host.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("bridge: add %s to %s: %w", want, name, err)
	}
	// A bridge takes the lowest hardware address among its ports until its own is set.
	if err := p.host.LinkSetHardwareAddr(l, l.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("bridge: fix the hardware address of %s: %w", name, err)
	}
	return nil
}

// enableForwarding lets the host route between its links, for the families of the gateways.
func enableForwarding(gateways []net.IPNet) error {
	for _, gw := range gateways {
		path := "/proc/sys/net/ipv6/conf/all/forwarding"
		if gw.IP.To4() != nil {
			path = "/proc/sys/net/ipv4/ip_forward"
		}
		if now, err := os.ReadFile(path); err == nil && string(now) == "1\n" {
			continue
		}
		if err := writeSysctl(path, "1"); err != nil {
			return fmt.Errorf("bridge: let the host forward: %w", err)
		}
	}
	return nil
}
