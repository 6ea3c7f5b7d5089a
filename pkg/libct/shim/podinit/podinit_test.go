package podinit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program writes Binary to where it can be executed.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "podinit")
	must(t, os.WriteFile(path, Binary, 0o700))
	return path
}

// nobody is who pid 1 is if the test says nothing else.
var nobody = Settings{UID: 65534, GID: 65534}

// start runs the pause mode and returns what it reported.
func start(t *testing.T, set Settings, kinds []string, namespaces ...*os.File) (report string, err error) {
	t.Helper()
	stdin, err := set.Encode()
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command(program(t), append([]string{"pause"}, kinds...)...)
	cmd.ExtraFiles, cmd.Stdin = append([]*os.File{w}, namespaces...), bytes.NewReader(stdin)
	err = cmd.Run()
	must(t, w.Close())
	b, readErr := io.ReadAll(r) // ends only if pid 1 has let go of the pipe
	must(t, readErr)
	return string(b), err
}

func startPause(t *testing.T, set Settings, kinds []string, namespaces ...*os.File) int {
	t.Helper()
	report, err := start(t, set, kinds, namespaces...)
	pid, convErr := strconv.Atoi(report)
	if err != nil || convErr != nil {
		t.Fatalf("reported %q: %v", report, err)
	}
	t.Cleanup(func() {
		if unix.Kill(pid, 0) == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	})
	return pid
}

// newNamespaces makes namespaces with the hold mode and returns descriptors of them, which keep them.
func newNamespaces(t *testing.T, flags uintptr, kinds ...string) []*os.File {
	t.Helper()
	cmd := exec.Command(program(t), "hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	var files []*os.File
	for _, k := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, k))
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	must(t, unix.Kill(cmd.Process.Pid, 0))
	_, err = stdin.Write([]byte("this is no reason to end"))
	must(t, err)
	must(t, stdin.Close())
	must(t, cmd.Wait())
	return files
}

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}

// untilReady waits until pid 1 has closed its descriptors, the last thing it does before it waits.
func untilReady(t *testing.T, pid int) {
	t.Helper()
	until(t, "pid 1 has no descriptors", func() bool {
		e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(t, err)
		return len(e) == 0
	})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("10 s and still not: %s", what)
		}
	}
}

// checkPause checks what the package comment promises of pid 1.
func checkPause(t *testing.T, pid int, uid, gid, groups string) {
	t.Helper()
	untilReady(t, pid)
	const none = "0000000000000000"
	s := status(t, pid)
	for k, want := range map[string]string{
		"Name": "pause", "PPid": strconv.Itoa(os.Getpid()), "NSpid": fmt.Sprint(pid, " 1"), "NSsid": fmt.Sprint(pid, " 1"),
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "), "Groups": groups, "Seccomp": "0",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1",
		"SigIgn": "0000000000010000", "SigCgt": none, "Threads": "1",
	} {
		if s[k] != want {
			t.Errorf("%s is %q, want %q", k, s[k], want)
		}
	}
	root := fmt.Sprintf("/proc/%d/root/", pid)
	if e, err := os.ReadDir(root); err != nil || len(e) != 0 {
		t.Errorf("its root holds %v, %v", e, err)
	}
	if err := os.Mkdir(root+"x", 0o700); err != unix.EROFS && !strings.Contains(fmt.Sprint(err), unix.EROFS.Error()) {
		t.Errorf("its root can be written to: %v", err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)); err != nil || bytes.Count(b, []byte("\n")) != 1 {
		t.Errorf("its mounts: %s, %v", b, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	var kB int
	_, after, _ := strings.Cut(string(b), "\nRss:")
	if _, err := fmt.Sscan(after, &kB); err != nil || kB >= 50 {
		t.Errorf("its memory is %d kB, %v", kB, err)
	}
	t.Logf("resident: %d kB; program: %d bytes", kB, len(Binary))
}

// end sends a signal and checks that pid 1 exits with 0.
func end(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	must(t, unix.Kill(pid, sig))
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("after %v: %#x, %v", sig, ws, err)
	}
}

func TestPause(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		pid := startPause(t, nobody, nil)
		checkPause(t, pid, "65534", "65534", "")
		for _, k := range []string{"net", "ipc", "uts", "user"} {
			compareNamespace(t, pid, k, fmt.Sprintf("/proc/self/ns/%s", k))
		}
		must(t, unix.Kill(pid, unix.SIGHUP)) // no reason to end
		end(t, pid, sig)
	}
}

// TestEndAtOnce sends the signal before pid 1 can have got far.
func TestEndAtOnce(t *testing.T) {
	for range 20 {
		end(t, startPause(t, nobody, nil), unix.SIGTERM)
	}
}

func compareNamespace(t *testing.T, pid int, kind, path string) {
	t.Helper()
	got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	must(t, err)
	want, err := os.Stat(path)
	must(t, err)
	if !os.SameFile(got, want) {
		t.Errorf("its %s namespace is another one than %s", kind, path)
	}
}

func TestJoin(t *testing.T) {
	all := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	for _, c := range []struct {
		name             string
		set              Settings
		flags            uintptr
		files            []string
		kinds            []string
		uid, gid, groups string
	}{
		{"network, ipc and uts", nobody, all &^ unix.CLONE_NEWUSER, []string{"net", "ipc", "uts"}, []string{"network", "ipc", "uts"}, "65534", "65534", ""},
		{"user", Settings{}, unix.CLONE_NEWUSER, []string{"user"}, []string{"user"}, "100000", "200000", ""},
		{"user and its own", Settings{UID: 7, GID: 8, Groups: []uint32{9, 11}}, all, []string{"user", "net", "ipc", "uts"},
			[]string{"user", "network", "ipc", "uts"}, "100007", "200008", "200009 200011"},
	} {
		t.Run(c.name, func(t *testing.T) {
			namespaces := newNamespaces(t, c.flags, c.files...)
			pid := startPause(t, c.set, c.kinds, namespaces...)
			checkPause(t, pid, c.uid, c.gid, c.groups)
			for i, k := range c.files {
				compareNamespace(t, pid, k, fmt.Sprintf("/proc/self/fd/%d", namespaces[i].Fd()))
			}
			reaps(t, pid)
			end(t, pid, unix.SIGTERM)
		})
	}
}

// TestGroups has as many groups as there can be.
func TestGroups(t *testing.T) {
	set := Settings{UID: 1, GID: 2, Groups: make([]uint32, maxGroups)}
	for i := range set.Groups {
		set.Groups[i] = uint32(i)
	}
	pid := startPause(t, set, nil)
	if got := strings.Fields(status(t, pid)["Groups"]); len(got) != maxGroups || got[maxGroups-1] != "65535" {
		t.Errorf("it has %d groups", len(got))
	}
	end(t, pid, unix.SIGTERM)
	for _, s := range []Settings{{Groups: make([]uint32, maxGroups+1)}, {Filter: make([]byte, 12)}, {Filter: make([]byte, 8*(maxInstructions+1))}} {
		if _, err := s.Encode(); err == nil {
			t.Errorf("%d groups and %d bytes of a filter were encoded", len(s.Groups), len(s.Filter))
		}
	}
}

// filter makes a seccomp filter that lets the given system calls pass and answers all others with EPERM.
func filter(t *testing.T, passed ...uint32) []byte {
	t.Helper()
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for _, nr := range passed {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	var b bytes.Buffer
	must(t, binary.Write(&b, binary.NativeEndian, program))
	return b.Bytes()
}

// TestFilter: what pid 1 needs is the wait and the exit; whatever it is refused, it does not spin.
func TestFilter(t *testing.T) {
	set := nobody
	set.Filter = filter(t, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_EXIT_GROUP)
	pid := startPause(t, set, nil)
	until(t, "pid 1 is confined", func() bool { return status(t, pid)["Seccomp"] == "2" })
	must(t, unix.Kill(pid, unix.SIGSTOP)) // interrupts the wait
	must(t, unix.Kill(pid, unix.SIGCONT))
	end(t, pid, unix.SIGTERM)
	for _, c := range []struct {
		name   string
		filter []byte
		want   unix.WaitStatus
	}{
		{"no wait", filter(t, unix.SYS_EXIT_GROUP), unix.WaitStatus(unix.EPERM) << 8},
		{"nothing", filter(t), unix.WaitStatus(unix.SIGILL)},
		{"no program", make([]byte, 8), unix.WaitStatus(unix.EINVAL) << 8},
	} {
		set.Filter = c.filter
		pid := startPause(t, set, nil)
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws&^0x80 != c.want { // 0x80: a core was dumped
			t.Errorf("%s: %#x, %v; want %#x", c.name, ws, err, c.want)
		}
	}
}

// reaps orphans processes in the PID namespace of pid 1 and checks that none remains as a zombie.
func reaps(t *testing.T, pid int) {
	t.Helper()
	for range 3 {
		inPIDNamespace(t, pid, "sleep 1000 >/dev/null 2>&1 &")
	}
	orphans := children(t, pid)
	if len(orphans) != 3 {
		t.Fatalf("pid 1 has the children %v", orphans)
	}
	for _, o := range orphans {
		must(t, unix.Kill(o, unix.SIGKILL))
	}
	until(t, "the killed orphans are reaped", func() bool { return len(children(t, pid)) == 0 })
	inPIDNamespace(t, pid, "(sh -c 'exit 3' & exit 4) & true") // dead before they are orphans, and after
	until(t, "the dead orphans are reaped", func() bool { return len(children(t, pid)) == 0 })
}

func children(t *testing.T, pid int) []int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	must(t, err)
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(f)
		must(t, err)
		pids = append(pids, n)
	}
	return pids
}

// inPIDNamespace runs a shell there, from a thread that is given up afterwards.
func inPIDNamespace(t *testing.T, pid int, script string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWPID)
			_ = f.Close()
		}
		if err == nil {
			err = exec.Command("sh", "-c", script).Run()
		}
		done <- err
	}()
	must(t, <-done)
}

func TestErrors(t *testing.T) {
	f, err := os.Open("podinit.go")
	must(t, err)
	defer f.Close()
	userns := newNamespaces(t, unix.CLONE_NEWUSER, "user")[0]
	net, err := os.Open("/proc/self/ns/net")
	must(t, err)
	defer net.Close()
	for _, c := range []struct {
		set   Settings
		kinds []string
		files []*os.File
		want  string
	}{
		{nobody, []string{"network"}, []*os.File{f}, "error: join network: errno 22"},
		{nobody, []string{"ipc"}, nil, "error: join ipc: errno 9"},
		{nobody, []string{"user", "network"}, []*os.File{userns, net}, "error: join network: errno 1"}, // which belongs to the host
		{Settings{UID: 70000}, []string{"user"}, []*os.File{userns}, "error: setuid: errno 22"},        // which is not mapped
		{Settings{GID: 70000}, []string{"user"}, []*os.File{userns}, "error: setgid: errno 22"},
		{Settings{Groups: []uint32{1, 70000}}, []string{"user"}, []*os.File{userns}, "error: setgroups: errno 22"},
	} {
		report, err := start(t, c.set, c.kinds, c.files...)
		if ee, ok := err.(*exec.ExitError); !ok || ee.ExitCode() != 1 || report != c.want {
			t.Errorf("%v: reported %q, %v; want %q", c.kinds, report, err, c.want)
		}
	}
	cmd := exec.Command(program(t), "pause")
	cmd.Stdin = strings.NewReader("short")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("settings that end early: %v", err)
	}
	cmd = exec.Command(program(t), "dance")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("an unknown mode: %v", err)
	}
}
