package stats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A container decides how many processes, threads and descriptors it has, so
// what is looked at of one is bounded. Of more, the first are counted.
const (
	maxProcesses   = 1 << 14
	maxThreads     = 1 << 14
	maxDescriptors = 1 << 16
)

// Processes is what /proc says of the processes of a cgroup and those below.
type Processes struct {
	Count, Threads       uint64
	Descriptors, Sockets uint64
	States               States
}

// States are how many threads are in which state, see proc_pid_stat(5).
type States struct{ Running, Sleeping, Stopped, Uninterruptible, Zombie uint64 }

// Processes looks at each process: that is some files for each, and a link for
// each of its descriptors, until ctx ends. Processes that end meanwhile are no
// error. It is ErrNotFound when the cgroup is gone.
func (c Cgroup) Processes(ctx context.Context) (Processes, error) {
	dir := c.unified
	if c.v1 != (v1Dirs{}) {
		dir = c.v1.memory
	}
	var p Processes
	pids, err := listProcs(dir, 0, nil)
	if err != nil {
		return p, fmt.Errorf("processes of a cgroup: %w", err)
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		if err := p.add(pid); err != nil && !errdefs.IsNotFound(err) {
			return p, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return p, nil
}

// listProcs appends the processes that are here and below.
func listProcs(dir string, depth int, pids []int) ([]int, error) {
	b, err := os.ReadFile(dir + "/cgroup.procs")
	switch {
	case errors.Is(err, unix.EOPNOTSUPP): // threads, whose processes are listed above
	case err != nil:
		return pids, fileError(dir, err)
	}
	for line := range bytes.Lines(b) {
		if pid, ok := number(bytes.TrimSpace(line)); ok && pid > 0 && len(pids) < maxProcesses {
			pids = append(pids, int(pid))
		}
	}
	if depth == maxCgroupDepth {
		return pids, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pids, fileError(dir, err)
	}
	for _, e := range entries {
		if e.IsDir() && len(pids) < maxProcesses {
			if pids, err = listProcs(dir+"/"+e.Name(), depth+1, pids); err != nil && !errdefs.IsNotFound(err) {
				return pids, err
			}
		}
	}
	return pids, nil
}

// add counts a process.
func (p *Processes) add(pid int) error {
	proc := "/proc/" + strconv.Itoa(pid)
	state, threads, err := readStat(proc + "/stat")
	if err != nil {
		return err
	}
	p.Count++
	if threads <= 1 {
		p.Threads++
		p.States.count(state)
	} else if err := p.addThreads(proc + "/task"); err != nil {
		return err
	}
	if p.Descriptors >= maxDescriptors {
		return nil
	}
	return p.addDescriptors(proc + "/fd")
}

func (p *Processes) addThreads(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fileError(dir, err)
	}
	for _, e := range entries {
		if p.Threads >= maxThreads {
			return nil
		}
		state, _, err := readStat(dir + "/" + e.Name() + "/stat")
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		p.Threads++
		p.States.count(state)
	}
	return nil
}

func (p *Processes) addDescriptors(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fileError(dir, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(int(maxDescriptors - p.Descriptors))
	p.Descriptors += uint64(len(names))
	var target [16]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(f.Fd()), name, target[:])
		if err == nil && bytes.HasPrefix(target[:n], []byte("socket:")) {
			p.Sockets++
		}
	}
	if len(names) == 0 { // none, as a zombie has, is the end of the directory
		return nil
	}
	return fileError(dir, err)
}

func (s *States) count(state byte) {
	switch state {
	case 'R':
		s.Running++
	case 'S', 'I':
		s.Sleeping++
	case 'D':
		s.Uninterruptible++
	case 'T', 't':
		s.Stopped++
	case 'Z', 'X':
		s.Zombie++
	}
}

// readStat returns the state and the number of threads: the 3rd and 20th
// field. The 2nd is a name in parentheses, which may have any character in it.
func readStat(name string) (state byte, threads uint64, err error) {
	b, done, err := anywhere.small(name)
	defer done()
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 18 {
		return 0, 0, fmt.Errorf("%s: %d fields after the name: %w", name, len(fields), errdefs.ErrDataLoss)
	}
	threads, _ = number(fields[17])
	return fields[0][0], threads, nil
}

// SoftLimits returns the limits of a process by name, e.g. "max_open_files",
// see getrlimit(2). Those that are unlimited are left out. It is ErrNotFound
// when there is no such process.
func SoftLimits(pid int) (map[string]uint64, error) {
	b, done, err := anywhere.small("/proc/" + strconv.Itoa(pid) + "/limits")
	defer done()
	if err != nil {
		return nil, fmt.Errorf("limits of process %d: %w", pid, err)
	}
	return parseLimits(b), nil
}

// limitName is the width of the column of names in /proc/PID/limits.
const limitName = 26

func parseLimits(file []byte) map[string]uint64 {
	limits := map[string]uint64{}
	for line := range bytes.Lines(file) {
		if len(line) <= limitName {
			continue
		}
		name := strings.ReplaceAll(strings.ToLower(string(bytes.TrimSpace(line[:limitName]))), " ", "_")
		if fields := bytes.Fields(line[limitName:]); len(fields) > 0 {
			if n, ok := number(fields[0]); ok {
				limits[name] = n
			}
		}
	}
	return limits
}
