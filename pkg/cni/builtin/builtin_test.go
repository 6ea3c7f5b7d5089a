package builtin

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the plugins do to the kernel is tested in package cni, where they run beside the reference programs.

func TestSupports(t *testing.T) {
	for _, c := range []struct{ plugin, conf, unknown string }{
		{"bridge", `{"type":"bridge","bridge":"x","IPMASQ":true,"runtimeConfig":{},"prevResult":{}}`, ""},
		{"bridge", `{"type":"bridge","bridg":"x"}`, "bridg"},
		{"bridge", `{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/8","lease":1}}`, "ipam.lease"},
		{"bridge", `{"type":"bridge","ipam":{"type":"dhcp","lease":1}}`, ""}, // for that plugin to judge
		{"portmap", `{"type":"portmap","backend":"nftables","snat":true}`, ""},
		{"portmap", `{"type":"portmap","bridge":"x"}`, "bridge"},
		{"loopback", `{"type":"loopback"}`, ""},
		{"macvlan", `{"type":"macvlan"}`, "macvlan"},
	} {
		err := Supports(c.plugin, []byte(c.conf))
		if c.unknown == "" && err != nil || c.unknown != "" && (err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", c.unknown))) {
			t.Errorf("Supports(%s) = %v, want an error about %q", c.conf, err, c.unknown)
		}
	}
}

func TestTrunkVlans(t *testing.T) {
	id := func(i int) *int { return &i }
	for _, c := range []struct {
		trunk []vlanRange
		want  []int
		err   string
	}{
		{trunk: nil},
		{trunk: []vlanRange{{ID: id(7)}, {MinID: id(3), MaxID: id(5)}, {ID: id(4)}}, want: []int{3, 4, 5, 7}},
		{trunk: []vlanRange{{MinID: id(3)}}, err: "go together"},
		{trunk: []vlanRange{{MaxID: id(3)}}, err: "go together"},
		{trunk: []vlanRange{{MinID: id(5), MaxID: id(3)}}, err: "5 to 3"},
		{trunk: []vlanRange{{MinID: id(1), MaxID: id(4095)}}, err: "4095"},
		{trunk: []vlanRange{{ID: id(1)}, {ID: id(0)}}, err: "vlanTrunk[1]: id 0"},
	} {
		got, err := trunkVlans(c.trunk)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("trunkVlans = %v, want %q", err, c.err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("trunkVlans: %v\n%s", err, diff)
		}
	}
}

func TestParseBridge(t *testing.T) {
	for conf, want := range map[string]string{
		`{"vlan":4095}`: "vlan 4095",
		`{"hairpinMode":true,"promiscMode":true}`:                "promiscMode",
		`{"disableContainerInterface":true,"ipam":{"type":"x"}}`: "excludes ipam",
		`{"args":{"cni":{"mac":"zz"}}}`:                          "invalid MAC",
		`{"mtu":"large"}`:                                        "configuration",
	} {
		if _, err := parseBridge(&Request{Config: []byte(conf)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseBridge(%s) = %v, want %q", conf, err, want)
		}
	}
	// The runtime's wish goes before the configuration's, and that before CNI_ARGS.
	for conf, want := range map[string]string{
		`{}`: "02:00:00:00:00:01",
		`{"args":{"cni":{"mac":"02:00:00:00:00:02"}}}`:                                             "02:00:00:00:00:02",
		`{"args":{"cni":{"mac":"02:00:00:00:00:02"}},"runtimeConfig":{"mac":"02:00:00:00:00:03"}}`: "02:00:00:00:00:03",
	} {
		got, err := parseBridge(&Request{Config: []byte(conf), Args: "IgnoreUnknown=1;MAC=02:00:00:00:00:01;K8S_POD_NAME=x"})
		if err != nil || got.mac.String() != want {
			t.Errorf("hardware address of %s = %v, %v, want %s", conf, got, err, want)
		}
	}
}

func TestParsePortmap(t *testing.T) {
	for conf, want := range map[string]string{
		`{"markMasqBit":1,"externalSetMarkChain":"x"}`: "excludes",
		`{"markMasqBit":32}`:                           "markMasqBit 32",
		`{"runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":1,"protocol":"tcp"}]}}`:              "portMappings[0]: host port 0",
		`{"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":70000,"protocol":"tcp"}]}}`:          "container port 70000",
		`{"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}}`:             `"icmp"`,
		`{"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp","hostIP":"a"}]}}`: `"a"`,
	} {
		if _, err := parsePortmap(&Request{Config: []byte(conf)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsePortmap(%s) = %v, want %q", conf, err, want)
		}
	}
	p := &Plugins{}
	for _, c := range []portmapConf{
		{Backend: "ebtables"},
		{Backend: backendNFTables, ConditionsV4: []string{"-d", "1.2.3.4"}},
		{Backend: backendIPTables, ConditionsV6: []string{"ip6", "daddr", "::1"}},
		{Backend: backendNFTables, ExternalSetMarkChain: new(string)},
	} {
		if err := p.chooseBackend(&c); err == nil {
			t.Errorf("chooseBackend(%+v) = nil", c)
		}
	}
}

// TestPortLists: a multiport match of iptables takes 15 ports.
func TestPortLists(t *testing.T) {
	var ports []portEntry
	for i := range 17 {
		ports = append(ports, portEntry{HostPort: i + 1, Protocol: "tcp"})
	}
	ports = append(ports, portEntry{HostPort: 53, Protocol: "udp"})
	want := [][]string{
		{"-p", "tcp", "--destination-ports", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"},
		{"-p", "tcp", "--destination-ports", "16,17"},
		{"-p", "udp", "--destination-ports", "53"},
	}
	if diff := cmp.Diff(want, portLists(ports)); diff != "" {
		t.Error(diff)
	}
}

func TestHostIP(t *testing.T) {
	v4, v6 := net.ParseIP("10.0.0.1"), net.ParseIP("fd00::1")
	for _, c := range []struct {
		host string
		pod  net.IP
		want string
		ok   bool
	}{
		{"", v4, "<nil>", true}, {"", v6, "<nil>", true},
		{"0.0.0.0", v4, "<nil>", true}, {"0.0.0.0", v6, "<nil>", false},
		{"::", v6, "<nil>", true}, {"::1", v4, "<nil>", false},
		{"127.0.0.1", v4, "127.0.0.1", true},
	} {
		got, ok := (&portEntry{HostIP: c.host}).hostIP(c.pod)
		if got.String() != c.want || ok != c.ok {
			t.Errorf("hostIP(%q) for %s = %v, %v", c.host, c.pod, got, ok)
		}
	}
}
