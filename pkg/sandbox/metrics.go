package sandbox

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/stats"
)

// Reading is what metrics tell of a pod or of a container, read at one moment.
// A part is nil if the object has no such thing, or if it could not be read.
type Reading struct {
	At         time.Time
	Since      time.Time // when the object was started
	Cgroup     string    // its name; empty for a pod that was given none
	Detail     *stats.Detail
	Processes  *stats.Processes
	SoftLimits map[string]uint64 // of a container's first process, see stats.SoftLimits
	Interfaces []stats.Interface // of a pod
	Layer      *LayerReading     // of a container
	Resources  *runtimeapi.LinuxContainerResources
	Failed     bool // a part is missing for want of an answer
}

// LayerReading is what a container's writable layer occupies, and of what.
type LayerReading struct {
	Bytes      uint64
	Filesystem stats.Filesystem
}

// PodReading is what metrics tell of a ready pod and of its running containers.
type PodReading struct {
	Pod Pod
	Reading
	Containers []ContainerReading
}

// ContainerReading is a container's part of a PodReading.
type ContainerReading struct {
	Container Container
	Reading
}

// Readings reads all ready pods until ctx ends. What vanishes meanwhile is left out.
func (m *Manager) Readings(ctx context.Context) []*PodReading {
	fs, err := stats.FilesystemOf(m.containersDir())
	if err != nil {
		m.log.WithError(err).Warn("The filesystem of the writable layers could not be read")
	}
	return collect(ctx, m.allPods(), func(p *pod) *PodReading {
		s := m.podSnapshot(p)
		if s.State != PodReady {
			return nil
		}
		return m.readPod(ctx, p, s, fs)
	})
}

func (m *Manager) readPod(ctx context.Context, p *pod, s Pod, fs stats.Filesystem) *PodReading {
	r := &PodReading{Pod: s, Reading: Reading{At: time.Now(), Since: s.CreatedAt, Resources: s.Resources}}
	pid := s.InitPid
	for _, c := range p.all() {
		if cs := c.snapshot(); cs.State == ContainerRunning {
			pid = cs.Pid
			r.Containers = append(r.Containers, m.readContainer(ctx, c, cs, fs))
		}
	}
	if s.NetNS != "" {
		var err error
		r.Interfaces, err = stats.Interfaces(s.NetNS, pid)
		m.missing(&r.Reading, err, "pod", p.id)
	}
	if parent := s.Config.GetLinux().GetCgroupParent(); parent != "" {
		m.readCgroup(ctx, &r.Reading, stats.OfPath(parent, m.o.Defaults.SystemdCgroup), "pod", p.id)
	}
	return r
}

func (m *Manager) readContainer(ctx context.Context, c *container, s Container, fs stats.Filesystem) ContainerReading {
	r := ContainerReading{Container: s, Reading: Reading{At: time.Now(), Since: s.StartedAt, Resources: s.Resources}}
	layer := m.disk.of(c.id)
	r.Layer = &LayerReading{Bytes: layer.GetUsedBytes().GetValue(), Filesystem: fs}
	cg, err := c.findCgroup(s.Pid)
	if m.missing(&r.Reading, err, "container", c.id) {
		return r
	}
	m.readCgroup(ctx, &r.Reading, cg, "container", c.id)
	r.SoftLimits, err = stats.SoftLimits(s.Pid)
	m.missing(&r.Reading, err, "container", c.id)
	return r
}

func (m *Manager) readCgroup(ctx context.Context, r *Reading, cg stats.Cgroup, kind, id string) {
	r.Cgroup = cg.Name()
	if d, err := cg.Detail(); !m.missing(r, err, kind, id) {
		r.Detail = &d
	}
	if p, err := cg.Processes(ctx); !m.missing(r, err, kind, id) {
		r.Processes = &p
	}
}

// missing says whether err keeps a part of a reading back. That something has just ended is no failure.
func (m *Manager) missing(r *Reading, err error, kind, id string) bool {
	if err != nil && !errdefs.IsNotFound(err) {
		r.Failed = true
		m.log.WithError(err).WithField(kind, id).Debug("A metric could not be read")
	}
	return err != nil
}
