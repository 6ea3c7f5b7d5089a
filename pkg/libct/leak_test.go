package libct

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

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
