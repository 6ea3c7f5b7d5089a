package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// fakeImages has one image, and counts its uses.
type fakeImages struct {
	mu   sync.Mutex
	uses map[digest.Digest]int
}

var testImage = digest.FromString("image")

func (f *fakeImages) Image(ref string) (imagesvc.Image, error) {
	if ref != "image" {
		return imagesvc.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	img := imagesvc.Image{ID: testImage}
	img.Config.Config.Cmd = []string{"true"}
	return img, nil
}

func (f *fakeImages) Use(context.Context, digest.Digest) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses[testImage]++
	return []string{"/nowhere"}, nil
}

func (f *fakeImages) Release(id digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses[id]--
}

func (f *fakeImages) Retain(_ context.Context, uses map[digest.Digest]int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses = uses
	if uses == nil {
		f.uses = map[digest.Digest]int{}
	}
	return nil
}

func (f *fakeImages) used() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.uses[testImage]
}

// fakeNetwork attaches pods to nothing; a test may hold or fail its calls.
type fakeNetwork struct {
	mu                sync.Mutex
	setupErr, downErr error
	hold              chan struct{} // Setup waits until it is closed
	attached          map[string]bool
	setups            int
	kept              [][]string // by each GC
}

func (f *fakeNetwork) Setup(ctx context.Context, p cni.Pod) (cni.Result, error) {
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return cni.Result{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setups++
	if f.setupErr != nil {
		return cni.Result{}, f.setupErr
	}
	f.attached[p.ID] = true
	return cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}, nil
}

func (f *fakeNetwork) Teardown(_ context.Context, p cni.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.downErr != nil {
		return f.downErr
	}
	delete(f.attached, p.ID)
	return nil
}

func (f *fakeNetwork) Check(_ context.Context, p cni.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.attached[p.ID] {
		return errors.New("not attached")
	}
	return nil
}

func (f *fakeNetwork) GC(_ context.Context, keep []cni.Pod) error {
	var ids []string
	for _, p := range keep {
		ids = append(ids, p.ID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = append(f.kept, ids)
	return nil
}

func (f *fakeNetwork) fail(setup, down error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setupErr, f.downErr = setup, down
}

func (f *fakeNetwork) count() (attached, setups int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.attached), f.setups
}

// fakeShim runs containers that do nothing; it outlives managers as the real one outlives daemons.
type fakeShim struct {
	dir    string
	onExit func(string, wire.Exit)

	mu       sync.Mutex
	states   map[string]*wire.ContainerState
	signals  map[string][]syscall.Signal
	startErr error
	onStart  func(id string) // called within Start

	imagesErr error // of MountImages
	createErr error
	stuck     bool // Create waits for the end of its context
	inits     []wire.InitArgs
	deleteErr error
	specs     map[string]*specs.Spec // of what was created
}

func (f *fakeShim) MountRootfs(context.Context, string, wire.Rootfs) (*os.File, error) {
	return os.Open(f.dir)
}
func (f *fakeShim) RootfsPath(id string) string                             { return filepath.Join(f.dir, id) }
func (f *fakeShim) MountImages(context.Context, string, []wire.Image) error { return f.imagesErr }
func (f *fakeShim) ImagePath(string, int) string                            { return f.dir }

func (f *fakeShim) Create(ctx context.Context, id string, o libct.CreateOptions) (int, error) {
	if f.stuck {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.createErr != nil {
		return 0, f.createErr
	}
	f.specs[id] = o.Spec
	f.states[id] = &wire.ContainerState{ID: id, Pid: os.Getpid()}
	return os.Getpid(), nil
}

func (f *fakeShim) Start(_ context.Context, id string) error {
	f.mu.Lock()
	err, hook := f.startErr, f.onStart
	if err == nil {
		f.states[id].Started = true
	}
	f.mu.Unlock()
	if hook != nil {
		hook(id)
	}
	return err
}

// exit ends a container; the manager is told unless it is away.
func (f *fakeShim) exit(id string, e wire.Exit, tell bool) {
	f.mu.Lock()
	s := f.states[id]
	ended := s != nil && s.Exit == nil
	if ended {
		e.At = time.Now()
		s.Exit = &e
	}
	f.mu.Unlock()
	if ended && tell {
		f.onExit(id, e)
	}
}

func (f *fakeShim) Signal(_ context.Context, id string, sig syscall.Signal, _ bool) error {
	f.mu.Lock()
	f.signals[id] = append(f.signals[id], sig)
	_, ok := f.states[id]
	f.mu.Unlock()
	if !ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if sig == syscall.SIGKILL {
		go f.exit(id, wire.Exit{Code: 137, Signal: 9}, true)
	}
	return nil
}

func (f *fakeShim) sent(id string) []syscall.Signal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]syscall.Signal(nil), f.signals[id]...)
}

func (f *fakeShim) failDelete(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleteErr = err
}

func (f *fakeShim) Delete(_ context.Context, id, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deleteErr != nil {
		return f.deleteErr
	}
	delete(f.states, id)
	return nil
}

func (f *fakeShim) StartInit(_ context.Context, pod string, a wire.InitArgs, _ *specs.LinuxSeccomp, _ ...*os.File) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inits = append(f.inits, a)
	f.states[pod] = &wire.ContainerState{ID: pod, Pid: os.Getpid(), Init: true, Started: true}
	return os.Getpid(), nil
}

func (f *fakeShim) List(context.Context) ([]wire.ContainerState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []wire.ContainerState
	for _, s := range f.states {
		l = append(l, *s)
	}
	return l, nil
}

func (f *fakeShim) has(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[id] != nil
}

func (f *fakeShim) Exec(context.Context, string, *specs.Process, libct.Stdio) (*libct.Process, error) {
	return nil, errdefs.ErrNotImplemented
}
func (f *fakeShim) Attach(context.Context, string, io.Writer, io.Writer, func()) error { return nil }
func (f *fakeShim) Stdin(string) (io.WriteCloser, error)                               { return nil, errdefs.ErrNotFound }
func (f *fakeShim) CloseStdin(context.Context, string) error                           { return nil }
func (f *fakeShim) Resize(string, uint16, uint16) error                                { return nil }
func (f *fakeShim) ReopenLog(context.Context, string) error                            { return nil }
func (f *fakeShim) Update(context.Context, string, *specs.LinuxResources) error {
	return nil
}
func (f *fakeShim) Prewarm()                         {}
func (f *fakeShim) Spec(string) (*specs.Spec, error) { return &specs.Spec{}, nil }
func (f *fakeShim) Close() error                     { return nil }

// node is a manager with fakes around it, which can be killed and opened again.
type node struct {
	*Manager
	t      *testing.T
	dir    string
	images *fakeImages
	net    *fakeNetwork
	fake   *fakeShim
	hooks  Hooks
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes namespaces and needs root")
	}
	dir := t.TempDir()
	n := &node{
		t:      t,
		dir:    dir,
		images: &fakeImages{},
		net:    &fakeNetwork{attached: map[string]bool{}},
		fake:   &fakeShim{dir: dir, states: map[string]*wire.ContainerState{}, signals: map[string][]syscall.Signal{}, specs: map[string]*specs.Spec{}},
	}
	n.open()
	t.Cleanup(func() {
		n.net.fail(nil, nil)
		for _, p := range n.Pods() {
			if err := n.RemovePod(context.Background(), p.ID); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		n.Close()
	})
	return n
}

func (n *node) open() {
	n.t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	m, err := Open(context.Background(), Options{
		Root:    filepath.Join(n.dir, "root"),
		State:   filepath.Join(n.dir, "state"),
		Images:  n.images,
		Network: n.net,
		Devices: fakeDevices{},
		Hooks:   n.hooks,
		Host:    spec.Host{Controllers: map[string]bool{}},
		Log:     logrus.NewEntry(log),
		openShim: func(_ context.Context, o libct.Options) (Shim, error) {
			n.fake.onExit = o.OnExit
			return n.fake, nil
		},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Manager = m
}

// reopen is what a killed and restarted daemon does.
func (n *node) reopen() {
	n.t.Helper()
	n.Close()
	n.open()
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "image"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func (n *node) runPod(name string) string {
	n.t.Helper()
	id, err := n.RunPod(context.Background(), podConfig(name), "")
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) create(pod, name string) string {
	n.t.Helper()
	id, err := n.CreateContainer(context.Background(), pod, containerConfig(name))
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) start(id string) {
	n.t.Helper()
	if err := n.StartContainer(context.Background(), id); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) container(id string) Container {
	n.t.Helper()
	c, err := n.Container(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// eventually waits until ok holds; the test fails when it does not within ten seconds.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("not within 10 s: %s", what)
		}
	}
}
