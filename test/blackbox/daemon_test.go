package blackbox

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// rows
func TestVersionAndStatus(t *testing.T) {
	v, err := n.Runtimes.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "API", v.RuntimeApiVersion, "v1")
	if !other() {
		equal(t, "name", v.RuntimeName, "criserver")
	}
	s, err := n.Runtimes.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Status.Conditions {
		if !c.Status {
			t.Errorf("%s is false: %s %s", c.Type, c.Reason, c.Message)
		}
	}
	if len(s.Status.Conditions) < 2 || len(s.Info) == 0 {
		t.Errorf("conditions %v, info %v", s.Status.Conditions, s.Info)
	}
}

// A second daemon on the same directories says who is there, and leaves it alone.
func TestSecondDaemonIsRefused(t *testing.T) {
	ours(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(n.Dir, "bin/criserver"), "--config", n.Config()).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("it ran: %v\n%s", ctx.Err(), out)
	}
	contains(t, "what it says", string(out), itoa(n.Pid()))
	p := newPod(t)
	p.start(asleep())
}

func TestBadConfiguration(t *testing.T) {
	ours(t)
	for text, want := range map[string]string{
		"no_such_key = 1\n":                      "no_such_key",
		"listen = \n":                            "1",
		"[image]\nparallel = \"many\"\n":         "parallel",
		"[image]\nprogress_timeout = \"soon\"\n": "progress_timeout",
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		out, err := exec.CommandContext(ctx, filepath.Join(n.Dir, "bin/criserver"), "--config", file, "--root", t.TempDir(), "--state", t.TempDir(),
			"--listen", filepath.Join(t.TempDir(), "s")).CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("%q was accepted", text)
		}
		cancel()
		contains(t, "what it says", string(out), file, want)
	}
}

// SIGHUP reads the configuration again; a broken file changes nothing, and no pod notices.
// rows: D-177
func TestReload(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	file := n.Config()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(file, good, 0o644); err != nil {
			t.Error(err)
		}
		_ = n.Signal(unix.SIGHUP)
	}()
	seen := len(n.LogTail(1 << 20))
	reload := func(text, says string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := n.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the log says "+says, func() (bool, string) {
			log := n.LogTail(1 << 20)
			return strings.Contains(log[seen:], says), log[seen:]
		})
	}
	reload(strings.Replace(string(good), n.Socket, n.Socket+".new", 1), "restart")
	reload(string(good)+"\nno_such_key = 1\n", "no_such_key")
	equal(t, "exec", c.sh("echo still here"), "still here")
}

// With no configuration at all a pod has a network of its own, by which it reaches the node and the node reaches it.
func TestNoConfiguration(t *testing.T) {
	ours(t)
	bare := extraNode(t, "bare", node.Options{Bare: true})
	p := podOn(t, bare)
	p.start(image(loopbackBusybox), serves("bare"))
	ips := p.ips()
	for _, ip := range ips {
		if strings.Contains(ip, ".") {
			equal(t, "page", get(t, ip+":80"), "bare")
		}
	}
	if len(ips) == 0 || ips[0] == "" {
		t.Errorf("addresses %v", ips)
	}
}

// loopbackBusybox is busybox by the registry's own address: loopback registries need no configuration.
const loopbackBusybox = "localhost:5000/e2e-test-images/busybox:1.29-2"

// extraNode is a node that has busybox and goes with the test, which leaves nothing behind.
func extraNode(t *testing.T, name string, o node.Options) *node.Node {
	t.Helper()
	x := emptyNode(t, name, o)
	if _, err := x.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: loopbackBusybox}}); err != nil {
		t.Fatal(err)
	}
	return x
}

// emptyNode is one without any image.
func emptyNode(t *testing.T, name string, o node.Options) *node.Node {
	t.Helper()
	leavesNothing(t)
	x, err := node.Start(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Retire(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// On a machine without systemd the root is not a shared mount. What is mounted after the shim was started reaches new
// containers all the same, and so do their pods' namespaces.
// rows: M-05
func TestPrivateMounts(t *testing.T) {
	ours(t)
	x := extraNode(t, "private", node.Options{PrivateMounts: true})
	dir := t.TempDir()
	mount := exec.CommandContext(t.Context(), "nsenter", "-t", itoa(x.Pid()), "-m", "sh", "-c", `mount -t tmpfs late "$0" && echo late > "$0/file"`, dir)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := podOn(t, x)
	c := p.start(image(loopbackBusybox), asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/late", HostPath: dir}))
	equal(t, "a file of a volume that was mounted late", c.sh("cat /late/file"), "late")
}
