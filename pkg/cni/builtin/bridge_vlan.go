package builtin

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

const maxVlan = 4094

// vlanRange is an entry of vlanTrunk: one VLAN, or all from one to another.
type vlanRange struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

// trunkVlans returns the VLANs of a trunk, sorted.
func trunkVlans(trunk []vlanRange) ([]int, error) {
	valid := func(id int) bool { return id > 0 && id <= maxVlan }
	vlans := map[int]bool{}
	for i, r := range trunk {
		if (r.MinID == nil) != (r.MaxID == nil) {
			return nil, fmt.Errorf("bridge: vlanTrunk[%d]: minID and maxID go together", i)
		}
		if r.MinID != nil {
			if !valid(*r.MinID) || !valid(*r.MaxID) || *r.MinID > *r.MaxID {
				return nil, fmt.Errorf("bridge: vlanTrunk[%d]: %d to %d is not a range between 1 and %d", i, *r.MinID, *r.MaxID, maxVlan)
			}
			for v := *r.MinID; v <= *r.MaxID; v++ {
				vlans[v] = true
			}
		}
		if r.ID != nil {
			if !valid(*r.ID) {
				return nil, fmt.Errorf("bridge: vlanTrunk[%d]: id %d is not between 1 and %d", i, *r.ID, maxVlan)
			}
			vlans[*r.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(vlans)), nil
}

// setPortVlans makes a port a member of a VLAN, untagged, and of those of a trunk, tagged.
// A trunk without a VLAN of its own has VLAN 1 untagged.
func (p *Plugins) setPortVlans(port netlink.Link, vlan int, trunk []int, keepDefault bool) error {
	if vlan == 0 && len(trunk) == 0 {
		return nil
	}
	name := port.Attrs().Name
	if !keepDefault {
		if err := p.leaveVlans(port); err != nil {
			return fmt.Errorf("bridge: default VLAN of port %s: %w", name, err)
		}
	}
	for _, v := range trunk {
		if err := p.host.BridgeVlanAdd(port, uint16(v), false, false, false, true); err != nil {
			return fmt.Errorf("bridge: VLAN %d of port %s: %w", v, name, err)
		}
	}
	if vlan == 0 {
		vlan = 1
	}
	if err := p.host.BridgeVlanAdd(port, uint16(vlan), true, true, false, true); err != nil {
		return fmt.Errorf("bridge: VLAN %d of port %s: %w", vlan, name, err)
	}
	return nil
}

// leaveVlans takes a port out of the VLANs that the bridge put it in when it was added.
func (p *Plugins) leaveVlans(port netlink.Link) error {
	all, err := netlinksafe.BridgeVlanList()
	if err != nil {
		return err
	}
	for _, v := range all[int32(port.Attrs().Index)] {
		if err := p.host.BridgeVlanDel(port, v.Vid, false, false, false, true); err != nil {
			return err
		}
	}
	return nil
}

// ensureVlanInterface returns the host's interface in a VLAN of a bridge, which holds the gateway addresses: one end of
// a veth pair, named BRIDGE.VLAN, whose other end is a port in that VLAN.
func (p *Plugins) ensureVlanInterface(br *netlink.Bridge, vlan int, keepDefault bool) (netlink.Link, error) {
	name := fmt.Sprintf("%s.%d", br.Name, vlan)
	l, err := p.host.LinkByName(name)
	if err == nil {
		return l, nil
	}
	if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("bridge: interface %s: %w", name, err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: vethName()}
	pair.Name, pair.MTU = name, br.MTU
	if err := p.host.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("bridge: make interface %s: %w", name, err)
	}
	port, err := p.host.LinkByName(pair.PeerName)
	if err != nil {
		return nil, fmt.Errorf("bridge: port of interface %s: %w", name, err)
	}
	if err := p.host.LinkSetMaster(port, br); err != nil {
		return nil, fmt.Errorf("bridge: add the port of %s to %s: %w", name, br.Name, err)
	}
	if err := p.setPortVlans(port, vlan, nil, keepDefault); err != nil {
		return nil, err
	}
	if l, err = p.host.LinkByName(name); err != nil {
		return nil, err
	}
	for _, end := range []netlink.Link{port, l} {
		if err := p.host.LinkSetUp(end); err != nil {
			return nil, fmt.Errorf("bridge: set %s up: %w", end.Attrs().Name, err)
		}
	}
	return l, nil
}
