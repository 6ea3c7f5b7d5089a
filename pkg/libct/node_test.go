package libct

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

const busybox = "/bin/busybox"

// shimBinary and otherShim are two builds of the shim.
var shimBinary, otherShim string

// raceFlags build the shim with the race detector, if the tests are.
var raceFlags []string

// TestMain builds the shim as it is shipped, twice.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests make containers: run them as root")
			return 1
		}
		if _, err := os.Stat(busybox); err != nil {
			fmt.Fprintln(os.Stderr, "these tests need a static busybox (Debian package busybox-static):", err)
			return 1
		}
		dir, err := os.MkdirTemp("", "shim")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		shimBinary, otherShim = filepath.Join(dir, "a"), filepath.Join(dir, "b")
		args := append([]string{"build", "-tags", "netgo osusergo seccomp runc_nocriu",
			"-ldflags", "-s -w -linkmode external -extldflags -static",
			"-o", shimBinary}, raceFlags...)
		build := exec.Command("go", append(args, "github.com/criserver/criserver/cmd/criserver-shim")...)
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build criserver-shim: %v\n%s", err, out)
			return 1
		}
		b, err := os.ReadFile(shimBinary)
		if err == nil { // another hash, the same program
			err = os.WriteFile(otherShim, append(b, "another build"...), 0o755)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// node is a state directory with its shim, and a daemon's handle on it.
type node struct {
	*Shim
	t      testing.TB // or the subtest that runs
	top    testing.TB
	state  string
	layers string
	cgroup string // parent of the containers'

	mu       sync.Mutex
	exits    map[string]wire.Exit
	replaced chan struct{}
}

// newNode starts a shim that ends with the test, which fails if anything is left.
func newNode(t testing.TB) *node {
	t.Helper()
	base, err := os.MkdirTemp("", "ct") // short: sockets
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o711); err != nil { // user namespaces' roots pass through
		t.Fatal(err)
	}
	n := &node{
		t: t, top: t, state: filepath.Join(base, "s"), layers: filepath.Join(base, "l"),
		cgroup: "/criserver-test-" + filepath.Base(base),
		exits:  map[string]wire.Exit{}, replaced: make(chan struct{}, 10),
	}
	n.makeLayers()
	n.open(shimBinary)
	t.Cleanup(func() { n.end(base) })
	return n
}

// open is what a starting daemon does.
func (n *node) open(binary string) {
	n.t.Helper()
	log, to := logrus.New(), &testLog{t: n.top}
	log.SetOutput(to)
	n.top.Cleanup(to.end)
	s, err := Open(n.t.Context(), Options{
		Binary: binary, State: n.state, Log: logrus.NewEntry(log),
		OnExit: func(id string, e wire.Exit) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.exits[id] = e
		},
		OnReplace: func() { n.replaced <- struct{}{} },
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Shim = s
}

// testLog passes what is logged to the test that runs, and drops what comes after.
type testLog struct {
	mu sync.Mutex
	t  testing.TB // nil once the test is over
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Logf("%s", bytes.TrimRight(b, "\n"))
	}
	return len(b), nil
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = nil
}

// makeLayers makes two layers: busybox with its commands, and a few directories.
func (n *node) makeLayers() {
	n.t.Helper()
	bin := filepath.Join(n.layers, "1/bin")
	for _, dir := range []string{"1/bin", "1/etc", "1/proc", "1/sys", "1/dev", "1/tmp", "2/etc", "2/data"} {
		n.must(os.MkdirAll(filepath.Join(n.layers, dir), 0o755))
	}
	n.must(os.Chmod(filepath.Join(n.layers, "1/tmp"), 0o1777))
	b, err := os.ReadFile(busybox)
	n.must(err)
	n.must(os.WriteFile(filepath.Join(bin, "busybox"), b, 0o755))
	for _, name := range strings.Fields("sh cat echo sleep true false id head dd seq yes mount ls stat stty setsid readlink grep kill ps hostname touch tail") {
		n.must(os.Symlink("busybox", filepath.Join(bin, name)))
	}
	n.must(os.WriteFile(filepath.Join(bin, "garbage"), []byte("\x7fELF no program"), 0o755))
	n.must(os.WriteFile(filepath.Join(bin, "noexec"), []byte("#!/bin/sh\n"), 0o644))
	n.must(os.WriteFile(filepath.Join(bin, "nointerp"), []byte("#!/nowhere/sh\n"), 0o755))
	n.must(os.WriteFile(filepath.Join(n.layers, "2/etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644))
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// end deletes all, ends the shim, and looks whether something is left.
func (n *node) end(base string) {
	t := n.t
	defer os.RemoveAll(base)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	list, err := n.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if err := n.Delete(ctx, c.ID, ""); err != nil {
			t.Error(err)
		}
	}
	pid := n.shimPid()
	for _, dir := range []string{"containers", "rootfs", "libcontainer"} {
		if left, _ := os.ReadDir(filepath.Join(n.state, dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	process, err := pidfd.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.must(unix.Kill(pid, unix.SIGTERM))
	n.must(pidfd.Wait(process))
	log, err := os.ReadFile(filepath.Join(n.state, logName))
	n.must(err)
	if bytes.Contains(log, []byte("DATA RACE")) || bytes.Contains(log, []byte("goroutine ")) {
		t.Error("the shim has crashed, or has a race")
	}
	if t.Failed() {
		t.Logf("shim.log:\n%s", log)
	}
	if _, err := os.Stat(filepath.Join(n.state, pidName)); err == nil {
		t.Error("shim.pid left")
	}
	n.checkCgroups()
	if err := os.RemoveAll(base); err != nil { // a mount that is left would be busy
		t.Error(err)
	}
}

// checkCgroups removes the parent of the containers' cgroups, which fails if one is left.
func (n *node) checkCgroups() {
	n.t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup" + n.cgroup, "/sys/fs/cgroup/*" + n.cgroup} {
		dirs, err := filepath.Glob(pattern)
		n.must(err)
		for _, dir := range dirs {
			if err := unix.Rmdir(dir); err != nil {
				n.t.Errorf("cgroup left below %s: %v", dir, err)
			}
		}
	}
}

func (n *node) shimPid() int {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.state, pidName))
	n.must(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	n.must(err)
	return pid
}

func (n *node) mountsOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	n.must(err)
	return string(b)
}

// killShim kills the shim without mercy and waits until it is dead.
func (n *node) killShim() {
	n.t.Helper()
	f, err := pidfd.Open(n.shimPid())
	n.must(err)
	defer f.Close()
	n.must(pidfd.Signal(f, unix.SIGKILL))
	n.must(pidfd.Wait(f))
}

// awaitReplacement waits until a killed shim is replaced.
func (n *node) awaitReplacement() {
	n.t.Helper()
	select {
	case <-n.replaced:
	case <-time.After(20 * time.Second):
		n.t.Fatal("the shim is not replaced")
	}
}

// spec is a container that runs args, as a runtime without frills makes it.
func (n *node) spec(id string, args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SYS_CHROOT"}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: n.RootfsPath(id)},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: n.cgroup + "/" + id,
			Resources:   &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
}

// rootfs mounts the root filesystem of a container.
func (n *node) rootfs(id string, maps ...specs.LinuxIDMapping) {
	n.t.Helper()
	upper, work := filepath.Join(n.layers, "upper-"+id), filepath.Join(n.layers, "work-"+id)
	n.must(os.MkdirAll(upper, 0o755))
	n.must(os.MkdirAll(work, 0o755))
	f, err := n.MountRootfs(n.t.Context(), id, wire.Rootfs{
		Lower: []string{filepath.Join(n.layers, "2"), filepath.Join(n.layers, "1")},
		Upper: upper, Work: work, UIDMap: maps, GIDMap: maps,
	})
	n.must(err)
	n.must(f.Close())
}

func (n *node) logPath(id string) string { return filepath.Join(n.layers, id+".log") }

// create makes a container with a log.
func (n *node) create(spec *specs.Spec, id string) int {
	n.t.Helper()
	n.rootfs(id)
	pid, err := n.Create(n.t.Context(), id, CreateOptions{Spec: spec, LogPath: n.logPath(id)})
	n.must(err)
	return pid
}

// run creates and starts a container.
func (n *node) run(id string, args ...string) int {
	n.t.Helper()
	pid := n.create(n.spec(id, args...), id)
	n.must(n.Start(n.t.Context(), id))
	return pid
}

// exit waits for the exit of a container to be told.
func (n *node) exit(id string) wire.Exit {
	n.t.Helper()
	e, ok := n.awaitExit(id)
	if !ok {
		n.t.Fatalf("the exit of %s is not told", id)
	}
	return e
}

func (n *node) awaitExit(id string) (wire.Exit, bool) {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n.mu.Lock()
		e, ok := n.exits[id]
		n.mu.Unlock()
		if ok {
			return e, true
		}
	}
	return wire.Exit{}, false
}

// logged returns the content of a container's log, without the framing.
func (n *node) logged(id string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.logPath(id))
	n.must(err)
	return unframe(n.t, b)
}

func unframe(t testing.TB, b []byte) string {
	t.Helper()
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		part := strings.SplitN(line, " ", 4)
		if len(part) != 4 {
			t.Fatalf("malformed log line %q", line)
		}
		content := strings.TrimSuffix(part[3], "\n")
		text.WriteString(content)
		if part[2] == "F" {
			text.WriteByte('\n')
		}
	}
	return text.String()
}

// until waits for something that takes a moment and tells nobody.
func (n *node) until(what string, done func() bool) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// execProcess is a process for Exec.
func execProcess(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

// execOut runs a command in a container and returns what it writes, and its exit.
func (n *node) execOut(id string, args ...string) (string, wire.Exit) {
	n.t.Helper()
	r, w, err := os.Pipe()
	n.must(err)
	defer r.Close()
	p, err := n.Exec(n.t.Context(), id, execProcess(args...), Stdio{Out: w, Err: w})
	n.must(w.Close())
	n.must(err)
	defer p.Close()
	var out bytes.Buffer
	_, err = out.ReadFrom(r)
	n.must(err)
	e, err := p.Wait(n.t.Context())
	n.must(err)
	return out.String(), e
}

// sub runs a subtest, to which the node belongs meanwhile.
func (n *node) sub(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		outer := n.t
		n.t = t
		defer func() { n.t = outer }()
		f(t)
	})
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
