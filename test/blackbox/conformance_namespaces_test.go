package blackbox

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

type namespaces = runtimeapi.NamespaceOption

const (
	modePod       = runtimeapi.NamespaceMode_POD
	modeContainer = runtimeapi.NamespaceMode_CONTAINER
	modeNode      = runtimeapi.NamespaceMode_NODE
	modeTarget    = runtimeapi.NamespaceMode_TARGET
)

// inNamespaces is what a pod and its containers need to share namespaces in another way than usual.
func inNamespaces(set func(*namespaces)) (func(*runtimeapi.PodSandboxConfig), containerTweak) {
	return func(c *runtimeapi.PodSandboxConfig) { set(c.Linux.SecurityContext.NamespaceOptions) },
		security(func(s *securityContext) { set(s.NamespaceOptions) })
}

// users is a user namespace of one mapping of all IDs.
func users(host uint32) *runtimeapi.UserNamespace {
	m := []*runtimeapi.IDMapping{{HostId: host, ContainerId: 0, Length: 65536}}
	return &runtimeapi.UserNamespace{Mode: modePod, Uids: m, Gids: m}
}

func nodeFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(b), "\n")
}

func link(t *testing.T, path string) string {
	t.Helper()
	l, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What a pod cannot be is refused with the name of the field, and leaves nothing.
// rows: N-02, N-08, N-09, N-10, X-10, P-033, P-055, GAP-28, S-22
func TestPodsThatCannotBe(t *testing.T) {
	ours(t)
	two := users(300000)
	two.Uids = []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 0, Length: 10}, {HostId: 400000, ContainerId: 10, Length: 10}}
	high := users(300000)
	high.Uids = []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 1, Length: 65536}}
	mapped := users(300000)
	mapped.Mode = modeNode
	for _, c := range []struct {
		name  string
		set   func(*namespaces)
		field string
	}{
		{"network of a container", func(o *namespaces) { o.Network = modeContainer }, "network"},
		{"network of a target", func(o *namespaces) { o.Network = modeTarget }, "network"},
		{"IPC of a container", func(o *namespaces) { o.Ipc = modeContainer }, "ipc"},
		{"IPC of a target", func(o *namespaces) { o.Ipc = modeTarget }, "ipc"},
		{"users of a container", func(o *namespaces) { o.UsernsOptions = &runtimeapi.UserNamespace{Mode: modeContainer} }, "userns_options"},
		{"users of a target", func(o *namespaces) { o.UsernsOptions = &runtimeapi.UserNamespace{Mode: modeTarget} }, "userns_options"},
		{"users of the node with a mapping", func(o *namespaces) { o.UsernsOptions = mapped }, "userns_options"},
		{"two mappings", func(o *namespaces) { o.UsernsOptions = two }, "uids"},
		{"no root", func(o *namespaces) { o.UsernsOptions = high }, "uids"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leavesNothing(t)
			cfg := podConfig("cannot", t.TempDir())
			c.set(cfg.Linux.SecurityContext.NamespaceOptions)
			_, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
			refused(t, err, codes.InvalidArgument, c.field)
		})
	}
	t.Run("a hostname with the network of the node", func(t *testing.T) {
		cfg := podConfig("cannot", t.TempDir())
		cfg.Hostname = "mine"
		cfg.Linux.SecurityContext.NamespaceOptions.Network = modeNode
		_, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
		refused(t, err, codes.InvalidArgument, "hostname")
	})
	t.Run("a handler that is not there", func(t *testing.T) {
		_, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig("cannot", t.TempDir()), RuntimeHandler: "nosuch"})
		refused(t, err, codes.InvalidArgument, "nosuch")
	})
}

// Files that a pod gets, and the hostname in all places where it is asked for.
// rows: S-03, S-04, S-05, S-09, K-09, D-90, D-91, D-92, P-031, P-033, P-033a, P-170, C-14
func TestFilesOfPods(t *testing.T) {
	ours(t)
	logs := filepath.Join(t.TempDir(), "not/there/yet")
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Hostname, c.LogDirectory = "a-name", logs })
	c := p.start(asleep())
	equal(t, "hostname in its places", c.sh("hostname; cat /etc/hostname; echo $HOSTNAME; cat /proc/sys/kernel/hostname"), "a-name\na-name\na-name\na-name")
	equal(t, "resolv.conf without dns_config", c.sh("cat /etc/resolv.conf"), nodeFile(t, "/etc/resolv.conf"))
	contains(t, "hosts", c.sh("cat /etc/hosts"), "127.0.0.1", "::1", p.ips()[0], "a-name")
	c.sh("for f in hosts resolv.conf hostname; do echo '# more' >> /etc/$f || exit 1; done")
	ro := p.start(asleep(), security(func(s *securityContext) { s.ReadonlyRootfs = true }))
	equal(t, "what a container with a read-only root can write",
		ro.sh("for f in hosts resolv.conf hostname; do (echo x >> /etc/$f) 2>/dev/null && echo $f; done; true"), "")

	empty := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = &runtimeapi.DNSConfig{} })
	equal(t, "resolv.conf with an empty dns_config", empty.start(asleep()).sh("cat /etc/resolv.conf"), "")
}

// A pod with the network of the node has its name, its files and its loopback.
// rows: N-01, S-03, T-03, R-20, D-90, P-032, P-036c, S-12, CT-96
func TestPodOnTheNodesNetwork(t *testing.T) {
	ours(t)
	share, own := inNamespaces(func(o *namespaces) { o.Network = modeNode })
	p := newPod(t, share, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 28100, HostPort: 28101}} // without effect
	})
	c := p.start(own, sh("mkdir /www; echo node > /www/index.html; exec httpd -f -p 127.0.0.1:28100 -h /www"))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "hostname in its places", c.sh("hostname; cat /etc/hostname; echo $HOSTNAME"), host+"\n"+host+"\n"+host)
	equal(t, "hosts", c.sh("cat /etc/hosts"), nodeFile(t, "/etc/hosts"))
	equal(t, "UTS namespace", c.sh("readlink /proc/self/ns/uts"), link(t, "/proc/self/ns/uts"))
	equal(t, "addresses", strings.Join(p.ips(), ""), "")
	equal(t, "page", get(t, "127.0.0.1:28100"), "node")
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	cmd := n.Crictl(ctx, "port-forward", p.id, "28102:28100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	equal(t, "page by port-forward", get(t, "127.0.0.1:28102"), "node")
	before := nodeFile(t, "/proc/sys/net/ipv4/ip_unprivileged_port_start")
	equal(t, "the node's own sysctl", c.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), before)

	cfg := podConfig("cannot", t.TempDir())
	share(cfg)
	cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	_, err = n.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	refused(t, err, codes.InvalidArgument, "net.ipv4.ip_forward")
}

// Four kinds of sysctls, and those with which a user may ping and listen on low ports.
// rows: S-18, S-19, P-036, P-036b, P-037
func TestSysctlsOfPods(t *testing.T) {
	ours(t)
	asked := map[string]string{"kernel.shmmax": "100000", "kernel.msgmax": "9000", "fs.mqueue.msg_max": "9", "net.ipv4.tcp_syncookies": "0"}
	mine := func(host uint32) (func(*runtimeapi.PodSandboxConfig), containerTweak) {
		if host == 0 {
			return func(*runtimeapi.PodSandboxConfig) {}, func(*runtimeapi.ContainerConfig) {}
		}
		return inNamespaces(func(o *namespaces) { o.UsernsOptions = users(host) })
	}
	for name, host := range map[string]uint32{"plain": 0, "user namespace": 300000} {
		t.Run(name, func(t *testing.T) {
			pod, own := mine(host)
			p := newPod(t, pod, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.Sysctls = asked
				if host != 0 {
					c.Linux.Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "0"}
				}
			})
			c := p.start(own, asleep(), security(func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }))
			for key, want := range p.config.Linux.Sysctls {
				equal(t, key, c.sh("cat /proc/sys/"+strings.ReplaceAll(key, ".", "/")), want)
			}
			c.sh("httpd -p 80 -h /tmp") // ends well when it could listen
			if host == 0 {
				peer := newPod(t)
				if err := pings(t, c, peer.ips()[0]); err != nil {
					t.Errorf("ping without a capability: %v", err)
				}
			}
		})
	}
}

// pings asks for an echo from within the container's network by a socket for which no capability is needed; who may
// have one is set with the network namespace.
func pings(t *testing.T, c *container, ip string) error {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	pods, err := os.Open("/proc/" + c.pid() + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Close()
	if err := unix.Setns(int(pods.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // the thread is of no more use
		}
	}()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Addr: netip.MustParseAddr(ip).As4()}
	if err := unix.Sendto(s, []byte{8, 0, 0, 0, 0, 0, 0, 1}, 0, to); err != nil { // an echo request; the kernel does the rest
		return err
	}
	_, _, err = unix.Recvfrom(s, make([]byte, 64), 0)
	return err
}

// pid is the container's first process, as the node sees it.
func (c *container) pid() string {
	c.t.Helper()
	r, err := c.node.Runtimes.ContainerStatus(c.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	pid, _ := dig(details(c.t, r.Info), "pid").(float64)
	return itoa(int(pid))
}

// IPC: the pod's own by default, with /dev/shm; the node's when asked for.
// rows: N-07, D-93, P-054
func TestIPC(t *testing.T) {
	ours(t)
	p := newPod(t)
	a, b := p.start(asleep()), p.start(asleep())
	equal(t, "IPC namespace of the other container", b.sh("readlink /proc/self/ns/ipc"), a.sh("readlink /proc/self/ns/ipc"))
	if a.sh("readlink /proc/self/ns/ipc") == link(t, "/proc/self/ns/ipc") {
		t.Error("it is the node's")
	}
	equal(t, "mode of /dev/shm", a.sh("stat -c %a /dev/shm"), "1777")
	equal(t, "KiB of /dev/shm", a.sh("df -k /dev/shm | awk 'END{print $2}'"), "65536")

	share, own := inNamespaces(func(o *namespaces) { o.Ipc = modeNode })
	hp := newPod(t, share)
	c := hp.start(own, asleep())
	equal(t, "IPC namespace", c.sh("readlink /proc/self/ns/ipc"), link(t, "/proc/self/ns/ipc"))
	mark := filepath.Join("/dev/shm", filepath.Base(node.CgroupParent()))
	if err := os.WriteFile(mark, []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(mark)
	equal(t, "file in /dev/shm", c.sh("cat "+mark), "of the node")
}

// Each container its own processes, all of a pod together, or those of another container of the pod.
// rows: N-03, N-04, N-06, C-07, X-17, X-18, P-051, P-053, D-203
func TestSharedProcesses(t *testing.T) {
	ours(t)
	p, elsewhere := newPod(t), newPod(t)
	stranger, target, created := elsewhere.start(asleep()), p.start(sh("exec sleep 4713")), p.create(asleep())
	aim := func(id string) containerTweak {
		return security(func(s *securityContext) { s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = modeTarget, id })
	}
	one, other := p.start(asleep()), p.start(asleep())
	if one.sh("readlink /proc/self/ns/pid") == other.sh("readlink /proc/self/ns/pid") {
		t.Error("two containers see each other's processes")
	}
	debug := p.start(aim(target.id[:12]), asleep())
	equal(t, "PID namespace of the target", debug.sh("readlink /proc/1/ns/pid; cat /proc/1/cmdline | tr '\\0' ' '"),
		target.sh("readlink /proc/self/ns/pid")+"\nsleep 4713 ")
	target.stop(0)
	debug.ended() // with the first process of the namespace
	for name, id := range map[string]string{"of another pod": stranger.id, "that has ended": target.id, "that was not started": created.id,
		"that is not there": strings.Repeat("0", 64), "without a name": ""} {
		if _, err := p.tryCreate(aim(id), asleep()); err == nil {
			t.Errorf("a target %s was accepted", name)
		}
	}
}

// pidsOf finds the processes of a command by the text of its command line, as the node sees it.
func pidsOf(text string) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.ReplaceAll(string(b), "\x00", " ") == text+" " {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// When a container ends all of its processes do, also where process 1 is not its own, and nobody else's.
// rows: N-05, D-107, D-108, GAP-19, P-021a, P-052, R-03, R-10
func TestAllProcessesEnd(t *testing.T) {
	ours(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": modePod, "node": modeNode, "container": modeContainer} {
		t.Run(name, func(t *testing.T) {
			share, own := inNamespaces(func(o *namespaces) { o.Pid = mode })
			p := newPod(t, share)
			secs := map[string]string{"pod": "5001", "node": "5002", "container": "5003"}[name]
			bystander := p.start(own, asleep())
			for _, end := range []func(*container){
				func(c *container) { c.stop(0) },
				func(c *container) { c.stop(1) },
				func(c *container) { c.sh("touch /end") }, // by itself
				func(c *container) { c.remove() },
			} {
				c := p.start(own, sh("trap '' TERM; (trap '' TERM HUP; setsid sleep "+secs+") & echo ready; while [ ! -e /end ]; do sleep 0.1; done"))
				c.hasLogged("ready")
				eventually(t, 5*time.Second, "the child runs", func() (bool, string) { return len(pidsOf("sleep "+secs)) == 1, "" })
				end(c)
				eventually(t, 5*time.Second, "the child is gone", func() (bool, string) {
					left := pidsOf("sleep " + secs)
					return len(left) == 0, strings.Join(left, " ")
				})
			}
			bystander.sh("true")
		})
	}
}

// A user namespace: whole files of the image, the network of the node, output that may be opened anew, and a restart.
// rows: N-09, N-11, N-12, N-13, N-14, N-15, P-055, P-055a, P-056, P-057, P-058, P-058a, P-059, CT-44, Q-06, Q-08
func TestUserNamespaces(t *testing.T) {
	ours(t)
	pull(t, "docker.io/edge/volume:v1")
	defer removeImage(t, "docker.io/edge/volume:v1")
	un := users(300000)
	un.Gids = []*runtimeapi.IDMapping{{HostId: 400000, ContainerId: 0, Length: 65536}}
	share, own := inNamespaces(func(o *namespaces) { o.UsernsOptions = un })
	p := newPod(t, share)
	const show = "cat /proc/self/uid_map /proc/self/gid_map | xargs"
	const maps = "0 300000 65536 0 400000 65536"
	c := p.start(own, asleep())
	equal(t, "maps", c.sh(show), maps)
	equal(t, "owner of a file of the image", c.sh("stat -c %u:%g /bin/busybox"), "0:0")
	equal(t, "what a volume of the image has", p.says(own, image("docker.io/edge/volume:v1"), sh("stat -c %u:%g /vol/from-image; echo x > /vol/new")), "0:0\n")
	equal(t, "output opened anew", p.says(own, sh("echo to the log > /proc/self/fd/1")), "to the log\n")
	for file, want := range map[string]string{"uid_map": "0 300000 65536", "gid_map": "0 400000 65536"} {
		equal(t, file+" seen from the node", strings.Join(strings.Fields(nodeFile(t, "/proc/"+c.pid()+"/"+file)), " "), want)
	}

	_, err := p.tryCreate(asleep(), security(func(s *securityContext) { s.NamespaceOptions.UsernsOptions = users(500000) }))
	refused(t, err, codes.InvalidArgument, "userns_options")

	restart(t, n, (*node.Node).Kill)
	late := p.start(own, asleep())
	equal(t, "maps after a restart", late.sh(show), maps)
	equal(t, "user namespace after a restart", late.sh("readlink /proc/self/ns/user"), c.sh("readlink /proc/self/ns/user"))

	netShare, netOwn := inNamespaces(func(o *namespaces) { o.UsernsOptions, o.Network = users(300000), modeNode })
	hp := newPod(t, netShare)
	hc := hp.start(netOwn, asleep())
	equal(t, "network namespace", hc.sh("readlink /proc/self/ns/net"), link(t, "/proc/self/ns/net"))
	equal(t, "map", hc.sh("cat /proc/self/uid_map | xargs"), "0 300000 65536")
	equal(t, "/sys", hc.sh("touch /sys/x 2>/dev/null || echo 1 > /sys/kernel/mm/ksm/run 2>/dev/null || echo read-only"), "read-only")
}

// Without a user namespace, said or unsaid, the IDs are those of the node.
// rows: N-08, CT-45
func TestNoUserNamespace(t *testing.T) {
	for name, o := range map[string]*runtimeapi.UserNamespace{"unsaid": nil, "said": {Mode: modeNode}} {
		t.Run(name, func(t *testing.T) {
			share, own := inNamespaces(func(n *namespaces) { n.UsernsOptions = o })
			p := newPod(t, share)
			equal(t, "user namespace", p.start(own, asleep()).sh("readlink /proc/self/ns/user"), link(t, "/proc/self/ns/user"))
		})
	}
}

// When the first process of a pod's namespace ends the pod is not ready, and its address is free once it is removed.
// rows: T-01, P-006a, P-003b, D-148, P-164, P-165
func TestPodLosesItsNamespaces(t *testing.T) {
	ours(t)
	share, _ := inNamespaces(func(o *namespaces) { o.Pid = modePod })
	p := newPod(t, share)
	reserved := filepath.Join(n.Dir, "ipam/n", p.ips()[0])
	if _, err := os.Stat(reserved); err != nil {
		t.Fatal(err)
	}
	r, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := dig(details(t, r.Info), "pid").(float64)
	pinned := 0
	for line := range strings.Lines(mountTable(t)) { // the network namespace goes too
		if f := strings.Fields(line); strings.HasPrefix(f[3], "net:[") && strings.HasPrefix(f[4], n.State()) && strings.Contains(f[4], p.id) {
			pinned++
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}
	}
	equal(t, "network namespaces of the pod", pinned, 1)
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the pod is not ready", func() (bool, string) {
		s := p.status().State
		return s == runtimeapi.PodSandboxState_SANDBOX_NOTREADY, s.String()
	})
	p.remove()
	if _, err := os.Stat(reserved); !os.IsNotExist(err) {
		t.Errorf("the address is still reserved: %v", err)
	}
}
