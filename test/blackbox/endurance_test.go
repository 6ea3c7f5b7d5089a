package blackbox

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// Hundreds of execs and dozens of pods leave daemon and shim with the descriptors, helpers and memory of before. The
// case endurance of `make bench` is the same with 20,000 and 2,000.
func TestEndurance(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	work := func(execs, pods int) {
		inTurns(t, 10, execs, func(*testing.T) error {
			r, err := c.exec("/bin/true")
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("exec: exit code %d", r.ExitCode)
			}
			return err
		})
		inTurns(t, 5, pods, livePod)
	}
	work(100, 10) // what is kept for the next time is there from now on
	before, children := c.atRest(60, nil), helpers(t)
	work(600, 40)
	after := c.atRest(600, before.Descriptors)

	if more := after.Descriptors.More(before.Descriptors); len(more) > 0 {
		t.Errorf("more descriptors than before: %s", strings.Join(more, ", "))
	}
	equal(t, "children of daemon and shim", helpers(t), children)
	const bound = 8 << 10 // KiB; what 600 execs and 40 pods would leave if each left 12 KiB
	if grown := after.PSS - before.PSS; grown > bound {
		t.Errorf("daemon and shim have grown by %d KiB to %d", grown, after.PSS)
	}
}

// inTurns calls f n times, so many at once.
func inTurns(t *testing.T, atOnce, n int, f func(*testing.T) error) {
	t.Helper()
	tickets := make(chan struct{}, n)
	for range n {
		tickets <- struct{}{}
	}
	close(tickets)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for range tickets {
				if err := f(t); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// livePod takes a pod with a container through its life.
func livePod(t *testing.T) error {
	cfg := podConfig("endurance", t.TempDir())
	p, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return err
	}
	c, err := n.Runtimes.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: cfg,
		Config: containerConfig("c", asleep())})
	if err != nil {
		return err
	}
	if _, err := n.Runtimes.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return err
	}
	if _, err := n.Runtimes.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return err
	}
	_, err = n.Runtimes.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId})
	return err
}

// atRest is what daemon and shim hold when they have the fewest descriptors, of several readings with an exec between
// every two: some are closed only when garbage is collected, and that happens when something is asked. It stops early
// when there are no more than enough, if that is given.
func (c *container) atRest(readings int, enough node.Descriptors) (least node.Usage) {
	c.t.Helper()
	for i := range readings {
		u, err := node.UsageOf(n.Pid(), n.ShimPid())
		if err != nil {
			c.t.Fatal(err)
		}
		if i == 0 || u.Descriptors.Count() < least.Descriptors.Count() {
			least = u
		}
		if enough != nil && len(u.Descriptors.More(enough)) == 0 {
			return u
		}
		c.sh("")
	}
	return least
}

// helpers counts the children of daemon and shim, which are helpers or containers.
func helpers(t *testing.T) (found int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parent, err := node.Field(file, "PPid:")
		if err == nil && (int(parent) == n.Pid() || int(parent) == n.ShimPid()) { // others end while we look
			found++
		}
	}
	return found
}
