package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/rootfs"
	"github.com/criserver/criserver/pkg/telemetry"
)

// CreateContainer creates a container in a ready pod and returns its ID. Like
// RunPod it joins an equal creation, or returns what that made.
func (m *Manager) CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error) {
	p, err := m.findPod(podID)
	if err != nil {
		return "", err
	}
	s := m.podSnapshot(p)
	if err := spec.CheckContainer(s.Config, cfg); err != nil {
		return "", err
	}
	img, err := m.o.Images.Image(cfg.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("image.image: %w", err)
	}
	if img.Artifact {
		return "", fmt.Errorf("image.image: %s is an artifact, which no container can run; mount it as a volume: %w", img.ID, errdefs.ErrInvalidArgument)
	}
	initPid := s.InitPid
	if containerSharesPID(cfg) && initPid == 0 {
		if initPid, err = m.ensureInit(ctx, p); err != nil {
			return "", err
		}
	}
	c, fresh, err := m.addContainer(p, cfg, img)
	if err != nil {
		return "", err
	}
	telemetry.About(ctx, c.subject())
	if fresh {
		m.background(func(bg context.Context) {
			defer m.beginCreation()()
			ctx, cancel := context.WithTimeout(telemetry.Carry(bg, ctx), createLimit)
			defer cancel()
			m.createContainer(ctx, c, img, initPid)
		})
	}
	if err := c.made.wait(ctx, c.creating); err != nil {
		return "", err
	}
	return c.id, nil
}

func containerSharesPID(cfg *runtimeapi.ContainerConfig) bool {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_POD
}

// addContainer finds the container that a request means, or adds a new one to a ready pod and locks it.
func (m *Manager) addContainer(p *pod, cfg *runtimeapi.ContainerConfig, img imagesvc.Image) (c *container, fresh bool, err error) {
	rec, err := m.newContainerRecord(p, cfg, img)
	if err != nil {
		return nil, false, err
	}
	key := containerKey{cfg.GetMetadata().GetName(), cfg.GetMetadata().GetAttempt()}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rec.State != PodReady {
		return nil, false, notReady(Pod{ID: p.id, State: p.rec.State})
	}
	if old, ok := p.containers[key]; ok {
		s := old.snapshot()
		if (s.State == ContainerCreating || s.State == ContainerCreated) && proto.Equal(s.Config, cfg) {
			return old, false, nil
		}
		return nil, false, fmt.Errorf("container %s of pod %s is %s and has the same metadata (name %q, attempt %d): remove it first or use another attempt: %w",
			old.id, p.id, s.State, key.name, key.attempt, errdefs.ErrAlreadyExists)
	}
	c = m.newContainer(newID(), key, p, rec)
	c.op <- struct{}{} // it is new: nobody holds it
	m.containers[c.id], p.containers[key] = c, c
	return c, true, nil
}

func (m *Manager) newContainerRecord(p *pod, cfg *runtimeapi.ContainerConfig, img imagesvc.Image) (containerRecord, error) {
	config, err := newMessage(cfg)
	if err != nil {
		return containerRecord{}, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	resources, err := newMessage(cfg.GetLinux().GetResources())
	if err != nil {
		return containerRecord{}, fmt.Errorf("config.linux.resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	sig, err := spec.StopSignal(&img.Config, cfg)
	if err != nil {
		return containerRecord{}, err
	}
	rec := containerRecord{
		State:      ContainerCreating,
		PodID:      p.id,
		Boot:       m.boot,
		Config:     config,
		ImageID:    img.ID,
		ImageRef:   img.ID.String(),
		CreatedAt:  now(),
		StopSignal: sig,
		Resources:  resources,
	}
	if len(img.Digests) > 0 {
		rec.ImageRef = img.Digests[0]
	}
	if rec.Volumes, err = m.volumeImages(cfg); err != nil {
		return containerRecord{}, err
	}
	if dir := p.snapshot().Config.GetLogDirectory(); dir != "" && cfg.GetLogPath() != "" {
		rec.LogPath = filepath.Join(dir, cfg.GetLogPath())
	}
	return rec, nil
}

// createContainer makes a container that addContainer added, or takes back what it made.
func (m *Manager) createContainer(ctx context.Context, c *container, img imagesvc.Image, initPid int) {
	err := m.buildContainer(ctx, c, img, initPid)
	if err == nil {
		c.op.unlock()
		c.made.finish(nil)
		m.containerEvent(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, c)
		return
	}
	err = fmt.Errorf("create container %s in pod %s: %w", c.key.name, c.pod.id, err)
	m.log.WithError(err).WithField("container", c.id).Warn("A container was not created")
	left := m.setContainerState(c, ContainerRemoving, nil)
	c.op.unlock()
	if left == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		left = m.removeContainer(ctx, c)
		cancel()
	}
	if left != nil {
		m.owe("container", c.id, left, func(ctx context.Context) error { return m.removeContainer(ctx, c) })
	}
	c.made.finish(err)
}

// buildContainer makes all that a container consists of, stage by stage.
func (m *Manager) buildContainer(ctx context.Context, c *container, img imagesvc.Image, initPid int) error {
	s := c.snapshot()
	b := &containerBuild{
		m: m, c: c, img: img, initPid: initPid,
		pod: m.podSnapshot(c.pod), cfg: s.Config, logPath: s.LogPath, dir: m.containerDir(c.id),
		volumes: map[string]string{},
	}
	defer b.close()
	stages := []stage{
		{"record", func(context.Context) error { return m.setContainerState(c, ContainerCreating, nil) }},
		{"log directory", b.makeLogDirectory},
		{"root filesystem", b.mountRootfs},
		{"image volumes", b.mountImages},
		{"user", b.resolveUser},
		{"volumes", b.makeVolumes},
		{"spec", b.makeSpec},
		{"CDI devices", b.injectDevices},
		{"plugins", b.adjust},
		{"labels", b.relabel},
		{"create", b.create},
	}
	if err := pass(ctx, c.atStage, stages); err != nil {
		return err
	}
	if err := b.finish(); err != nil {
		return err
	}
	m.note(ctx, HookPostCreate, c.pod, c)
	return nil
}

// finish records the container as created.
func (b *containerBuild) finish() error {
	resources, err := newMessage(b.resources())
	if err != nil {
		return err
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	b.c.newSpec = nil // from here on it is read from where the shim has it
	return b.m.setContainerStateLocked(b.c, ContainerCreated, func(r *containerRecord) {
		r.User, r.Pid, r.Resources = b.user, b.pid, resources
	})
}

// resources are those that the container was created with.
func (b *containerBuild) resources() *runtimeapi.LinuxContainerResources {
	asked := b.cfg.GetLinux().GetResources()
	if b.changed == nil {
		return asked
	}
	r := mergeResources(asked, b.changed)
	if adj := b.changed.GetOomScoreAdj(); adj != 0 {
		r.OomScoreAdj = adj
	}
	return r
}

// containerBuild is what the stages of a creation hand on.
type containerBuild struct {
	m       *Manager
	c       *container
	img     imagesvc.Image
	pod     Pod
	cfg     *runtimeapi.ContainerConfig
	dir     string
	logPath string
	initPid int

	root    *os.File // the mounted root filesystem
	user    rootfs.User
	volumes map[string]string
	opts    libct.CreateOptions
	changed *runtimeapi.LinuxContainerResources // by hooks
	pid     int
}

func (b *containerBuild) close() {
	if b.root != nil {
		b.root.Close()
	}
}

// makeLogDirectory makes the directories above the log; links in a log path lead nowhere else.
func (b *containerBuild) makeLogDirectory(context.Context) error {
	if b.logPath == "" {
		return nil
	}
	base := b.pod.Config.GetLogDirectory()
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	root, err := os.Open(base)
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := rootfs.MkdirAll(root, filepath.Dir(b.cfg.GetLogPath()), 0, 0)
	if err != nil {
		return fmt.Errorf("log_path: %w", err)
	}
	return d.Close()
}

func (b *containerBuild) mountRootfs(ctx context.Context) error {
	layers, err := b.use(ctx, b.img.ID)
	if err != nil {
		return err
	}
	r := wire.Rootfs{Lower: layers, Upper: filepath.Join(b.dir, "upper"), Work: filepath.Join(b.dir, "work")}
	r.UIDMap, r.GIDMap = spec.Mappings(b.pod.Config)
	for _, d := range []string{b.dir, r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	b.root, err = b.m.shim.MountRootfs(ctx, b.c.id, r)
	return err
}

func (b *containerBuild) resolveUser(context.Context) (err error) {
	b.user, err = rootfs.ResolveUser(b.root, b.img.Config.Config.User, b.cfg.GetLinux().GetSecurityContext())
	return err
}

// makeVolumes makes a fresh directory for each VOLUME of the image that no
// mount covers, with what the image has at its path.
func (b *containerBuild) makeVolumes(ctx context.Context) error {
	paths, err := spec.VolumePaths(&b.img.Config, b.cfg)
	if err != nil {
		return err
	}
	uid, gid := rootOwner(b.pod.Config)
	for i, path := range paths {
		dir := filepath.Join(b.dir, "volumes", strconv.Itoa(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return err
		}
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(rootfs.CopyUpContext(ctx, b.root, path, d), d.Close()); err != nil {
			return fmt.Errorf("volume %s: %w", path, err)
		}
		b.volumes[path] = dir
	}
	return nil
}

func (b *containerBuild) makeSpec(context.Context) error {
	ns := b.m.namespacePaths(b.pod.ID, b.pod.Config, b.initPid)
	target, err := b.m.targetPID(b.c, b.cfg)
	if err != nil {
		return err
	}
	if target > 0 {
		ns.PID = fmt.Sprintf("/proc/%d/ns/pid", target)
	}
	s, err := spec.Build(spec.Input{
		PodID:      b.pod.ID,
		ID:         b.c.id,
		Pod:        b.pod.Config,
		Container:  b.cfg,
		Image:      &b.img.Config,
		User:       b.user,
		Rootfs:     b.m.shim.RootfsPath(b.c.id),
		Hostname:   b.m.hostname(b.pod.Config),
		Namespaces: ns,
		Files:      b.m.files(b.pod.ID, b.pod.Config),
		Volumes:    b.volumes,
		Host:       b.m.o.Host,
		Defaults:   b.m.o.Defaults,
		Handler:    b.m.o.Handlers[b.pod.Handler],
	})
	b.opts = libct.CreateOptions{Spec: s, LogPath: b.logPath, Stdin: b.cfg.GetStdin(), SystemdCgroup: b.m.o.Defaults.SystemdCgroup}
	return err
}

// injectDevices adds the CDI devices that the container asks for.
func (b *containerBuild) injectDevices(context.Context) error {
	names, err := spec.CDIDevices(b.cfg)
	if err != nil || len(names) == 0 {
		return err
	}
	if err := b.m.o.Devices.Inject(b.opts.Spec, names); err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	return nil
}

func (b *containerBuild) create(ctx context.Context) (err error) {
	b.pid, err = b.m.shim.Create(ctx, b.c.id, b.opts)
	return err
}

// targetPID is the process whose PID namespace the container shares (CRI: NamespaceMode TARGET), 0 for none.
func (m *Manager) targetPID(c *container, cfg *runtimeapi.ContainerConfig) (int, error) {
	ns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return 0, nil
	}
	const field = "linux.security_context.namespace_options.target_id"
	t, err := m.findContainer(ns.GetTargetId())
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
	}
	s := t.snapshot()
	switch {
	case t.pod != c.pod:
		return 0, fmt.Errorf("%s: container %s is of another pod: %w", field, t.id, errdefs.ErrInvalidArgument)
	case s.State != ContainerRunning:
		return 0, fmt.Errorf("%s: container %s is %s, not running: %w", field, t.id, s.State, errdefs.ErrFailedPrecondition)
	}
	return s.Pid, nil
}
