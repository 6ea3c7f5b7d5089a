package spec

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDetectHost(t *testing.T) {
	h, err := DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", h)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, bounding, _ := bytes.Cut(status, []byte("CapBnd:\t"))
	set := uint64(0)
	for _, c := range strings.ToLower(string(bounding[:16])) {
		set = set<<4 | uint64(strings.IndexRune("0123456789abcdef", c))
	}
	bits := 0
	for ; set != 0; set &= set - 1 {
		bits++
	}
	if len(h.Capabilities) != bits || !slices.IsSorted(h.Capabilities) || !slices.Contains(h.Capabilities, "CAP_CHOWN") {
		t.Errorf("%d capabilities; /proc/self/status has %d: %v", len(h.Capabilities), bits, h.Capabilities)
	}
	if h.Seccomp != bytes.Contains(status, []byte("\nSeccomp:")) {
		t.Errorf("seccomp %v", h.Seccomp)
	}
	if !h.Controllers["memory"] || !h.Controllers["cpu"] || !h.Controllers["pids"] {
		t.Errorf("controllers %v", h.Controllers)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); (err == nil) != h.CgroupV2 {
		t.Errorf("cgroup v2 %v", h.CgroupV2)
	}
	// Whether the lowest value is right, the kernel says.
	old, _ := os.ReadFile("/proc/self/oom_score_adj")
	defer os.WriteFile("/proc/self/oom_score_adj", old, 0)
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(h.MinOOMScoreAdj)), 0); err != nil {
		t.Errorf("set oom_score_adj %d: %v", h.MinOOMScoreAdj, err)
	}
	if h.MinOOMScoreAdj > -1000 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(h.MinOOMScoreAdj-1)), 0); err == nil {
			t.Errorf("oom_score_adj %d can be set; the lowest is said to be %d", h.MinOOMScoreAdj-1, h.MinOOMScoreAdj)
		}
	}
}

func TestDetectV2(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n")
	c, err := controllersV2(root)
	if err != nil || len(c) != 6 || !c["io"] || !c["pids"] {
		t.Errorf("got %v, %v", c, err)
	}
	write(t, filepath.Join(root, "a.slice/memory.max"), "max")
	if swapV2(root) {
		t.Error("swap accounting without memory.swap.max")
	}
	write(t, filepath.Join(root, "b.slice/memory.max"), "max")
	write(t, filepath.Join(root, "b.slice/memory.swap.max"), "max")
	if !swapV2(root) {
		t.Error("no swap accounting with memory.swap.max")
	}
}

func TestDetectV1(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroups")
	write(t, file, "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t14\t0\nbogus\t0\t1\t1\n")
	c, swap, err := controllersV1(file)
	if err != nil || len(c) != 0 || swap {
		t.Errorf("a controller that is off and one that is not mounted: got %v, %v, %v", c, swap, err)
	}
}

func TestMachineResolve(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "real/file"), "")
	link(t, "real", filepath.Join(dir, "link"))
	link(t, "loop", filepath.Join(dir, "loop"))
	link(t, "nowhere", filepath.Join(dir, "dangling"))
	if got, err := (machine{}).Resolve(filepath.Join(dir, "link/file")); err != nil || got != filepath.Join(dir, "real/file") {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{"loop", "dangling", "none", "real/file/x"} {
		if got, err := (machine{}).Resolve(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestMachineReadFile(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	write(t, file, "12345")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := (machine{}).ReadFile(file, 5); err != nil || string(b) != "12345" {
		t.Errorf("got %q, %v", b, err)
	}
	for p, limit := range map[string]int64{file: 4, fifo: 9, dir: 9, dir + "/none": 9, "/dev/zero": 9} {
		if b, err := (machine{}).ReadFile(p, limit); err == nil {
			t.Errorf("%s: got %q", p, b)
		}
	}
}

func TestMachineDevices(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d/plain"), "")
	write(t, filepath.Join(dir, "empty/plain"), "")
	node := func(name string, mode uint32, major, minor uint32, perm uint32) {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := unix.Mknod(p, mode|perm, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, os.FileMode(perm)); err != nil {
			t.Fatal(err)
		}
	}
	node("d/null", unix.S_IFCHR, 1, 3, 0o666)
	node("d/sub/disk", unix.S_IFBLK, 8, 300, 0o640)
	node("d/fifo", unix.S_IFIFO, 0, 0, 0o600)
	os.Chown(filepath.Join(dir, "d/sub/disk"), 0, 6)
	link(t, "..", filepath.Join(dir, "d/sub/loop"))
	link(t, "d", filepath.Join(dir, "link"))

	want := []Device{{Path: "/null", Type: "c", Major: 1, Minor: 3, Mode: 0o666}, {Path: "/sub/disk", Type: "b", Major: 8, Minor: 300, Mode: 0o640, GID: 6}}
	for _, p := range []string{"d", "link"} {
		if got, err := (machine{}).Devices(filepath.Join(dir, p), 2); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %+v, %v", p, got, err)
		}
	}
	one := []Device{{Type: "c", Major: 1, Minor: 3, Mode: 0o666}}
	if got, err := (machine{}).Devices(filepath.Join(dir, "link/null"), 2); err != nil || !slices.Equal(got, one) {
		t.Errorf("a device: got %+v, %v", got, err)
	}
	for _, p := range []string{"empty", "d/plain"} {
		if got, err := (machine{}).Devices(filepath.Join(dir, p), 2); err != nil || len(got) != 0 {
			t.Errorf("%s: got %+v, %v", p, got, err)
		}
	}
	if got, err := (machine{}).Devices(filepath.Join(dir, "d"), 1); err == nil {
		t.Errorf("beyond the limit: got %+v", got)
	}
	if got, err := (machine{}).Devices(filepath.Join(dir, "none"), 1); !os.IsNotExist(err) {
		t.Errorf("missing: got %+v, %v", got, err)
	}
	got, err := (machine{}).Devices("/dev", maxDevices)
	if err != nil || !slices.ContainsFunc(got, func(d Device) bool { return d.Path == "/null" && d.Minor == 3 }) {
		t.Errorf("/dev: got %+v, %v", got, err)
	}
	if slices.ContainsFunc(got, func(d Device) bool { return strings.HasPrefix(d.Path, "/pts/") || d.Path == "/console" }) {
		t.Errorf("/dev has terminals of the host: %+v", got)
	}
}

// The test makes mounts of each kind in a mount namespace of its own thread.
func TestMachinePropagation(t *testing.T) {
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread, with its namespace, ends with the goroutine
		step := func(err error) bool {
			if err != nil {
				t.Error(err)
			}
			return err == nil
		}
		if !step(unix.Unshare(unix.CLONE_NEWNS)) || !step(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")) ||
			!step(unix.Mount("tmpfs", dir, "tmpfs", 0, "")) {
			return
		}
		for name, flags := range map[string][]uintptr{
			"private": {unix.MS_PRIVATE}, "shared": {unix.MS_SHARED}, "slave": {unix.MS_SHARED, unix.MS_SLAVE}, "both": {unix.MS_SHARED, unix.MS_SLAVE, unix.MS_SHARED},
		} {
			p := filepath.Join(dir, name)
			if !step(os.Mkdir(p, 0o755)) || !step(unix.Mount("tmpfs", p, "tmpfs", 0, "")) || !step(os.Mkdir(p+"/sub", 0o755)) {
				return
			}
			if strings.HasPrefix(name, "s") || name == "both" {
				// A slave needs a peer, so the mount gets a second place.
				peer := p + "-peer"
				if !step(os.Mkdir(peer, 0o755)) || !step(unix.Mount("", p, "", unix.MS_SHARED, "")) || !step(unix.Mount(p, peer, "", unix.MS_BIND, "")) {
					return
				}
			}
			for _, f := range flags {
				if !step(unix.Mount("", p, "", f, "")) {
					return
				}
			}
			shared, slave, err := (machine{}).Propagation(p + "/sub")
			if err != nil || shared != (name == "shared" || name == "both") || slave != (name == "slave" || name == "both") {
				t.Errorf("%s: shared %v, slave %v, %v", name, shared, slave, err)
			}
		}
	}()
	<-done
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := syscall.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
