package builtin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/utils"
	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/mattn/go-shellwords"
)

// The chains and rules are those of plugins/meta/portmap/portmap_iptables.go:
//
//	PREROUTING, OUTPUT -> CNI-HOSTPORT-DNAT, for what is addressed to the host itself
//	CNI-HOSTPORT-DNAT  -> CNI-DN-<hash of network and container>, for the ports of a pod
//	CNI-DN-...         -> CNI-HOSTPORT-SETMARK for what comes from the pod itself or from 127.0.0.1; DNAT
//	POSTROUTING        -> CNI-HOSTPORT-MASQ, which masquerades what is marked

const (
	natTable     = "nat"
	dnatChain    = "CNI-HOSTPORT-DNAT"
	setMarkChain = "CNI-HOSTPORT-SETMARK"
	masqMark     = "CNI-HOSTPORT-MASQ"
	oldSnatChain = "CNI-HOSTPORT-SNAT"
)

// ipChain is a chain of the nat table, its rules, and what leads to it.
type ipChain struct {
	name    string
	rules   [][]string
	from    []string   // chains that lead here
	entry   [][]string // matches of the rules that lead here
	prepend bool       // these rules come first in their chains
}

func (c *ipChain) setup(ipt *iptables.IPTables) error {
	if err := utils.EnsureChain(ipt, natTable, c.name); err != nil {
		return fmt.Errorf("portmap: iptables chain %s: %w", c.name, err)
	}
	for _, r := range c.rules {
		if err := utils.InsertUnique(ipt, natTable, c.name, false, r); err != nil {
			return fmt.Errorf("portmap: iptables chain %s: %w", c.name, err)
		}
	}
	for _, from := range c.from {
		for _, match := range c.entry {
			r := append(slices.Clone(match), "-j", c.name)
			if err := utils.InsertUnique(ipt, natTable, from, c.prepend, r); err != nil {
				return fmt.Errorf("portmap: iptables chain %s: %w", from, err)
			}
		}
	}
	return nil
}

// teardown removes the chain and all rules that lead to it. It need not exist.
func (c *ipChain) teardown(ipt *iptables.IPTables) error {
	if exists, err := ipt.ChainExists(natTable, c.name); err != nil || !exists {
		return err
	}
	for _, from := range c.from {
		rules, err := ipt.List(natTable, from)
		if err != nil {
			continue // no such chain, so nothing leads from it
		}
		for _, r := range rules {
			if !strings.HasSuffix(r, " -j "+c.name) {
				continue
			}
			words, err := shellwords.Parse(r)
			if err != nil || len(words) < 3 {
				return fmt.Errorf("portmap: iptables rule %q: cannot be read: %w", r, err)
			}
			if err := utils.DeleteRule(ipt, natTable, from, words[2:]...); err != nil { // after "-A CHAIN"
				return fmt.Errorf("portmap: iptables chain %s: %w", from, err)
			}
		}
	}
	if err := ipt.ClearAndDeleteChain(natTable, c.name); err != nil {
		return fmt.Errorf("portmap: iptables chain %s: %w", c.name, err)
	}
	return nil
}

func forwardIPTables(conf *portmapConf, pod net.IPNet) error {
	proto := iptables.ProtocolIPv4
	if pod.IP.To4() == nil {
		proto = iptables.ProtocolIPv6
	}
	ipt, err := iptables.NewWithProtocol(proto)
	if err != nil {
		return fmt.Errorf("portmap: iptables: %w", err)
	}
	var chains []ipChain
	if conf.snat() && conf.ExternalSetMarkChain == nil {
		chains = append(chains, markChains(conf)...)
	}
	chains = append(chains, ipChain{
		name: dnatChain, from: []string{"PREROUTING", "OUTPUT"}, entry: [][]string{{"-m", "addrtype", "--dst-type", "LOCAL"}},
	}, podChain(conf, pod))
	for _, c := range chains {
		if err := c.setup(ipt); err != nil {
			return err
		}
	}
	return nil
}

// markChains are the chain that marks a packet for masquerading and the one that masquerades what is marked. The latter
// comes first in POSTROUTING, before the masquerading of the pods, which would let it through as traffic within a network.
func markChains(conf *portmapConf) []ipChain {
	bit := defaultMarkBit
	if conf.MarkMasqBit != nil {
		bit = *conf.MarkMasqBit
	}
	mark := fmt.Sprintf("%#x/%#x", 1<<bit, 1<<bit)
	return []ipChain{{
		name:  setMarkChain,
		rules: [][]string{{"-m", "comment", "--comment", "CNI portfwd masquerade mark", "-j", "MARK", "--set-xmark", mark}},
	}, {
		name:    masqMark,
		from:    []string{"POSTROUTING"},
		prepend: true,
		entry:   [][]string{{"-m", "comment", "--comment", "CNI portfwd requiring masquerade"}},
		rules:   [][]string{{"-m", "mark", "--mark", mark, "-j", "MASQUERADE"}},
	}}
}

func podChainName(conf *portmapConf) string {
	return utils.MustFormatChainNameWithPrefix(conf.Name, conf.containerID, "DN-")
}

// podChain leads the host ports to an address of a pod.
func podChain(conf *portmapConf, pod net.IPNet) ipChain {
	c := ipChain{name: podChainName(conf), from: []string{dnatChain}}
	comment := fmt.Sprintf(`dnat name: "%s" id: "%s"`, conf.Name, conf.containerID)
	if len(comment) > 255 { // the limit of iptables
		comment = comment[:253] + "..."
	}
	for _, ports := range portLists(conf.RuntimeConfig.Ports) {
		match := append([]string{"-m", "comment", "--comment", comment, "-m", "multiport"}, ports...)
		c.entry = append(c.entry, append(match, conf.conditions(pod.IP)...))
	}
	setMark := setMarkChain
	if conf.ExternalSetMarkChain != nil {
		setMark = *conf.ExternalSetMarkChain
	}
	for _, e := range conf.RuntimeConfig.Ports {
		host, ok := e.hostIP(pod.IP)
		if !ok {
			continue
		}
		match := []string{"-p", e.Protocol, "--dport", strconv.Itoa(e.HostPort)}
		if host != nil {
			match = append(match, "-d", e.HostIP)
		}
		for _, source := range markedSources(conf, pod) {
			c.rules = append(c.rules, append(slices.Clone(match), "-s", source, "-j", setMark))
		}
		to := net.JoinHostPort(pod.IP.String(), strconv.Itoa(e.ContainerPort))
		c.rules = append(c.rules, append(slices.Clone(match), "-j", "DNAT", "--to-destination", to))
	}
	return c
}

// markedSources are the sources of packets whose answers would not come back the way they came: the pod itself and the
// host's loopback, or all.
func markedSources(conf *portmapConf, pod net.IPNet) []string {
	v6 := pod.IP.To4() == nil
	switch {
	case !conf.snat():
		return nil
	case conf.MasqAll && v6:
		return []string{"::/0"}
	case conf.MasqAll:
		return []string{"0.0.0.0/0"}
	case v6:
		return []string{pod.String()}
	}
	return []string{pod.String(), "127.0.0.1"}
}

// portLists are the matches of all host ports, by protocol. A multiport match takes 15 ports.
func portLists(ports []portEntry) [][]string {
	const most = 15
	byProtocol := map[string][]string{}
	for _, e := range ports {
		byProtocol[e.Protocol] = append(byProtocol[e.Protocol], strconv.Itoa(e.HostPort))
	}
	var lists [][]string
	for _, proto := range []string{"sctp", "tcp", "udp"} {
		for part := range slices.Chunk(byProtocol[proto], most) {
			lists = append(lists, []string{"-p", proto, "--destination-ports", strings.Join(part, ",")})
		}
	}
	return lists
}

// unforwardIPTables removes the chains of a container, if there are any.
func (p *Plugins) unforwardIPTables(conf *portmapConf) error {
	pod := ipChain{name: podChainName(conf), from: []string{dnatChain}}
	old := ipChain{name: utils.MustFormatChainNameWithPrefix(conf.Name, conf.containerID, "SN-"), from: []string{oldSnatChain}}
	if !p.iptablesChain(pod.name) && !p.iptablesChain(old.name) {
		return nil
	}
	var errs []error
	for _, proto := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		ipt, err := iptables.NewWithProtocol(proto)
		if err != nil {
			errs = append(errs, fmt.Errorf("portmap: iptables: %w", err))
			continue
		}
		errs = append(errs, pod.teardown(ipt), old.teardown(ipt))
	}
	return errors.Join(errs...)
}

// iptablesChain says whether iptables may have a chain of this name in the nat table of either family, without running it:
// iptables-nft keeps its chains in nftables, and the kernel names the tables of legacy iptables.
func (p *Plugins) iptablesChain(name string) bool {
	for family, legacy := range map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "/proc/net/ip_tables_names", nftables.TableFamilyIPv6: "/proc/net/ip6_tables_names",
	} {
		if tables, err := os.ReadFile(legacy); err == nil && slices.Contains(strings.Fields(string(tables)), natTable) {
			return true
		}
		if p.nft.usable() && p.nftChain(&nftables.Table{Name: natTable, Family: family}, name) {
			return true
		}
	}
	return false
}

// nftChain says whether a chain has rules, or cannot be read.
func (p *Plugins) nftChain(table *nftables.Table, name string) bool {
	found := false
	err := p.nft.do(func(*nftables.Conn) error {
		rules, err := p.nft.list(table, name)
		found = len(rules) > 0
		return err
	})
	return found || err != nil
}
