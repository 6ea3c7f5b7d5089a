package builtin

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"sigs.k8s.io/knftables"
)

// The tables, chains, rules and comments are those of plugins/meta/portmap/portmap_nftables.go.

const (
	portTable = "cni_hostport"

	portEntryChain  = "hostports_all"    // jumps to the next two
	portOldChain    = "hostip_hostports" // unused since plugins v1.6, kept as the reference keeps it
	portChain       = "hostports"        // one rule for each host port
	portMasqueChain = "masquerading"     // of what the pod or the host sends to a host port of the pod
)

// portBaseChains are where packets to host ports come by: from elsewhere, and from the host itself. They have the names
// of their hooks.
var portBaseChains = []struct {
	name string
	hook *nftables.ChainHook
}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}}

// nftPorts is the nftables backend of portmap.
type nftPorts struct {
	mu   sync.Mutex
	base map[nftables.TableFamily]bool // the base chains are as this process writes them when there are no conditions
}

func portTableOf(ip net.IP) *nftables.Table {
	if ip.To4() != nil {
		return &nftables.Table{Name: portTable, Family: nftables.TableFamilyIPv4}
	}
	return &nftables.Table{Name: portTable, Family: nftables.TableFamilyIPv6}
}

// forward adds the rules that lead the host ports to an address of the pod.
//
// The base chains are written by the first call and when they turn out to be missing. Conditions are words of the nft
// language and thus need the nft program, which then writes the base chains each time, as the reference does.
func (n *nftPorts) forward(ctx context.Context, conf *portmapConf, pod net.IP) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	table := portTableOf(pod)
	nft := &nftables.Conn{}
	conditions := conf.conditions(pod)
	if len(conditions) > 0 && conditions[0] != "" {
		n.know(table.Family, false)
		if err := writeConditions(ctx, table.Family, conditions); err != nil {
			return err
		}
	} else if !n.base[table.Family] {
		addPortChains(nft, table)
	}
	addPortRules(nft, table, conf, pod)
	err := nft.Flush()
	if missing(err) && n.base[table.Family] { // somebody flushed the ruleset
		addPortChains(nft, table)
		addPortRules(nft, table, conf, pod)
		err = nft.Flush()
	}
	if err != nil {
		return fmt.Errorf("portmap: nftables table %s: %w", portTable, err)
	}
	n.know(table.Family, len(conditions) == 0)
	return nil
}

func (n *nftPorts) know(family nftables.TableFamily, base bool) {
	if n.base == nil {
		n.base = map[nftables.TableFamily]bool{}
	}
	n.base[family] = base
}

// addPortChains makes the base chains: what is addressed to the host itself goes through the rules of the pods.
func addPortChains(nft *nftables.Conn, table *nftables.Table) {
	nft.AddTable(table)
	for _, name := range []string{portChain, portOldChain} {
		nft.AddChain(&nftables.Chain{Name: name, Table: table})
	}
	entry := nft.AddChain(&nftables.Chain{Name: portEntryChain, Table: table})
	nft.FlushChain(entry)
	nft.AddRule(rule(entry, "", verdict(expr.VerdictJump, portOldChain)))
	nft.AddRule(rule(entry, "", verdict(expr.VerdictJump, portChain)))
	for _, base := range portBaseChains {
		c := nft.AddChain(natChain(table, base.name, base.hook, nftables.ChainPriorityNATDest))
		nft.FlushChain(c)
		nft.AddRule(rule(c, "", matchLocal(), verdict(expr.VerdictJump, portEntryChain)))
	}
}

// addPortRules adds the rules of one pod.
func addPortRules(nft *nftables.Conn, table *nftables.Table, conf *portmapConf, pod net.IP) {
	ports := &nftables.Chain{Name: portChain, Table: table}
	for _, e := range conf.RuntimeConfig.Ports {
		host, ok := e.hostIP(pod)
		if !ok {
			continue
		}
		words := matchPort(protocols[e.Protocol], uint16(e.HostPort))
		if host != nil {
			words = append(matchDestination(host), words...)
		}
		nft.AddRule(rule(ports, conf.containerID, words, dnat(pod, uint16(e.ContainerPort))))
	}
	if !conf.snat() {
		return
	}
	masq := nft.AddChain(natChain(table, portMasqueChain, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	nft.AddRule(rule(masq, conf.containerID, matchSource(pod), matchDestination(pod), masquerade()))
	if pod.To4() != nil {
		nft.AddRule(rule(masq, conf.containerID, matchSource(net.IPv4(127, 0, 0, 1)), matchDestination(pod), masquerade()))
	}
}

// writeConditions makes the base chains with conditions for what goes through the rules of the pods.
func writeConditions(ctx context.Context, family nftables.TableFamily, conditions []string) error {
	knFamily := knftables.IPv4Family
	if family == nftables.TableFamilyIPv6 {
		knFamily = knftables.IPv6Family
	}
	nft, err := knftables.New(knFamily, portTable)
	if err != nil {
		return fmt.Errorf("portmap: conditions need the nft program: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	for _, name := range []string{portChain, portOldChain, portEntryChain} {
		tx.Add(&knftables.Chain{Name: name})
	}
	tx.Flush(&knftables.Chain{Name: portEntryChain})
	for _, name := range []string{portOldChain, portChain} {
		tx.Add(&knftables.Rule{Chain: portEntryChain, Rule: knftables.Concat("jump", name)})
	}
	for _, base := range portBaseChains {
		tx.Add(&knftables.Chain{
			Name: base.name, Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.BaseChainHook(base.name)),
			Priority: knftables.PtrTo(knftables.DNATPriority),
		})
		tx.Flush(&knftables.Chain{Name: base.name})
		tx.Add(&knftables.Rule{Chain: base.name, Rule: knftables.Concat(conditions, "fib daddr type local", "jump", portEntryChain)})
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("portmap: conditions %q: %w", conditions, err)
	}
	return nil
}

// unforwardNFT removes the rules of a container for both families.
func unforwardNFT(containerID string) error {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Name: portTable, Family: family}
		err := deleteRules(table, containerID, portChain, portOldChain, portMasqueChain)
		if err != nil && !noNFTables(err) {
			return err
		}
	}
	return nil
}
