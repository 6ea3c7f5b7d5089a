package cni

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// rows: S-10
func TestCheckPorts(t *testing.T) {
	m := func(proto string, host, container int32, ip string) PortMapping {
		return PortMapping{Protocol: proto, HostPort: host, ContainerPort: container, HostIP: ip}
	}
	for _, c := range []struct {
		name string
		in   []PortMapping
		want []PortMapping
		err  string // part of the error
	}{
		{name: "none"},
		{name: "no host port asked for", in: []PortMapping{m("tcp", 0, 80, ""), m("tcp", 0, 0, "")}},
		{name: "canonical", in: []PortMapping{m("", 80, 80, "::ffff:127.0.0.1"), m("SCTP", 81, 80, "FD00::1")},
			want: []PortMapping{m("tcp", 80, 80, "127.0.0.1"), m("sctp", 81, 80, "fd00::1")}},
		{name: "one port, two protocols", in: []PortMapping{m("tcp", 53, 53, ""), m("udp", 53, 53, "")},
			want: []PortMapping{m("tcp", 53, 53, ""), m("udp", 53, 53, "")}},
		{name: "one port, two addresses", in: []PortMapping{m("tcp", 53, 53, "127.0.0.1"), m("tcp", 53, 54, "127.0.0.2"), m("tcp", 53, 54, "::")},
			want: []PortMapping{m("tcp", 53, 53, "127.0.0.1"), m("tcp", 53, 54, "127.0.0.2"), m("tcp", 53, 54, "::")}},
		{name: "twice", in: []PortMapping{m("tcp", 80, 80, ""), m("tcp", 80, 81, "")}, err: "port_mappings[1]: host port 80/tcp is mapped twice"},
		{name: "twice by all addresses", in: []PortMapping{m("tcp", 80, 80, "127.0.0.1"), m("tcp", 80, 81, "0.0.0.0")}, err: "mapped twice"},
		{name: "negative", in: []PortMapping{m("tcp", -1, 80, "")}, err: "port_mappings[0]: host_port -1"},
		{name: "too large", in: []PortMapping{m("tcp", 65536, 80, "")}, err: "host_port 65536"},
		{name: "container port", in: []PortMapping{m("tcp", 80, 0, "")}, err: "container_port 0"},
		{name: "protocol", in: []PortMapping{m("icmp", 80, 80, "")}, err: `protocol "icmp"`},
		{name: "address", in: []PortMapping{m("tcp", 80, 80, "localhost")}, err: `host_ip "localhost"`},
		{name: "zone", in: []PortMapping{m("tcp", 80, 80, "fe80::1%eth0")}, err: "host_ip"},
		{name: "too many", in: make([]PortMapping, maxPorts+1), err: "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := checkPorts(c.in)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !errdefs.IsInvalidArgument(err) {
					t.Fatalf("checkPorts = %v, want an invalid argument with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

const portsConfig = `{"cniVersion":"1.0.0","name":"ports","plugins":[
	{"type":"bridge","bridge":"br-ports","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
	 "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.78.0.0/24"}],[{"subnet":"fd78::/64"}]]}},
	{"type":"portmap","backend":"BACKEND","capabilities":{"portMappings":true}}]}`

func openPorts(t *testing.T, backend string) *Network {
	dropBridge(t, "br-ports")
	return openWith(t, strings.NewReplacer("DATA", t.TempDir(), "BACKEND", backend).Replace(portsConfig))
}

// serve answers in a pod with a name, over TCP and UDP, until the test ends.
func serve(t *testing.T, p Pod, port int, name string) {
	t.Helper()
	var l net.Listener
	var c net.PacketConn
	inPod(t, p, func() (err error) {
		if l, err = net.Listen("tcp", ":"+strconv.Itoa(port)); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp", ":"+strconv.Itoa(port))
		return err
	})
	t.Cleanup(func() { l.Close(); c.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "%s", name)
			conn.Close()
		}
	}()
	go func() {
		for buf := make([]byte, 64); ; {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
}

// ask asks who answers at an address.
func ask(proto, addr string) (string, error) {
	conn, err := net.DialTimeout(proto, addr, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if proto == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

// TestHostPorts reaches a pod through its host ports: from the host over each of its addresses, and from the pod itself.
// rows: S-10, S-12, S-13, D-153, X-19
func TestHostPorts(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			n := openPorts(t, backend)
			p := newPod(t)
			p.Ports = []PortMapping{
				{Protocol: "tcp", HostPort: 7080, ContainerPort: 80}, {Protocol: "udp", HostPort: 7080, ContainerPort: 80},
				{Protocol: "tcp", HostPort: 7081, ContainerPort: 80, HostIP: uplinkV4},
				{Protocol: "tcp", HostPort: 7082, ContainerPort: 80, HostIP: "0.0.0.0"},
			}
			result := setup(t, n, p)
			serve(t, p, 80, "hello")
			for _, c := range []struct {
				proto, addr string
				inPod, ok   bool
			}{
				{"tcp", net.JoinHostPort(result.IPs[0].String(), "80"), false, true},
				{"tcp", net.JoinHostPort(result.IPs[1].String(), "80"), false, true},
				{"tcp", "127.0.0.1:7080", false, true},
				{"udp", "127.0.0.1:7080", false, true},
				{"tcp", uplinkV4 + ":7080", false, true},
				{"udp", uplinkV4 + ":7080", false, true},
				{"tcp", "[" + uplinkV6 + "]:7080", false, true},
				{"udp", "[" + uplinkV6 + "]:7080", false, true},
				{"tcp", uplinkV4 + ":7080", true, true}, // hairpin
				{"udp", uplinkV4 + ":7080", true, true},
				{"tcp", "[" + uplinkV6 + "]:7080", true, true},
				{"tcp", uplinkV4 + ":7081", false, true},
				{"tcp", "127.0.0.1:7081", false, false},
				{"tcp", "127.0.0.1:7082", false, true},
				{"tcp", "[" + uplinkV6 + "]:7082", false, false},
			} {
				var got string
				var err error
				if c.inPod {
					inPod(t, p, func() error { got, err = ask(c.proto, c.addr); return nil })
				} else {
					got, err = ask(c.proto, c.addr)
				}
				if answered := err == nil && got == "hello"; answered != c.ok {
					t.Errorf("%s %s (from the pod: %v): answered %v (%q, %v), want %v", c.proto, c.addr, c.inPod, answered, got, err, c.ok)
				}
			}
		})
	}
}

// TestHostPortMovesOn gives a UDP port to another pod while a client goes on sending from the same source port.
func TestHostPortMovesOn(t *testing.T) {
	n := openPorts(t, "nftables")
	conn, err := net.Dial("udp", uplinkV4+":7090")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, name := range []string{"first", "second"} {
		p := newPod(t)
		p.Ports = []PortMapping{{Protocol: "udp", HostPort: 7090, ContainerPort: 90}}
		if _, err := n.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		serve(t, p, 90, name)
		buf := make([]byte, 64)
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		got, err := conn.Read(buf)
		if err != nil || string(buf[:got]) != name {
			t.Errorf("the port is answered by %q (%v), want %q", buf[:got], err, name)
		}
		if err := n.Teardown(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostPortConflict: the second pod with a port is refused by name, and leaves nothing; a dead holder is torn down.
// rows: S-12
func TestHostPortConflict(t *testing.T) {
	n := openPorts(t, "nftables")
	first, second := newPod(t), newPod(t)
	first.Ports = []PortMapping{{Protocol: "tcp", HostPort: 7100, ContainerPort: 80}}
	second.Ports = []PortMapping{{Protocol: "tcp", HostPort: 7100, ContainerPort: 80, HostIP: "127.0.0.1"}}
	setup(t, n, first)
	_, err := n.Setup(t.Context(), second)
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "host port 127.0.0.1:7100/tcp is held by pod default/"+first.Name) {
		t.Fatalf("Setup of the second pod = %v", err)
	}
	if n.book.get(second.ID) != nil || len(mentions(t, second.ID)) > 0 {
		t.Error("the refused pod left something")
	}
	var links string
	inPod(t, second, func() error { links = run(t, "ip", "-o", "link"); return nil })
	if strings.Contains(links, ifName) {
		t.Errorf("the refused pod has %s", ifName)
	}
	dropNetNS(first.NetNS)
	setup(t, n, second)
	if left := mentions(t, first.ID); len(left) > 0 {
		t.Errorf("the dead pod left %v", left)
	}
	other := newPod(t) // not in the way: other protocol, other address
	other.Ports = []PortMapping{{Protocol: "udp", HostPort: 7100, ContainerPort: 80}, {Protocol: "tcp", HostPort: 7100, ContainerPort: 80, HostIP: uplinkV4}}
	setup(t, n, other)
}

// TestRulesetFlushed: somebody flushes the packet filter; the next pods work.
func TestRulesetFlushed(t *testing.T) {
	n := openPorts(t, "nftables")
	for i := range 2 {
		p := newPod(t)
		p.Ports = []PortMapping{{Protocol: "tcp", HostPort: int32(7110 + i), ContainerPort: 80}}
		setup(t, n, p)
		serve(t, p, 80, p.Name)
		if got, err := ask("tcp", fmt.Sprintf("127.0.0.1:%d", 7110+i)); got != p.Name {
			t.Errorf("pod %d answers %q, %v", i, got, err)
		}
		if rules := mentions(t, "masquerade comment"); !strings.Contains(strings.Join(rules, "\n"), p.ID[:20]) {
			t.Errorf("pod %d is not masqueraded: %v", i, rules)
		}
		run(t, "nft", "flush", "ruleset")
	}
}

// TestDelWithoutPortMappings: portmap's DEL cleans up by container, even if nobody knows the ports any more.
func TestDelWithoutPortMappings(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			n := openPorts(t, backend)
			p := newPod(t)
			p.Ports = []PortMapping{{Protocol: "tcp", HostPort: 7120, ContainerPort: 80}}
			if _, err := n.Setup(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if len(mentions(t, "7120")) == 0 {
				t.Fatal("ADD made no rule")
			}
			// One whose ID only starts the same is somebody else.
			if err := n.Teardown(context.Background(), Pod{ID: p.ID[:10]}); err != nil {
				t.Fatal(err)
			}
			if len(mentions(t, "7120")) == 0 {
				t.Fatal("DEL of another pod removed the rules")
			}
			// Whoever lost the record and the cache knows an ID.
			if err := n.book.drop(p.ID); err != nil {
				t.Fatal(err)
			}
			run(t, "rm", "-r", n.cache+"/results")
			if err := n.Teardown(context.Background(), Pod{ID: p.ID, NetNS: p.NetNS}); err != nil {
				t.Fatal(err)
			}
			if left := mentions(t, "7120", p.ID[:20]); len(left) > 0 {
				t.Errorf("DEL left %v", left)
			}
		})
	}
}
