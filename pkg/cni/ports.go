package cni

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
)

// maxPorts of a pod that may be mapped.
const maxPorts = 4096

// portKey is what two mappings must share to be in each other's way.
type portKey struct {
	protocol string
	port     int32
}

func (m PortMapping) key() portKey { return portKey{m.Protocol, m.HostPort} }

// String is like "127.0.0.1:80/tcp".
func (m PortMapping) String() string {
	if m.HostIP == "" {
		return fmt.Sprintf("%d/%s", m.HostPort, m.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(netip.MustParseAddr(m.HostIP), uint16(m.HostPort)), m.Protocol)
}

// overlaps says whether one packet could match both mappings, which checkPorts has returned. No address is any address,
// an unspecified one is any of its family.
func (m PortMapping) overlaps(o PortMapping) bool {
	if m.key() != o.key() {
		return false
	}
	if m.HostIP == "" || o.HostIP == "" {
		return true
	}
	a, b := netip.MustParseAddr(m.HostIP), netip.MustParseAddr(o.HostIP)
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// checkPorts returns the mappings that ask for a host port (CRI PortMapping: host_port 0 asks for none), with protocol
// and address in their canonical form.
func checkPorts(all []PortMapping) ([]PortMapping, error) {
	if len(all) > maxPorts {
		return nil, fmt.Errorf("cni: port_mappings: %d are more than %d: %w", len(all), maxPorts, errdefs.ErrInvalidArgument)
	}
	var ports []PortMapping
	seen := map[portKey][]PortMapping{}
	for i, m := range all {
		m, err := m.canonical()
		if err != nil {
			return nil, fmt.Errorf("cni: port_mappings[%d]: %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
		if m.HostPort == 0 {
			continue
		}
		for _, o := range seen[m.key()] {
			if m.overlaps(o) {
				return nil, fmt.Errorf("cni: port_mappings[%d]: host port %s is mapped twice: %w", i, m, errdefs.ErrInvalidArgument)
			}
		}
		seen[m.key()] = append(seen[m.key()], m)
		ports = append(ports, m)
	}
	return ports, nil
}

func (m PortMapping) canonical() (PortMapping, error) {
	const maxPort = 65535
	m.Protocol = strings.ToLower(m.Protocol)
	switch m.Protocol {
	case "":
		m.Protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return m, fmt.Errorf("protocol %q is none of tcp, udp and sctp", m.Protocol)
	}
	if m.HostPort < 0 || m.HostPort > maxPort {
		return m, fmt.Errorf("host_port %d is not between 0 and %d", m.HostPort, maxPort)
	}
	if m.HostPort != 0 && (m.ContainerPort < 1 || m.ContainerPort > maxPort) {
		return m, fmt.Errorf("container_port %d is not between 1 and %d", m.ContainerPort, maxPort)
	}
	if m.HostIP != "" {
		ip, err := netip.ParseAddr(m.HostIP)
		if err != nil || ip.Zone() != "" {
			return m, fmt.Errorf("host_ip %q is not an IP address", m.HostIP)
		}
		m.HostIP = ip.Unmap().String()
	}
	return m, nil
}
