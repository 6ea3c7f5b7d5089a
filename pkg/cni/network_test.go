package cni

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

const plainConfig = `{"cniVersion":"1.0.0","name":"NAME","plugins":[
	{"type":"bridge","bridge":"br-NAME","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
	 "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.80.0.0/24"}],[{"subnet":"fd80::/64"}]]}},
	{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`

func plain(t testing.TB, name, data string) string {
	dropBridge(t, "br-"+name)
	return strings.NewReplacer("NAME", name, "DATA", data).Replace(plainConfig)
}

// TestPodSettings: what a pod must find in its namespace.
// rows: D-144
func TestPodSettings(t *testing.T) {
	p := newPod(t)
	setup(t, openWith(t, plain(t, "set", t.TempDir())), p)
	inPod(t, p, func() error {
		for path, want := range map[string]string{
			"/proc/sys/net/ipv6/conf/eth0/accept_ra":  "0", // CVE-2020-10749
			"/proc/sys/net/ipv6/conf/eth0/accept_dad": "0",
			"/proc/sys/net/ipv4/conf/eth0/arp_notify": "1",
		} {
			if got, err := os.ReadFile("/proc/thread-self/root" + path); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s = %q (%v), want %s", path, got, err, want)
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil || lo.Attrs().Flags&1 == 0 {
			t.Errorf("lo is not up: %v", err)
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		eventually(t, "all addresses can be used", func() bool { // the kernel clears the flag of its own one in a moment
			addrs, listErr := netlinksafe.AddrList(eth0, netlink.FAMILY_V6)
			err = listErr
			return err != nil || !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&0x40 != 0 }) // IFA_F_TENTATIVE
		})
		return err
	})
}

// TestTeardownWithoutNamespace: DEL after the namespace is gone, twice, with another configuration in force by then.
// rows: D-148, D-149, P-165
func TestTeardownWithoutNamespace(t *testing.T) {
	data := t.TempDir()
	n := openWith(t, plain(t, "gone", data))
	p := newPod(t)
	p.Ports = []PortMapping{{Protocol: "tcp", HostPort: 7200, ContainerPort: 80}}
	if _, err := n.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	writeConf(t, n.confDir, "10-test.conflist", plain(t, "other", t.TempDir()))
	eventually(t, "the other network is in force", func() bool { return n.current().list.Name == "other" })
	dropNetNS(p.NetNS)
	for range 2 {
		if err := n.Teardown(t.Context(), p); err != nil {
			t.Fatalf("Teardown: %v", err)
		}
	}
	if left := reservations(t, filepath.Join(data, "gone")); len(left) > 0 {
		t.Errorf("addresses left: %v", left)
	}
	if left := mentions(t, p.ID[:20], "7200"); len(left) > 0 {
		t.Errorf("rules left: %v", left)
	}
	if left, _ := filepath.Glob(n.cache + "/*/*" + p.ID + "*"); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
}

// TestTeardownInLivingNamespace: the interface goes even if the namespace stays, and can be attached again at once.
func TestTeardownInLivingNamespace(t *testing.T) {
	n := openWith(t, plain(t, "living", t.TempDir()))
	p := newPod(t)
	for range 3 {
		if _, err := n.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := n.Teardown(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "eth0 is gone", func() bool {
		gone := false
		inPod(t, p, func() error {
			_, err := netlink.LinkByName("eth0")
			gone = err != nil
			return nil
		})
		return gone
	})
}

// TestCheck: an attachment is good as it was made, and not without its address, its interface up, or its interface.
// rows: D-147
func TestCheck(t *testing.T) {
	n := openWith(t, plain(t, "check", t.TempDir()))
	p := newPod(t)
	if err := n.Check(t.Context(), p); err != nil {
		t.Errorf("without an attachment: %v", err)
	}
	result := setup(t, n, p)
	if err := n.Check(t.Context(), p); err != nil {
		t.Errorf("as it was made: %v", err)
	}
	change := func(what, want string, f func(netlink.Link) error) {
		t.Helper()
		inPod(t, p, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return f(l)
		})
		if err := n.Check(t.Context(), p); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	change("an address less", "has lost its address "+result.IPs[0].String(), func(l netlink.Link) error {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, &addrs[0])
	})
	change("down", "eth0 is down", netlink.LinkSetDown)
	change("no interface", "find eth0", netlink.LinkDel)
}

// TestCheckVerb: other plugins are asked with the result of ADD, unless the configuration switches it off or is too old.
// rows: D-147
func TestCheckVerb(t *testing.T) {
	for _, c := range []struct {
		version, more string
		asked         bool
	}{{"1.0.0", "", true}, {"1.0.0", `"disableCheck":true,`, false}, {"0.3.1", "", false}} {
		dir := t.TempDir()
		result := strings.NewReplacer("1.0.0", c.version, "IP", "2").Replace(oneAddress)
		script := "cat > " + dir + "/$CNI_COMMAND; case $CNI_COMMAND in CHECK) echo '{\"code\":101,\"msg\":\"damaged by test\"}'; exit 1;; ADD) echo '" + result + "';; esac"
		conf := fmt.Sprintf(`{"cniVersion":%q,"name":"fake",%s"plugins":[{"type":"fake"}]}`, c.version, c.more)
		n := openWith(t, conf, func(o *Options) { o.BinDirs = []string{fakePlugins(t, "fake", script)} })
		p := newPod(t)
		setup(t, n, p)
		err := n.Check(t.Context(), p)
		told, _ := os.ReadFile(dir + "/CHECK")
		if c.asked && (err == nil || !strings.Contains(err.Error(), "damaged by test") || !strings.Contains(string(told), `"10.82.0.2/24"`)) {
			t.Errorf("%s: %v, told %s", conf, err, told)
		}
		if !c.asked && (err != nil || told != nil) {
			t.Errorf("%s: %v, told %s", conf, err, told)
		}
	}
}

// TestAddressIsCutOff: once DEL has given the address back, its former owner cannot answer on the network any more,
// although its namespace and interface live on.
func TestAddressIsCutOff(t *testing.T) {
	n := openWith(t, plain(t, "cut", t.TempDir()))
	p := newPod(t)
	result, err := n.Setup(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, p, 80, "old")
	addr := result.IPs[0].String() + ":80"
	if got, err := ask("tcp", addr); got != "old" {
		t.Fatalf("the pod answers %q, %v", got, err)
	}
	if err := n.Teardown(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got, err := ask("tcp", addr); err == nil {
		t.Errorf("the pod still answers: %q", got)
	}
}

// TestParallel attaches and detaches 50 pods at once and looks for what is left.
func TestParallel(t *testing.T) {
	const pods = 50
	data := t.TempDir()
	n := openWith(t, plain(t, "many", data))
	before := len(veths(t))
	ips := make(chan string, 2*pods)
	var wg sync.WaitGroup
	for i := range pods {
		p := newPod(t)
		p.Ports = []PortMapping{{Protocol: "tcp", HostPort: int32(7300 + i), ContainerPort: 80}}
		wg.Go(func() {
			result, err := n.Setup(t.Context(), p)
			if err != nil {
				t.Errorf("Setup: %v", err)
				return
			}
			for _, ip := range result.IPs {
				ips <- ip.String()
			}
			if err := n.Teardown(t.Context(), p); err != nil {
				t.Errorf("Teardown: %v", err)
			}
			dropNetNS(p.NetNS)
		})
	}
	wg.Wait()
	close(ips)
	seen := map[string]bool{}
	for ip := range ips {
		if seen[ip] {
			t.Errorf("%s was given twice", ip) // the range is larger than the pods, and is used in turn
		}
		seen[ip] = true
	}
	if left := reservations(t, filepath.Join(data, "many")); len(left) > 0 {
		t.Errorf("addresses left: %v", left)
	}
	if left := mentions(t, "10.80.0.", "dnat to"); len(left) > 0 {
		t.Errorf("rules left: %v", left)
	}
	eventually(t, "the veth pairs are gone", func() bool { return len(veths(t)) == before })
	if len(n.book.records) != 0 || len(n.book.ports) != 0 || len(n.book.addresses) != 0 {
		t.Errorf("records left: %+v", n.book)
	}
}

// TestSmallRange goes through a range several times: addresses are given back in time, one by one.
func TestSmallRange(t *testing.T) {
	dropBridge(t, "br-small")
	n := openWith(t, strings.ReplaceAll(`{"cniVersion":"1.0.0","name":"small","plugins":[{"type":"bridge","bridge":"br-small","isGateway":true,
		"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.81.0.0/29"}}]}`, "DATA", t.TempDir()))
	for i := range 12 { // 5 addresses
		p := newPod(t)
		result, err := n.Setup(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		serve(t, p, 80, p.Name)
		if got, err := ask("tcp", result.IPs[0].String()+":80"); got != p.Name {
			t.Errorf("pod %d at %s: %q answers, %v", i, result.IPs[0], got, err)
		}
		if err := n.Teardown(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRollback: a plugin that fails after the interface is made, and a pod that cannot be.
// rows: D-23, P-005
func TestRollback(t *testing.T) {
	data := t.TempDir()
	conf := plain(t, "roll", data)
	n := openWith(t, strings.Replace(conf, `{"type":"portmap"`, `{"type":"fails"},{"type":"portmap"`, 1), func(o *Options) {
		o.BinDirs = []string{fakePlugins(t, "fails", `[ $CNI_COMMAND = DEL ] && exit; echo '{"code":100,"msg":"no luck","details":"today"}'; echo because >&2; exit 1`)}
	})
	p := newPod(t)
	p.Ports = []PortMapping{{HostPort: 7400, ContainerPort: 1}}
	_, err := n.Setup(t.Context(), p)
	if !errdefs.IsUnavailable(err) {
		t.Fatalf("Setup = %v, want unavailable", err)
	}
	for _, word := range []string{`network "roll"`, `type="fails"`, "ADD", "no luck", "today", "because"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
	if left := reservations(t, filepath.Join(data, "roll")); len(left) > 0 {
		t.Errorf("addresses left: %v", left)
	}
	if left := mentions(t, p.ID[:20]); len(left) > 0 {
		t.Errorf("rules left: %v", left)
	}
	if n.book.get(p.ID) != nil {
		t.Error("record left")
	}
	p.NetNS = filepath.Join(t.TempDir(), "none")
	if _, err := n.Setup(t.Context(), p); err == nil || !strings.Contains(err.Error(), p.NetNS) {
		t.Errorf("Setup without a namespace = %v", err)
	}
}

// TestBadPods are refused before anything is done.
func TestBadPods(t *testing.T) {
	n := openWith(t, plain(t, "bad", t.TempDir()))
	good := Pod{ID: "a", Name: "n", Namespace: "s", UID: "u", NetNS: "/nowhere"}
	for name, change := range map[string]func(*Pod){
		"no id":        func(p *Pod) { p.ID = "" },
		"path as id":   func(p *Pod) { p.ID = "../../etc" },
		"name":         func(p *Pod) { p.Name = "x;K8S_POD_UID=root" },
		"namespace":    func(p *Pod) { p.Namespace = "x=y" },
		"uid":          func(p *Pod) { p.UID = "a\nb" },
		"port mapping": func(p *Pod) { p.Ports = []PortMapping{{HostPort: 70000}} },
	} {
		p := good
		change(&p)
		if _, err := n.Setup(t.Context(), p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Setup = %v, want an invalid argument", name, err)
		}
	}
	if len(n.book.records) > 0 {
		t.Errorf("records left: %v", n.book.records)
	}
}

// TestGC: a process died after ADD, and in the middle of another ADD. The next one collects both, and nothing else.
// rows: D-148
func TestGC(t *testing.T) {
	data, cache := t.TempDir(), t.TempDir()
	conf := plain(t, "gc", data)
	sameCache := func(o *Options) { o.Cache = cache }
	old := openWith(t, conf, sameCache)
	kept, dead, half := newPod(t), newPod(t), newPod(t)
	dead.Ports = []PortMapping{{HostPort: 7500, ContainerPort: 80}}
	for _, p := range []Pod{kept, dead} {
		if _, err := old.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	rec, err := newRecord(half, old.current())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.book.claim(rec); err != nil { // as far as a crash before ADD
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "gc", "10.80.0.200"), []byte("stranger\r\neth0"), 0o600); err != nil {
		t.Fatal(err) // another runtime's
	}

	n := openWith(t, conf, sameCache)
	fresh := newPod(t)
	setup(t, n, fresh) // this process made it, so it is not collected, whether or not it is among those to keep
	if err := n.GC(t.Context(), []Pod{{ID: kept.ID}}); err != nil {
		t.Fatal(err)
	}
	if got := reservations(t, filepath.Join(data, "gc")); len(got) != 5 {
		t.Errorf("addresses after GC: %v, want two each of %s and %s, and the stranger's", got, kept.ID, fresh.ID)
	}
	if left := mentions(t, dead.ID, half.ID, "7500"); len(left) > 0 {
		t.Errorf("rules left: %v", left)
	}
	if n.book.get(dead.ID) != nil || n.book.get(half.ID) != nil || n.book.get(kept.ID) == nil {
		t.Errorf("records after GC: %v", n.book.records)
	}
	if err := n.Teardown(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
}

// TestRecordPutAside: a damaged record does not keep the runtime from starting.
func TestRecordPutAside(t *testing.T) {
	cache := t.TempDir()
	writeConf(t, filepath.Join(cache, "attachments"), "x.json", "{")
	openWith(t, plain(t, "aside", t.TempDir()), func(o *Options) { o.Cache = cache })
	if _, err := os.Stat(filepath.Join(cache, "attachments", "x.json.bad")); err != nil {
		t.Error(err)
	}
}

// TestBuiltinNetwork: a node without a configuration runs pods. A range that the host has a route into is not taken; the
// one that is taken stays over a restart.
// rows: X-19
func TestBuiltinNetwork(t *testing.T) {
	dropBridge(t, defaultBridge)
	run(t, "ip", "route", "add", "10.88.7.0/24", "dev", "uplink")
	t.Cleanup(func() { run(t, "ip", "route", "del", "10.88.7.0/24", "dev", "uplink") })
	n := openWith(t, "")
	if err := n.Status(); err != nil {
		t.Fatal(err)
	}
	p, q := newPod(t), newPod(t)
	a, b := setup(t, n, p), setup(t, n, q)
	if got, want := fmt.Sprint(a.IPs, b.IPs), "[10.89.0.2 fd63:7269:7365:7276::2] [10.89.0.3 fd63:7269:7365:7276::3]"; got != want {
		t.Errorf("IPs = %s, want %s", got, want)
	}
	serve(t, q, 80, "q")
	for _, ip := range b.IPs {
		inPod(t, p, func() error {
			if got, err := ask("tcp", fmt.Sprintf("[%s]:80", ip)); got != "q" {
				t.Errorf("pod to pod at %s: %q, %v", ip, got, err)
			}
			return nil
		})
	}
	run(t, "ip", "route", "add", "10.89.7.0/24", "dev", "uplink")
	t.Cleanup(func() { run(t, "ip", "route", "del", "10.89.7.0/24", "dev", "uplink") })
	again := openWith(t, "", func(o *Options) { o.Cache = n.cache })
	if conf := string(again.Config()); !strings.Contains(conf, "10.89.0.0/16") {
		t.Errorf("the range moved: %s", conf)
	}
	// Power is lost between the address file and the record.
	if err := os.WriteFile(filepath.Join(n.cache, "networks", "criserver", "10.89.0.9"), []byte("lost\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.GC(t.Context(), []Pod{p, q}); err != nil {
		t.Fatal(err)
	}
	if got := reservations(t, filepath.Join(n.cache, "networks", "criserver")); len(got) != 4 {
		t.Errorf("addresses after GC: %v", got)
	}
}

// TestDeadline: the context ends a wait for the lock that another process holds.
func TestDeadline(t *testing.T) {
	data := t.TempDir()
	n := openWith(t, plain(t, "lock", data))
	setup(t, n, newPod(t)) // makes the directory
	lock := filepath.Join(data, "lock", "lock")
	hold := startCommand(t, "flock", lock, "sh", "-c", "echo held; exec sleep 600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p := newPod(t)
	start := time.Now()
	done := make(chan error, 1)
	go func() { _, err := n.Setup(ctx, p); done <- err }()
	<-ctx.Done()
	hold()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("Setup = %v after %v, want the deadline", err, time.Since(start))
	}
	if n.book.get(p.ID) != nil {
		t.Error("record left")
	}
}
