// Package blackbox tests the runtime as its users meet it: over CRI on its socket, through crictl, with files, signals and
// the kernel's own view of what runs. Nothing here knows how it is built.
//
// A test reads as a story: it makes a pod, starts containers in it, looks at them. The pod is removed when the test
// ends, and then nothing may be left that was not there before: see leak_test.go. With -endpoint the same stories are
// told to another runtime, but for those that kill or reconfigure the daemon.
package blackbox

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// Images of the tests.
const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
)

// n is the node that all tests share, unless they break it.
var n *node.Node

func TestMain(m *testing.M) {
	if socket := os.Getenv(pluginProcess); socket != "" {
		beAPlugin(socket)
		return
	}
	node.Main(m, func() error {
		if err := node.ServeImages(); err != nil {
			return err
		}
		var err error
		if n, err = node.Start("n", node.Options{}); err != nil {
			return err
		}
		return warmUp()
	})
}

// warmUp makes what a runtime makes once: the bridge, the tables of host ports, the view of an image in use.
func warmUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, ref := range []string{busybox, nginx} {
		if _, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			return fmt.Errorf("pull %s: %w", ref, err)
		}
	}
	logs, err := os.MkdirTemp("", "warm-up-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	cfg := podConfig("warm-up", logs)
	cfg.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 1080}, {ContainerPort: 53, HostPort: 1053, Protocol: runtimeapi.Protocol_UDP}}
	p, err := n.Runtimes.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return fmt.Errorf("the first pod: %w", err)
	}
	c, err := n.Runtimes.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: cfg,
		Config: containerConfig("c", sh("exec sleep 1000"))})
	if err != nil {
		return fmt.Errorf("the first container: %w", err)
	}
	if _, err := n.Runtimes.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return fmt.Errorf("the first container: %w", err)
	}
	if _, err := n.Runtimes.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return err
	}
	_, err = n.Runtimes.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId})
	return err
}

// ours skips a test that needs the daemon to be ours.
func ours(t *testing.T) {
	t.Helper()
	if *node.Endpoint != "" {
		t.Skip("needs a daemon of its own, not that of -endpoint")
	}
}

// eventually waits until the condition holds, and fails with what it last said when it does not in time.
func eventually(t *testing.T, within time.Duration, what string, holds func() (bool, string)) {
	t.Helper()
	var last string
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		ok, now := holds()
		if ok {
			return
		}
		last = now
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %s", what, within, last)
		}
	}
}
