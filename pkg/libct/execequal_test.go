package libct

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// probe shows all that a process can see of itself, in parts that begin with "== ". Its argument 0
// is the container's ID: keyrings of other containers are seen by who owns them, if they are alive.
const probe = `exec 2>&1
echo "== arguments"; for a; do echo "<$a>"; done
for f in cmdline environ status limits cgroup oom_score_adj personality timerslack_ns setgroups uid_map gid_map mountinfo attr/current attr/exec; do
	echo "== $f"; cat /proc/$$/$f; echo
done
echo "== ids"; id; umask
echo "== paths"; pwd -P; readlink /proc/$$/cwd; readlink /proc/$$/root; readlink /proc/$$/exe
echo "== descriptors"
for f in /proc/$$/fd/*; do
	n=${f##*/}; echo $n $(readlink $f) $(stat -c '%A %u %g' $f) opened: $(stat -L -c '%F %a %u %g %t:%T' $f) $(grep flags /proc/$$/fdinfo/$n)
done
echo "== namespaces"; for f in /proc/$$/ns/*; do readlink $f; done
echo "== session"; busybox cut -d' ' -f5-8 /proc/$$/stat | busybox sed "s/\<$$\>/self/g"
echo "== scheduling"; busybox cut -d' ' -f18-19,38,40-41 /proc/$$/stat
echo "== keys"; busybox awk -v own=_ses.$0: '$9 !~ /^_ses\./ || $9 == own {print $8, $9}' /proc/keys | busybox sort -u
echo "== terminal"; stty -a; ls /dev/pts
exit 7`

var ignored = regexp.MustCompile(`SigIgn:\t([0-9a-f]+)`)

// withoutIgnored takes out of a status the signals that our shim ignores since whoever has started the tests does (make
// ignores some): by libcontainer they stay ignored, by the init program they do not, which is meant.
func withoutIgnored(t testing.TB, status string) string {
	t.Helper()
	mask := func(text string) uint64 {
		m, err := strconv.ParseUint(ignored.FindStringSubmatch(text)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return ignored.ReplaceAllStringFunc(status, func(line string) string {
		return fmt.Sprintf("SigIgn:\t%016x", mask(line)&^mask(string(own)))
	})
}

// volatile is what differs from one process to the next.
var volatile = regexp.MustCompile(`(?m)^(State|Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|Ngid|Vm\w+|Rss\w+|\w+_ctxt_switches):.*$|^SigQ:\s+\d+|/exec-\w+|pipe:\[\d+\]`)

// byLibcontainer makes an exec that the init program leaves to libcontainer and which is the
// same for the rest: it names all CPUs, which is what one gets that names none.
func byLibcontainer(p *specs.Process) *specs.Process {
	other := *p
	other.ExecCPUAffinity = &specs.CPUAffinity{Final: fmt.Sprintf("0-%d", runtime.NumCPU()-1)}
	return &other
}

// execEnd is all that one learns of an exec.
type execEnd struct {
	out  string
	code int
	err  error
	slow bool // it was libcontainer's, as a shim says that logs what it does
}

// logAll makes the shim log what it does.
func (n *node) logAll() {
	n.log.Logger.SetLevel(logrus.DebugLevel)
	n.killShim()
	n.awaitReplacement()
}

// slowExecs counts the execs that were libcontainer's, by the shim's log.
func (n *node) slowExecs() int {
	b, err := os.ReadFile(filepath.Join(n.state, logName))
	n.must(err)
	return bytes.Count(b, []byte("exec by libcontainer"))
}

// whole runs an exec from its start to its end.
func (n *node) whole(id string, spec *specs.Process) (e execEnd) {
	n.t.Helper()
	slow := n.slowExecs()
	defer func() { e.slow = n.slowExecs() > slow }()
	r, w, err := os.Pipe()
	n.must(err)
	defer r.Close()
	streams := Stdio{Out: w, Err: w}
	if spec.Terminal {
		streams = Stdio{}
	}
	p, err := n.Exec(n.t.Context(), id, spec, streams)
	n.must(w.Close())
	if err != nil {
		return execEnd{err: err}
	}
	defer p.Close()
	if spec.Terminal {
		r = p.Console
	}
	var out bytes.Buffer
	if _, err = out.ReadFrom(r); err != nil && !errors.Is(err, unix.EIO) { // as a terminal ends
		n.t.Fatal(err)
	}
	exit, err := p.Wait(n.t.Context())
	n.must(err)
	return execEnd{out: withoutIgnored(n.t, volatile.ReplaceAllString(out.String(), "*")), code: exit.Code}
}

// failure is what a caller can tell errors apart by: the whole text if the command is at fault,
// else the kind and the innermost cause. The words between are each way's own.
func (e execEnd) failure() string {
	var start *StartError
	switch {
	case e.err == nil:
		return ""
	case errors.As(e.err, &start):
		return "StartError: " + start.Reason
	}
	text := strings.TrimSuffix(e.err.Error(), ": internal")
	return fmt.Sprintf("internal: %t; %s", errdefs.IsInternal(e.err), text[strings.LastIndex(text, ": ")+2:])
}

// same runs an exec both ways, compares, and returns how it went.
func (n *node) same(id string, p *specs.Process) execEnd {
	n.t.Helper()
	quick, slow := n.whole(id, p), n.whole(id, byLibcontainer(p))
	if !slow.slow {
		n.t.Error("the init program was compared with itself")
	}
	if quick.code != slow.code || quick.failure() != slow.failure() {
		n.t.Errorf("init program: %d %v\nlibcontainer: %d %v", quick.code, quick.err, slow.code, slow.err)
	}
	a, b := strings.Split(quick.out, "\n"), strings.Split(slow.out, "\n")
	part := ""
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			n.t.Errorf("%s differs:\ninit program: %.600q\nlibcontainer: %.600q", part, a[i:min(i+2, len(a))], b[i:min(i+2, len(b))])
			break
		}
		if strings.HasPrefix(a[i], "== ") {
			part = a[i]
		}
	}
	return quick
}

// sets names the same capabilities in each set that is granted.
func sets(names ...string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// equalContainers are the containers in which execs are compared, by ID.
func (n *node) equalContainers() map[string]*specs.Spec {
	n.must(os.MkdirAll(filepath.Join(n.layers, "2/locked"), 0o700))
	passwd := "\n # none\nroot:x:0:0::/:/bin/sh\nu:x:1000:1000:,:/home/u:\n  v:x:1001:1001:g:/home/v \nw:x:1002\n"
	n.must(os.WriteFile(filepath.Join(n.layers, "2/etc/passwd"), []byte(passwd), 0o644))
	all := map[string]*specs.Spec{}
	add := func(id string, change func(*specs.Spec)) {
		all[id] = n.spec(id, "sleep", "1000")
		change(all[id])
	}
	without := func(s *specs.Spec, kind specs.LinuxNamespaceType) {
		var kept []specs.LinuxNamespace
		for _, ns := range s.Linux.Namespaces {
			if ns.Type != kind {
				kept = append(kept, ns)
			}
		}
		s.Linux.Namespaces = kept
	}
	add("plain", func(*specs.Spec) {})
	add("seccomp", func(s *specs.Spec) { s.Linux.Seccomp = defaultSeccomp(n.t, s) })
	add("hostpid", func(s *specs.Spec) { without(s, specs.PIDNamespace) })
	add("hostnet", func(s *specs.Spec) { without(s, specs.NetworkNamespace) })
	add("settings", func(s *specs.Spec) {
		umask, oom := uint32(0o027), 700
		s.Process.User.Umask, s.Process.OOMScoreAdj = &umask, &oom
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	})
	add("userns", func(s *specs.Spec) {
		maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	})
	return all
}

// equalProcesses are the execs of the probe that are compared, by how they differ from a plain one.
func equalProcesses() map[string]func(*specs.Process) {
	return map[string]func(*specs.Process){
		"root":    func(*specs.Process) {},
		"user":    func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6, 70}} },
		"user v":  func(p *specs.Process) { p.User = specs.User{UID: 1001} },
		"user w":  func(p *specs.Process) { p.User = specs.User{UID: 1002} },
		"nobody":  func(p *specs.Process) { p.User = specs.User{UID: 65534, GID: 65534} },
		"caps":    func(p *specs.Process) { p.Capabilities = sets("CAP_CHOWN", "CAP_NONSENSE") },
		"no caps": func(p *specs.Process) { p.Capabilities = sets() },
		"all caps": func(p *specs.Process) {
			p.Capabilities = sets("CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_BPF")
		},
		"ambient": func(p *specs.Process) {
			p.User.UID, p.Capabilities = 1000, sets("CAP_CHOWN", "CAP_KILL")
			p.Capabilities.Inheritable, p.Capabilities.Ambient = []string{"CAP_KILL"}, []string{"CAP_KILL", "CAP_CHOWN"}
		},
		"nnp":      func(p *specs.Process) { p.NoNewPrivileges = true },
		"nnp user": func(p *specs.Process) { p.NoNewPrivileges, p.User.UID = true, 1000 },
		"rlimits": func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 500}}
		},
		"cwd":    func(p *specs.Process) { p.Cwd = "/locked" },
		"no cwd": func(p *specs.Process) { p.Cwd = "" },
		"env": func(p *specs.Process) {
			p.Env = append(p.Env, "A=1", "B=", "A=2", "HOME=", "C=x=y", "LONG="+strings.Repeat("x", 100000))
		},
		"home":     func(p *specs.Process) { p.Env = append(p.Env, "HOME=/x", "Z=9") },
		"terminal": func(p *specs.Process) { p.Terminal = true },
		"terminal user": func(p *specs.Process) {
			p.Terminal, p.User.UID, p.ConsoleSize = true, 1000, &specs.Box{Width: 91, Height: 17}
		},
	}
}

// equalFailures are execs that do not come to their command, or to a strange one.
func equalFailures() map[string]func(*specs.Process) {
	command := func(args ...string) func(*specs.Process) {
		return func(p *specs.Process) { p.Args = args }
	}
	path := func(path, command string) func(*specs.Process) {
		return func(p *specs.Process) {
			p.Args, p.Env = []string{command, "-c", "echo $PATH; exit 4"}, []string{"PATH=" + path}
		}
	}
	return map[string]func(*specs.Process){
		"missing":        command("nope"),
		"missing path":   command("/bin/nope"),
		"missing folder": command("/nope/nope"),
		"below a file":   command("/etc/passwd/nope"),
		"folder":         command("/bin"),
		"not executable": command("noexec"),
		"path of that":   command("/bin/noexec"),
		"no program":     command("/bin/garbage"),
		"no interpreter": command("nointerp"),
		"dot":            command("."),
		"relative":       func(p *specs.Process) { p.Args, p.Cwd = []string{"./sh", "-c", "pwd"}, "/bin" },
		"relative PATH":  func(p *specs.Process) { path("bin", "sh")(p); p.Cwd = "/" },
		"here":           func(p *specs.Process) { path("", "sh")(p); p.Cwd = "/bin" },
		"here among":     func(p *specs.Process) { path("/x::/bin", "sh")(p); p.Cwd = "/bin" },
		"second":         path("/etc:/nope:/bin", "sh"),
		"no PATH":        func(p *specs.Process) { p.Env = nil; p.Args = []string{"sh"} },
		"killed":         command("sh", "-c", "kill -9 $$"),
		"terminated":     command("sh", "-c", "kill -15 $$"),
		"rlimit":         func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 99}} },
		"cwd":            func(p *specs.Process) { p.Cwd = "/nope" },
		"cwd no folder":  func(p *specs.Process) { p.Cwd = "/bin/busybox" },
		"cwd forbidden":  func(p *specs.Process) { p.Cwd, p.User.UID, p.Capabilities = "/locked", 1000, sets() },
		"environment":    func(p *specs.Process) { p.Env = append(p.Env, "=x") },
		"much": func(p *specs.Process) {
			for i := range 10 {
				p.Env = append(p.Env, fmt.Sprintf("LONG%d=%s", i, strings.Repeat("x", 120000)))
			}
		},
		"large arguments": command("sh", "-c", ": "+strings.Repeat("x", 200000)),
		"user forbidden":  func(p *specs.Process) { p.Args, p.User.UID = []string{"/locked/x"}, 1000 },
	}
}

// leftToLibcontainer are those of equalFailures that the init program does not do.
var leftToLibcontainer = map[string]bool{"dot": true, "environment": true, "much": true}

// A process sees the same of itself whichever way it has come into its container, and fails alike.
func TestExecEqual(t *testing.T) {
	n := newNode(t)
	n.logAll()
	for id, spec := range n.equalContainers() {
		n.sub(t, id, func(t *testing.T) {
			n.rootfs(id, spec.Linux.UIDMappings...)
			_, err := n.Create(t.Context(), id, CreateOptions{Spec: spec, LogPath: n.logPath(id)})
			n.must(err)
			n.must(n.Start(t.Context(), id))
			for name, change := range equalProcesses() {
				n.sub(t, name, func(t *testing.T) {
					p := execProcess("sh", "-c", probe, id, "one", "two words", "")
					change(p)
					if e := n.same(id, p); e.err != nil || e.slow || e.code != 7 || !strings.Contains(e.out, "== terminal") {
						t.Errorf("the probe says %d, %q, %v", e.code, e.out, e.err)
					}
				})
			}
			for name, change := range equalFailures() {
				n.sub(t, "failure "+name, func(t *testing.T) {
					p := execProcess("sh", "-c", "exit 5")
					change(p)
					if e := n.same(id, p); e.slow != leftToLibcontainer[name] {
						t.Errorf("by libcontainer: %t", e.slow)
					}
				})
			}
		})
	}
}
