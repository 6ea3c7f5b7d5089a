package builtin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
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

// nftConn is the one connection to nftables. It is kept: the kernel frees deleted rules in the background after an RCU
// grace period, and closing any netlink socket of netfilter waits for that, 20 to 40 ms.
// Its zero value is ready. It is safe for concurrent use.
type nftConn struct {
	mu     sync.Mutex
	conn   *nftables.Conn
	lister *nl.NetlinkSocket // for list

	probe   sync.Once
	present bool
}

// usable says whether the kernel has nftables.
func (n *nftConn) usable() bool {
	n.probe.Do(func() {
		n.present = n.do(func(nft *nftables.Conn) error {
			_, err := nft.ListTablesOfFamily(nftables.TableFamilyINet)
			return err
		}) == nil
	})
	return n.present
}

// do calls f, alone. After an error answers may be left in the socket, so the next call gets another.
func (n *nftConn) do(f func(*nftables.Conn) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		if err := n.open(); err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
	}
	err := f(n.conn)
	if err != nil {
		n.drop()
	}
	return err
}

func (n *nftConn) open() (err error) {
	if n.lister, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if n.conn, err = nftables.New(nftables.AsLasting()); err != nil {
		n.lister.Close()
	}
	return err
}

func (n *nftConn) drop() {
	if n.conn != nil {
		n.lister.Close()
		_ = n.conn.CloseLasting() // a netlink socket holds nothing that could be lost
		n.conn = nil
	}
}

func (n *nftConn) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop()
}

// deleteRules deletes the rules of some chains of a table whose comment is that of an owner.
// Chains that do not exist have no rules.
func (n *nftConn) deleteRules(table *nftables.Table, owned func(comment string) bool, chains ...string) error {
	if !n.usable() {
		return nil
	}
	const attempts = 5 // another process may delete the same rules between the list and the deletion
	var err error
	for range attempts {
		err = n.do(func(nft *nftables.Conn) error { return n.deleteRulesOnce(nft, table, owned, chains) })
		if !missing(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("nftables: delete rules of table %s: %w", table.Name, err)
	}
	return nil
}

func (n *nftConn) deleteRulesOnce(nft *nftables.Conn, table *nftables.Table, owned func(comment string) bool, chains []string) error {
	for _, name := range chains {
		rules, err := n.list(table, name)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if !owned(r.comment) {
				continue
			}
			err := nft.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: name, Table: table}, Handle: r.handle})
			if err != nil {
				return err
			}
		}
	}
	return nft.Flush()
}

// foundRule is what is needed of a rule to find and delete it.
type foundRule struct {
	handle  uint64
	comment string
}

// list returns the rules of a chain, none if it does not exist. It does not look at what the rules say, which makes it
// twenty times as fast as nftables.Conn.GetRules: there is a rule for each address of each pod.
func (n *nftConn) list(table *nftables.Table, chain string) ([]foundRule, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: n.lister}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(table.Family), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(table.Name)))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE)
	if err != nil {
		return nil, fmt.Errorf("list chain %s: %w", chain, err)
	}
	rules := make([]foundRule, 0, len(msgs))
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("list chain %s: %w", chain, err)
		}
		var r foundRule
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.NFTA_RULE_HANDLE:
				r.handle = binary.BigEndian.Uint64(a.Value)
			case unix.NFTA_RULE_USERDATA:
				r.comment, _ = userdata.GetString(a.Value, userdata.TypeComment)
			}
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// missing says whether a rule, chain or table that a batch is about does not exist.
func missing(err error) bool { return errors.Is(err, unix.ENOENT) }
