package blackbox

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
	"github.com/criserver/criserver/test/node"
)

// loseState ends the daemon and the shim, takes away what the shim knew of the given pods and containers, and starts the
// daemon again.
func loseState(t *testing.T, ids ...string) {
	t.Helper()
	shim := n.ShimPid()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := os.RemoveAll(filepath.Join(n.State(), "containers", id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
}

// What the shim knew of a pod and its container is gone: the pod is not ready, the container is ended, and nobody can know
// how it would have. Both can be stopped as often as one likes, removed, and made anew by their names.
// rows: P-140, P-140a, P-140b, P-140c
func TestStateIsLost(t *testing.T) {
	ours(t)
	share, own := inNamespaces(func(o *namespaces) { o.Pid = modePod })
	p := newPod(t, share)
	c := p.start(own, asleep())
	stopped := p.start(own, asleep())
	stopped.stop(0)
	pid := c.pid()
	loseState(t, p.id, c.id, stopped.id)
	equal(t, "pod", p.status().State, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	c.endsWith(255, "Unknown")
	stopped.endsWith(137, "Error")
	eventually(t, 10*time.Second, "its process is gone", func() (bool, string) {
		_, err := os.Stat("/proc/" + pid)
		return os.IsNotExist(err), pid
	})
	for range 2 {
		c.stop(0)
		stopped.stop(0)
		if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("stop pod: %v", err)
		}
	}
	c.remove()
	p.remove()
	again := podOn(t, n, share, func(cfg *runtimeapi.PodSandboxConfig) { cfg.Metadata = p.config.Metadata })
	again.start(own, asleep(), func(cfg *runtimeapi.ContainerConfig) { cfg.Metadata = c.config.Metadata }).sh("true")
}

// A file in the place of a pod's network namespace is cleared away, and pods are made as before.
// rows: P-163
func TestNetworkNamespaceIsNone(t *testing.T) {
	ours(t)
	p := newPod(t)
	pin := filepath.Join(n.State(), "pods", p.id, "ns", "net")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pin, []byte("no namespace"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	equal(t, "pod", p.status().State, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	p.remove()
	if _, err := os.Stat(pin); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", pin, err)
	}
	equal(t, "a new pod", newPod(t).says(sh("echo new")), "new\n")
}

// What a pod's resources were changed to outlives the daemon.
// rows: P-065a
func TestPodResourcesOutliveTheDaemon(t *testing.T) {
	ours(t)
	p := newPod(t)
	_, err := n.Runtimes.UpdatePodSandboxResources(p.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id,
		Overhead:     &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 10 << 20},
		Resources:    &runtimeapi.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000},
	})
	if err != nil {
		t.Fatal(err)
	}
	restart(t, n, (*node.Node).Kill)
	r, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	d := details(t, r.Info)
	equal(t, "overhead", dig(d, "overhead", "memory_limit_in_bytes"), any(float64(10<<20)))
	equal(t, "quota", dig(d, "resources", "cpu_quota"), any(float64(50000)))
}

// slowPlugin is a CNI plugin that attaches nothing, and that only when it may; it notes for whom it was called.
const slowPlugin = `#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
ADD)
	echo $CNI_CONTAINERID >> DIR/added
	while [ ! -e DIR/go ]; do sleep 0.01; done
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.9.9/24","interface":0}]}' ;;
DEL)
	echo $CNI_CONTAINERID >> DIR/deleted ;;
esac
`

// A plugin is in the middle of attaching a pod when the daemon is killed: the next daemon detaches it, nothing of the pod is
// left, and the pod can be made.
// rows: P-006
func TestKilledWhileAttaching(t *testing.T) {
	ours(t)
	x := emptyNode(t, "slow", node.Options{})
	dir := t.TempDir()
	file := func(name string) string { b, _ := os.ReadFile(filepath.Join(dir, name)); return string(b) }
	config := strings.Replace(nodeFile(t, x.Config()), "[cni]\n", fmt.Sprintf("[cni]\nbin_dirs = [%q]\n", dir), 1)
	for name, text := range map[string]string{
		x.Config():                     config,
		x.Dir + "/net.d/test.conflist": `{"cniVersion":"1.0.0","name":"slow","plugins":[{"type":"slow"}]}`,
		filepath.Join(dir, "slow"):     strings.ReplaceAll(slowPlugin, "DIR", dir),
	} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	restart(t, x, (*node.Node).Stop)
	cfg := podConfig("slow", t.TempDir())
	answered := make(chan error)
	go func() {
		_, err := x.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
		answered <- err
	}()
	eventually(t, 10*time.Second, "the plugin is at work", func() (bool, string) { return file("added") != "", "" })
	if err := x.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err == nil {
		t.Error("a pod was reported by a daemon that was killed")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.Boot(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the pod is gone", func() (bool, string) {
		r, err := x.Runtimes.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		return err == nil && len(r.Items) == 0 && file("deleted") == file("added"), file("deleted")
	})
	again := podOn(t, x, func(c *runtimeapi.PodSandboxConfig) { c.Metadata = cfg.Metadata })
	equal(t, "address of the next one", again.ips()[0], "10.9.9.9")
}

// A command in a container with a terminal has one only if it asks for it.
// rows: P-091e
func TestExecBesideATerminal(t *testing.T) {
	p := newPod(t)
	c := p.start(sh("tty; sleep 1000"), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
	c.hasLogged("/dev/")
	equal(t, "ExecSync", c.sh("tty || echo none"), "not a tty\nnone")
	term := openTerminal(t)
	cmd := n.Crictl(p.ctx, "exec", "-it", c.id, "tty")
	term.run(t, cmd)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	term.shows(t, "/dev/pts/")
}

// The kubelet's credentials are the kubelet's: the runtime does not read them.
// rows: D-132
func TestKubeletsCredentials(t *testing.T) {
	addr := ownRegistry(t, small(1000), func(h http.Handler) http.Handler {
		reg := h.(*oci.Registry)
		reg.User, reg.Password = "kubelet", "s3cret"
		return h
	})
	// Nothing of this machine's is touched: the mount is the node's own.
	if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	for _, path := range []string{"/var/lib/kubelet/config.json", home + "/config.json", home + "/.docker/config.json"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"auths":{"`+addr+`":{"auth":"a3ViZWxldDpzM2NyZXQ="}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restart(t, n, (*node.Node).Stop)
	_, err := pullWith(t, addr+"/small:1", nil)
	if err == nil {
		t.Error("it pulled with credentials that are not its own")
	}
	if err := unix.Unmount("/var/lib", 0); err != nil {
		t.Error(err)
	}
}
