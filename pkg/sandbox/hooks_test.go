package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// fakeHooks note what they hear, and object to what a test wants.
type fakeHooks struct {
	mu      sync.Mutex
	events  []string
	refuse  string // an event
	changed *runtimeapi.LinuxContainerResources
	within  func(HookObject) // called in UpdateContainer
	hold    chan struct{}    // StopContainer is heard when it is closed
}

var errRefused = errors.New("refused by a plugin")

func (f *fakeHooks) hear(event string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event)
	if event == f.refuse {
		return errRefused
	}
	return nil
}

func (f *fakeHooks) Tell(_ context.Context, e HookEvent, _ HookObject) error {
	if e == HookStopContainer && f.hold != nil {
		<-f.hold
	}
	return f.hear(string(e))
}

func (f *fakeHooks) CreateContainer(_ context.Context, _ HookObject, s *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	s.Annotations["by"] = "hook"
	return f.changed, f.hear("CreateContainer")
}

func (f *fakeHooks) UpdateContainer(_ context.Context, o HookObject, _ *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	if f.within != nil {
		f.within(o)
	}
	return f.changed, f.hear("UpdateContainer")
}

func (f *fakeHooks) UpdatePod(context.Context, Pod, *runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources) error {
	return f.hear("UpdatePodSandbox")
}

func (f *fakeHooks) heard() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := strings.Join(f.events, " ")
	f.events = nil
	return all
}

func hookedNode(t *testing.T) (*node, *fakeHooks) {
	h := &fakeHooks{}
	n := newNode(t)
	n.hooks = h
	n.reopen()
	return n, h
}

const (
	begins = "CreateContainer PostCreateContainer StartContainer PostStartContainer"
	ends   = "StopContainer RemoveContainer"
)

// expect fails the test unless these are the events since the last call.
func (n *node) expect(h *fakeHooks, what, want string) {
	n.t.Helper()
	if got := h.heard(); got != want {
		n.t.Errorf("%s: hooks heard %q, want %q", what, got, want)
	}
}

func TestHooksHearOfALife(t *testing.T) {
	n, h := hookedNode(t)
	pod := n.runPod("p")
	n.expect(h, "run", "RunPodSandbox")
	exits := n.create(pod, "exits")
	n.start(exits)
	n.expect(h, "create and start", begins)
	n.start(n.create(pod, "killed"))
	h.heard()
	if by := n.fake.specs[exits].Annotations["by"]; by != "hook" {
		t.Errorf("the annotation of the hook is %q", by)
	}
	n.fake.exit(exits, wire.Exit{}, true)
	n.eventually("the exit is told", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.events) == 1
	})
	n.expect(h, "exit", "StopContainer")
	for range 2 {
		if err := n.StopPod(background, pod); err != nil {
			t.Fatal(err)
		}
	}
	n.expect(h, "two stops", "StopContainer StopPodSandbox")
	if err := n.RemovePod(background, pod); err != nil {
		t.Fatal(err)
	}
	n.expect(h, "removal", "RemoveContainer RemoveContainer RemovePodSandbox")
}

// The end of a container waits for no hook, but what comes after it is told after it.
func TestHooksHearInOrder(t *testing.T) {
	n, h := hookedNode(t)
	h.hold = make(chan struct{})
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.create(pod, "d")
	h.heard()
	n.start(c)
	if err := n.StopContainer(background, c, 0); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(background, 20*time.Millisecond)
	defer cancel()
	for _, err := range []error{n.RemoveContainer(short, c), n.StopPod(short, pod)} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it did not wait: %v", err)
		}
	}
	n.expect(h, "while the end is told", "StartContainer PostStartContainer")
	close(h.hold)
	if err := n.RemovePod(background, pod); err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(h.heard())
	if len(got) != 6 || slices.Index(got, "RemoveContainer") < slices.Index(got, "StopContainer") || got[5] != "RemovePodSandbox" {
		t.Errorf("then hooks heard %v", got)
	}
}

// A removal that has to be tried again is told once.
func TestHooksHearOnce(t *testing.T) {
	n, h := hookedNode(t)
	pod := n.runPod("p")
	c := n.create(pod, "c")
	h.heard()
	n.fake.failDelete(errors.New("busy"))
	for range 2 {
		if err := n.RemoveContainer(background, c); err == nil {
			t.Fatal("it was removed")
		}
	}
	n.fake.failDelete(nil)
	if err := n.RemoveContainer(background, c); err != nil {
		t.Fatal(err)
	}
	n.expect(h, "removal", ends)
}

func TestHooksRefuse(t *testing.T) {
	n, h := hookedNode(t)
	refuse := func(event string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.refuse, h.events = event, nil
	}
	refuse("RunPodSandbox")
	if _, err := n.RunPod(background, podConfig("p"), ""); !errors.Is(err, errRefused) {
		t.Errorf("a refused pod: %v", err)
	}
	n.expect(h, "refused pod", "RunPodSandbox StopPodSandbox RemovePodSandbox")
	n.nothingLeft()
	refuse("")
	pod := n.runPod("p")
	refuse("CreateContainer")
	if _, err := n.CreateContainer(background, pod, containerConfig("c")); !errors.Is(err, errRefused) {
		t.Errorf("a refused container: %v", err)
	}
	n.expect(h, "refused container", "CreateContainer "+ends)
	if left := n.Containers(); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	refuse("StartContainer")
	c := n.create(pod, "c")
	if err := n.StartContainer(background, c); !errors.Is(err, errRefused) || n.container(c).State != ContainerCreated {
		t.Errorf("a refused start: %v, the container is %s", err, n.container(c).State)
	}
	refuse("UpdateContainer")
	if err := n.UpdateContainer(background, c, &runtimeapi.LinuxContainerResources{OomScoreAdj: 1}); !errors.Is(err, errRefused) {
		t.Errorf("a refused update: %v", err)
	}
	for _, late := range []string{"PostStartContainer", "StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"} {
		refuse(late)
		pod := n.runPod(late)
		n.start(n.create(pod, "c"))
		if err := n.RemovePod(background, pod); err != nil {
			t.Errorf("%s: %v", late, err)
		}
	}
	refuse("")
}

// A pod that could be made only in part was announced to nobody, or is taken back everywhere.
func TestHooksHearOfAFailure(t *testing.T) {
	n, h := hookedNode(t)
	n.net.fail(errors.New("no"), nil)
	if _, err := n.RunPod(background, podConfig("p"), ""); err == nil {
		t.Fatal("it runs")
	}
	n.expect(h, "failed pod", "")
	n.net.fail(nil, nil)
	pod := n.runPod("p")
	h.heard()
	n.fake.createErr = errors.New("no")
	if _, err := n.CreateContainer(background, pod, containerConfig("c")); err == nil {
		t.Fatal("it was created")
	}
	n.expect(h, "failed container", "CreateContainer "+ends)
}

func TestHooked(t *testing.T) {
	n, h := hookedNode(t)
	pod, stopped := n.runPod("p"), n.runPod("stopped")
	running, exited := n.create(pod, "running"), n.create(pod, "exited")
	n.create(stopped, "killed")
	created := n.create(pod, "created")
	n.start(running)
	n.start(exited)
	n.fake.exit(exited, wire.Exit{}, true)
	if err := n.StopPod(background, stopped); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"before", "after"} {
		pods, containers := n.Hooked()
		if len(pods) != 1 || pods[0].ID != pod || len(pods[0].IPs) != 1 {
			t.Errorf("%s a restart the pods are %v", when, pods)
		}
		var ids []string
		for _, c := range containers {
			if _, err := c.Spec(); err != nil || c.Pod.ID != pod {
				t.Errorf("%s a restart: %v of %s", when, err, c.Pod.ID)
			}
			ids = append(ids, c.Container.ID)
		}
		slices.Sort(ids)
		want := []string{running, created}
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("%s a restart the containers are %v, want %v", when, ids, want)
		}
		n.reopen()
	}
	h.heard()
	if err := n.RemovePod(background, pod); err != nil {
		t.Fatal(err)
	}
	got := h.heard()
	if strings.Count(got, "StopContainer") != 2 || strings.Count(got, "RemoveContainer") != 3 || !strings.HasSuffix(got, "RemovePodSandbox") {
		t.Errorf("the end of a pod of an earlier daemon: %s", got)
	}
}

func TestHooksChangeLimits(t *testing.T) {
	n, h := hookedNode(t)
	n.o.Host.Controllers = map[string]bool{"cpu": true, "memory": true}
	pod := n.runPod("p")
	h.changed = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, OomScoreAdj: 7}
	c := n.create(pod, "c")
	if r := n.container(c).Resources; r.MemoryLimitInBytes != 32<<20 || r.OomScoreAdj != 7 {
		t.Errorf("after the creation: %v", r)
	}
	h.changed = &runtimeapi.LinuxContainerResources{CpuQuota: 20000}
	if err := n.UpdateContainer(background, c, &runtimeapi.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 50000}); err != nil {
		t.Fatal(err)
	}
	if r := n.container(c).Resources; r.CpuQuota != 20000 || r.CpuPeriod != 50000 || r.MemoryLimitInBytes != 32<<20 {
		t.Errorf("after the update: %v", r)
	}
	if err := n.UpdateContainer(background, c, &runtimeapi.LinuxContainerResources{CpuPeriod: 1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an invalid update: %v", err)
	}
}

func TestUpdatePod(t *testing.T) {
	n, h := hookedNode(t)
	cfg := podConfig("p")
	cfg.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuShares: 3}
	id, err := n.RunPod(background, cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	h.heard()
	if err := n.UpdatePod(background, id, nil, &runtimeapi.LinuxContainerResources{CpuShares: 4}); err != nil {
		t.Fatal(err)
	}
	n.expect(h, "update", "UpdatePodSandbox PostUpdatePodSandbox")
	h.refuse = "UpdatePodSandbox"
	if err := n.UpdatePod(background, id, &runtimeapi.LinuxContainerResources{CpuShares: 5}, nil); !errors.Is(err, errRefused) {
		t.Errorf("a refused update: %v", err)
	}
	if err := n.UpdatePod(background, id, &runtimeapi.LinuxContainerResources{CpuPeriod: 5}, nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "overhead") {
		t.Errorf("an invalid update: %v", err)
	}
	n.reopen()
	if p, err := n.Pod(id); err != nil || p.Overhead.GetCpuShares() != 3 || p.Resources.GetCpuShares() != 4 {
		t.Errorf("%v, the pod has %v and %v", err, p.Overhead, p.Resources)
	}
	if err := n.StopPod(background, id); err != nil {
		t.Fatal(err)
	}
	if err := n.UpdatePod(background, id, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a stopped pod: %v", err)
	}
}

// Two updates, of which the hooks of each want the container of the other changed, do not wait for one another.
func TestHooksOfTwoUpdates(t *testing.T) {
	n, h := hookedNode(t)
	n.o.Host.Controllers = map[string]bool{"cpu": true}
	pod := n.runPod("p")
	ids := []string{n.create(pod, "a"), n.create(pod, "b")}
	var both sync.WaitGroup
	both.Add(2)
	h.within = func(o HookObject) {
		both.Done()
		both.Wait() // both hold their operation locks
		other := ids[0]
		if o.Container.ID == other {
			other = ids[1]
		}
		if err := n.SetResources(background, other, &runtimeapi.LinuxContainerResources{CpuShares: 100}); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(background, 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if err := n.UpdateContainer(ctx, id, &runtimeapi.LinuxContainerResources{CpuQuota: 10000}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if r := n.container(id).Resources; r.CpuShares != 100 || r.CpuQuota != 10000 {
			t.Errorf("container %s has %v", id, r)
		}
	}
}

func TestEvict(t *testing.T) {
	n, _ := hookedNode(t)
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.start(c)
	if err := n.Evict(c, "too loud"); err != nil {
		t.Fatal(err)
	}
	n.eventually("the stop signal is sent", func() bool { return len(n.fake.sent(c)) > 0 })
	n.fake.exit(c, wire.Exit{Code: 143}, true)
	if err := n.Evict(c, "again"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an exited container: %v", err)
	}
	if err := n.Evict("nobody", ""); !errdefs.IsNotFound(err) {
		t.Errorf("a container that is not: %v", err)
	}
}

// fakeDevices know one device.
type fakeDevices struct{}

func (fakeDevices) Inject(s *specs.Spec, names []string) error {
	for _, name := range names {
		if name != "v.example/gpu=0" {
			return fmt.Errorf("there is no %s: %w", name, errdefs.ErrInvalidArgument)
		}
		s.Process.Env = append(s.Process.Env, "GPU=0")
	}
	return nil
}

func TestCDIDevices(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	cfg := containerConfig("c")
	cfg.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.example/gpu=0"}}
	c, err := n.CreateContainer(background, pod, cfg)
	if err != nil || !slices.Contains(n.fake.specs[c].Process.Env, "GPU=0") {
		t.Errorf("%v, variables %v", err, n.fake.specs[c].Process.Env)
	}
	cfg = containerConfig("d")
	cfg.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.example/gpu=1"}}
	if _, err := n.CreateContainer(background, pod, cfg); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "CDI_devices: there is no v.example/gpu=1") {
		t.Errorf("an unknown device: %v", err)
	}
}
