package libct

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/telemetry"
)

// Files in a container's directory. originalName is there if the spec that the
// shim got differs from the one that Create got.
const (
	configName   = "config.json"
	originalName = "spec.json"
)

func (s *Shim) dir(id string) string { return filepath.Join(s.o.State, containerName, id) }

// RootfsPath is where the root filesystem of a container is in the shim's mount namespace.
func (s *Shim) RootfsPath(id string) string { return filepath.Join(s.o.State, rootfsName, id) }

// MountRootfs mounts the root filesystem of a container, unless it is, and returns its opened root directory.
func (s *Shim) MountRootfs(ctx context.Context, id string, r wire.Rootfs) (*os.File, error) {
	_, files, err := s.call(ctx, &wire.Request{Method: wire.MountRootfs, ID: id, Rootfs: &r})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		wire.CloseFiles(files)
		return nil, fmt.Errorf("mount root filesystem of %s: no directory came: %w", id, errdefs.ErrInternal)
	}
	return files[0], nil
}

// MountImages mounts images as volumes of a container whose root filesystem is
// mounted. What is wrong with a sub path is ErrInvalidArgument.
func (s *Shim) MountImages(ctx context.Context, id string, images []wire.Image) error {
	return s.simple(ctx, &wire.Request{Method: wire.MountImages, ID: id, Images: images})
}

// ImagePath is where the n-th image of MountImages is in the mount namespace in which the container is made.
func (s *Shim) ImagePath(id string, n int) string {
	return filepath.Join(s.o.State, rootfsName, id+imagesSuffix, strconv.Itoa(n))
}

// cleanupTime bounds the removal of what a failed Create has left.
const cleanupTime = 30 * time.Second

// Create creates a container; its rootfs must be mounted. On error nothing is left but the rootfs,
// and not that either if it was never known how the call went.
// A command that cannot be executed is not an error here but of Start, and pid is 0 then.
func (s *Shim) Create(ctx context.Context, id string, o CreateOptions) (pid int, err error) {
	if id == "" || id != filepath.Base(id) || id[0] == '.' {
		return 0, fmt.Errorf("container id %.80q: must be a plain name: %w", id, errdefs.ErrInvalidArgument)
	}
	if o.Spec == nil || o.Spec.Process == nil || o.Spec.Root == nil {
		return 0, fmt.Errorf("container %s: spec: must have process and root: %w", id, errdefs.ErrInvalidArgument)
	}
	if err := os.Mkdir(s.dir(id), 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return 0, fmt.Errorf("container %s: exists already: %w", id, errdefs.ErrAlreadyExists)
		}
		return 0, err
	}
	_, done := telemetry.Stage(ctx, "write spec")
	err = s.writeSpec(id, o.Spec)
	done(err)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(s.dir(id)))
	}
	reply, files, err := s.call(ctx, &wire.Request{Method: wire.Create, ID: id, Create: &wire.CreateArgs{
		LogPath: o.LogPath, Terminal: o.Spec.Process.Terminal, Stdin: o.Stdin && !o.Spec.Process.Terminal,
		SystemdCgroup: o.SystemdCgroup,
	}})
	switch {
	case err == nil:
		for _, stage := range reply.Stages {
			telemetry.Past(ctx, stage.Name, time.Unix(0, stage.From), time.Unix(0, stage.To))
		}
		s.keep(id, files)
		return reply.Pid, nil
	case refused(err):
		return 0, errors.Join(err, os.RemoveAll(s.dir(id)))
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return 0, errors.Join(err, s.Delete(clean, id, ""))
}

// writeSpec writes config.json for the shim, in which the seccomp profile is
// compiled, and the original beside it.
func (s *Shim) writeSpec(id string, spec *specs.Spec) error {
	compiled, err := withCompiledSeccomp(spec)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(s.dir(id), configName), compiled); err != nil {
		return err
	}
	if compiled == spec {
		return nil
	}
	return writeJSON(filepath.Join(s.dir(id), originalName), spec)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, b, 0o600)
}

// Spec reads back the spec that the container was created with.
func (s *Shim) Spec(id string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(s.dir(id), originalName))
	if errors.Is(err, fs.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(s.dir(id), configName))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("container %s: spec: %w", id, err)
	}
	return &spec, nil
}

// Start executes the container's command. A command that cannot be executed gives a *StartError.
func (s *Shim) Start(ctx context.Context, id string) error {
	return s.simple(ctx, &wire.Request{Method: wire.Start, ID: id})
}

// simple makes a call whose reply says nothing but that it worked.
func (s *Shim) simple(ctx context.Context, req *wire.Request) error {
	_, files, err := s.call(ctx, req)
	wire.CloseFiles(files)
	return err
}

// Signal sends a signal to the container's first process or, with all, to every process in its cgroup.
func (s *Shim) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return s.simple(ctx, &wire.Request{Method: wire.Signal, ID: id, Signal: int(sig), All: all})
}

// ReopenLog starts a new log file at the container's log path, after the old one
// was renamed. When it returns the new one exists. A container that has ended is
// an error.
func (s *Shim) ReopenLog(ctx context.Context, id string) error {
	return s.simple(ctx, &wire.Request{Method: wire.ReopenLog, ID: id})
}

// Update changes the resources that r names, all of them or on error none.
func (s *Shim) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	return s.simple(ctx, &wire.Request{Method: wire.Update, ID: id, Resources: r})
}

// Pause freezes the container.
func (s *Shim) Pause(ctx context.Context, id string) error {
	return s.simple(ctx, &wire.Request{Method: wire.Pause, ID: id})
}

// Resume thaws the container.
func (s *Shim) Resume(ctx context.Context, id string) error {
	return s.simple(ctx, &wire.Request{Method: wire.Resume, ID: id})
}

// Delete kills what is left of the container, removes its cgroup, unmounts its rootfs and removes
// <state>/containers/<id>. A container that is not there is no error. Works from the ID alone; should even the
// directory be lost, cgroup (as in the spec's linux.cgroupsPath; empty: not known) says where its processes are.
func (s *Shim) Delete(ctx context.Context, id, cgroup string) error {
	if err := s.simple(ctx, &wire.Request{Method: wire.Delete, ID: id, Cgroup: cgroup}); err != nil {
		return err
	}
	s.dropSpare(id)
	s.closeWriters(id)
	return nil
}

// StartInit starts pid 1 of a pod that shares its PID namespace; it ends by Signal and Delete with the pod's ID.
// A profile, if there is one, becomes its seccomp filter. The profile's flags are not for it: they say how system
// calls are logged or run, and it makes none but to wait.
func (s *Shim) StartInit(ctx context.Context, pod string, a wire.InitArgs, profile *specs.LinuxSeccomp, join ...*os.File) (pid int, err error) {
	if profile != nil {
		if a.Filter, err = compiledProfiles.compile(profile); err != nil {
			return 0, err
		}
	}
	reply, files, err := s.call(ctx, &wire.Request{Method: wire.StartInit, ID: pod, Init: &a}, join...)
	if err != nil {
		return 0, err
	}
	s.keep(pod, files)
	return reply.Pid, nil
}

// List returns the state of every container and init that the shim has.
func (s *Shim) List(ctx context.Context) ([]wire.ContainerState, error) {
	reply, _, err := s.call(ctx, &wire.Request{Method: wire.List})
	return reply.Containers, err
}
