package stats

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The main thread stays out of it all: /proc/self/ns is its, and Go cannot end it.
func init() { runtime.LockOSThread() }

// namespace is a network namespace that a thread holds until the test ends.
type namespace struct {
	path string
	work chan func()
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends, and with it the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.work) })
	return n
}

// do runs f in the namespace.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	n.work <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// addPair adds eth0 and net1, which are one another's peer, and an address
// behind eth0 that needs no answer.
func addPair() error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "net1"}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("net1")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("10.9.8.1/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(peer), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	return netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.IPv4(10, 9, 8, 2), HardwareAddr: peer.Attrs().HardwareAddr,
	})
}

// countersOverNetlink is what netlink says, by name.
func countersOverNetlink(t *testing.T, ns *namespace) map[string]Interface {
	t.Helper()
	all := map[string]Interface{}
	ns.do(t, func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			a := link.Attrs()
			s := a.Statistics
			all[a.Name] = Interface{
				a.Name,
				s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped,
				s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped,
			}
		}
		return err
	})
	return all
}

// rows: A-17
func TestInterfaces(t *testing.T) {
	ns := newNamespace(t)
	ns.do(t, func() error {
		if err := addPair(); err != nil {
			return err
		}
		conn, err := net.Dial("udp", "10.9.8.2:9")
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 10 {
			if _, err := conn.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	before := countersOverNetlink(t, ns)
	list, err := Interfaces(ns.path, 0)
	after := countersOverNetlink(t, ns) // IPv6 says something of its own meanwhile
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, got := range list {
		least, most := before[got.Name], after[got.Name]
		if got.RxBytes < least.RxBytes || got.RxBytes > most.RxBytes || got.TxBytes < least.TxBytes || got.TxBytes > most.TxBytes ||
			got.RxErrors != least.RxErrors || got.TxErrors != least.TxErrors {
			t.Errorf("%+v, by netlink %+v and then %+v", got, least, most)
		}
		if got.Name == "eth0" && got.TxBytes < 10_000 || got.Name == "net1" && got.RxBytes < 10_000 {
			t.Errorf("%+v: 10000 bytes were sent", got)
		}
	}
}

// inNamespace starts a process there, which ends with the test.
func inNamespace(t testing.TB, ns *namespace) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	ns.do(t, cmd.Start)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestInterfacesOfProcess: a process that is in the namespace, is elsewhere, or has ended, makes no difference.
func TestInterfacesOfProcess(t *testing.T) {
	ns := newNamespace(t)
	ns.do(t, addPair)
	cmd := inNamespace(t, ns)
	names := func(list []Interface) (all []string) {
		for _, i := range list {
			all = append(all, i.Name)
		}
		slices.Sort(all)
		return all
	}
	if list, ok := interfacesOf(ns.path, cmd.Process.Pid); !ok || !slices.Equal(names(list), []string{"eth0", "net1"}) {
		t.Errorf("by the process: %v, %t", list, ok)
	}
	if list, ok := interfacesOf(ns.path, os.Getpid()); ok {
		t.Errorf("by a process that is elsewhere: %v", list)
	}
	for _, pid := range []int{cmd.Process.Pid, os.Getpid(), 1 << 22, 0, -1} {
		if list, err := Interfaces(ns.path, pid); err != nil || !slices.Equal(names(list), []string{"eth0", "net1"}) {
			t.Errorf("with process %d: %v, %v", pid, list, err)
		}
	}
}

// TestInterfacesComesBack asks often and in parallel; no thread may stay in the namespace.
func TestInterfacesComesBack(t *testing.T) {
	ns := newNamespace(t)
	ns.do(t, func() error { return addPair() })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				list, err := Interfaces(ns.path, 0)
				if err != nil || len(list) != 2 {
					t.Errorf("%v, %v", list, err)
					return
				}
				if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != own {
					t.Errorf("in %s, %v, want %s", now, err, own)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestInterfacesGone(t *testing.T) {
	if _, err := Interfaces("/run/netns/criserver-no-such", 0); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
	if _, err := Interfaces("/proc/self/ns/uts", 0); err == nil {
		t.Error("a UTS namespace was taken")
	}
}

func TestParseNetDev(t *testing.T) {
	const head = "Inter-|   Receive                            |  Transmit\n face |bytes    packets errs ...\n"
	got, err := parseNetDev(strings.NewReader(head +
		"    lo:  1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n" +
		"  eth0:18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"))
	want := []Interface{{"eth0", 18446744073709551615, 2, 3, 4, 9, 10, 11, 12}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for _, line := range []string{"eth0: 1 2 3\n", "eth0: a 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"} {
		if got, err := parseNetDev(strings.NewReader(line)); err == nil {
			t.Errorf("%q: %v", line, got)
		}
	}
	many := strings.Repeat("eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", maxInterfaces+5)
	if got, err := parseNetDev(strings.NewReader(many)); err != nil || len(got) != maxInterfaces {
		t.Errorf("%d interfaces, %v", len(got), err)
	}
}

func BenchmarkInterfaces(b *testing.B) {
	ns := newNamespace(b)
	ns.do(b, func() error { return addPair() })
	b.Run("file", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Interfaces(ns.path, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("process", func(b *testing.B) {
		pid := inNamespace(b, ns).Process.Pid
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Interfaces(ns.path, pid); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("netlink", func(b *testing.B) { // the other way, for comparison
		b.ReportAllocs()
		for b.Loop() {
			if err := overNetlink(ns.path); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func overNetlink(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.LinkList()
	return err
}
