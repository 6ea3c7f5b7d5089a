package builtin

import (
	"context"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"sigs.k8s.io/knftables"
)

// The tables, chains, rules and comments are those of plugins/meta/portmap/portmap_nftables.go.

const (
	portTable = "cni_hostport"

	portEntryChain = "hostports_all"    // jumps to the next two
	portOldChain   = "hostip_hostports" // unused since plugins v1.6, kept as the reference keeps it
	portChain      = "hostports"        // one rule for each host port
	portMasqChain  = "masquerading"     // of what the pod or the host sends to a host port of the pod
)

// portBaseChains are where packets to host ports come by: from elsewhere, and from the host itself. They have the names
// of their hooks.
var portBaseChains = []struct {
	name string
	hook *nftables.ChainHook
}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}}

func portTableOf(ip net.IP) *nftables.Table {
	if ip.To4() != nil {
		return &nftables.Table{Name: portTable, Family: nftables.TableFamilyIPv4}
	}
	return &nftables.Table{Name: portTable, Family: nftables.TableFamilyIPv6}
}

// forwardNFT adds the rules that lead the host ports to an address of the pod.
//
// The base chains are written by the first call and when they turn out to be missing. Conditions are words of the nft
// language and thus need the nft program, which then writes the base chains each time, as the reference does.
func (p *Plugins) forwardNFT(ctx context.Context, conf *portmapConf, pod net.IP) error {
	p.ports.mu.Lock()
	defer p.ports.mu.Unlock()
	table := portTableOf(pod)
	ready := &p.ports.v6Ready
	if pod.To4() != nil {
		ready = &p.ports.v4Ready
	}
	conditions := conf.conditions(pod)
	conditional := len(conditions) > 0 && conditions[0] != ""
	if conditional {
		*ready = false
		if err := writeConditions(ctx, table.Family, conditions); err != nil {
			return err
		}
	}
	add := func(base bool) error {
		return p.nft.do(func(nft *nftables.Conn) error {
			if base {
				addPortChains(nft, table)
			}
			addPortRules(nft, table, conf, pod)
			return nft.Flush()
		})
	}
	err := add(!conditional && !*ready)
	if missing(err) && *ready { // somebody flushed the ruleset
		err = add(true)
	}
	if err != nil {
		return fmt.Errorf("portmap: nftables table %s: %w", portTable, err)
	}
	*ready = !conditional
	return nil
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
	masq := nft.AddChain(natChain(table, portMasqChain, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
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
func (p *Plugins) unforwardNFT(containerID string) error {
	owned := func(comment string) bool { return comment == containerID }
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Name: portTable, Family: family}
		if err := p.nft.deleteRules(table, owned, portChain, portOldChain, portMasqChain); err != nil {
			return err
		}
	}
	return nil
}
