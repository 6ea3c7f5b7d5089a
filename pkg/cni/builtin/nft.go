package builtin

import (
	"fmt"
	"net"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// This file holds what masquerading and port mapping share: the words of nftables rules as netlink has them, and the
// way rules are found again. A rule carries its owner in its comment, which is where `nft list ruleset` shows it.

// nftRegister is the 16-byte register that the rules compute in.
const nftRegister = 1

// header says where the fields of an address family are in its network header, in bytes.
type header struct {
	source, destination, size uint32
	proto                     byte // NFPROTO_*
}

func headerOf(ip net.IP) header {
	if ip.To4() != nil {
		return header{source: 12, destination: 16, size: net.IPv4len, proto: unix.NFPROTO_IPV4}
	}
	return header{source: 8, destination: 24, size: net.IPv6len, proto: unix.NFPROTO_IPV6}
}

// raw is an address in the length of its family.
func raw(ip net.IP) []byte {
	if v4 := ip.To4(); v4 != nil {
		return v4
	}
	return ip.To16()
}

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: nftRegister, Data: data}
}

// matchFamily is "meta nfproto ipv4" or ipv6, which a table of family inet needs before it looks at addresses.
func matchFamily(ip net.IP) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: nftRegister},
		compare(expr.CmpOpEq, []byte{headerOf(ip).proto}),
	}
}

func loadAddress(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// matchSource is "ip saddr IP".
func matchSource(ip net.IP) []expr.Any {
	h := headerOf(ip)
	return []expr.Any{loadAddress(h.source, h.size), compare(expr.CmpOpEq, raw(ip))}
}

// matchDestination is "ip daddr IP".
func matchDestination(ip net.IP) []expr.Any {
	h := headerOf(ip)
	return []expr.Any{loadAddress(h.destination, h.size), compare(expr.CmpOpEq, raw(ip))}
}

// matchDestinationNet is "ip daddr NET" or, with CmpOpNeq, "ip daddr != NET".
func matchDestinationNet(op expr.CmpOp, n *net.IPNet) []expr.Any {
	h := headerOf(n.IP)
	return []expr.Any{
		loadAddress(h.destination, h.size),
		&expr.Bitwise{SourceRegister: nftRegister, DestRegister: nftRegister, Len: h.size, Mask: n.Mask, Xor: make([]byte, h.size)},
		compare(op, raw(n.IP.Mask(n.Mask))),
	}
}

// matchLocal is "fib daddr type local".
func matchLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: nftRegister, ResultADDRTYPE: true, FlagDADDR: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

// matchPort is "tcp dport PORT" for the protocol, one of IPPROTO_*.
func matchPort(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: nftRegister},
		compare(expr.CmpOpEq, []byte{protocol}),
		&expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)),
	}
}

// dnat is "dnat to IP:PORT".
func dnat(ip net.IP, port uint16) []expr.Any {
	const addrReg, portReg = 1, 2
	return []expr.Any{
		&expr.Immediate{Register: addrReg, Data: raw(ip)},
		&expr.Immediate{Register: portReg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(headerOf(ip).proto),
			RegAddrMin: addrReg, RegProtoMin: portReg, Specified: true,
		},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// rule joins the words of a rule. An empty comment is none.
func rule(chain *nftables.Chain, comment string, words ...[]expr.Any) *nftables.Rule {
	r := &nftables.Rule{Table: chain.Table, Chain: chain}
	for _, w := range words {
		r.Exprs = append(r.Exprs, w...)
	}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	return r
}

// natChain is a base chain of type nat.
func natChain(table *nftables.Table, name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return &nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority}
}

// deleteRules deletes the rules of some chains of a table whose comment starts with a prefix that belongs to one owner.
// Chains that do not exist have no rules.
func deleteRules(table *nftables.Table, prefix string, chains ...string) error {
	const attempts = 5 // another process may delete the same rules between the list and the deletion
	var err error
	for range attempts {
		if err = deleteRulesOnce(table, prefix, chains); !missing(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("nftables: delete rules of table %s: %w", table.Name, err)
	}
	return nil
}

func deleteRulesOnce(table *nftables.Table, prefix string, chains []string) error {
	nft := &nftables.Conn{}
	for _, name := range chains {
		rules, err := nft.GetRules(table, &nftables.Chain{Name: name, Table: table})
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			if !strings.HasPrefix(comment, prefix) {
				continue
			}
			r.Table = table
			if err := nft.DelRule(r); err != nil {
				return err
			}
		}
	}
	return nft.Flush()
}
