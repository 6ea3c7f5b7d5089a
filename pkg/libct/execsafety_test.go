package libct

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A working directory cannot be a descriptor of the program that brings an exec into its
// container, named by itself or by a link of the image: it would lead out (CVE-2024-21626).
func TestExecStaysInside(t *testing.T) {
	n := newNode(t)
	const most = 64
	n.must(os.MkdirAll(filepath.Join(n.layers, "2/out"), 0o755))
	for fd := range most {
		n.must(os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("%s/2/out/%d", n.layers, fd)))
	}
	n.run("c", "sleep", "1000")
	for fd := range most {
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/out/%d", fd), fmt.Sprintf("/out/%d/..", fd)} {
			p := execProcess("sh", "-c", "pwd -P; ls")
			for _, p.Terminal = range []bool{false, true} { // for a terminal more descriptors are at hand
				p.Cwd = cwd
				if e := n.whole("c", p); e.err == nil || !strings.Contains(e.err.Error(), "process.cwd "+cwd+": ") {
					t.Errorf("working directory %s: %d %q %v", cwd, e.code, e.out, e.err)
				}
			}
		}
	}
	inside := execProcess("sh", "-c", "pwd -P")
	inside.Cwd = "/proc/1/root/data"
	if e := n.whole("c", inside); e.out != "/data\n" {
		t.Errorf("a directory of the container: %q %v", e.out, e.err)
	}
}

// The terminal of an exec is one of the container's own, wherever its /dev/pts leads: not by way of a
// descriptor of the program into the node's.
func TestExecTerminalInside(t *testing.T) {
	n := newNode(t)
	spec := n.spec("c", "sleep", "1000")
	spec.Mounts = spec.Mounts[:len(spec.Mounts)-1] // without devpts
	n.create(spec, "c")
	n.must(n.Start(t.Context(), "c"))
	p := execProcess("true")
	p.Terminal = true
	for fd := 3; fd <= 6; fd++ { // those that are open then
		link := fmt.Sprintf("/proc/self/fd/%d/1/root/dev/pts", fd)
		if out, e := n.execOut("c", "sh", "-c", "busybox rm -rf /dev/pts; busybox ln -s "+link+" /dev/pts"); e.Code != 0 {
			t.Fatal(out)
		}
		if e := n.whole("c", p); e.err == nil || !strings.Contains(e.err.Error(), "open /dev/pts/ptmx: too many levels of symbolic links") {
			t.Errorf("terminal by %s: %q %v", link, e.out, e.err)
		}
	}
}

// An exec has the descriptors 0, 1 and 2 and no capability by inheritance (CVE-2022-24769),
// and neither the CPUs of the shim nor the signals that this ignores.
func TestExecInheritsNothing(t *testing.T) {
	n := newNode(t)
	signal.Ignore(unix.SIGTTOU)
	defer signal.Reset(unix.SIGTTOU)
	n.killShim()
	n.awaitReplacement()
	n.run("c", "sleep", "1000")
	cpus, _ := n.execOut("c", "grep", "Cpus_allowed_list", "/proc/self/status")
	n.pinShim()
	for name, change := range map[string]func(*specs.Process){
		"root":     func(*specs.Process) {},
		"user":     func(p *specs.Process) { p.User.UID = 1000 },
		"terminal": func(p *specs.Process) { p.Terminal = true },
	} {
		const none = "0000000000000000"
		for want, args := range map[string][]string{
			"0 1 2": {"sh", "-c", "ls /proc/$$/fd; true"},
			"SigBlk: " + none + " SigIgn: " + none + " CapInh: " + none + " CapAmb: " + none + " " + strings.Join(strings.Fields(cpus), " "): {
				"grep", "-E", "Cap(Inh|Amb)|Sig(Blk|Ign)|Cpus_allowed_list", "/proc/self/status"},
		} {
			p := execProcess(args...)
			change(p)
			e := n.whole("c", p)
			if got := strings.Join(strings.Fields(e.out), " "); got != want {
				t.Errorf("%s: %s, not %s; %v", name, got, want, e.err)
			}
		}
	}
}

// pinShim lets all threads of the shim run on one CPU only.
func (n *node) pinShim() {
	n.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.shimPid()))
	n.must(err)
	var one unix.CPUSet
	one.Set(0)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		n.must(err)
		n.must(unix.SchedSetaffinity(tid, &one))
	}
}

// buildHostile puts testdata/hostile.c into the containers.
func (n *node) buildHostile() {
	n.t.Helper()
	build := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-static", "-o", filepath.Join(n.layers, "1/bin/hostile"), "testdata/hostile.c")
	if out, err := build.CombinedOutput(); err != nil {
		n.t.Fatalf("%v\n%s", err, out)
	}
}

// saying starts an exec, waits for its first line, and returns that and a reader of the others.
func (n *node) saying(id string, spec *specs.Process) (p *Process, first string, more *bufio.Scanner) {
	n.t.Helper()
	r, w, err := os.Pipe()
	n.must(err)
	n.t.Cleanup(func() { _ = r.Close() })
	p, err = n.Exec(n.t.Context(), id, spec, Stdio{Out: w, Err: w})
	n.must(w.Close())
	n.must(err)
	n.t.Cleanup(func() { _ = p.Close() })
	more = bufio.NewScanner(r)
	more.Scan()
	return p, more.Text(), more
}

// The end of a process is known that another of its container traces and does not let go of, and
// when that has ended, too, nothing is left, over an upgrade of the shim as well.
func TestTracedExecEnds(t *testing.T) {
	n := newNode(t)
	n.buildHostile()
	n.run("c", "sleep", "1000")
	traced, pid, _ := n.saying("c", execProcess("sh", "-c", "echo $$; exec sleep 1001"))
	tracer, said, _ := n.saying("c", execProcess("hostile", "trace", pid))
	if said != "ready" {
		t.Fatalf("process %s: the tracer says %q", pid, said)
	}
	n.must(traced.Kill(unix.SIGKILL))
	if e, err := traced.Wait(t.Context()); err != nil || e.Code != 137 {
		t.Errorf("%+v %v", e, err)
	}
	old := n.Shim
	n.open(otherShim)
	defer func() { n.must(old.Close()) }()
	if got := n.children(n.shimPid()); got != 3 {
		t.Errorf("the shim has %d children, not the container, the tracer and the traced", got)
	}
	n.must(tracer.Kill(unix.SIGKILL))
	n.until("the container alone is left", func() bool { return n.children(n.shimPid()) == 1 })
}

// No process of a container gets at an exec before that has executed its command, not even
// one that may trace what is in its user namespace (CVE-2016-9962).
func TestExecIsOutOfReach(t *testing.T) {
	n := newNode(t)
	n.buildHostile()
	spec := n.spec("c", "sleep", "1000")
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = maps, maps
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	n.rootfs("c", maps...)
	_, err := n.Create(t.Context(), "c", CreateOptions{Spec: spec})
	n.must(err)
	n.must(n.Start(t.Context(), "c"))
	hostile := execProcess("hostile", "race")
	hostile.Capabilities = sets("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN")
	racer, first, said := n.saying("c", hostile)
	if first != "ready" {
		t.Fatalf("the racer says %q", first)
	}
	for range 500 {
		n.execOut("c", "true")
	}
	n.must(racer.Kill(unix.SIGKILL))
	tries := 0
	for said.Scan() {
		tries++
		if got := said.Text(); got != "denied" {
			t.Errorf("the racer got %s", got)
		}
	}
	if tries < 100 {
		t.Errorf("%d tries in time prove little", tries)
	}
}
