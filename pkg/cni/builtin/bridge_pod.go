package builtin

import (
	"fmt"
	"net"
	"os"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dadTimeout is how long duplicate address detection may take.
const dadTimeout = 5 * time.Second

// configurePod gives the pod's interface its addresses and routes, and sets it up.
//
// It does what ipam.ConfigureIface of the reference does, which however waits 50 ms when the kernel has not yet looked at
// an address that it was told not to check.
func configurePod(netns ns.NetNS, ifname string, dad bool, result *current.Result) error {
	return netns.Do(func(ns.NetNS) error {
		nl, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		l, err := nl.LinkByName(ifname)
		if err != nil {
			return err
		}
		setPodSysctls(ifname, dad)
		v6 := false
		for _, addr := range result.IPs {
			isV6 := addr.Address.IP.To4() == nil
			if isV6 && !v6 {
				v6 = true
				if err := enableV6(ifname); err != nil {
					return err
				}
			}
			a := &netlink.Addr{IPNet: &addr.Address}
			if isV6 && !dad {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := nl.AddrAdd(l, a); err != nil {
				return fmt.Errorf("add address %s: %w", addr.Address.IP, err)
			}
		}
		if err := nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
		if v6 && dad {
			if err := ip.SettleAddresses(ifname, dadTimeout); err != nil {
				return fmt.Errorf("duplicate address detection: %w", err)
			}
		}
		return addRoutes(nl, l, result)
	})
}

// setPodSysctls prepares an interface for its addresses. A node may lack IPv6, so a sysctl that is not there is no error.
func setPodSysctls(ifname string, dad bool) {
	v6 := "/proc/sys/net/ipv6/conf/" + ifname
	if dad {
		_ = writeSysctl(v6+"/enhanced_dad", "1")
		_ = writeSysctl(v6+"/accept_dad", "1")
	} else {
		_ = writeSysctl(v6+"/accept_dad", "0")
	}
	// A neighbour on the bridge must not be able to give the pod a router (CVE-2020-10749).
	_ = writeSysctl(v6+"/accept_ra", "0")
	// Neighbours may remember the address with the hardware address of its last owner: announce the new one.
	_ = writeSysctl("/proc/sys/net/ipv4/conf/"+ifname+"/arp_notify", "1")
}

// enableV6 lets the pod have IPv6 addresses, on its loopback interface too, and keep them when its interface goes down.
func enableV6(ifname string) error {
	for _, name := range []string{loopback, ifname} {
		path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
		if now, err := os.ReadFile(path); err == nil && string(now) == "0\n" {
			continue
		}
		if err := writeSysctl(path, "0"); err != nil {
			return fmt.Errorf("IPv6 on %s: %w", name, err)
		}
	}
	if err := writeSysctl("/proc/sys/net/ipv6/conf/"+ifname+"/keep_addr_on_down", "1"); err != nil {
		return fmt.Errorf("keep_addr_on_down: %w", err)
	}
	return nil
}

// addRoutes adds the routes of a result. One without a gateway goes over the first gateway of its family.
func addRoutes(nl netlinksafe.Handle, l netlink.Link, result *current.Result) error {
	var v4, v6 net.IP
	for _, addr := range result.IPs {
		if addr.Gateway.To4() != nil && v4 == nil {
			v4 = addr.Gateway
		} else if addr.Gateway.To4() == nil && v6 == nil {
			v6 = addr.Gateway
		}
	}
	for _, r := range result.Routes {
		route := &netlink.Route{Dst: &r.Dst, LinkIndex: l.Attrs().Index, Gw: r.GW, Priority: r.Priority}
		if route.Gw == nil && r.Dst.IP.To4() != nil {
			route.Gw = v4
		} else if route.Gw == nil {
			route.Gw = v6
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := nl.RouteAddEcmp(route); err != nil {
			return fmt.Errorf("add route to %s over %s: %w", &r.Dst, route.Gw, err)
		}
	}
	return nil
}
