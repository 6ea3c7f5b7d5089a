package blackbox

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// The commands of crictl that people use.
// rows: D-171, P-028
func TestCrictl(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(sh("echo a line; trap 'exit 0' TERM; sleep 1000 & wait"))
	c.hasLogged("a line")
	for _, x := range []struct{ args, says string }{
		{"version", "criserver"}, {"info", "RuntimeReady"}, {"pods", p.id[:13]}, {"ps", c.id[:13]}, {"ps -a -o json", c.id},
		{"inspectp " + p.id[:12], p.id}, {"inspect " + c.id[:12], c.id}, {"images", "busybox"}, {"inspecti " + busybox, "repoDigests"},
		{"stats " + c.id, c.id[:13]}, {"statsp " + p.id, p.id[:13]}, {"imagefsinfo", "usedBytes"}, {"logs " + c.id, "a line"},
		{"exec " + c.id + " echo typed", "typed"}, {"update --memory 104857600 " + c.id, c.id}, {"stop " + c.id, c.id}, {"rm -k " + c.id, c.id},
		{"runtime-config", "cgroup"},
	} {
		stdout, stderr, code := crictl(t, "", strings.Fields(x.args)...)
		if code != 0 || !strings.Contains(stdout, x.says) {
			t.Errorf("crictl %s: %d, want %q in\n%s%s", x.args, code, x.says, stdout, stderr)
		}
	}
}

// What is not offered says so at once, and a container is not touched by it.
// rows: CK-04, D-190, X-26, D-27, D-55
func TestWhatIsNotOffered(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	file := filepath.Join(t.TempDir(), "checkpoint.tar")
	_, err := n.Runtimes.CheckpointContainer(p.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file})
	refused(t, err, codes.Unimplemented)
	if len(status.Convert(err).Message()) < 10 {
		t.Errorf("without a word: %v", err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("a file was made: %v", err)
	}
	c.sh("true")

	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(p.ctx, "/runtime.v1alpha2.RuntimeService/Version", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
	refused(t, err, codes.Unimplemented)

	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	}}}
	for _, path := range []string{"/info", "/containers/" + c.id, "/config"} {
		if r, err := client.Get("http://localhost" + path); err == nil {
			r.Body.Close()
			if r.StatusCode < 400 {
				t.Errorf("%s: %s", path, r.Status)
			}
		}
	}

	// A message of 15 MiB arrives: what is said about it is about what it says.
	large := podConfig("large", p.config.LogDirectory)
	large.Annotations["example.org/large"] = strings.Repeat("x", 15<<20)
	_, err = n.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: large})
	refused(t, err, codes.InvalidArgument, "annotations")
}

// An exec whose client is killed does not stay behind, with a terminal or without.
// rows: GAP-18, D-79
func TestExecClientIsKilled(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	term := openTerminal(t)
	withTerminal := n.Crictl(p.ctx, "exec", "-it", c.id, "sleep", "6001")
	term.run(t, withTerminal)
	eventually(t, 10*time.Second, "the command runs", func() (bool, string) { return len(pidsOf("sleep 6001")) == 1, term.text() })
	_ = withTerminal.Process.Kill()
	_ = withTerminal.Wait()
	eventually(t, 10*time.Second, "it is gone", func() (bool, string) { return len(pidsOf("sleep 6001")) == 0, "" })
	c.sh("true")
}

// Neither failed starts nor terminals leave descriptors or threads in the daemon or the shim.
// rows: P-160, P-161
func TestDescriptorsComeBack(t *testing.T) {
	ours(t)
	p := newPod(t)
	open := func() int {
		sum := 0
		for _, pid := range []int{n.Pid(), n.ShimPid()} {
			fds, _ := filepath.Glob(filepath.Join("/proc", itoa(pid), "fd/*"))
			sum += len(fds)
		}
		return sum
	}
	round := func() {
		tty := p.start(asleep(), func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true })
		tty.stop(0)
		tty.remove()
		bad := p.create(func(c *runtimeapi.ContainerConfig) { c.Command, c.Stdin = []string{"/no/such/command"}, true })
		if err := bad.start(); err == nil {
			t.Error("a command that is not there was started")
		}
		bad.remove()
	}
	round()
	before := open()
	for range 15 {
		round()
	}
	eventually(t, 10*time.Second, "the descriptors are closed", func() (bool, string) {
		now := open()
		return now <= before+5, itoa(before) + " before, now " + itoa(now)
	})
}

// The network namespace of a pod has a place on the node, as long as the pod is ready.
// rows: D-150, D-106, N-01
func TestNetworkNamespaceGoes(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	pinned := func() (at []string) {
		for line := range strings.Lines(mountTable(t)) {
			if f := strings.Fields(line); strings.HasPrefix(f[3], "net:[") && strings.Contains(f[4], p.id) {
				at = append(at, f[4])
			}
		}
		return at
	}
	at := pinned()
	if len(at) != 1 {
		t.Fatalf("mounts of the namespace: %v", at)
	}
	out, err := exec.CommandContext(p.ctx, "nsenter", "--net="+at[0], "ip", "-o", "addr", "show", "dev", "eth0").Output()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "addresses in it", string(out), p.ips()...)
	equal(t, "the container's", c.sh("readlink /proc/self/ns/net") != link(t, "/proc/self/ns/net"), true)
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	equal(t, "mounts after the stop", len(pinned()), 0)
	if _, err := os.Stat(at[0]); !os.IsNotExist(err) {
		t.Errorf("its file is still there: %v", err)
	}
	parents := 0
	for _, dir := range node.Cgroups() {
		if strings.HasSuffix(dir, p.config.Linux.CgroupParent) {
			parents++
		}
	}
	equal(t, "the cgroup that was given is still there", parents > 0, true)
}

// The program says its version and its configuration.
// rows: D-179
func TestCommandLine(t *testing.T) {
	ours(t)
	for _, x := range []struct{ args, says string }{{"--version", "criserver "}, {"version", "criserver "}, {"config", "listen"}, {"--help", "--config"}} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(n.Dir, "bin/criserver"), strings.Fields(x.args)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), x.says) {
			t.Errorf("criserver %s: %v, want %q in\n%s", x.args, err, x.says, out)
		}
	}
}
