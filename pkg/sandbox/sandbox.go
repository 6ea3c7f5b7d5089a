// Package sandbox is the heart of the runtime: it owns pods and containers,
// their state machines, their order of locks, and their recovery. Its users are
// the edges (package cri); it uses images, the network and the shim.
//
// # State
//
// The states and the transitions between them stand in state.go; a transition
// that is not there is refused. One record file for each object is the one
// truth: it is written before the effect that it announces is reported.
//
// # Names
//
// Every directory, mount, namespace, cgroup and network attachment has a name
// that is a function of the object's ID. So removal works from the ID alone and
// may be repeated, and recovery of a half-made object is to remove it.
//
// # Creations
//
// A creation runs on its own, whatever becomes of the request that asked for
// it. A request for the same object joins it, or gets what it made. An object
// whose creation failed is removed before the error is told: no name stays
// reserved by something that is not there.
//
// # Locks
//
// An object's operation lock is held over slow work and honours the context;
// its mutex only guards its record. Order: pod's operation lock, container's
// operation lock, Manager.mu, an object's mutex. Lists take no operation lock,
// and exec, stats and status never wait for a slow stop.
//
// # Debts
//
// What could not be undone stays as a record in state removing (or a pod in
// state stopping) and is tried again, with growing pauses, until it is done.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/sandbox/store"
	"github.com/criserver/criserver/pkg/stats"
	"github.com/criserver/criserver/pkg/telemetry"
)

// Images is what the sandbox needs of imagesvc.
type Images interface {
	Image(refOrID string) (imagesvc.Image, error)
	Use(ctx context.Context, id digest.Digest) ([]string, error)
	Release(id digest.Digest)
	Retain(ctx context.Context, uses map[digest.Digest]int) error
}

// Network is what the sandbox needs of cni.
type Network interface {
	Setup(ctx context.Context, p cni.Pod) (cni.Result, error)
	Teardown(ctx context.Context, p cni.Pod) error
	GC(ctx context.Context, keep []cni.Pod) error
	Check(ctx context.Context, p cni.Pod) error
}

// Shim is what the sandbox needs of libct.
type Shim interface {
	MountRootfs(ctx context.Context, id string, r wire.Rootfs) (*os.File, error)
	RootfsPath(id string) string
	MountImages(ctx context.Context, id string, images []wire.Image) error
	ImagePath(id string, n int) string
	Create(ctx context.Context, id string, o libct.CreateOptions) (pid int, err error)
	Start(ctx context.Context, id string) error
	Prewarm()
	Exec(ctx context.Context, id string, p *specs.Process, io libct.Stdio) (*libct.Process, error)
	Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error
	Attach(ctx context.Context, id string, out, err io.Writer, attached func()) error
	Stdin(id string) (io.WriteCloser, error)
	CloseStdin(ctx context.Context, id string) error
	Resize(id string, width, height uint16) error
	ReopenLog(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	Delete(ctx context.Context, id, cgroup string) error
	StartInit(ctx context.Context, pod string, a wire.InitArgs, profile *specs.LinuxSeccomp, join ...*os.File) (pid int, err error)
	List(ctx context.Context) ([]wire.ContainerState, error)
	Spec(id string) (*specs.Spec, error)
	Close() error
}

// Devices are what the sandbox needs of cdi.
type Devices interface {
	Inject(s *specs.Spec, names []string) error
}

// Options configure Open.
type Options struct {
	Root     string // durable directory, e.g. /var/lib/criserver
	State    string // directory that is empty after a boot, e.g. /run/criserver
	Shim     string // path of criserver-shim
	Images   Images
	Network  Network
	Devices  Devices // for CDI
	Hooks    Hooks   // nil: none
	Host     spec.Host
	Defaults spec.Defaults
	Handlers map[string]spec.Handler // runtime handlers beside the default "", by name
	Log      *logrus.Entry

	openShim func(context.Context, libct.Options) (Shim, error) // for tests; nil: libct.Open
}

// Manager owns the pods and containers of the node. It is safe for concurrent
// use. Its errors wrap the kinds of github.com/containerd/errdefs: ErrNotFound,
// ErrInvalidArgument, ErrFailedPrecondition (wrong state), ErrAlreadyExists,
// ErrUnavailable; errors of a context are passed on as they are. Where an ID is
// asked for, an unambiguous prefix will do.
type Manager struct {
	o     Options
	log   *logrus.Entry
	store *store.Store
	shim  Shim
	boot  string // boot ID of the kernel

	samples *stats.Sampler
	disk    *diskUsage
	events  *broadcaster

	ctx    context.Context // ends at Close; work that outlives a request runs under it
	cancel context.CancelFunc
	work   sync.WaitGroup

	networkSwept chan struct{} // closed when pods may be attached

	creations atomic.Int32 // under way

	damaged atomic.Pointer[[]string] // pods whose network is; nil: not looked yet

	mu         sync.RWMutex // guards the maps
	pods       map[string]*pod
	containers map[string]*container
	podKeys    map[podKey]*pod
}

// Open loads the records, connects to the shim or starts it, and brings the
// records into line with what is running. What is slow goes on after Open has
// returned: half-made objects and what no record claims are removed, debts are
// tried again.
func Open(ctx context.Context, o Options) (*Manager, error) {
	m := &Manager{
		o:          o,
		log:        o.Log,
		samples:    stats.NewSampler(),
		events:     newBroadcaster(),
		pods:       map[string]*pod{},
		containers: map[string]*container{},
		podKeys:    map[podKey]*pod{},

		networkSwept: make(chan struct{}),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.disk = newDiskUsage(m)
	if m.o.openShim == nil {
		m.o.openShim = func(ctx context.Context, o libct.Options) (Shim, error) { return libct.Open(ctx, o) }
	}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Manager) open(ctx context.Context) error {
	for _, d := range []string{m.o.Root, m.o.State, m.podsDir(), m.containersDir()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("open sandboxes: %w", err)
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("open sandboxes: %w", err)
	}
	m.boot = string(boot[:len(boot)-1])
	if m.store, err = store.Open(filepath.Join(m.o.Root, "records")); err != nil {
		return err
	}
	if err := m.load(); err != nil {
		return err
	}
	m.shim, err = m.o.openShim(ctx, libct.Options{
		Binary:    m.o.Shim,
		State:     m.o.State,
		Log:       m.log,
		OnExit:    m.exited,
		OnReplace: m.reconcileLater,
	})
	if err != nil {
		return err
	}
	return m.recover(ctx)
}

// Close ends what the manager runs in the background and hangs up on the shim. The pods run on.
func (m *Manager) Close() error {
	m.cancel()
	m.work.Wait()
	m.events.close()
	if m.shim == nil {
		return nil
	}
	return m.shim.Close()
}

// background runs f until it ends; Close waits for it, and its context ends at Close.
func (m *Manager) background(f func(context.Context)) {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		f(m.ctx)
	}()
}

// beginCreation lets the shim prepare for a creation when none is under way;
// those that come while one is find the kernel prepared. The returned function ends it.
func (m *Manager) beginCreation() (end func()) {
	if m.creations.Add(1) == 1 {
		m.shim.Prewarm()
	}
	return func() { m.creations.Add(-1) }
}

// detached runs f to its end even if the caller's context ends before, within
// limit; the caller then gets the context's error and what f was doing.
func (m *Manager) detached(ctx context.Context, limit time.Duration, what string, f func(context.Context) error) error {
	done := make(chan error, 1)
	m.background(func(mctx context.Context) {
		fctx, cancel := context.WithTimeout(telemetry.Carry(mctx, ctx), limit)
		defer cancel()
		done <- f(fctx)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on, ask again: %w", what, ctx.Err())
	}
}

// The directories, all functions of an ID.

func (m *Manager) podsDir() string       { return filepath.Join(m.o.State, "pods") }
func (m *Manager) containersDir() string { return filepath.Join(m.o.Root, "containers") }

// cgroup is that of a container or init; empty for a parent that cannot be, below which nothing was made.
func (m *Manager) cgroup(id string, pod *runtimeapi.PodSandboxConfig) string {
	path, err := spec.CgroupsPath(pod.GetLinux().GetCgroupParent(), id, m.o.Defaults.SystemdCgroup)
	if err != nil {
		return ""
	}
	return path
}

func (m *Manager) podDir(id string) string       { return filepath.Join(m.podsDir(), id) }
func (m *Manager) containerDir(id string) string { return filepath.Join(m.containersDir(), id) }
