package blackbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// plugin is an NRI plugin in the process of the test. It notes the events of pods of this test and answers as it is told.
type plugin struct {
	t    *testing.T
	stub stub.Stub

	mu         sync.Mutex
	events     []string // "RunPodSandbox", "CreateContainer c1", ...
	pods       map[string]*api.PodSandbox
	containers map[string]*api.Container // as last seen, by ID
	synced     int                       // how often it was given a list

	adjust func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	object func(event string) error
}

// connect starts a plugin, which ends with the test.
func connect(t *testing.T, on *node.Node, p *plugin, idx string) *plugin {
	t.Helper()
	p.t, p.pods, p.containers = t, map[string]*api.PodSandbox{}, map[string]*api.Container{}
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("probe"), stub.WithPluginIdx(idx), stub.WithSocketPath(on.Plugins()),
		stub.WithLogger(silence{}), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	p.join()
	t.Cleanup(p.stub.Stop)
	return p
}

// join connects to the daemon and waits until it has given its list.
func (p *plugin) join() {
	p.t.Helper()
	p.mu.Lock()
	before := p.synced
	p.mu.Unlock()
	if err := p.stub.Start(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, 10*time.Second, "the plugin is in step", func() (bool, string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.synced > before, ""
	})
}

// silence is a log that nobody reads.
type silence struct{ log.Logger }

func (silence) Debugf(context.Context, string, ...any) {}
func (silence) Infof(context.Context, string, ...any)  {}
func (silence) Warnf(context.Context, string, ...any)  {}
func (silence) Errorf(context.Context, string, ...any) {}

// note notes an event if it is of a pod of this test.
func (p *plugin) note(event string, pod *api.PodSandbox, c *api.Container) error {
	if !p.mine(pod) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods[pod.GetId()] = pod
	if c != nil {
		p.containers[c.GetId()] = c
		event += " " + c.GetName()
	}
	p.events = append(p.events, event)
	if p.object != nil {
		return p.object(event)
	}
	return nil
}

func (p *plugin) mine(pod *api.PodSandbox) bool {
	return strings.EqualFold(pod.GetName(), strings.Trim(unfit.ReplaceAllString(strings.ToLower(p.t.Name()), "-"), "-"))
}

// took returns the events since the last call, when the last of them is there.
func (p *plugin) took(last string) []string {
	p.t.Helper()
	var got []string
	eventually(p.t, 10*time.Second, last, func() (bool, string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		got = p.events
		if !slices.Contains(got, last) {
			return false, strings.Join(got, ", ")
		}
		p.events = nil
		return true, ""
	})
	return got
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		_ = p.note("Synchronize", pod, nil)
		for _, c := range containers {
			if c.GetPodSandboxId() == pod.GetId() {
				_ = p.note("Synchronize", pod, c)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced++
	return nil, nil
}
func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RunPodSandbox", pod, nil)
}
func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note("UpdatePodSandbox", pod, nil)
}
func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("PostUpdatePodSandbox", pod, nil)
}
func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("StopPodSandbox", pod, nil)
}
func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RemovePodSandbox", pod, nil)
}
func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note("CreateContainer", pod, c); err != nil || p.adjust == nil || !p.mine(pod) {
		return nil, nil, err
	}
	return p.adjust(c)
}
func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note("PostCreateContainer", pod, c)
}
func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note("StartContainer", pod, c)
}
func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note("PostStartContainer", pod, c)
}
func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.note("UpdateContainer", pod, c); err != nil || p.update == nil || !p.mine(pod) {
		return nil, err
	}
	return p.update(c, r), nil
}
func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note("PostUpdateContainer", pod, c)
}
func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("StopContainer", pod, c)
}
func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note("RemoveContainer", pod, c)
}

// A plugin hears of all that becomes of a pod, in order, with what it needs to know.
// rows: D-185, P-150, P-158a, P-065, R-37
func TestNRIEvents(t *testing.T) {
	ours(t)
	pl := connect(t, n, &plugin{}, "10")
	var p *pod
	t.Run("life", func(t *testing.T) {
		pl.t = t
		p = newPod(t)
		equal(t, "begin", strings.Join(pl.took("RunPodSandbox"), ", "), "RunPodSandbox")
		seen := pl.pods[p.id]
		equal(t, "address", seen.GetIps()[0], p.ips()[0])
		equal(t, "label", seen.GetLabels()["test"], p.config.Labels["test"])
		netns := seen.GetLinux().GetNamespaces()[0]
		equal(t, "namespace", netns.GetType(), "network")
		if _, err := os.Stat(netns.GetPath()); err != nil {
			t.Error(err)
		}
		c := p.start(sh("sleep 1000"), func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}} })
		name := c.config.Metadata.Name
		equal(t, "start", strings.Join(pl.took("PostStartContainer "+name), ", "),
			strings.ReplaceAll("CreateContainer X, PostCreateContainer X, StartContainer X, PostStartContainer X", "X", name))
		got := pl.containers[c.id]
		equal(t, "state", got.GetState(), api.ContainerState_CONTAINER_RUNNING)
		equal(t, "command", strings.Join(got.GetArgs(), " "), "/bin/sh -c sleep 1000")
		if !slices.Contains(got.GetEnv(), "A=b") || got.GetPid() == 0 || got.GetImage().GetName() != busybox {
			t.Errorf("the container is %v", got)
		}
		_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
			Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "update", strings.Join(pl.took("PostUpdateContainer "+name), ", "), "UpdateContainer "+name+", PostUpdateContainer "+name)
		equal(t, "limit", pl.containers[c.id].GetLinux().GetResources().GetMemory().GetLimit().GetValue(), 96<<20)
		_, err = n.Runtimes.UpdatePodSandboxResources(p.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id,
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 77}})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "update of the pod", strings.Join(pl.took("PostUpdatePodSandbox"), ", "), "UpdatePodSandbox, PostUpdatePodSandbox")
		equal(t, "shares of the pod", pl.pods[p.id].GetLinux().GetPodResources().GetCpu().GetShares().GetValue(), 77)
		c.stop(0)
		c.remove()
		equal(t, "end", strings.Join(pl.took("RemoveContainer "+name), ", "), "StopContainer "+name+", RemoveContainer "+name)
		equal(t, "code", pl.containers[c.id].GetExitCode(), 137)
	})
	equal(t, "end of the pod", strings.Join(pl.took("RemovePodSandbox"), ", "), "StopPodSandbox, RemovePodSandbox")
	if seen := pl.pods[p.id]; len(seen.GetLinux().GetNamespaces()) == 0 {
		t.Errorf("the pod in the end was %v", seen)
	}
}

// What plugins change of a container is seen in it.
// rows: D-185, P-152, P-153, P-154, P-155, P-156
func TestNRIAdjustments(t *testing.T) {
	ours(t)
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ncat > "+dir+"/state.$1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	pl := connect(t, n, &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddAnnotation("nri.example/note", "kept")
		a.AddEnv("INJECTED", "yes")
		a.RemoveEnv("REMOVED")
		a.AddMount(&api.Mount{Source: dir, Destination: "/injected", Type: "bind", Options: []string{"rbind", "ro", "rprivate"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/injected", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o640))})
		a.SetLinuxCPUSetCPUs("0")
		a.SetLinuxCPUShares(300)
		a.SetLinuxMemoryLimit(80 << 20)
		a.SetLinuxOomScoreAdj(ptr(900))
		a.AddRlimit("RLIMIT_NOFILE", 321, 300)
		a.AddHooks(&api.Hooks{
			CreateRuntime: []*api.Hook{{Path: hook, Args: []string{hook, "create"}}},
			Poststop:      []*api.Hook{{Path: hook, Args: []string{hook, "poststop"}}},
		})
		return a, nil, nil
	}}, "10")
	p := newPod(t)
	c := p.start(asleep(), func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "REMOVED", Value: []byte("no")}, {Key: "KEPT", Value: []byte("yes")}}
	})
	equal(t, "variables", c.sh("echo $INJECTED $KEPT $REMOVED"), "yes yes")
	contains(t, "mount", c.sh("ls /injected; touch /injected/x 2>&1; true"), "hook", "Read-only")
	equal(t, "device", c.sh("stat -c '%t:%T %a' /dev/injected; head -c 1 /dev/injected | wc -c"), "1:5 640\n1")
	contains(t, "limits", c.sh(limits), "memory 83886080", "cpus 0")
	equal(t, "files", c.sh("cat /proc/1/limits | awk '/open files/ {print $4, $5}'"), "300 321")
	equal(t, "oom score", c.sh("cat /proc/1/oom_score_adj"), "900")
	pl.took("PostStartContainer " + c.config.Metadata.Name)
	equal(t, "annotation", pl.containers[c.id].GetAnnotations()["nri.example/note"], "kept")
	r := c.status().GetResources().GetLinux()
	equal(t, "memory in the status", r.GetMemoryLimitInBytes(), 80<<20)
	equal(t, "processors in the status", r.GetCpusetCpus(), "0")
	equal(t, "shares in the status", r.GetCpuShares(), 300)
	for _, when := range []string{"create", "poststop"} {
		if when == "poststop" {
			c.stop(0)
			c.remove()
		}
		state, err := os.ReadFile(filepath.Join(dir, "state."+when))
		if err != nil || !strings.Contains(string(state), c.id) {
			t.Errorf("hook %s got %q, %v", when, state, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// Devices of CDI can come from a plugin, too.
func TestNRIInjectsCDI(t *testing.T) {
	ours(t)
	describe(t, "vendor0.yaml", loops)
	connect(t, n, &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddCDIDevice(&api.CDIDevice{Name: "vendor0.example/loop=loop1"})
		return a, nil, nil
	}}, "10")
	equal(t, "devices", newPod(t).says(sh(seeDevices)), "injected present\nloop1 1:5\n")
}

// A plugin may change limits: of a container that is updated, of others with it, and without any event.
// rows: D-185, P-157
func TestNRIUpdates(t *testing.T) {
	ours(t)
	var first *container
	pl := connect(t, n, &plugin{
		update: func(c *api.Container, _ *api.LinuxResources) []*api.ContainerUpdate {
			u := &api.ContainerUpdate{}
			u.SetContainerId(c.GetId())
			u.SetLinuxCPUQuota(80000)
			return []*api.ContainerUpdate{u}
		},
	}, "10")
	p := newPod(t)
	first = p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 64 << 20 }))
	pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		u := &api.ContainerUpdate{}
		u.SetContainerId(first.id)
		u.SetLinuxCPUSetCPUs("0")
		return nil, []*api.ContainerUpdate{u}, nil
	}
	p.start(asleep())
	contains(t, "limits of another container", first.sh(limits), "cpus 0", "memory 67108864")
	_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: first.id,
		Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000}})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "limits after an update", first.sh(limits), "quota 80000 100000")
	equal(t, "quota in the status", first.status().GetResources().GetLinux().GetCpuQuota(), 80000)
	good, bad := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	good.SetContainerId(first.id)
	good.SetLinuxMemoryLimit(72 << 20)
	bad.SetContainerId("nobody")
	bad.SetLinuxMemoryLimit(72 << 20)
	failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{good, bad})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "nobody" {
		t.Errorf("updates failed: %v, %v", failed, err)
	}
	contains(t, "limits without an event", first.sh(limits), "memory 75497472")
}

// Whoever a plugin refuses is told which one, and nothing is left of it.
// rows: D-185
func TestNRIRefusals(t *testing.T) {
	ours(t)
	pl := connect(t, n, &plugin{}, "42")
	p := newPod(t)
	reject := ""
	pl.mu.Lock()
	pl.object = func(event string) error {
		if reject != "" && strings.HasPrefix(event, reject) {
			return errors.New("not on my node")
		}
		return nil
	}
	pl.mu.Unlock()
	on := func(event string) {
		pl.mu.Lock()
		defer pl.mu.Unlock()
		reject, pl.events = event, nil
	}
	names := []string{"42-probe", "not on my node"}
	on("CreateContainer")
	refused(t, second(p.tryCreate(asleep())), codes.Unknown, append(names, "CreateContainer")...)
	if got := pl.took("RemoveContainer " + created(pl)); len(got) != 3 {
		t.Errorf("a refused container had the events %v", got)
	}
	equal(t, "containers that are left", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})), 0)
	on("StartContainer")
	c := p.create(asleep())
	refused(t, c.start(), codes.Unknown, append(names, "StartContainer")...)
	equal(t, "state", c.status().State, runtimeapi.ContainerState_CONTAINER_CREATED)
	on("UpdateContainer")
	_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}})
	refused(t, err, codes.Unknown, append(names, "UpdateContainer")...)
	equal(t, "limit", c.status().GetResources().GetLinux().GetMemoryLimitInBytes(), 0)
	on("RunPodSandbox")
	cfg := podConfig(p.config.Metadata.Name, t.TempDir())
	_, err = n.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	refused(t, err, codes.Unknown, append(names, "RunPodSandbox")...)
	equal(t, "events of a refused pod", strings.Join(pl.took("RemovePodSandbox"), ", "), "RunPodSandbox, StopPodSandbox, RemovePodSandbox")
	for _, s := range p.list(&runtimeapi.PodSandboxFilter{}) {
		if s.Metadata.Uid == cfg.Metadata.Uid {
			t.Errorf("a refused pod is left: %v", s)
		}
	}
	on("")
}

// created is the name of the container whose creation a plugin last heard of.
func created(pl *plugin) string {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	for _, e := range slices.Backward(pl.events) {
		if name, ok := strings.CutPrefix(e, "CreateContainer "); ok {
			return name
		}
	}
	return ""
}

// A plugin finds the pods that are there, and finds them again after the daemon was killed.
// rows: D-185, P-151, P-158
func TestNRISynchronization(t *testing.T) {
	ours(t)
	on := extraNode(t, "nri", node.Options{})
	p := podOn(t, on, func(c *runtimeapi.PodSandboxConfig) {})
	c := p.start(image(loopbackBusybox), asleep())
	p.start(image(loopbackBusybox), sh("true")).ended()
	name := c.config.Metadata.Name
	pl := connect(t, on, &plugin{}, "10")
	equal(t, "list", strings.Join(pl.took("Synchronize "+name), ", "), "Synchronize, Synchronize "+name)
	equal(t, "address", pl.pods[p.id].GetIps()[0], p.ips()[0])
	equal(t, "state", pl.containers[c.id].GetState(), api.ContainerState_CONTAINER_RUNNING)
	equal(t, "command", pl.containers[c.id].GetArgs()[0], "/bin/sh")
	restart(t, on, (*node.Node).Kill)
	pl.stub.Wait()
	pl.join()
	equal(t, "list after a restart", strings.Join(pl.took("Synchronize "+name), ", "), "Synchronize, Synchronize "+name)
	d := p.create(image(loopbackBusybox), asleep())
	pl.took("PostCreateContainer " + d.config.Metadata.Name)
	c.stop(0)
	pl.took("StopContainer " + name)
}

// pluginProcess is the environment variable by which this program is a plugin in a process of its own.
const pluginProcess = "NRI_PLUGIN_OF_TEST"

// A plugin that hangs is cut off, and everything else goes on.
// rows: D-185
func TestNRIPluginHangs(t *testing.T) {
	ours(t)
	live := connect(t, n, &plugin{}, "20")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pluginProcess+"="+n.Plugins())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Fatal(err)
	}
	p := newPod(t)
	c := p.create(asleep())
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := c.start(); err != nil {
		t.Errorf("a start while a plugin hangs: %v", err)
	}
	if took := time.Since(began); took < time.Second || took > 4*time.Second {
		t.Errorf("it took %v, not about the two seconds that a plugin has", took)
	}
	live.took("PostStartContainer " + c.config.Metadata.Name)
	began = time.Now()
	p.start(asleep())
	if took := time.Since(began); took > time.Second {
		t.Errorf("the next container took %v", took)
	}
}

// bystander is a plugin that hears of starts and does nothing.
type bystander struct{}

func (bystander) StartContainer(context.Context, *api.PodSandbox, *api.Container) error { return nil }

func (bystander) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	_, err := os.Stdout.WriteString("ready")
	return nil, err
}

// beAPlugin is what this program does with pluginProcess in its environment.
func beAPlugin(socket string) {
	s, err := stub.New(bystander{}, stub.WithPluginName("hangs"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket), stub.WithLogger(silence{}))
	if err == nil {
		err = s.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, "plugin:", err)
}
