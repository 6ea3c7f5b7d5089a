package blackbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func ownerOf(fi os.FileInfo) uint32 { return fi.Sys().(*syscall.Stat_t).Uid }

// rows: M-23, T-20
func TestMounts(t *testing.T) {
	p := newPod(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("from the node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := p.start(asleep(), mounts(
		&runtimeapi.Mount{ContainerPath: "/rw", HostPath: dir},
		&runtimeapi.Mount{ContainerPath: "/ro", HostPath: dir, Readonly: true},
		&runtimeapi.Mount{ContainerPath: "/deep/down/file", HostPath: file, Readonly: true},
	))
	equal(t, "file", c.sh("cat /deep/down/file"), "from the node")
	c.sh("echo from the container > /rw/new")
	b, err := os.ReadFile(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "what the container wrote", string(b), "from the container\n")
	if r, err := c.exec("touch", "/ro/x"); err != nil || r.ExitCode == 0 {
		t.Errorf("a read-only mount can be written to: %v %v", r, err)
	}
	s := c.status()
	equal(t, "mounts in the status", len(s.Mounts), 3)
	equal(t, "the first one's path", s.Mounts[0].ContainerPath, "/rw")
	equal(t, "read-only", s.Mounts[1].Readonly, true)
}

// rows: M-01, GAP-14
func TestMissingMountSource(t *testing.T) {
	ours(t) // others make a directory of it
	p := newPod(t)
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := p.tryCreate(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: missing}))
	refused(t, err, codes.InvalidArgument, missing)
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("it was made: %v", err)
	}
}

// A volume that is mounted later appears in a running container, and one that the container mounts on the node.
// rows: M-05, M-06, M-07, P-016
func TestMountPropagation(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"before", "host", "container"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	privileged := security(func(s *securityContext) { s.Privileged = true })
	mounted := func(mode runtimeapi.MountPropagation) *container {
		return p.start(asleep(), privileged, mounts(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: mode}))
	}
	private := mounted(runtimeapi.MountPropagation_PROPAGATION_PRIVATE)
	slave := mounted(runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)
	shared := mounted(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL)

	mountTmpfs(t, filepath.Join(dir, "host"))
	const look = "grep -c ' /m/host ' /proc/self/mountinfo || true"
	equal(t, "private: mounts seen", private.sh(look), "0")
	equal(t, "host to container: mounts seen", slave.sh(look), "1")
	equal(t, "bidirectional: mounts seen", shared.sh(look), "1")

	seen := func() bool {
		b, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && strings.Contains(string(b), filepath.Join(dir, "container")+" ")
	}
	slave.sh("mount -t tmpfs t /m/container")
	equal(t, "host to container: seen on the node", seen(), false)
	shared.sh("mount -t tmpfs t /m/container")
	equal(t, "bidirectional: seen on the node", seen(), true)
	shared.sh("umount /m/container")
}

// mountTmpfs mounts a tmpfs, for as long as the test lasts.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// A private mount on the node is no source for propagation; the error says so before anything is made.
// rows: M-06
func TestPropagationNeedsASharedMount(t *testing.T) {
	ours(t)
	dir := t.TempDir()
	mountTmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	p := newPod(t)
	_, err := p.tryCreate(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}))
	refused(t, err, codes.InvalidArgument, dir)
}

// rows: M-03, M-04, P-017, P-018, Q-05
func TestRecursiveReadOnly(t *testing.T) {
	ours(t)
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, sub)
	p := newPod(t)
	for recursive, want := range map[bool]string{true: "denied", false: "allowed"} {
		c := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Readonly: true, RecursiveReadOnly: recursive}))
		equal(t, "write below a mount on it", c.sh("touch /m/sub/x 2>/dev/null && echo allowed || echo denied"), want)
	}
}

// rows: K-17, P-046
func TestDevices(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep(), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/a-device", Permissions: "r"}}
	})
	fi, err := os.Stat("/dev/fuse")
	if err != nil {
		t.Fatal(err)
	}
	dev := fi.Sys().(*syscall.Stat_t).Rdev
	equal(t, "device numbers", c.sh("stat -c '%t:%T' /dev/a-device"), hex(unix.Major(dev))+":"+hex(unix.Minor(dev)))
	equal(t, "opened to read", c.sh("head -c 0 /dev/a-device && echo yes || echo no"), "yes")
	equal(t, "opened to write", c.sh("(: > /dev/a-device) 2>/dev/null && echo yes || echo no"), "no")
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		c.sh("test -c /dev/" + d)
	}
	c.sh("mknod /x b 8 0; ! head -c 1 /x 2>/dev/null") // another device may be made but not opened
}

func hex(n uint32) string { return strconv.FormatUint(uint64(n), 16) }

// rows: N-07, D-93, P-054
func TestSharedMemory(t *testing.T) {
	p := newPod(t)
	a, b := p.start(asleep()), p.start(asleep())
	a.sh("echo shared > /dev/shm/x")
	equal(t, "what the other container sees", b.sh("cat /dev/shm/x"), "shared")
	if !other() {
		contains(t, "options of /dev/shm", a.sh("grep ' /dev/shm ' /proc/mounts"), "noexec", "nosuid", "nodev")
	}
}
