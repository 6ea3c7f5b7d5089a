package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/rootfs"
	"github.com/criserver/criserver/pkg/sandbox"
	"github.com/criserver/criserver/pkg/telemetry"
)

// fakeSandboxes holds pods and containers that never change, and fails each call with err.
type fakeSandboxes struct {
	damaged    []string
	pods       []sandbox.Pod
	containers []sandbox.Container
	readings   []*sandbox.PodReading
	err        error
	panics     bool
	device     uint64 // of the writable layers; that of images is 1

	mu     sync.Mutex
	called []string
	events chan sandbox.Event
	exec   sandbox.ExecResult
}

func (f *fakeSandboxes) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called = append(f.called, fmt.Sprintf(format, args...))
	if f.panics {
		panic("a fault of the heart")
	}
	return f.err
}

// calls returns the calls since the last time.
func (f *fakeSandboxes) calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	called := f.called
	f.called = nil
	return called
}

func lookup[T any](all []T, kind, id string, idOf func(T) string) (found T, err error) {
	for _, one := range all {
		if strings.HasPrefix(idOf(one), id) {
			return one, nil
		}
	}
	return found, fmt.Errorf("%s %.80q: %w", kind, id, errdefs.ErrNotFound)
}

func (f *fakeSandboxes) VolumeUser(id digest.Digest) string {
	for _, c := range f.containers {
		for _, v := range c.Volumes {
			if v.ID == id {
				return c.ID
			}
		}
	}
	return ""
}

func (f *fakeSandboxes) RunPod(_ context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return "newpod", f.call("RunPod %s %s", c.GetMetadata().GetName(), handler)
}
func (f *fakeSandboxes) DamagedNetworks() []string                  { return f.damaged }
func (f *fakeSandboxes) StopPod(_ context.Context, id string) error { return f.call("StopPod %s", id) }
func (f *fakeSandboxes) RemovePod(_ context.Context, id string) error {
	return f.call("RemovePod %s", id)
}
func (f *fakeSandboxes) Pod(id string) (sandbox.Pod, error) {
	return lookup(f.pods, "pod", id, func(p sandbox.Pod) string { return p.ID })
}
func (f *fakeSandboxes) Pods() []sandbox.Pod { return f.pods }
func (f *fakeSandboxes) CreateContainer(_ context.Context, pod string, c *runtimeapi.ContainerConfig) (string, error) {
	return "newcontainer", f.call("CreateContainer %s %s", pod, c.GetMetadata().GetName())
}
func (f *fakeSandboxes) StartContainer(_ context.Context, id string) error {
	return f.call("StartContainer %s", id)
}
func (f *fakeSandboxes) StopContainer(_ context.Context, id string, grace time.Duration) error {
	return f.call("StopContainer %s %s", id, grace)
}
func (f *fakeSandboxes) RemoveContainer(_ context.Context, id string) error {
	return f.call("RemoveContainer %s", id)
}
func (f *fakeSandboxes) UpdatePod(_ context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	return f.call("UpdatePod %s %d %d", id, overhead.GetCpuShares(), resources.GetCpuShares())
}

func (f *fakeSandboxes) UpdateContainer(_ context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	return f.call("UpdateContainer %s %d", id, r.GetCpuShares())
}
func (f *fakeSandboxes) Container(id string) (sandbox.Container, error) {
	return lookup(f.containers, "container", id, func(c sandbox.Container) string { return c.ID })
}
func (f *fakeSandboxes) Containers() []sandbox.Container { return f.containers }
func (f *fakeSandboxes) ReopenLog(_ context.Context, id string) error {
	return f.call("ReopenLog %s", id)
}
func (f *fakeSandboxes) Spec(id string) (*specs.Spec, error) {
	return &specs.Spec{Hostname: "of-" + id}, nil
}
func (f *fakeSandboxes) ExecSync(_ context.Context, id string, cmd []string, timeout time.Duration) (sandbox.ExecResult, error) {
	return f.exec, f.call("ExecSync %s %q %s", id, cmd, timeout)
}
func (f *fakeSandboxes) Exec(_ context.Context, id string, cmd []string, s sandbox.Streams) (int32, error) {
	return 0, f.call("Exec %s %q", id, cmd)
}
func (f *fakeSandboxes) Attach(_ context.Context, id string, s sandbox.Streams) error {
	return f.call("Attach %s", id)
}
func (f *fakeSandboxes) PortForward(_ context.Context, pod string, port int32, c io.ReadWriteCloser) error {
	return f.call("PortForward %s %d", pod, port)
}
func (f *fakeSandboxes) ContainerStats(_ context.Context, id string) (*runtimeapi.ContainerStats, error) {
	return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: id}}, f.call("ContainerStats %s", id)
}
func (f *fakeSandboxes) ContainersStats(_ context.Context, keep func(sandbox.Container) bool) []*runtimeapi.ContainerStats {
	return selected(f.containers, keep, func(c sandbox.Container) *runtimeapi.ContainerStats {
		return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.ID}}
	})
}
func (f *fakeSandboxes) PodStats(_ context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	return &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: id}}, f.call("PodStats %s", id)
}
func (f *fakeSandboxes) PodsStats(_ context.Context, keep func(sandbox.Pod) bool) []*runtimeapi.PodSandboxStats {
	return selected(f.pods, keep, func(p sandbox.Pod) *runtimeapi.PodSandboxStats {
		return &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID}}
	})
}
func (f *fakeSandboxes) Readings(context.Context) []*sandbox.PodReading { return f.readings }
func (f *fakeSandboxes) FSUsage(context.Context) (imagesvc.Usage, error) {
	return imagesvc.Usage{Path: "/var/lib/upper", Device: f.device, Bytes: 3, Inodes: 4, At: time.Unix(2, 0)}, f.err
}
func (f *fakeSandboxes) Subscribe(context.Context) <-chan sandbox.Event { return f.events }

// fakeImages holds images that never change.
type fakeImages struct {
	images []imagesvc.Image
	err    error
	pulled []string
	auth   imagesvc.Auth
}

func (f *fakeImages) Pull(_ context.Context, ref string, a imagesvc.Auth) (imagesvc.Image, error) {
	f.pulled, f.auth = append(f.pulled, ref), a
	if f.err != nil {
		return imagesvc.Image{}, f.err
	}
	return f.images[0], nil
}
func (f *fakeImages) Image(ref string) (imagesvc.Image, error) {
	for _, i := range f.images {
		if string(i.ID) == ref || fmt.Sprint(i.Tags) == "["+ref+"]" {
			return i, nil
		}
	}
	return imagesvc.Image{}, fmt.Errorf("image %.80q: %w", ref, errdefs.ErrNotFound)
}
func (f *fakeImages) Images() []imagesvc.Image { return f.images }
func (f *fakeImages) Remove(context.Context, string) error {
	return f.err
}
func (f *fakeImages) FSUsage(context.Context) (imagesvc.Usage, error) {
	return imagesvc.Usage{Path: "/var/lib/layers", Device: 1, Bytes: 1, Inodes: 2, At: time.Unix(1, 0)}, f.err
}

type fakeNetwork struct{ err error }

func (f *fakeNetwork) Status() error           { return f.err }
func (f *fakeNetwork) Config() json.RawMessage { return json.RawMessage(`{"name":"net"}`) }

// edge is a server of the edge over fakes, and clients of it.
type edge struct {
	*Server
	sandboxes *fakeSandboxes
	images    *fakeImages
	network   *fakeNetwork
	runtime   runtimeapi.RuntimeServiceClient
	image     runtimeapi.ImageServiceClient
	log       *bytes.Buffer // what was logged; read it when no RPC is under way
	conn      *grpc.ClientConn
}

func newEdge(t testing.TB) *edge {
	t.Helper()
	e := &edge{sandboxes: testSandboxes(), images: testImages(), network: &fakeNetwork{}, log: &bytes.Buffer{}}
	log := logrus.New()
	log.SetLevel(logrus.DebugLevel)
	log.SetOutput(e.log)
	var err error
	e.Server, err = New(Options{
		Sandboxes: e.sandboxes, Images: e.images, Network: e.network,
		Handlers: []string{"special"}, Host: spec.Host{MountSetattr: true}, State: "/run/criserver", Root: "/var/lib/criserver", CNIConfDir: "/etc/cni/net.d",
		Version: "1.2.3", Config: func() any { return map[string]string{"listen": "here"} }, Log: logrus.NewEntry(log),
	})
	if err != nil {
		t.Fatal(err)
	}
	spans, err := telemetry.New(t.Context(), telemetry.Options{Log: logrus.NewEntry(log)})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions(logrus.NewEntry(log), spans)...)
	e.Register(g)
	socket := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	e.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	e.runtime, e.image = runtimeapi.NewRuntimeServiceClient(e.conn), runtimeapi.NewImageServiceClient(e.conn)
	t.Cleanup(func() {
		e.conn.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := errors.Join(e.Server.Close(), spans.Close()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func id(c string) string { return strings.Repeat(c, 64) }

const imageID = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// testSandboxes: pod a is ready and has a running container c, a created d and an exited e; pod b is stopped; pod f is
// being created, and 6 is a container of its own.
func testSandboxes() *fakeSandboxes {
	pod := func(name string, state sandbox.PodState) sandbox.Pod {
		return sandbox.Pod{
			ID: id(name), State: state, Handler: "special", CreatedAt: time.Unix(1, 2),
			IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")},
			CNI: json.RawMessage(`{"ips":[]}`), NetNS: "/run/netns/" + name, InitPid: 42,
			Config: &runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "uid", Attempt: 1},
				Labels:   map[string]string{"pod": name, "all": "yes"}, Annotations: map[string]string{"note": name},
				Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
			},
		}
	}
	container := func(name, pod string, state sandbox.ContainerState) sandbox.Container {
		return sandbox.Container{
			ID: id(name), PodID: id(pod), State: state, ImageID: imageID, ImageRef: "docker.io/library/busybox@sha256:2222",
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: 2},
				Image: &runtimeapi.ImageSpec{Image: imageID, UserSpecifiedImage: "busybox", ImageRef: "r", RuntimeHandler: "special",
					Annotations: map[string]string{"i": "j"}},
				Labels: map[string]string{"container": name, "all": "yes"}, Annotations: map[string]string{"note": name},
				Mounts: []*runtimeapi.Mount{{ContainerPath: "/m", Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "sub",
					UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}},
				Envs: []*runtimeapi.KeyValue{{Key: "SECRET", Value: []byte("hunter2")}}, Stdin: true,
			},
			User: rootfs.User{UID: 1000, GID: 1001, Groups: []uint32{1001, 5}}, Pid: 77,
			CreatedAt: time.Unix(2, 0), StartedAt: time.Unix(3, 0), FinishedAt: time.Unix(4, 0), ExitCode: 137,
			Reason: "OOMKilled", Message: "out of memory", LogPath: "/var/log/pods/x/0.log",
			Resources:  &runtimeapi.LinuxContainerResources{CpuShares: 5},
			StopSignal: runtimeapi.Signal_SIGNAL_SIGTERM,
		}
	}
	terminal := container("9", "a", sandbox.ContainerRunning)
	terminal.Config.Tty, terminal.Config.Stdin = true, false
	return &fakeSandboxes{
		pods: []sandbox.Pod{pod("a", sandbox.PodReady), pod("b", sandbox.PodStopped), pod("f", sandbox.PodCreating)},
		containers: []sandbox.Container{
			container("c", "a", sandbox.ContainerRunning), container("d", "a", sandbox.ContainerCreated), container("e", "a", sandbox.ContainerExited),
			container("7", "b", sandbox.ContainerRemoving), terminal, container("8", "b", sandbox.ContainerCreating),
			container("6", "f", sandbox.ContainerRunning),
		},
		events: make(chan sandbox.Event, 10),
	}
}

func testImages() *fakeImages {
	image := imagesvc.Image{
		ID: imageID, ChainID: "sha256:3333", Tags: []string{"docker.io/library/busybox:latest"}, Digests: []string{"docker.io/library/busybox@sha256:2222"},
		Size: 100, Annotations: map[string]string{"k": "v"}, Pinned: true,
	}
	image.Config.Config.User, image.Config.Config.Cmd = "1000:1000", []string{"sh"}
	named := imagesvc.Image{ID: "sha256:4444", Size: 1}
	named.Config.Config.User = "nobody"
	return &fakeImages{images: []imagesvc.Image{image, named}}
}
