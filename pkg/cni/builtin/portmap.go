package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/utils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var portmapKeys = []string{
	"backend", "snat", "conditionsV4", "conditionsV6", "masqAll", "markMasqBit", "externalSetMarkChain",
}

// defaultMarkBit says which bit of the packet mark asks for masquerading (iptables backend).
const defaultMarkBit = 13

// portEntry maps a port of the host to one of the pod.
type portEntry struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// protocols that a port may have.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// portmapConf is the configuration of the portmap plugin.
type portmapConf struct {
	types.PluginConf
	Backend              string   `json:"backend"`
	SNAT                 *bool    `json:"snat"`
	ConditionsV4         []string `json:"conditionsV4"`
	ConditionsV6         []string `json:"conditionsV6"`
	MasqAll              bool     `json:"masqAll"`
	MarkMasqBit          *int     `json:"markMasqBit"`
	ExternalSetMarkChain *string  `json:"externalSetMarkChain"`
	RuntimeConfig        struct {
		Ports []portEntry `json:"portMappings"`
	} `json:"runtimeConfig"`

	containerID string
	prev        *current.Result
}

func (c *portmapConf) snat() bool { return c.SNAT == nil || *c.SNAT }

func (c *portmapConf) conditions(ip net.IP) []string {
	if ip.To4() != nil {
		return c.ConditionsV4
	}
	return c.ConditionsV6
}

// portMapper is what portmap keeps between calls.
type portMapper struct {
	iptables sync.Once
	usable   bool // iptables

	mu               sync.Mutex // of the nftables backend
	v4Ready, v6Ready bool       // the base chains are as this process writes them when there are no conditions
}

func parsePortmap(r *Request) (*portmapConf, error) {
	conf := &portmapConf{containerID: r.ContainerID}
	if err := json.Unmarshal(r.Config, conf); err != nil {
		return nil, fmt.Errorf("portmap: configuration: %w", err)
	}
	if conf.MarkMasqBit != nil && conf.ExternalSetMarkChain != nil {
		return nil, errors.New("portmap: markMasqBit excludes externalSetMarkChain")
	}
	if conf.MarkMasqBit != nil && (*conf.MarkMasqBit < 0 || *conf.MarkMasqBit > 31) {
		return nil, fmt.Errorf("portmap: markMasqBit %d is not between 0 and 31", *conf.MarkMasqBit)
	}
	for i := range conf.RuntimeConfig.Ports {
		if err := conf.RuntimeConfig.Ports[i].check(); err != nil {
			return nil, fmt.Errorf("portmap: portMappings[%d]: %w", i, err)
		}
	}
	return conf, nil
}

func (e *portEntry) check() error {
	const maxPort = 65535
	e.Protocol = strings.ToLower(e.Protocol)
	switch {
	case protocols[e.Protocol] == 0:
		return fmt.Errorf("protocol %q is none of tcp, udp and sctp", e.Protocol)
	case e.HostPort < 1 || e.HostPort > maxPort:
		return fmt.Errorf("host port %d is not between 1 and %d", e.HostPort, maxPort)
	case e.ContainerPort < 1 || e.ContainerPort > maxPort:
		return fmt.Errorf("container port %d is not between 1 and %d", e.ContainerPort, maxPort)
	case e.HostIP != "" && net.ParseIP(e.HostIP) == nil:
		return fmt.Errorf("host IP %q is not an address", e.HostIP)
	}
	return nil
}

// hostIP is the address of the host that the port is on, nil for all. It is false if a port on this address cannot lead
// to a pod address of the family of ip.
func (e *portEntry) hostIP(ip net.IP) (net.IP, bool) {
	if e.HostIP == "" {
		return nil, true
	}
	host := net.ParseIP(e.HostIP)
	if (host.To4() == nil) != (ip.To4() == nil) {
		return nil, false
	}
	if host.IsUnspecified() {
		return nil, true
	}
	return host, true
}

// chooseBackend fills in the backend: what the configuration says, else iptables if it works, else nftables.
// That is the reference's choice. It must be: its DEL cleans up only the backend that it would choose.
func (p *Plugins) chooseBackend(conf *portmapConf) error {
	if conf.Backend == "" {
		p.ports.iptables.Do(func() { p.ports.usable = utils.SupportsIPTables() })
		conf.Backend = backendNFTables
		if p.ports.usable {
			conf.Backend = backendIPTables
		}
	}
	if conf.Backend != backendIPTables && conf.Backend != backendNFTables {
		return fmt.Errorf("portmap: backend %q is neither %q nor %q", conf.Backend, backendNFTables, backendIPTables)
	}
	if conf.Backend == backendNFTables && conf.ExternalSetMarkChain != nil {
		return errors.New("portmap: externalSetMarkChain is for the backend iptables")
	}
	for key, conditions := range map[string][]string{"conditionsV4": conf.ConditionsV4, "conditionsV6": conf.ConditionsV6} {
		if len(conditions) == 0 || conditions[0] == "" {
			continue
		}
		// A condition of iptables starts with an option or its negation, one of nftables never does.
		if isIPTables := strings.ContainsRune("-!", rune(conditions[0][0])); isIPTables != (conf.Backend == backendIPTables) {
			return fmt.Errorf("portmap: %s is not in the language of the backend %s", key, conf.Backend)
		}
	}
	return nil
}

func (p *Plugins) portmapAdd(ctx context.Context, r *Request) (types.Result, error) {
	conf, err := parsePortmap(r)
	if err != nil {
		return nil, err
	}
	if conf.prev, err = prevResult(&conf.PluginConf); err != nil {
		return nil, err
	}
	if conf.prev == nil {
		return nil, errors.New("portmap: there is no prevResult; it must come after the plugin that makes the interface")
	}
	if len(conf.RuntimeConfig.Ports) == 0 {
		return conf.prev, nil
	}
	if err := p.chooseBackend(conf); err != nil {
		return nil, err
	}
	for _, addr := range podAddresses(conf.prev, r.IfName) {
		if err := p.forward(ctx, conf, addr); err != nil {
			return nil, err
		}
	}
	return conf.prev, nil
}

// forward leads the host ports to an address of the pod.
func (p *Plugins) forward(ctx context.Context, conf *portmapConf, addr net.IPNet) error {
	var err error
	if conf.Backend == backendIPTables {
		err = forwardIPTables(conf, addr)
	} else {
		err = p.forwardNFT(ctx, conf, addr.IP)
	}
	if err != nil {
		return err
	}
	p.forgetFlows(conf.RuntimeConfig.Ports, addr.IP.To4() == nil)
	if conf.snat() && addr.IP.To4() != nil {
		return p.routeLocalnet(addr.IP)
	}
	return nil
}

// podAddresses are the first address of each family of the pod's interface.
func podAddresses(result *current.Result, ifname string) []net.IPNet {
	var v4, v6 []net.IPNet
	for _, addr := range result.IPs {
		if i := addr.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) {
			if on := result.Interfaces[*i]; on.Name != ifname || on.Sandbox == "" {
				continue
			}
		}
		if addr.Address.IP.To4() != nil {
			v4 = append(v4, addr.Address)
		} else {
			v6 = append(v6, addr.Address)
		}
	}
	return append(v4[:min(1, len(v4))], v6[:min(1, len(v6))]...)
}

// forgetFlows deletes what connection tracking knows of UDP ports: a client that goes on sending would keep a flow alive
// that leads to where the port led before. A failure is no reason to refuse the pod.
func (p *Plugins) forgetFlows(ports []portEntry, v6 bool) {
	family := netlink.InetFamily(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	for _, e := range ports {
		if e.Protocol != "udp" {
			continue
		}
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, uint16(e.HostPort)))
		if err == nil {
			_, err = p.host.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		}
		if err != nil {
			p.log.WithError(err).WithField("port", e.HostPort).Warn("portmap: forget old UDP flows")
		}
	}
}

// routeLocalnet lets connections from 127.0.0.1 to a host port be routed to the pod, over the interface that leads there.
func (p *Plugins) routeLocalnet(ip net.IP) error {
	routes, err := p.host.RouteGet(ip)
	if err != nil || len(routes) == 0 {
		return nil // no way to the pod but through its own plugin: nothing to set, as the reference sees it
	}
	l, err := p.host.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil
	}
	if err := writeSysctl("/proc/sys/net/ipv4/conf/"+l.Attrs().Name+"/route_localnet", "1"); err != nil {
		return fmt.Errorf("portmap: route_localnet of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// portmapDel removes the rules of a container in both backends, whether or not the configuration still names ports.
func (p *Plugins) portmapDel(_ context.Context, r *Request) error {
	conf, err := parsePortmap(r)
	if err != nil {
		return err
	}
	if err := p.unforwardNFT(conf.containerID); err != nil {
		return err
	}
	if err := p.unforwardIPTables(conf); err != nil {
		return err
	}
	p.forgetFlows(conf.RuntimeConfig.Ports, false)
	p.forgetFlows(conf.RuntimeConfig.Ports, true)
	return nil
}
