package builtin

import (
	"fmt"
	"net"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/utils"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"sigs.k8s.io/knftables"
)

// Masquerading: what leaves a pod for an address outside of its network takes the address of the host.
// The table, its chains, the rules and their comments are those of plugins/pkg/ip/ipmasq_nftables_linux.go.

const (
	backendIPTables = "iptables"
	backendNFTables = "nftables"

	masqTable = "cni_plugins_masquerade"
	masqChain = "masq_checks"
)

// instance is what a masquerading rule belongs to.
type instance struct{ network, ifname, containerID string }

// id starts the comment of the rules of an instance, and of no other.
func (i instance) id() string {
	const length = 16
	return utils.MustFormatHashWithPrefix(length, "", i.network) + "-" +
		utils.MustFormatHashWithPrefix(length, "", i.ifname+":"+i.containerID)
}

func (i instance) comment() string {
	text := fmt.Sprintf("%s, net: %s, if: %s, id: %s", i.id(), i.network, i.ifname, i.containerID)
	text = strings.ReplaceAll(text, `"`, ``)
	return text[:min(len(text), knftables.CommentLengthMax)]
}

// masquerade adds the rules for the addresses of a pod.
// Without a configured backend it is nftables: DEL of the reference plugin removes both kinds. (The reference would
// take iptables if it is installed, which costs an exec for each rule.)
func (p *Plugins) masquerade(conf *bridgeConf, ips []*current.IPConfig, i instance) error {
	var nets []*net.IPNet
	for _, addr := range ips {
		nets = append(nets, &addr.Address)
	}
	backend := conf.IPMasqBackend
	if backend == "" {
		backend = backendNFTables
		if !p.nft.usable() {
			backend = backendIPTables
		}
	}
	switch backend {
	case backendNFTables:
		return p.masqueradeNFT(nets, i)
	case backendIPTables:
		return ip.SetupIPMasqForNetworks(&backend, nets, i.network, i.ifname, i.containerID)
	}
	return fmt.Errorf("bridge: ipMasqBackend %q is neither %q nor %q", backend, backendNFTables, backendIPTables)
}

func (p *Plugins) masqueradeNFT(nets []*net.IPNet, i instance) error {
	table := &nftables.Table{Name: masqTable, Family: nftables.TableFamilyINet}
	chain := &nftables.Chain{Name: masqChain, Table: table}
	add := func(nft *nftables.Conn) error {
		for _, n := range nets {
			nft.AddRule(rule(chain, i.comment(),
				matchFamily(n.IP), matchSource(n.IP), matchDestinationNet(expr.CmpOpNeq, n), masquerade()))
		}
		return nft.Flush()
	}
	err := p.nft.do(add)
	if missing(err) { // the first pod since the node started, or since somebody flushed the ruleset
		err = p.nft.do(func(nft *nftables.Conn) error {
			addMasqChains(nft, table)
			return add(nft)
		})
	}
	if err != nil {
		return fmt.Errorf("bridge: ipMasq: nftables table %s: %w", masqTable, err)
	}
	return nil
}

// addMasqChains makes the table: what is routed out of the host and is no multicast goes through the pods' rules.
func addMasqChains(nft *nftables.Conn, table *nftables.Table) {
	nft.AddTable(table)
	nft.AddChain(&nftables.Chain{Name: masqChain, Table: table})
	postrouting := nft.AddChain(natChain(table, "postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	nft.FlushChain(postrouting)
	for _, multicast := range []*net.IPNet{
		{IP: net.IPv4(224, 0, 0, 0).To4(), Mask: net.CIDRMask(4, 32)},
		{IP: net.ParseIP("ff00::"), Mask: net.CIDRMask(8, 128)},
	} {
		nft.AddRule(rule(postrouting, "", matchFamily(multicast.IP), matchDestinationNet(expr.CmpOpEq, multicast), verdict(expr.VerdictReturn, "")))
	}
	nft.AddRule(rule(postrouting, "", verdict(expr.VerdictGoto, masqChain)))
}

// unmasquerade removes the rules of an instance, of either backend.
func (p *Plugins) unmasquerade(addrs []*net.IPNet, i instance) error {
	owned := func(comment string) bool { return strings.HasPrefix(comment, i.id()) } // the rest may be cut
	if err := p.nft.deleteRules(&nftables.Table{Name: masqTable, Family: nftables.TableFamilyINet}, owned, masqChain); err != nil {
		return err
	}
	if !p.iptablesChain(utils.FormatChainName(i.network, i.containerID)) {
		return nil
	}
	return ip.TeardownIPMasqForNetworks(addrs, i.network, i.ifname, i.containerID)
}
