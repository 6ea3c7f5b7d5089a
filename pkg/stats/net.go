package stats

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxInterfaces bounds what a pod that may make interfaces can make us read.
const maxInterfaces = 1024

// Interfaces returns all but the loopback of a network namespace, by its path:
// of more than 1024 the first. It is ErrNotFound when the namespace is gone.
//
// It reads the /proc/PID/net/dev of a process that should be in the namespace,
// 0 for none, or else from a thread that enters it, which still costs less than
// asking over netlink (see BenchmarkInterfaces).
func Interfaces(netns string, pid int) ([]Interface, error) {
	if list, ok := interfacesOf(netns, pid); ok {
		return list, nil
	}
	type result struct {
		list []Interface
		err  error
	}
	done := make(chan result, 1)
	go func() {
		list, err := interfacesIn(netns)
		done <- result{list, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("interfaces of %s: %w", netns, r.err)
	}
	return r.list, nil
}

// interfacesOf is not ok if the process is not in the namespace.
func interfacesOf(netns string, pid int) (list []Interface, ok bool) {
	if pid <= 0 {
		return nil, false
	}
	proc := "/proc/" + strconv.Itoa(pid)
	f, err := os.Open(proc + "/net/dev") // is of the namespace that the process is in now, whatever becomes of that one
	if err != nil {
		return nil, false
	}
	defer f.Close()
	var want, have unix.Stat_t
	if unix.Stat(netns, &want) != nil || unix.Stat(proc+"/ns/net", &have) != nil || want.Dev != have.Dev || want.Ino != have.Ino {
		return nil, false
	}
	list, err = parseNetDev(f)
	return list, err == nil
}

// interfacesIn ends with its goroutine still locked to the thread if the
// thread cannot leave the namespace: then the thread ends with the goroutine.
func interfacesIn(netns string) ([]Interface, error) {
	target, err := anywhere.open(netns, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(target)
	runtime.LockOSThread()
	own, err := anywhere.open("/proc/thread-self/ns/net", unix.O_RDONLY)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer unix.Close(own)
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter: %w", err)
	}
	list, err := readNetDev("/proc/thread-self/net/dev")
	if unix.Setns(own, unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return list, err
}

func readNetDev(name string) ([]Interface, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseNetDev(f)
}

// parseNetDev takes a /proc/net/dev: two lines of headings, then for each
// interface its name, 8 counters of what was received and 8 of what was sent,
// the first four of which are bytes, packets, errors and what was dropped.
func parseNetDev(r io.Reader) ([]Interface, error) {
	var list []Interface
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(list) < maxInterfaces {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		name = strings.TrimSpace(name)
		if !ok || name == "lo" {
			continue
		}
		v, err := parseCounters(counters)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		list = append(list, Interface{
			Name:    name,
			RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		})
	}
	return list, lines.Err()
}

func parseCounters(line string) (v [16]uint64, err error) {
	fields := strings.Fields(line)
	if len(fields) < len(v) {
		return v, fmt.Errorf("%d counters instead of %d: %w", len(fields), len(v), errdefs.ErrDataLoss)
	}
	for i := range v {
		if v[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return v, fmt.Errorf("counter: %w (%w)", errdefs.ErrDataLoss, err)
		}
	}
	return v, nil
}
