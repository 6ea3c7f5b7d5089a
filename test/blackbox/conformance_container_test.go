package blackbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Command, arguments, directory and environment of a process.
// rows: K-05, K-06, K-07, K-08, K-15, P-042, P-043, P-044, P-044a, D-76
func TestProcess(t *testing.T) {
	ours(t)
	pull(t, "docker.io/edge/config:v1")
	defer removeImage(t, "docker.io/edge/config:v1")
	p := newPod(t)
	config := image("docker.io/edge/config:v1") // entrypoint and cmd, variables, a directory, a user
	env := func(k, v string) containerTweak {
		return func(c *runtimeapi.ContainerConfig) {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(v)})
		}
	}
	for _, c := range []struct {
		name   string
		tweaks []containerTweak
		want   string
	}{
		{"a command without arguments drops those of the image", []containerTweak{config, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/bin/echo"} }}, "\n"},
		{"variables over those of the image", []containerTweak{config, sh("echo $A-$B-$C"), env("A", "mine"), env("C", "new")}, "mine-two words-new\n"},
		{"the later of two", []containerTweak{sh("echo $A"), env("A", "1"), env("A", "2")}, "2\n"},
		{"lines and other signs", []containerTweak{sh(`printf %s "$A"`), env("A", "1\n\t\"$x\"'ü=")}, "1\n\t\"$x\"'ü="},
		{"a backslash in HOME", []containerTweak{sh("echo \"$HOME\" | wc -l"), env("HOME", `/root\nx`)}, "1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			equal(t, "output", p.in(t).says(c.tweaks...), c.want)
		})
	}
	for name, c := range map[string]struct {
		tweaks []containerTweak
		field  string
	}{
		"a newline in HOME":             {[]containerTweak{asleep(), env("HOME", "/root\nevil:x:0:0::/:/bin/sh")}, "HOME"},
		"a file as directory":           {[]containerTweak{asleep(), func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/bin/busybox" }}, "/bin/busybox"},
		"bytes that are not UTF-8":      {[]containerTweak{asleep(), env("A", "\xff")}, "envs"},
		"no command, none of the image": {[]containerTweak{image("docker.io/edge/imagevolume:v1")}, "command"},
	} {
		t.Run(name, func(t *testing.T) {
			pull(t, "docker.io/edge/imagevolume:v1")
			defer removeImage(t, "docker.io/edge/imagevolume:v1")
			ran, err := p.in(t).tryCreate(c.tweaks...)
			if err == nil { // what only the image's files show may be found at the start
				err = ran.start()
			}
			if err == nil {
				t.Fatal("it was accepted")
			}
			contains(t, "the message", err.Error(), c.field)
		})
	}
	tty := p.start(asleep(), env("MINE", "here"), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
	equal(t, "TERM with a terminal", tty.sh(`tr '\0' '\n' < /proc/1/environ | grep ^TERM=`), "TERM=xterm")
	equal(t, "environment of an exec", tty.sh("echo $MINE"), "here")
	stdout, _, _ := crictl(t, "", "exec", tty.id, "sh", "-c", "echo $MINE")
	equal(t, "environment of a streamed exec", stdout, "here\n")
}

// Credentials of processes, seen by the kernel.
// rows: C-01, C-02, C-03, C-04, C-05, C-18, C-24, SS-09, L-05, P-060b, P-120b, GAP-04, D-105
func TestCredentials(t *testing.T) {
	ours(t)
	p := newPod(t)
	user := func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }
	set := func(add, drop, ambient []string) func(*securityContext) {
		return func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}
		}
	}
	profile := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	old := func(path string) func(*securityContext) {
		return func(s *securityContext) { s.Seccomp, s.SeccompProfilePath = nil, path } //nolint:staticcheck // an old kubelet sends it
	}
	const netBind, netAdmin, chown = 1 << 10, 1 << 12, 1
	const standard = 0xa80425fb
	for _, c := range []struct {
		name string
		sets []func(*securityContext)
		line string // of /proc/1/status
		want string
	}{
		{"lower case, and with the prefix", []func(*securityContext){set([]string{"cap_net_admin"}, []string{"chown"}, nil)}, "CapEff", hex16(standard&^chown | netAdmin)},
		{"bounding by default", nil, "CapBnd", hex16(standard)},
		{"inheritable", nil, "CapInh", hex16(0)},
		{"ambient by default", []func(*securityContext){user}, "CapAmb", hex16(0)},
		{"ambient", []func(*securityContext){user, set(nil, nil, []string{"NET_BIND_SERVICE"})}, "CapAmb", hex16(netBind)},
		{"effective by ambient", []func(*securityContext){user, set(nil, nil, []string{"NET_BIND_SERVICE"})}, "CapEff", hex16(netBind)},
		{"permitted by ambient", []func(*securityContext){user, set(nil, nil, []string{"NET_BIND_SERVICE"})}, "CapPrm", hex16(netBind)},
		{"no profile", []func(*securityContext){func(s *securityContext) { s.Seccomp = nil }}, "Seccomp", "0"},
		{"unconfined", []func(*securityContext){func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}}, "Seccomp", "0"},
		{"an empty profile is the default", []func(*securityContext){func(s *securityContext) { s.Seccomp = &runtimeapi.SecurityProfile{} }}, "Seccomp", "2"},
		{"the old field, default", []func(*securityContext){old("runtime/default")}, "Seccomp", "2"},
		{"the old field, unconfined", []func(*securityContext){old("unconfined")}, "Seccomp", "0"},
		{"the old field, a file", []func(*securityContext){old("localhost/" + profile)}, "Seccomp", "2"},
		{"the new field counts", []func(*securityContext){old("runtime/default"), func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}}, "Seccomp", "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := p.in(t).says(sh("grep ^"+c.line+": /proc/1/status | cut -f2"), func(cfg *runtimeapi.ContainerConfig) {
				for _, s := range c.sets {
					s(cfg.Linux.SecurityContext)
				}
			})
			equal(t, c.line, strings.TrimSpace(got), c.want)
		})
	}
	c := p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = 978 }))
	equal(t, "oom_score_adj", c.sh("cat /proc/1/oom_score_adj"), "978")
	equal(t, "oom_score_adj of an exec", c.sh("cat /proc/self/oom_score_adj"), "978")
}

func hex16(n uint64) string { return fmt.Sprintf("%016x", n) }

// What a container finds in /sys, /proc, /dev and /etc, and what more a privileged one does.
// rows: C-06, C-25, C-27, D-95, D-96, D-97, D-98, D-208, K-18, P-047, P-050, P-075b, X-14, SS-06, D-94
func TestSystemFiles(t *testing.T) {
	ours(t)
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	file := filepath.Join(t.TempDir(), "termination")
	if err := errors.Join(os.WriteFile(file, nil, 0o666), os.Chmod(file, 0o666)); err != nil {
		t.Fatal(err)
	}
	masked := []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}
	plain := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/dev/termination-log", HostPath: file}), security(func(s *securityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 12345}
		s.MaskedPaths, s.ReadonlyPaths = masked, []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}))
	open := p.start(asleep(), security(func(s *securityContext) { s.MaskedPaths, s.ReadonlyPaths = nil, nil }))
	const option = "awk -v at=%s '$2 == at { split($4, o, \",\"); print o[1] }' /proc/mounts | tail -n 1"
	cgroup, v2 := "/sys/fs/cgroup/memory", false
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroup, v2 = "/sys/fs/cgroup", true
	}
	for at, want := range map[string]string{"/sys": "ro", cgroup: "ro", "/proc/sys": "ro", "/proc/irq": "ro"} {
		equal(t, at+" is", plain.sh(fmt.Sprintf(option, at)), want)
	}
	equal(t, "a masked file", plain.sh("wc -c < /proc/timer_list"), "0")
	equal(t, "an unmasked one", open.sh("awk '$2 ~ \"^/proc/\"' /proc/mounts | wc -l"), "0")
	equal(t, "passwd is the image's", plain.sh("grep -c 12345 /etc/passwd || true"), "0")
	equal(t, "/run/.containerenv", plain.sh("ls /run/.containerenv 2>/dev/null || true"), "")
	plain.sh("echo ended well > /dev/termination-log")
	equal(t, "termination message", nodeFile(t, file), "ended well")
	equal(t, "the cgroup namespace is the container's own", plain.sh("readlink /proc/self/ns/cgroup") != link(t, "/proc/self/ns/cgroup"), v2)

	full := p.start(asleep(), security(func(s *securityContext) { s.Privileged = true }), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/one-more", Permissions: "rw"}}
	})
	equal(t, "privileged: /sys is", full.sh(fmt.Sprintf(option, "/sys")), "rw")
	equal(t, "the other container's /sys is still", plain.sh(fmt.Sprintf(option, "/sys")), "ro")
	equal(t, "privileged: masked or read-only", full.sh("awk '$2 ~ \"^/proc/\"' /proc/mounts | wc -l"), "0")
	full.sh("test -c /dev/one-more")
	equal(t, "privileged: cgroups are", full.sh(fmt.Sprintf(option, cgroup)), "rw")
	for _, dev := range []string{"/dev/kmsg", "/dev/fuse"} {
		if _, err := os.Stat(dev); err == nil {
			full.sh("test -c " + dev)
			if r, err := plain.exec("test", "-e", dev); err != nil || r.ExitCode == 0 {
				t.Errorf("a plain container has %s", dev)
			}
		}
	}
	_, err := newPod(t).tryCreate(asleep(), security(func(s *securityContext) { s.Privileged = true }))
	refused(t, err, codes.InvalidArgument, "privileged")
}

// Devices by links and by whole directories.
// rows: K-17
func TestDeviceTrees(t *testing.T) {
	ours(t)
	p := newPod(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"null": 3, "deep/zero": 5} {
		if err := unix.Mknod(filepath.Join(tree, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(tree, "null"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	device := func(host, at string) *runtimeapi.Device {
		return &runtimeapi.Device{HostPath: host, ContainerPath: at, Permissions: "rwm"}
	}
	c := p.start(asleep(), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{device(filepath.Join(dir, "link"), "/dev/by-link"), device(tree, "/dev/tree")}
	})
	equal(t, "devices", c.sh("stat -c %t:%T /dev/by-link /dev/tree/null /dev/tree/deep/zero | xargs"), "1:3 1:3 1:5")
	equal(t, "bytes of zero", c.sh("head -c 3 /dev/tree/deep/zero | wc -c"), "3")
}

// Mounts of all kinds, and what stands in their way.
// rows: M-02, M-03, M-21, M-22, M-23, K-21, P-049, P-017, GAP-03, M-20
func TestMountKinds(t *testing.T) {
	ours(t)
	p := newPod(t)
	dir := t.TempDir()
	for _, d := range []string{"real", "parent", "child"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return name
	}
	put("real/file", "by a link\n")
	put("child/file", "child\n")
	put("parent/script", "#!/bin/sh\necho ran\n")
	if err := unix.Mknod(filepath.Join(dir, "parent/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "real", "link2": "link", "file-link": "real/file"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(path, name string, options ...string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: path, HostPath: filepath.Join(dir, name), MountOptions: options}
	}
	c := p.start(asleep(), mounts(
		at("/a/b", "child"), at("/a", "parent"), // children may come first
		at("/link", "link"), at("/link2", "link2"), at("/file-link", "file-link"),
		at("/etc/resolv.conf", "real/file"), at("/etc/hostname", "real/file"), at("/dev/shm", "real"),
		at("/var/run/under", "real"), // /var/run is a link in many images
		at("/noexec", "parent", "noexec"), at("/nodev", "parent", "nodev"), at("/nosuid", "parent", "nosuid"), at("/all", "parent", "noexec", "nodev", "nosuid"),
	))
	for path, want := range map[string]string{
		"/a/b/file": "child", "/link/file": "by a link", "/link2/file": "by a link", "/file-link": "by a link", "/etc/resolv.conf": "by a link",
		"/etc/hostname": "by a link", "/dev/shm/file": "by a link", "/var/run/under/file": "by a link",
	} {
		equal(t, path, c.sh("cat "+path), want)
	}
	try := func(script string) string { return c.sh("(" + script + ") 2>/dev/null || echo refused") }
	equal(t, "run below a plain mount", try("/a/script"), "ran")
	equal(t, "run below noexec", try("/noexec/script"), "refused")
	equal(t, "run below nodev", try("/nodev/script"), "ran")
	equal(t, "open a device below nodev", try("cat /nodev/null"), "refused")
	for path, flags := range map[string][]string{"/noexec": {"noexec"}, "/nodev": {"nodev"}, "/nosuid": {"nosuid"}, "/all": {"noexec", "nodev", "nosuid"}} {
		contains(t, path, c.sh("grep ' "+path+" ' /proc/mounts"), flags...)
	}
	_, err := p.tryCreate(asleep(), mounts(at("/x", "real", "sync")))
	refused(t, err, codes.InvalidArgument, "mount_options", "sync")
}

// A link of the image on the way to a mount is followed within the container, not out of it.
// rows: M-22
func TestMountOverLinks(t *testing.T) {
	ours(t)
	p := newPod(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../../../tmp/escape-of-a-test", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	c := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/d", HostPath: dir}, &runtimeapi.Mount{ContainerPath: "/d/out/x", HostPath: dir}))
	equal(t, "file", c.sh("cat /tmp/escape-of-a-test/x/file"), "mounted")
	if _, err := os.Lstat("/tmp/escape-of-a-test"); !os.IsNotExist(err) {
		t.Errorf("the node has it: %v", err)
	}
}

// What cannot be mounted is refused with the field at fault.
// rows: M-04, M-07, M-09, M-24, P-019, P-020, GAP-14, GAP-28, M-11, M-12
func TestMountsThatCannotBe(t *testing.T) {
	ours(t)
	p := newPod(t)
	dir := t.TempDir()
	mountTmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	ids := []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 0, Length: 65536}}
	const hostToContainer, both = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for name, c := range map[string]struct {
		m     *runtimeapi.Mount
		field string
	}{
		"recursive read-only that is not read-only":    {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, RecursiveReadOnly: true}, "recursive_read_only"},
		"recursive read-only with propagation":         {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, RecursiveReadOnly: true, Readonly: true, Propagation: hostToContainer}, "recursive_read_only"},
		"recursive read-only with propagation of both": {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, RecursiveReadOnly: true, Readonly: true, Propagation: both}, "recursive_read_only"},
		"both ways from a private mount":               {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: both}, dir},
		"from a private mount":                         {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: hostToContainer}, dir},
		"an unknown propagation":                       {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: 7}, "propagation"},
		"users mapped without groups":                  {&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, UidMappings: ids}, "gidMappings"},
		"on /proc/self":                                {&runtimeapi.Mount{ContainerPath: "/proc/self/attr", HostPath: dir}, "container_path"},
		"neither path nor image":                       {&runtimeapi.Mount{ContainerPath: "/m"}, "host_path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.in(t).tryCreate(asleep(), mounts(c.m))
			refused(t, err, codes.InvalidArgument, c.field)
		})
	}
}

// An idmapped mount: what root of the container writes has, on the node, the owner that root has there.
// rows: M-09, M-10, D-204
func TestMappedMounts(t *testing.T) {
	ours(t)
	un := users(300000)
	share, own := inNamespaces(func(o *namespaces) { o.UsernsOptions = un })
	p := newPod(t, share)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "root"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := p.start(own, asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, UidMappings: un.Uids, GidMappings: un.Gids}))
	equal(t, "owner of a file of the node's root", c.sh("stat -c %u:%g /m/root"), "0:0")
	c.sh("touch /m/new; touch /m/other; chown 1000:1000 /m/other")
	for name, want := range map[string]uint32{"new": 0, "other": 1000} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "owner of "+name+" on the node", ownerOf(fi), want)
	}
}

// Volumes of the image: filled, with owners, fresh for each container, gone with it, and not where a mount is.
// rows: K-22, P-115, P-116
func TestVolumesOfTheImage(t *testing.T) {
	ours(t)
	const ref = "docker.io/edge/volume:v1"
	pull(t, ref)
	defer removeImage(t, ref)
	p := newPod(t)
	a, b := p.start(image(ref), asleep()), p.start(image(ref), asleep())
	equal(t, "content", a.sh("cat /vol/from-image"), "copied into the volume")
	a.sh("echo changed > /vol/from-image; touch /vol/mine")
	equal(t, "content of another container's", b.sh("cat /vol/*"), "copied into the volume")
	contains(t, "it is a mount", a.sh("cat /proc/mounts"), " /vol ")
	found := func() (all []string) {
		_ = filepath.WalkDir(n.Root(), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "mine" {
				all = append(all, path)
			}
			return nil
		})
		return all
	}
	equal(t, "files of the volume on the node", len(found()), 1)
	a.stop(0)
	a.remove()
	equal(t, "files after the removal", len(found()), 0)
	dir := t.TempDir()
	c := p.start(image(ref), asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: dir}))
	equal(t, "files where the request mounts", c.sh("ls /vol"), "")
	b.stop(0)
	b.remove()
	c.stop(0)
	c.remove()
}

// A mount of what holds the runtime's own mounts does not keep them busy.
// rows: X-15, P-016a
func TestMountOfTheRuntimesRoot(t *testing.T) {
	ours(t)
	p := newPod(t)
	first := p.start(asleep())
	watcher := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/host", HostPath: n.Dir, Readonly: true}))
	first.stop(0)
	first.remove()
	later := p.start(asleep())
	later.stop(0)
	later.remove()
	watcher.sh("ls /host > /dev/null")
	equal(t, "propagation in the status", watcher.status().Mounts[0].Propagation, runtimeapi.MountPropagation_PROPAGATION_PRIVATE)
	equal(t, "propagation in the container", watcher.sh("awk '$5 == \"/host\"' /proc/self/mountinfo | grep -c master: || true"), "1")
}
