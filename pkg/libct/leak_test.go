package libct

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// descriptors lists the open descriptors of a process, by what they are.
func descriptors(t testing.TB, pid int) map[string]int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range entries {
		if what, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			what, _, _ = strings.Cut(what, ":[")
			count[what]++
		}
	}
	return count
}

// After many containers and execs nothing is left of them in the shim and in the daemon.
func TestNothingLeaks(t *testing.T) {
	n := newNode(t)
	round := func(i int) {
		id := fmt.Sprint("c", i)
		n.interactive(id, i%2 == 0, "sh")
		n.must(n.Start(t.Context(), id))
		for range 3 {
			n.execOut(id, "true")
		}
		_, err := n.Exec(t.Context(), id, execProcess("nope"), Stdio{})
		if err == nil {
			t.Fatal("nope was executed")
		}
		tty := execProcess("true")
		tty.Terminal = true
		p, err := n.Exec(t.Context(), id, tty, Stdio{})
		n.must(err)
		_, err = p.Wait(t.Context())
		n.must(err)
		n.must(p.Close())
		n.must(n.Signal(t.Context(), id, unix.SIGKILL, false))
		n.exit(id)
		n.must(n.Delete(t.Context(), id, ""))
		n.create(n.spec(id, "nope"), id) // never starts
		n.must(n.Delete(t.Context(), id, ""))
	}
	for i := range 5 {
		round(i) // what is opened once for all
	}
	pid := n.shimPid()
	runtime.GC()
	shim, own, goroutines := descriptors(t, pid), descriptors(t, os.Getpid()), runtime.NumGoroutine()
	for i := range 40 {
		round(100 + i)
	}
	n.until("descriptors of the shim are as before", func() bool {
		for range 100 { // gives the shim's garbage collector work: libcontainer leaves it to close its FIFOs
			_, err := n.List(t.Context())
			n.must(err)
		}
		return total(descriptors(t, pid)) <= total(shim)+slack
	})
	runtime.GC()
	if now := descriptors(t, os.Getpid()); total(now) > total(own)+slack {
		t.Errorf("daemon has %v, had %v", now, own)
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines, were %d", now, goroutines)
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("shim before %v after %v", shim, descriptors(t, pid))
	}
}

// slack is for descriptors that Go's finalizers close when they please.
const slack = 5

func total(count map[string]int) (sum int) {
	for _, n := range count {
		sum += n
	}
	return sum
}

// Of many execs nothing is left in the shim: neither descriptors, nor memory, nor children, nor cgroups.
func TestExecsLeaveNothing(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	terminal, failing := execProcess("true"), execProcess("true")
	terminal.Terminal, failing.Cwd = true, "/nope"
	hundred := func() {
		for range 2 {
			for _, p := range []*specs.Process{execProcess("true"), terminal, execProcess("cat"), execProcess("/bin/garbage")} {
				n.timeExecs(&execCost{}, 10, p)
			}
			for range 10 {
				for _, p := range []*specs.Process{execProcess("nope"), failing} {
					if _, err := n.Exec(t.Context(), "c", p, Stdio{}); err == nil {
						t.Fatalf("%v was executed", p.Args)
					}
				}
			}
		}
	}
	pid := n.shimPid()
	state := func() map[string]int {
		own := map[string]int{
			"descriptors": total(descriptors(t, pid)), "children": n.children(pid),
			"kB": n.statusOf(pid, "VmRSS"), "threads": n.statusOf(pid, "Threads"),
		}
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			groups, err := filepath.Glob(pattern + n.cgroup + "/c/exec-*")
			n.must(err)
			own["cgroups"] += len(groups)
		}
		return own
	}
	for range 3 {
		hundred() // what is opened once for all
	}
	before := state()
	for range 10 {
		hundred()
	}
	spare := map[string]int{"descriptors": slack, "kB": 4096, "threads": 10} // what Go's runtime does as it pleases
	if raceFlags != nil {
		spare["kB"] = 64 << 10
	}
	var after map[string]int
	defer func() { t.Logf("before %v, after %v", before, after) }()
	n.until("the shim is as before", func() bool {
		after = state()
		for what, now := range after {
			if now > before[what]+spare[what] {
				return false
			}
		}
		return true
	})
	if before["children"] != 1 {
		t.Errorf("%d children; the container is one", before["children"])
	}
}

// statusOf returns a number of /proc/PID/status.
func (n *node) statusOf(pid int, name string) (value int) {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	n.must(err)
	_, rest, _ := strings.Cut(string(b), "\n"+name+":")
	_, err = fmt.Sscan(rest, &value)
	n.must(err)
	return value
}

// children counts the children of a process, dead ones that are not reaped among them.
func (n *node) children(pid int) (count int) {
	n.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	n.must(err)
	for _, path := range files {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // a thread that has ended
			continue
		}
		n.must(err)
		count += len(strings.Fields(string(b)))
	}
	return count
}
