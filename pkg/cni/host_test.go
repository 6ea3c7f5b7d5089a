package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run as root on the real kernel, in network and mount namespaces of their own: TestMain starts this program
// again in them, so nothing of the machine's network is seen or changed. "The host" below is that network namespace.

const (
	childEnv   = "CRISERVER_TEST_HOST"
	pluginsEnv = "CRISERVER_TEST_PLUGINS"
)

// pluginDir holds the reference plugins, built from the module that go.mod names.
var pluginDir = os.Getenv(pluginsEnv)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(runInOwnHost())
	}
	if err := hostUp(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the host:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInOwnHost() int {
	dir, err := os.MkdirTemp("", "cniplugins")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	const module = "github.com/containernetworking/plugins/plugins/"
	build := exec.Command("go", "build", "-o", dir+"/", module+"main/bridge", module+"main/loopback",
		module+"ipam/host-local", module+"ipam/static", module+"meta/portmap")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the reference plugins: %v\n%s", err, out)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1", pluginsEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "start the tests in their own namespaces (root is needed):", err)
		return 1
	}
	return 0
}

func hostUp() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// A second link, as an address of the host that is not a pod bridge.
	uplink := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}}
	if err := netlink.LinkAdd(uplink); err != nil {
		return err
	}
	for _, a := range []string{uplinkV4 + "/24", uplinkV6 + "/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(uplink, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(uplink)
}

const (
	uplinkV4 = "203.0.113.1"
	uplinkV6 = "2001:db8:1::1"
)

func testLog(t testing.TB) *logrus.Entry {
	l := logrus.New()
	l.SetOutput(t.Output())
	return logrus.NewEntry(l)
}

var podCount atomic.Int64

// newPod makes a pod with a network namespace, which ends with the test.
func newPod(t testing.TB) Pod {
	t.Helper()
	i := podCount.Add(1)
	p := Pod{ID: fmt.Sprintf("pod%060d", i), Name: fmt.Sprintf("pod-%d", i), Namespace: "default", UID: fmt.Sprintf("uid-%d", i)}
	p.NetNS = newNetNS(t)
	t.Cleanup(func() { dropNetNS(p.NetNS) })
	return p
}

func newNetNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	return path
}

func dropNetNS(path string) { _ = unix.Unmount(path, unix.MNT_DETACH) }

// inPod calls f in the namespace of a pod.
func inPod(t testing.TB, p Pod, f func() error) {
	t.Helper()
	if err := ns.WithNetNSPath(p.NetNS, func(ns.NetNS) error { return f() }); err != nil {
		t.Fatal(err)
	}
}

// run runs a program of the host and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// setup is Setup that must succeed, and DEL at the end of the test.
func setup(t testing.TB, n *Network, p Pod) Result {
	t.Helper()
	result, err := n.Setup(t.Context(), p)
	if err != nil {
		t.Fatalf("Setup: %v", err)
	}
	t.Cleanup(func() {
		if err := n.Teardown(context.Background(), p); err != nil {
			t.Errorf("Teardown: %v", err)
		}
	})
	return result
}

// openWith opens a network with one configuration file.
func openWith(t testing.TB, conf string, change ...func(*Options)) *Network {
	t.Helper()
	o := Options{ConfDir: filepath.Join(t.TempDir(), "net.d"), BinDirs: []string{pluginDir}, Cache: t.TempDir(), Builtin: true, Log: testLog(t)}
	for _, f := range change {
		f(&o)
	}
	if conf != "" {
		writeConf(t, o.ConfDir, "10-test.conflist", conf)
	}
	n, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func writeConf(t testing.TB, dir, name, conf string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dropBridge deletes a bridge at the end of a test.
func dropBridge(t testing.TB, name string) {
	t.Cleanup(func() { deleteLink(name) })
}

func deleteLink(name string) {
	if l, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(l)
	}
}

// eventually waits until a condition is true, which something else in this process or the kernel will make it.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen within 10 s: %s", what)
		}
	}
}

// veths are the links of type veth of the host.
func veths(t testing.TB) []string {
	t.Helper()
	links, err := netlinksafe.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if l.Type() == "veth" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// reservations are the addresses that host-local has given away.
func reservations(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var ips []string
	for _, e := range entries {
		if net.ParseIP(e.Name()) != nil {
			ips = append(ips, e.Name())
		}
	}
	return ips
}

// mentions says whether the packet filter of the host has anything with these words.
func mentions(t testing.TB, words ...string) []string {
	t.Helper()
	ruleset := run(t, "nft", "list", "ruleset")
	var found []string
	for line := range strings.Lines(ruleset) {
		for _, w := range words {
			if strings.Contains(line, w) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

// ruleset is the packet filter of the host, without packet counters and without the comments of tables and chains, which
// the library that the built-in plugins use does not have.
func ruleset(t testing.TB) string {
	return string(bytes.TrimSpace(uncompared.ReplaceAll([]byte(run(t, "nft", "list", "ruleset")), nil)))
}

var uncompared = regexp.MustCompile(`(?m) counter packets \d+ bytes \d+|^\s+comment ".*"\n`)
