package blackbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type securityContext = runtimeapi.LinuxContainerSecurityContext

// rows: C-09, C-10, C-11, C-12, C-13, P-015, P-015a, P-015b, P-015c, Q-07
func TestUsers(t *testing.T) {
	p := newPod(t)
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	pull(t, predefined)
	for _, c := range []struct {
		name  string
		image string
		set   func(*securityContext)
		want  string // id -u, id -g, id -G
	}{
		{"root by default", busybox, func(*securityContext) {}, "0 0 0 10"}, // the image has root in group wheel
		{"by number", busybox, func(s *securityContext) { s.RunAsUser = id(1234) }, "1234 0 0"},
		{"by number with a group", busybox, func(s *securityContext) { s.RunAsUser = id(1234); s.RunAsGroup = id(5678) }, "1234 5678 5678"},
		{"by name", busybox, func(s *securityContext) { s.RunAsUsername = "www-data" }, "33 33 33"},
		{"supplemental groups", busybox, func(s *securityContext) { s.RunAsUser = id(1000); s.SupplementalGroups = []int64{7777, 8888} }, "1000 0 0 7777 8888"},
		{"groups of the image are merged", predefined, func(s *securityContext) { s.SupplementalGroups = []int64{60000} }, "1000 1000 1000 50000 60000"},
		{"or are not", predefined, func(s *securityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{60000}, runtimeapi.SupplementalGroupsPolicy_Strict
		}, "1000 1000 1000 60000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			got := p.says(image(c.image), security(c.set), sh(`echo $(id -u) $(id -g) $(id -G | tr ' ' '\n' | sort -n)`))
			equal(t, "uid, gid, groups", strings.TrimSpace(got), c.want)
		})
	}
}

const predefined = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"

// caps reads the effective capabilities of process 1.
const caps = `grep CapEff /proc/1/status | cut -f2`

// rows: C-01, C-03, C-04, P-060, X-13
func TestCapabilities(t *testing.T) {
	p := newPod(t)
	add := func(add, drop []string) func(*securityContext) {
		return func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
		}
	}
	const (
		standard = 0xa80425fb // what Docker, containerd and CRI-O give
		netAdmin = 1 << 12
		netRaw   = 1 << 13
	)
	for _, c := range []struct {
		name string
		set  func(*securityContext)
		want uint64
	}{
		{"standard", func(*securityContext) {}, standard},
		{"one more", add([]string{"NET_ADMIN"}, nil), standard | netAdmin},
		{"one less", add(nil, []string{"NET_RAW"}), standard &^ netRaw},
		{"none but one", add([]string{"NET_ADMIN"}, []string{"ALL"}), netAdmin},
		{"none", add(nil, []string{"ALL"}), 0},
		{"none for other users", func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			got := strings.TrimSpace(p.says(security(c.set), sh(caps)))
			equal(t, "effective capabilities", got, fmt.Sprintf("%016x", c.want))
		})
	}
}

// rows: C-19, C-20, P-117, P-120a, P-120b, D-200
func TestSeccomp(t *testing.T) {
	p := newPod(t)
	profile := filepath.Join(t.TempDir(), "no-chmod.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	with := func(kind runtimeapi.SecurityProfile_ProfileType, path string) func(*securityContext) {
		return func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: path}
		}
	}
	const unshare = "unshare -U true && echo allowed || echo denied" // the default profile denies new user namespaces
	for _, c := range []struct {
		name, script string
		set          func(*securityContext)
		want         string
	}{
		{"default denies", unshare, with(runtimeapi.SecurityProfile_RuntimeDefault, ""), "denied"},
		{"unconfined allows", unshare, with(runtimeapi.SecurityProfile_Unconfined, ""), "allowed"},
		{"own profile denies", "chmod 700 /tmp && echo allowed || echo denied", with(runtimeapi.SecurityProfile_Localhost, profile), "denied"},
		{"own profile allows the rest", unshare, with(runtimeapi.SecurityProfile_Localhost, profile), "allowed"},
		{"filter mode", "grep Seccomp: /proc/1/status | cut -f2", with(runtimeapi.SecurityProfile_RuntimeDefault, ""), "2"},
		{"no filter", "grep Seccomp: /proc/1/status | cut -f2", with(runtimeapi.SecurityProfile_Unconfined, ""), "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			equal(t, "output", strings.TrimSpace(p.says(security(c.set), sh("exec 2>/dev/null; "+c.script))), c.want)
		})
	}
}

// rows: C-15
func TestNoNewPrivileges(t *testing.T) {
	p := newPod(t)
	const nnp = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"
	pull(t, nnp)
	for want, flag := range map[string]bool{"Effective uid: 1000\n": true, "Effective uid: 0\n": false} {
		got := p.says(image(nnp), sh("nnp"), security(func(s *securityContext) {
			s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, flag
		}))
		equal(t, fmt.Sprintf("with no_new_privs=%v", flag), got, want)
	}
}

// rows: C-14
func TestReadOnlyRoot(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep(), security(func(s *securityContext) { s.ReadonlyRootfs = true }))
	r, err := c.exec("touch", "/x")
	if err != nil || r.ExitCode == 0 {
		t.Errorf("the root file system can be written to: %v %v", r, err)
	}
	c.sh("touch /dev/shm/x")
	w := p.start(asleep())
	w.sh("touch /x")
}

// rows: C-16, C-17, X-9, D-97
func TestMaskedPaths(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep(), security(func(s *securityContext) {
		s.MaskedPaths = []string{"/proc/version", "/proc/acpi", "/etc"}
		s.ReadonlyPaths = []string{"/proc/sys", "/var"}
	}))
	equal(t, "size of a masked file", c.sh("wc -c < /proc/version"), "0")
	equal(t, "content of a masked directory", c.sh("ls /etc"), "")
	for _, cmd := range []string{"touch /var/x", "echo 1 > /proc/sys/kernel/domainname"} {
		if r, err := c.exec("sh", "-c", cmd); err != nil || r.ExitCode == 0 {
			t.Errorf("%s: %v %v", cmd, r, err)
		}
	}
}

// rows: C-06, SS-06
func TestPrivileged(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(asleep(), security(func(s *securityContext) { s.Privileged = true }))
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var bounding string
	for line := range strings.Lines(string(own)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:\t"); ok {
			bounding = strings.TrimSpace(v)
		}
	}
	equal(t, "capabilities", c.sh(caps), bounding)
	equal(t, "seccomp", c.sh("grep Seccomp: /proc/1/status | cut -f2"), "0")
	c.sh("mkdir /m && mount -t tmpfs t /m && umount /m")

	plain := newPod(t)
	if _, err := plain.tryCreate(asleep(), security(func(s *securityContext) { s.Privileged = true })); err == nil {
		t.Error("a privileged container was made in a pod that is not")
	}
}

// rows: S-18
func TestSysctls(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65000"}
	})
	c := p.start(asleep())
	equal(t, "kernel.shm_rmid_forced", c.sh("cat /proc/sys/kernel/shm_rmid_forced"), "1")
	equal(t, "net.ipv4.ip_local_port_range", c.sh("cat /proc/sys/net/ipv4/ip_local_port_range"), "1024\t65000")
}

// rows: N-03, N-04, N-05, N-06, D-108
func TestPidModes(t *testing.T) {
	withPid := func(mode runtimeapi.NamespaceMode) (func(*runtimeapi.PodSandboxConfig), containerTweak) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode },
			security(func(s *securityContext) { s.NamespaceOptions.Pid = mode })
	}
	t.Run("container", func(t *testing.T) {
		p := newPod(t)
		equal(t, "own PID", strings.TrimSpace(p.says(sh("echo $$"))), "1")
	})
	t.Run("pod", func(t *testing.T) {
		pod, own := withPid(runtimeapi.NamespaceMode_POD)
		p := newPod(t, pod)
		p.start(own, sh("exec sleep 4711"))
		c := p.start(own, asleep())
		contains(t, "processes", c.sh("ps -o pid,args"), "sleep 4711")
		if c.sh("echo $$") == "1" {
			t.Error("the command is process 1 of the pod")
		}
		// An orphan is reaped by the pod's first process.
		c.sh("(sleep 0.1 & ) ; sleep 0.3")
		equal(t, "zombies", c.sh("grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"), "0")
	})
	t.Run("node", func(t *testing.T) {
		pod, own := withPid(runtimeapi.NamespaceMode_NODE)
		p := newPod(t, pod)
		ns, err := os.Readlink("/proc/self/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "PID namespace", p.start(own, asleep()).sh("readlink /proc/self/ns/pid"), ns)
	})
	t.Run("another container's", func(t *testing.T) {
		p := newPod(t)
		target := p.start(sh("exec sleep 4712"))
		c := p.start(asleep(), security(func(s *securityContext) {
			s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, target.id
		}))
		contains(t, "processes", c.sh("ps -o pid,args"), "sleep 4712")
	})
}

// The pod's init is who the pod's security context says, and as confined; never has it capabilities or files.
// rows: SS-03, SS-04, SS-05, SS-07, D-104
func TestPodInit(t *testing.T) {
	ours(t)
	with := func(sc *runtimeapi.LinuxSandboxSecurityContext) map[string]string {
		t.Helper()
		p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
			if sc.NamespaceOptions == nil {
				sc.NamespaceOptions = &namespaces{}
			}
			sc.NamespaceOptions.Pid = modePod
			c.Linux.SecurityContext = sc
		})
		s := p.initStatus()
		equal(t, "capabilities", s["CapPrm"]+s["CapEff"]+s["CapBnd"], strings.Repeat("0", 48))
		equal(t, "no_new_privs", s["NoNewPrivs"], "1")
		equal(t, "oom_score_adj", nodeFile(t, "/proc/"+s["Pid"]+"/oom_score_adj"), lowestScore(t))
		err := os.Mkdir("/proc/"+s["Pid"]+"/root/x", 0o700)
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("the root of the init can be written to: %v", err)
		}
		return s
	}
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	profile := func(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind}
	}
	asked := func() *runtimeapi.LinuxSandboxSecurityContext {
		return &runtimeapi.LinuxSandboxSecurityContext{
			RunAsUser: id(1234), RunAsGroup: id(5678), SupplementalGroups: []int64{7777, 8888},
			SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict, ReadonlyRootfs: true,
			Seccomp: profile(runtimeapi.SecurityProfile_RuntimeDefault),
		}
	}
	mapped := asked()
	mapped.NamespaceOptions = &namespaces{UsernsOptions: users(300000)}
	root := &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &namespaces{UsernsOptions: users(300000)}}
	for _, c := range []struct {
		name                       string
		sc                         *runtimeapi.LinuxSandboxSecurityContext
		uid, gid, groups, filtered string
	}{
		{"nothing is asked for", &runtimeapi.LinuxSandboxSecurityContext{}, "65534", "65534", "", "0"},
		{"as asked", asked(), "1234", "5678", "7777 8888", "2"},
		{"in a user namespace", mapped, "301234", "305678", "307777 308888", "2"},
		{"root of a user namespace", root, "300000", "300000", "", "0"},
		{"unconfined", &runtimeapi.LinuxSandboxSecurityContext{RunAsUser: id(0), Seccomp: profile(runtimeapi.SecurityProfile_Unconfined)}, "0", "65534", "", "0"},
	} {
		s := with(c.sc)
		equal(t, c.name+": users", s["Uid"], strings.Join([]string{c.uid, c.uid, c.uid, c.uid}, " "))
		equal(t, c.name+": groups", s["Gid"], strings.Join([]string{c.gid, c.gid, c.gid, c.gid}, " "))
		equal(t, c.name+": supplemental groups", s["Groups"], c.groups)
		equal(t, c.name+": seccomp mode", s["Seccomp"], c.filtered)
	}
}

// lowestScore is -998 or, where only CAP_SYS_RESOURCE could give so little, what every process has here.
func lowestScore(t *testing.T) string {
	t.Helper()
	own := nodeFile(t, "/proc/self/oom_score_adj")
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-998"), 0); err != nil {
		return own
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(own), 0); err != nil {
		t.Fatal(err)
	}
	return "-998\n"
}

// initStatus reads /proc/PID/status of the pod's init, when that has all that it takes on: a filter is the last.
func (p *pod) initStatus() map[string]string {
	p.t.Helper()
	r, err := p.node.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		p.t.Fatal(err)
	}
	pid, _ := dig(details(p.t, r.Info), "pid").(float64)
	proc := "/proc/" + itoa(int(pid))
	eventually(p.t, 10*time.Second, "the init waits", func() (bool, string) {
		call, err := os.ReadFile(proc + "/syscall")
		return err == nil && strings.HasPrefix(string(call), itoa(unix.SYS_RT_SIGTIMEDWAIT)+" "), string(call)
	})
	text, err := os.ReadFile(proc + "/status")
	if err != nil {
		p.t.Fatal(err)
	}
	s := map[string]string{}
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(line, ":")
		s[k] = strings.Join(strings.Fields(v), " ")
	}
	return s
}

// rows: N-09, N-12
func TestUserNamespace(t *testing.T) {
	mapping := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD,
		Uids: []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 0, Length: 65536}},
		Gids: []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 0, Length: 65536}}}
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapping })
	dir := t.TempDir()
	if err := os.Chown(dir, 300000, 300000); err != nil {
		t.Fatal(err)
	}
	c := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/data", HostPath: dir}), security(func(s *securityContext) {
		s.NamespaceOptions.UsernsOptions = mapping
	}))
	equal(t, "uid", c.sh("id -u"), "0")
	equal(t, "map", strings.Join(strings.Fields(c.sh("cat /proc/self/uid_map")), " "), "0 300000 65536")
	equal(t, "owner of a file of the image", c.sh("stat -c %u:%g /bin/busybox"), "0:0")
	c.sh("touch /data/f /x; chown 1000:1000 /x")
	var owner string
	if fi, err := os.Stat(filepath.Join(dir, "f")); err == nil {
		owner = fmt.Sprintf("%d", ownerOf(fi))
	}
	equal(t, "owner of a file made in a volume, on the node", owner, "300000")
}

// With AppArmor a container is confined without any configuration, whether it asks for that or says nothing, and may still
// do what containers do. Without AppArmor what asks for confinement is refused.
func TestDefaultAppArmorProfile(t *testing.T) {
	ours(t)
	p := newPod(t)
	profile := func(kind runtimeapi.SecurityProfile_ProfileType) containerTweak {
		return security(func(s *securityContext) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind}
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		})
	}
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(enabled), "Y") {
		_, err := p.tryCreate(asleep(), profile(runtimeapi.SecurityProfile_RuntimeDefault))
		refused(t, err, codes.InvalidArgument, "AppArmor")
		p.start(asleep(), profile(runtimeapi.SecurityProfile_Unconfined)).sh("true")
		return
	}
	const (
		current = "cat /proc/self/attr/current"
		mount   = "mount -t tmpfs none /tmp 2>/dev/null && echo mounted; true"
	)
	equal(t, "profile of one that says nothing", p.start(asleep()).sh(current), "criserver-default (enforce)")
	free := p.start(asleep(), profile(runtimeapi.SecurityProfile_Unconfined))
	equal(t, "profile of an unconfined one", free.sh(current), "unconfined")
	equal(t, "mount of an unconfined one", free.sh(mount), "mounted")
	c := p.start(asleep(), profile(runtimeapi.SecurityProfile_RuntimeDefault))
	equal(t, "profile", c.sh(current), "criserver-default (enforce)")
	equal(t, "mount", c.sh(mount), "")
	equal(t, "files of the kernel that can be written", c.sh("for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/mm/ksm/run; do "+
		"(: >> $f) 2>/dev/null && echo $f; done; true"), "")
	equal(t, "what remains", c.sh("sleep 100 & kill $! && readlink /proc/1/exe > /dev/null && echo 500 > /proc/self/oom_score_adj && echo x > /tmp/x && cat /tmp/x"), "x")
	c.stop(10)
	equal(t, "exit code", c.status().ExitCode, 0) // the node's signal has reached it
}
