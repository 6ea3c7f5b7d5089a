package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/node"
)

// meter measures what a runtime uses. Helpers come and go and change parents, so CPU time is read from a cgroup of our
// own with two below it: runtime, for the daemon and everything it starts, and pods, the parent of its pods. Their
// counters keep what ended processes and removed cgroups have used.
//
// It finds processes without knowing the runtime: the daemon is the one behind the socket, its relatives are what
// descends from it and what has the socket's directory in its command line.
type meter struct {
	group  string // below the hierarchy's root, as the runtime names it
	socket string
	origin string // the daemon's cgroup before, to which what is left of the runtime returns
}

func newMeter(group, socket string) *meter { return &meter{group: group, socket: socket} }

// podParent is the cgroup parent for pods.
func (m *meter) podParent() string { return m.group + "/pods" }

// accounting is the root of the hierarchy that counts CPU time.
func accounting() string {
	for _, v1 := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"} {
		if _, err := os.Stat(v1 + "/cpuacct.usage"); err == nil {
			return v1
		}
	}
	return "/sys/fs/cgroup"
}

// adopt moves the runtime's processes into the group; those that it starts later are in it already.
func (m *meter) adopt() error {
	for _, dir := range []string{"/runtime", "/pods"} {
		if err := os.MkdirAll(accounting()+m.group+dir, 0o755); err != nil {
			return err
		}
	}
	daemon, err := m.listener()
	if err != nil {
		return err
	}
	all := processes()
	if m.origin == "" {
		m.origin = all[daemon].cgroup
	}
	for pid, p := range all {
		if strings.HasPrefix(p.cgroup, m.group) || !m.related(all, pid, daemon) {
			continue
		}
		err := move(pid, m.group+"/runtime")
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %d (%s) of the runtime into our cgroup: %w", pid, p.comm, err)
		}
	}
	return nil
}

func (m *meter) related(all map[int]process, pid, daemon int) bool {
	if descends(all, os.Getpid(), pid) { // who started us may have named the socket
		return false
	}
	for _, arg := range all[pid].cmdline {
		if strings.Contains(arg, filepath.Dir(m.socket)) {
			return true
		}
	}
	return descends(all, pid, daemon)
}

// descends says whether pid is ancestor, or a descendant of it.
func descends(all map[int]process, pid, ancestor int) bool {
	for ; pid > 1; pid = all[pid].parent {
		if pid == ancestor {
			return true
		}
	}
	return false
}

func move(pid int, group string) error {
	return os.WriteFile(filepath.Join(accounting(), group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// inGroup runs f with this process in the runtime's group, so that what f starts begins its life there.
func inGroup(group string, f func() error) error {
	all := processes()
	if err := os.MkdirAll(accounting()+group+"/runtime", 0o755); err != nil {
		return err
	}
	if err := move(os.Getpid(), group+"/runtime"); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, move(os.Getpid(), all[os.Getpid()].cgroup))
}

// listener is the daemon: the process behind the socket.
func (m *meter) listener() (int, error) {
	c, err := net.Dial("unix", m.socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, failed); err != nil {
		return 0, fmt.Errorf("who listens at %s: %w", m.socket, err)
	}
	if peer.Pid == 0 {
		return 0, fmt.Errorf("who listens at %s is outside of this PID namespace: run the bench where the runtime's processes are seen", m.socket)
	}
	return int(peer.Pid), nil
}

// cpu is the CPU time used so far.
type cpu struct {
	all     time.Duration // with containers
	runtime time.Duration // without
}

func (c cpu) since(before cpu) cpu { return cpu{c.all - before.all, c.runtime - before.runtime} }

func (m *meter) cpu() (cpu, error) {
	runtime, err := groupCPU(m.group + "/runtime")
	if err != nil {
		return cpu{}, err
	}
	pods, err := groupCPU(m.group + "/pods")
	return cpu{all: runtime + pods, runtime: runtime}, err
}

// groupCPU reads cpuacct.usage (ns) of cgroup v1 or usage_usec in cpu.stat of v2.
func groupCPU(group string) (time.Duration, error) {
	dir := accounting() + group
	if b, err := os.ReadFile(dir + "/cpuacct.usage"); err == nil {
		n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
		return time.Duration(n), err
	}
	us, err := node.Field(dir+"/cpu.stat", "usage_usec")
	return time.Duration(us) * time.Microsecond, err
}

// usage is what the processes of a runtime hold.
type usage struct {
	daemon, others node.Usage // others: helpers, and what pods have beside their containers
	processes      int
}

func (u usage) pss() int64 { return u.daemon.PSS + u.others.PSS }

func (u usage) threads() int { return u.daemon.Threads + u.others.Threads }

func (u usage) descriptors() node.Descriptors {
	all := maps.Clone(u.daemon.Descriptors)
	for of, n := range u.others.Descriptors {
		all[of] += n
	}
	return all
}

// containerComm is the command of our containers, whose memory is not the runtime's.
const containerComm = "benchtool"

// usage reads what the runtime's processes hold.
func (m *meter) usage() (u usage, err error) {
	daemon, err := m.listener()
	if err != nil {
		return u, err
	}
	var others []int
	for pid, p := range processes() {
		if strings.HasPrefix(p.cgroup, m.group+"/") && p.comm != containerComm && pid != daemon {
			others = append(others, pid)
		}
	}
	u.processes = 1 + len(others)
	if u.daemon, err = node.UsageOf(daemon); err != nil {
		return u, err
	}
	u.others, err = node.UsageOf(others...)
	return u, err
}

// settled is the usage once it does not change any more: collectors of garbage and idle workers have had their time.
// After a minute it takes what is there.
func (m *meter) settled() (u usage, err error) {
	for range 60 {
		before := u
		if u, err = m.usage(); err != nil {
			return u, err
		}
		change := u.pss() - before.pss()
		if max(change, -change)*200 < u.pss() && u.processes == before.processes && maps.Equal(u.descriptors(), before.descriptors()) {
			break
		}
		time.Sleep(time.Second)
	}
	return u, nil
}

// process is one of this machine, as far as this PID namespace shows them.
type process struct {
	parent  int
	comm    string
	cmdline []string
	cgroup  string // in the hierarchy that counts CPU time
}

func processes() map[int]process {
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has just ended
		}
		begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern has digits first; no other file of /proc begins with one
		p := process{comm: string(stat[begin+1 : end])}
		p.parent, _ = strconv.Atoi(strings.Fields(string(stat[end+1:]))[1])
		cmdline, _ := os.ReadFile(dir + "/cmdline") // empty, as a kernel thread's, if it has just ended
		p.cmdline = strings.Split(string(cmdline), "\x00")
		cgroups, _ := os.ReadFile(dir + "/cgroup") // likewise
		p.cgroup = accountingGroup(string(cgroups))
		all[pid] = p
	}
	return all
}

// accountingGroup picks the group of /proc/PID/cgroup that counts CPU time; see cgroups(7).
func accountingGroup(cgroups string) (group string) {
	v2 := accounting() == "/sys/fs/cgroup"
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (v2 && f[0] == "0" || !v2 && slices.Contains(strings.Split(f[1], ","), "cpuacct")) {
			group = f[2]
		}
	}
	return group
}

// close moves what is left of the runtime back and removes the groups, in all hierarchies.
func (m *meter) close() (err error) {
	for pid, p := range processes() {
		if p.cgroup == m.group+"/runtime" {
			_ = move(pid, m.origin) // it may have ended
		}
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + m.group)
	for _, root := range append(roots, "/sys/fs/cgroup"+m.group) {
		var dirs []string
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // it may not be there
		})
		for _, dir := range slices.Backward(dirs) {
			err = errors.Join(err, os.Remove(dir))
		}
	}
	return err
}
