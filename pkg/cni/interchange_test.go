package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// interchangeConfigs are networks on the bridge br-x, whose addresses are in DATA.
var interchangeConfigs = map[string]string{
	"plain": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]}`,
	"dual stack, masquerading by nftables": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","hairpinMode":true,"mtu":1400,
		 "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.77.0.0/24","rangeStart":"10.77.0.20"}],[{"subnet":"fd77::/64"}]]}}]}`,
	"masquerading by iptables": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables","ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]}}]}`,
	"host ports by nftables": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]}},
		{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`,
	"host ports by nftables with conditions, no snat": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24"}},
		{"type":"portmap","backend":"nftables","snat":false,"conditionsV4":["ip","daddr","!=","192.0.2.0/24"],"capabilities":{"portMappings":true}}]}`,
	"host ports by iptables": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]}},
		{"type":"portmap","backend":"iptables","markMasqBit":12,"conditionsV4":["!","-d","192.0.2.0/24"],"capabilities":{"portMappings":true}}]}`,
	"hardware address, isolation, promiscuous": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","portIsolation":true,"promiscMode":true,"args":{"cni":{"mac":"02:00:00:00:00:77"}},"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24"}}]}`,
	"mac spoof check": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","macspoofchk":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24"}}]}`,
	"duplicate address detection": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","isGateway":true,"enabledad":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"fd77::/64"}}]}`,
	"delegated to a program": `{"cniVersion":"1.0.0","name":"x","plugins":[
		{"type":"bridge","bridge":"br-x","ipam":{"type":"static","addresses":[{"address":"10.77.0.9/24","gateway":"10.77.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}}]}`,
	"single plugin of CNI 0.4": `{"cniVersion":"0.4.0","name":"x","type":"bridge","bridge":"br-x","isGateway":true,"dns":{"nameservers":["10.0.0.10"]},
		"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24"}}`,
}

var testPorts = []PortMapping{
	{Protocol: "TCP", HostPort: 8080, ContainerPort: 80},
	{Protocol: "udp", HostPort: 8053, ContainerPort: 53, HostIP: uplinkV4},
	{Protocol: "tcp", HostPort: 8443, ContainerPort: 443, HostIP: "::"},
}

// world is what an attachment leaves, with what differs from one to another replaced.
type world struct {
	Result, Rules, Links, PodLinks string
	Files                          []string
}

var (
	vethNames = regexp.MustCompile(`veth[0-9a-f]{8}`)
	hwAddrs   = regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`)
	spaces    = regexp.MustCompile(` +`)
	linkLocal = regexp.MustCompile(`fe80::[0-9a-f:]+`)
	// Of duplicate address detection only its result counts: a built-in bridge has its gateway address without it.
	numbers = regexp.MustCompile(`tentative|nodad|(?m)^\d+: |@if\d+|link-netnsid \d+|link-netns \S+|valid_lft \S+|preferred_lft \S+|@veth`)
)

func normal(s string, p Pod) string {
	s = strings.ReplaceAll(s, p.NetNS, "NETNS")
	s = vethNames.ReplaceAllString(s, "VETH")
	s = strings.ReplaceAll(s, "02:00:00:00:00:77", "MAC-ASKED-FOR")
	s = hwAddrs.ReplaceAllString(s, "MAC")
	s = numbers.ReplaceAllString(linkLocal.ReplaceAllString(s, "LINKLOCAL"), "")
	return spaces.ReplaceAllString(s, " ")
}

func observe(t *testing.T, p Pod, result Result, data string) world {
	t.Helper()
	var w world
	w.Result = normal(string(result.Raw), p)
	w.Rules = normal(ruleset(t), p)
	w.Links = normal(run(t, "bridge", "-d", "link", "show")+run(t, "bridge", "vlan", "show")+run(t, "ip", "addr", "show", "br-x"), p)
	inPod(t, p, func() error {
		eventually(t, "the pod's interface is reported to be up", func() bool {
			l, err := netlink.LinkByName(ifName)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
		w.PodLinks = normal(run(t, "ip", "addr")+run(t, "ip", "route")+run(t, "ip", "-6", "route"), p)
		return nil
	})
	filepath.Walk(data, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			content, _ := os.ReadFile(path)
			w.Files = append(w.Files, fmt.Sprintf("%s %v %q", strings.TrimPrefix(path, data), info.Mode(), content))
		}
		return nil
	})
	return w
}

// TestInterchangeable attaches with the built-in plugins and with the reference programs, compares what stands in the
// world after ADD, and detaches each with either.
func TestInterchangeable(t *testing.T) {
	for name, conf := range interchangeConfigs {
		t.Run(name, func(t *testing.T) {
			seen := map[bool]world{}
			for _, c := range []struct{ addBuiltin, delBuiltin bool }{{true, true}, {false, false}, {true, false}, {false, true}} {
				w := attachAndDetach(t, conf, c.addBuiltin, c.delBuiltin)
				if first, ok := seen[c.addBuiltin]; ok {
					if diff := cmp.Diff(first, w); diff != "" {
						t.Errorf("ADD (built in: %v) differs from one before:\n%s", c.addBuiltin, diff)
					}
				}
				seen[c.addBuiltin] = w
			}
			if diff := cmp.Diff(seen[false], seen[true]); diff != "" {
				t.Errorf("built in (+) differs from the reference (-):\n%s", diff)
			}
		})
	}
}

func attachAndDetach(t *testing.T, conf string, addBuiltin, delBuiltin bool) world {
	t.Helper()
	run(t, "nft", "flush", "ruleset")
	data, cache := t.TempDir(), t.TempDir()
	conf = strings.ReplaceAll(conf, "DATA", data)
	// The two share Cache, as two versions of a runtime would.
	kind := func(builtin bool) *Network {
		return openWith(t, conf, func(o *Options) { o.Builtin, o.Cache = builtin, cache })
	}
	p := Pod{ID: "interchange", Name: "p", Namespace: "n", UID: "u", NetNS: newNetNS(t), Ports: testPorts}
	defer deleteLink("br-x")
	defer dropNetNS(p.NetNS)
	before := veths(t)
	result, err := kind(addBuiltin).Setup(t.Context(), p)
	if err != nil {
		t.Fatalf("ADD (built in: %v): %v", addBuiltin, err)
	}
	w := observe(t, p, result, data)
	if err := kind(delBuiltin).Teardown(t.Context(), p); err != nil {
		t.Fatalf("DEL (built in: %v) after ADD (built in: %v): %v", delBuiltin, addBuiltin, err)
	}
	if left := reservations(t, filepath.Join(data, "x")); len(left) > 0 {
		t.Errorf("DEL (built in: %v) after ADD (built in: %v) left addresses %v", delBuiltin, addBuiltin, left)
	}
	if left := mentions(t, "interchange", "10.77.0.2", "fd77::2", "8080", "CNI-DN"); len(left) > 0 {
		t.Errorf("DEL (built in: %v) after ADD (built in: %v) left rules:\n%s", delBuiltin, addBuiltin, strings.Join(left, "\n"))
	}
	dropNetNS(p.NetNS)
	eventually(t, "the veth pair is gone", func() bool {
		now := veths(t)
		now = slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
		_, err := netlink.LinkByName("br-x.100") // the interface of the VLAN stays, with its port
		return len(now) == 0 || err == nil && len(now) == 2
	})
	return w
}

const vlanConfig = `{"cniVersion":"1.0.0","name":"x","plugins":[
	{"type":"bridge","bridge":"br-x","isGateway":true,"vlan":100,"vlanTrunk":[{"minID":200,"maxID":202},{"id":300}],"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.77.0.0/24"}}]}`

// TestInterchangeableVlan is as TestInterchangeable. A kernel without VLAN filtering must be named as the reason.
func TestInterchangeableVlan(t *testing.T) {
	filter := true
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-x"}, VlanFiltering: &filter})
	deleteLink("br-x")
	if err == nil {
		if diff := cmp.Diff(attachAndDetach(t, vlanConfig, false, true), attachAndDetach(t, vlanConfig, true, false)); diff != "" {
			t.Errorf("built in (+) differs from the reference (-):\n%s", diff)
		}
		return
	}
	t.Logf("this kernel cannot filter VLANs (%v): only the refusal is tested", err)
	n := openWith(t, strings.ReplaceAll(vlanConfig, "DATA", t.TempDir()))
	_, err = n.Setup(t.Context(), newPod(t))
	if err == nil || !strings.Contains(err.Error(), "VLAN") {
		t.Errorf("Setup = %v, want an error that names VLANs", err)
	}
}

// TestResultOfDualStack shows the addresses in the order of the result.
// rows: D-152
func TestResultOfDualStack(t *testing.T) {
	dropBridge(t, "br-x")
	conf := strings.ReplaceAll(interchangeConfigs["dual stack, masquerading by nftables"], "DATA", t.TempDir())
	result := setup(t, openWith(t, conf), newPod(t))
	if got, want := fmt.Sprint(result.IPs), "[10.77.0.20 fd77::2]"; got != want {
		t.Errorf("IPs = %s, want %s", got, want)
	}
	var raw struct{ CNIVersion string }
	if err := json.Unmarshal(result.Raw, &raw); err != nil || raw.CNIVersion != "1.0.0" {
		t.Errorf("Raw = %s (%v)", result.Raw, err)
	}
}
