package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox"
)

var background = context.Background()

// TestMain is also a plugin: NRI tells it so by its environment.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) != "" {
		if err := (&launched{}).run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	os.Exit(m.Run())
}

// fakeSandboxes have what a test puts there.
type fakeSandboxes struct {
	mu         sync.Mutex
	pods       []sandbox.Pod
	containers []sandbox.HookObject
	set        map[string]*runtimeapi.LinuxContainerResources // by ID; others are not found
	evicted    []string
}

func (f *fakeSandboxes) Hooked() ([]sandbox.Pod, []sandbox.HookObject) { return f.pods, f.containers }

func (f *fakeSandboxes) SetResources(_ context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.set[id]; !ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	f.set[id] = r
	return nil
}

func (f *fakeSandboxes) Evict(id, reason string) error {
	f.evicted = append(f.evicted, id+" "+reason)
	return nil
}

func (f *fakeSandboxes) got(id string) *runtimeapi.LinuxContainerResources {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set[id]
}

// service is one under test, with its own socket.
type service struct {
	*Service
	sandboxes *fakeSandboxes
	dir       string
}

func newService(t testing.TB) *service {
	t.Helper()
	dir, err := os.MkdirTemp("", "nri") // a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &service{sandboxes: &fakeSandboxes{set: map[string]*runtimeapi.LinuxContainerResources{}}, dir: dir}
	s.Service = s.build(t)
	return s
}

func (s *service) build(t testing.TB) *Service {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	n, err := New(Options{
		Socket: s.socket(), PluginDir: filepath.Join(s.dir, "plugins"), ConfDir: filepath.Join(s.dir, "conf"), Version: "1",
		Host: spec.Host{Controllers: map[string]bool{}}, Devices: devices{}, Log: logrus.NewEntry(log),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *service) socket() string { return filepath.Join(s.dir, "nri.sock") }

func (s *service) start(t testing.TB) *service {
	t.Helper()
	if err := s.Start(s.sandboxes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connected waits until n plugins are in step.
func (s *service) connected(t testing.TB, n int32) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.plugins.Load() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d plugins are connected, want %d", s.plugins.Load(), n)
		}
	}
}

// devices inject a variable with their names.
type devices struct{}

func (devices) Inject(s *specs.Spec, names []string) error {
	s.Process.Env = append(s.Process.Env, "DEVICES="+strings.Join(names, ","))
	return nil
}

// plugin answers as a test wants.
type plugin struct {
	stub   stub.Stub
	create func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	start  func(context.Context) error
	list   func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate

	mu     sync.Mutex
	events []string
}

// connect connects a plugin and waits until it hears.
func (s *service) connect(t testing.TB, idx string, p *plugin) *plugin {
	t.Helper()
	before := s.plugins.Load()
	var err error
	if p.stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx(idx), stub.WithSocketPath(s.socket()), stub.WithOnClose(func() {})); err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(background); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stub.Stop)
	s.connected(t, before+1)
	return p
}

func (p *plugin) hear(event string, pod *api.PodSandbox, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil {
		event += " " + c.GetName()
	}
	p.events = append(p.events, event+" of "+pod.GetName())
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	if p.list == nil {
		return nil, nil
	}
	return p.list(pods, containers), nil
}
func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("RunPodSandbox", pod, nil)
	return nil
}
func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	p.hear(fmt.Sprintf("UpdatePodSandbox %d %d", overhead.GetCpu().GetShares().GetValue(), resources.GetCpu().GetShares().GetValue()), pod, nil)
	return nil
}
func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("PostUpdatePodSandbox", pod, nil)
	return nil
}
func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("StopPodSandbox", pod, nil)
	return nil
}
func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("RemovePodSandbox", pod, nil)
	return nil
}
func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.hear("CreateContainer", pod, c)
	if p.create == nil {
		return nil, nil, nil
	}
	return p.create(c)
}
func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.hear("PostCreateContainer", pod, c)
	return nil
}
func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.hear("StartContainer", pod, c)
	if p.start == nil {
		return nil
	}
	return p.start(ctx)
}
func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.hear("PostStartContainer", pod, c)
	return nil
}
func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.hear("UpdateContainer", pod, c)
	if p.update == nil {
		return nil, nil
	}
	return p.update(c, r)
}
func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.hear("PostUpdateContainer", pod, c)
	return nil
}
func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.hear("StopContainer", pod, c)
	u := &api.ContainerUpdate{}
	u.SetContainerId("neighbour")
	u.SetLinuxCPUShares(1024)
	return []*api.ContainerUpdate{u}, nil
}
func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.hear("RemoveContainer", pod, c)
	return nil
}

// object is the container c of the pod p.
func object(s *specs.Spec) sandbox.HookObject {
	return sandbox.HookObject{
		Pod: sandbox.Pod{ID: "p1", NetNS: "/run/ns", Handler: "h", Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u"},
			Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/pod"},
		}, Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 5}},
		Container: sandbox.Container{ID: "c1", PodID: "p1", State: sandbox.ContainerRunning, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Annotations: map[string]string{"of": "the kubelet"},
		}},
		Spec: func() (*specs.Spec, error) { return s, nil },
	}
}

func ociSpec() *specs.Spec {
	return &specs.Spec{
		Process:     &specs.Process{Args: []string{"run"}, Env: []string{"A=1", "B=2", "C=3"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}},
		Annotations: map[string]string{"of": "the spec"},
		Mounts:      []specs.Mount{{Destination: "/a/b"}, {Destination: "/gone"}},
		Linux:       &specs.Linux{Resources: &specs.LinuxResources{}, Namespaces: []specs.LinuxNamespace{{Type: "network", Path: "/run/ns"}, {Type: "ipc", Path: "/x"}}},
	}
}

func TestEvents(t *testing.T) {
	s := newService(t).start(t)
	s.sandboxes.set["neighbour"] = nil
	p := s.connect(t, "10", &plugin{})
	o := object(ociSpec())
	pod := sandbox.HookObject{Pod: o.Pod}
	for _, e := range []sandbox.HookEvent{sandbox.HookRunPod, "UpdatePodSandbox 7 8", sandbox.HookPostUpdatePod, "CreateContainer", sandbox.HookPostCreate, sandbox.HookStart, sandbox.HookPostStart,
		"UpdateContainer", sandbox.HookPostUpdate, sandbox.HookStopContainer, sandbox.HookRemove, sandbox.HookStopPod, sandbox.HookRemovePod} {
		var err error
		switch {
		case e == "CreateContainer":
			_, err = s.CreateContainer(background, o, ociSpec())
		case e == "UpdatePodSandbox 7 8":
			err = s.UpdatePod(background, o.Pod, &runtimeapi.LinuxContainerResources{CpuShares: 7}, &runtimeapi.LinuxContainerResources{CpuShares: 8})
		case e == "UpdateContainer":
			_, err = s.UpdateContainer(background, o, &runtimeapi.LinuxContainerResources{})
		case strings.Contains(string(e), "Pod"):
			err = s.Tell(background, e, pod)
		default:
			err = s.Tell(background, e, o)
		}
		want := string(e) + " c of p"
		if strings.Contains(string(e), "Pod") {
			want = string(e) + " of p"
		}
		if err != nil || !slices.Equal(p.events, []string{want}) {
			t.Errorf("%s: %v, the plugin heard %v", e, err, p.events)
		}
		p.events = nil
	}
	if r := s.sandboxes.got("neighbour"); r.GetCpuShares() != 1024 {
		t.Errorf("the neighbour of a stopped container got %v", r)
	}
}

func TestSynchronize(t *testing.T) {
	s := newService(t).start(t)
	o := object(ociSpec())
	o.Container.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 7 << 20, CpusetCpus: "0"}
	s.sandboxes.pods, s.sandboxes.containers = []sandbox.Pod{o.Pod}, []sandbox.HookObject{o}
	s.sandboxes.set["c1"] = nil
	var pod *api.PodSandbox
	var c *api.Container
	s.connect(t, "10", &plugin{list: func(pods []*api.PodSandbox, containers []*api.Container) []*api.ContainerUpdate {
		pod, c = pods[0], containers[0]
		u := &api.ContainerUpdate{}
		u.SetContainerId("c1")
		u.SetLinuxCPUSetCPUs("1")
		return []*api.ContainerUpdate{u}
	}})
	if pod.GetUid() != "u" || pod.GetRuntimeHandler() != "h" || pod.GetLinux().GetCgroupParent() != "/pod" ||
		pod.GetLinux().GetPodOverhead().GetCpu().GetShares().GetValue() != 5 || pod.GetLinux().GetNamespaces()[0].GetPath() != "/run/ns" {
		t.Errorf("the pod is %v", pod)
	}
	if c.GetState() != api.ContainerState_CONTAINER_RUNNING || c.GetArgs()[0] != "run" || c.GetAnnotations()["of"] != "the spec" || len(c.GetMounts()) != 2 ||
		c.GetLinux().GetResources().GetMemory().GetLimit().GetValue() != 7<<20 || c.GetLinux().GetResources().GetCpu().GetCpus() != "0" {
		t.Errorf("the container is %v", c)
	}
	if r := s.sandboxes.got("c1"); r.GetCpusetCpus() != "1" {
		t.Errorf("the update gave %v", r)
	}
}

// adjustment is one of everything.
func adjustment() *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("x", "y")
	a.RemoveAnnotation("of")
	a.AddEnv("A", "changed")
	a.AddEnv("D", "4")
	a.RemoveEnv("B")
	a.SetArgs([]string{"another"})
	a.AddMount(&api.Mount{Destination: "/a", Source: "/tmp", Type: "bind", Options: []string{"rbind", "rprivate"}})
	a.RemoveMount("/gone")
	a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3})
	a.AddCDIDevice(&api.CDIDevice{Name: "v.example/gpu=0"})
	a.AddRlimit("RLIMIT_NOFILE", 20, 10)
	a.AddHooks(&api.Hooks{Prestart: hooks("1"), CreateRuntime: hooks("2"), CreateContainer: hooks("3"), StartContainer: hooks("4"), Poststart: hooks("5"), Poststop: hooks("6")})
	a.SetLinuxCPUShares(100)
	a.SetLinuxCPUQuota(200)
	a.SetLinuxCPUPeriod(300)
	a.SetLinuxCPUSetCPUs("0")
	a.SetLinuxCPUSetMems("0")
	a.SetLinuxCPURealtimeRuntime(400)
	a.SetLinuxCPURealtimePeriod(500)
	a.SetLinuxMemoryLimit(600)
	a.SetLinuxPidLimits(700)
	a.AddLinuxHugepageLimit("2MB", 800)
	a.AddLinuxUnified("memory.high", "900")
	a.SetLinuxCgroupsPath("/elsewhere")
	adj := 50
	a.SetLinuxOomScoreAdj(&adj)
	a.SetLinuxRDTClass("gold")
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38))})
	a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/other"})
	a.RemoveNamespace(&api.LinuxNamespace{Type: "ipc"})
	a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "cgroup"})
	a.SetLinuxSysctl("net.ipv4.ip_forward", "1")
	a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 3})
	a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH})
	return a
}

func hooks(path string) []*api.Hook { return []*api.Hook{{Path: "/" + path}} }

func TestAdjust(t *testing.T) {
	s := newService(t).start(t)
	s.connect(t, "10", &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return adjustment(), nil, nil
	}})
	oci := ociSpec()
	shared, sharedNS := oci.Process.Rlimits, oci.Linux.Namespaces // with other specs
	changed, err := s.CreateContainer(background, object(oci), oci)
	if err != nil {
		t.Fatal(err)
	}
	r, h := oci.Linux.Resources, oci.Hooks
	for what, pair := range map[string][2]any{
		"annotations": {oci.Annotations, map[string]string{"x": "y"}},
		"env":         {oci.Process.Env, []string{"A=changed", "C=3", "D=4", "DEVICES=v.example/gpu=0"}},
		"args":        {oci.Process.Args, []string{"another"}},
		"mounts":      {[]string{oci.Mounts[0].Destination, oci.Mounts[1].Destination}, []string{"/a", "/a/b"}},
		"device":      {oci.Linux.Devices[0].Path, "/dev/x"},
		"allowed":     {r.Devices[0].Allow, true},
		"rlimits":     {oci.Process.Rlimits, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}},
		"shared":      {[]any{shared[0].Hard, sharedNS[0].Path}, []any{2, "/run/ns"}},
		"hooks": {[]string{h.Prestart[0].Path, h.CreateRuntime[0].Path, h.CreateContainer[0].Path, h.StartContainer[0].Path, h.Poststart[0].Path, h.Poststop[0].Path},
			[]string{"/1", "/2", "/3", "/4", "/5", "/6"}},
		"cpu": {[]any{*r.CPU.Shares, *r.CPU.Quota, *r.CPU.Period, r.CPU.Cpus, r.CPU.Mems, *r.CPU.RealtimeRuntime, *r.CPU.RealtimePeriod},
			[]any{100, 200, 300, "0", "0", 400, 500}},
		"memory":     {[]any{*r.Memory.Limit, r.Memory.Swap == nil}, []any{600, true}}, // the host of this test has no swap accounting
		"pids":       {*r.Pids.Limit, 700},
		"huge pages": {r.HugepageLimits, []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 800}}},
		"unified":    {len(r.Unified), 0}, // nor cgroup v2
		"cgroup":     {oci.Linux.CgroupsPath, "/elsewhere"},
		"oom score":  {*oci.Process.OOMScoreAdj, 50},
		"rdt":        {oci.Linux.IntelRdt.ClosID, "gold"},
		"seccomp":    {[]any{oci.Linux.Seccomp.DefaultAction, *oci.Linux.Seccomp.DefaultErrnoRet}, []any{"SCMP_ACT_ERRNO", 38}},
		"namespaces": {oci.Linux.Namespaces, []specs.LinuxNamespace{{Type: "network", Path: "/other"}, {Type: "cgroup"}}},
		"sysctl":     {oci.Linux.Sysctl, map[string]string{"net.ipv4.ip_forward": "1"}},
		"io":         {oci.Process.IOPriority.Priority, 3},
		"scheduler":  {oci.Process.Scheduler.Policy, specs.SchedBatch},
		"changed": {[]any{changed.CpuShares, changed.CpuQuota, changed.CpuPeriod, changed.CpusetCpus, changed.MemoryLimitInBytes, changed.OomScoreAdj,
			changed.HugepageLimits[0].Limit, changed.Unified["memory.high"]}, []any{100, 200, 300, "0", 600, 50, 800, "900"}},
	} {
		if got, want := fmt.Sprint(pair[0]), fmt.Sprint(pair[1]); got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
}

// What cannot be is refused in words, and nobody who changes nothing changes anything.
func TestAdjustLimits(t *testing.T) {
	s := newService(t).start(t)
	var a *api.ContainerAdjustment
	s.connect(t, "10", &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) { return a, nil, nil }})
	oci := ociSpec()
	if changed, err := s.CreateContainer(background, object(oci), oci); err != nil || changed != nil || fmt.Sprint(oci.Process.Env, oci.Mounts) != fmt.Sprint(ociSpec().Process.Env, ociSpec().Mounts) {
		t.Errorf("nothing changed: %v, %v, %+v", changed, err, oci)
	}
	a = &api.ContainerAdjustment{}
	a.SetLinuxBlockIOClass("gold")
	if _, err := s.CreateContainer(background, object(oci), oci); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), `"gold"`) {
		t.Errorf("a class of block I/O: %v", err)
	}
	a = &api.ContainerAdjustment{}
	a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "nonsense"})
	if _, err := s.CreateContainer(background, object(oci), oci); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a namespace: %v", err)
	}
}

func TestUpdates(t *testing.T) {
	s := newService(t).start(t)
	s.sandboxes.set["neighbour"] = nil
	p := s.connect(t, "10", &plugin{update: func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		own, other := &api.ContainerUpdate{}, &api.ContainerUpdate{}
		own.SetContainerId(c.GetId())
		own.SetLinuxCPUQuota(2 * r.GetCpu().GetQuota().GetValue())
		other.SetContainerId("neighbour")
		other.SetLinuxMemoryLimit(5 << 20)
		return []*api.ContainerUpdate{own, other}, nil
	}})
	r, err := s.UpdateContainer(background, object(ociSpec()), &runtimeapi.LinuxContainerResources{CpuQuota: 1000, CpuPeriod: 5000})
	if err != nil || r.GetCpuQuota() != 2000 || r.GetCpuPeriod() != 5000 {
		t.Errorf("got %v, %v", r, err)
	}
	if r := s.sandboxes.got("neighbour"); r.GetMemoryLimitInBytes() != 5<<20 {
		t.Errorf("the neighbour got %v", r)
	}
	p.update = nil
	if r, err := s.UpdateContainer(background, object(ociSpec()), &runtimeapi.LinuxContainerResources{CpuQuota: 1000}); err != nil || r != nil {
		t.Errorf("without a change: %v, %v", r, err)
	}
	unsolicited := func(id string, ignore bool) *api.ContainerUpdate {
		u := &api.ContainerUpdate{IgnoreFailure: ignore}
		u.SetContainerId(id)
		u.SetLinuxCPUSetCPUs("3")
		return u
	}
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{unsolicited("neighbour", false), unsolicited("nobody", false), unsolicited("no one", true), {}})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "nobody" || s.sandboxes.got("neighbour").GetCpusetCpus() != "3" {
		t.Errorf("unsolicited: %v failed, %v; the neighbour got %v", failed, err, s.sandboxes.got("neighbour"))
	}
	s.grant(background, wishes{evict: []*api.ContainerEviction{{ContainerId: "loud", Reason: "noise"}}})
	if !slices.Equal(s.sandboxes.evicted, []string{"loud noise"}) {
		t.Errorf("evicted: %v", s.sandboxes.evicted)
	}
}

func TestRefusal(t *testing.T) {
	s := newService(t).start(t)
	s.connect(t, "10", &plugin{})
	s.connect(t, "20", &plugin{start: func(context.Context) error { return errors.New("not today") }})
	last := s.connect(t, "30", &plugin{})
	err := s.Tell(background, sandbox.HookStart, object(ociSpec()))
	if err == nil || !strings.Contains(err.Error(), "20-test refused StartContainer") || !strings.Contains(err.Error(), "not today") {
		t.Errorf("got %v", err)
	}
	if len(last.events) != 0 {
		t.Errorf("a plugin behind the one that refused heard %v", last.events)
	}
}

func TestConflict(t *testing.T) {
	s := newService(t).start(t)
	wants := func(value string) *plugin {
		return &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("E", value)
			return a, nil, nil
		}}
	}
	s.connect(t, "10", wants("1"))
	s.connect(t, "20", wants("2"))
	oci := ociSpec()
	_, err := s.CreateContainer(background, object(oci), oci)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10-test") || !strings.Contains(err.Error(), "20-test") {
		t.Errorf("got %v", err)
	}
}

// A plugin that hangs is cut off in time, others hear of the event, and whoever waits for the turn waits no longer than it wants.
func TestHang(t *testing.T) {
	adaptation.SetPluginRequestTimeout(300 * time.Millisecond)
	defer adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout)
	s := newService(t).start(t)
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s.connect(t, "10", &plugin{start: func(context.Context) error { close(entered); <-release; return nil }})
	other := s.connect(t, "20", &plugin{})
	done := make(chan error, 1)
	go func() { done <- s.Tell(background, sandbox.HookStart, object(ociSpec())) }()
	<-entered
	short, cancel := context.WithCancel(background)
	cancel()
	if err := s.Tell(short, sandbox.HookPostStart, object(ociSpec())); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever does not wait: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("an event with a plugin that hangs: %v", err)
	}
	if !slices.Equal(other.events, []string{"StartContainer c of p"}) {
		t.Errorf("the other plugin heard %v", other.events)
	}
	s.connected(t, 1)
}

// The patience of a caller is no reason to cut a plugin off.
func TestImpatientCaller(t *testing.T) {
	s := newService(t).start(t)
	ctx, cancel := context.WithCancel(background)
	p := s.connect(t, "10", &plugin{start: func(context.Context) error { cancel(); return nil }})
	if err := s.Tell(ctx, sandbox.HookStart, object(ociSpec())); err != nil {
		t.Error(err)
	}
	if err := s.Tell(background, sandbox.HookPostStart, object(ociSpec())); err != nil || len(p.events) != 2 {
		t.Errorf("%v, the plugin heard %v", err, p.events)
	}
}

func TestPluginsComeAndGo(t *testing.T) {
	s := newService(t).start(t)
	p := s.connect(t, "10", &plugin{})
	p.stub.Stop()
	for end := time.Now().Add(10 * time.Second); s.plugins.Load() > 0; time.Sleep(time.Millisecond) {
		if err := s.Tell(background, sandbox.HookStart, object(ociSpec())); err != nil && time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if p = s.connect(t, "10", &plugin{}); s.Tell(background, sandbox.HookStart, object(ociSpec())) != nil || len(p.events) != 1 {
		t.Errorf("after its return the plugin heard %v", p.events)
	}
}

// Of two daemons the second leaves the first its socket.
func TestServed(t *testing.T) {
	s := newService(t).start(t)
	if err := s.build(t).Start(s.sandboxes); !errors.Is(err, ErrServed) || !strings.Contains(err.Error(), s.socket()) {
		t.Errorf("got %v", err)
	}
	s.connect(t, "10", &plugin{})
}

// launched is a plugin of the directory; its configuration is the file in which it notes what it hears.
type launched struct{ file string }

func (l *launched) run() error {
	s, err := stub.New(l)
	if err != nil {
		return err
	}
	return s.Run(background)
}

func (l *launched) Configure(_ context.Context, config, runtime, _ string) (stub.EventMask, error) {
	l.file = config
	return 0, os.WriteFile(config, []byte(runtime), 0o600)
}

func (l *launched) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return os.WriteFile(l.file, []byte(c.GetName()), 0o600)
}

func TestLaunchedPlugin(t *testing.T) {
	s := newService(t)
	file := filepath.Join(s.dir, "heard")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"plugins/10-mine": "#!/bin/sh\nexec " + self + "\n", "conf/mine.conf": file, "plugins/README": "no program"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(s.dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o755)
		if path == "plugins/README" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(s.dir, path), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	s.start(t)
	s.connected(t, 1)
	if got, err := os.ReadFile(file); err != nil || string(got) != "criserver" {
		t.Errorf("it was configured with %q, %v", got, err)
	}
	if err := s.Tell(background, sandbox.HookStart, object(ociSpec())); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "c" {
		t.Errorf("it heard of %q, %v", got, err)
	}
}

// BenchmarkNobody is what an event costs without plugins.
func BenchmarkNobody(b *testing.B) {
	s := newService(b).start(b)
	o := object(ociSpec())
	for b.Loop() {
		if err := s.Tell(background, sandbox.HookStart, o); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlugin is what it costs with one that answers at once.
func BenchmarkPlugin(b *testing.B) {
	s := newService(b).start(b)
	s.connect(b, "10", &plugin{})
	o := object(ociSpec())
	for b.Loop() {
		if err := s.Tell(background, sandbox.HookStart, o); err != nil {
			b.Fatal(err)
		}
	}
}
