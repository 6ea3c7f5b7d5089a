package sandbox

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/stats"
)

// ContainerStats says what a container uses; one that is not running has only its writable layer.
func (m *Manager) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return nil, err
	}
	cs, _ := m.containerStats(c)
	return cs, ctx.Err()
}

// ContainersStats says what the running containers use that keep accepts. What vanishes meanwhile is left out.
func (m *Manager) ContainersStats(ctx context.Context, keep func(Container) bool) []*runtimeapi.ContainerStats {
	return collect(ctx, m.allContainers(), func(c *container) *runtimeapi.ContainerStats {
		if s := c.snapshot(); s.State != ContainerRunning || !keep(s) {
			return nil
		}
		cs, _ := m.containerStats(c)
		return cs
	})
}

// maxReaders bounds how many processors the reading of figures takes.
const maxReaders = 4

// collect reads all objects, some at the same time, until ctx ends, and returns in their order what is not nil.
func collect[T, R any](ctx context.Context, objects []T, read func(T) *R) []*R {
	all := make([]*R, len(objects))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(maxReaders, runtime.GOMAXPROCS(0), len(objects)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(objects)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				all[i] = read(objects[i])
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(all, func(r *R) bool { return r == nil })
}

// containerStats leaves the parts nil that cannot be read, as they cannot of a container that has just ended. The usage
// is what they were made of.
func (m *Manager) containerStats(c *container) (*runtimeapi.ContainerStats, *stats.Usage) {
	s := c.snapshot()
	cs := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          c.id,
			Metadata:    s.Config.GetMetadata(),
			Labels:      s.Config.GetLabels(),
			Annotations: s.Config.GetAnnotations(),
		},
		WritableLayer: m.disk.of(c.id),
	}
	if s.State != ContainerRunning {
		return cs, nil
	}
	u, err := m.usage(c, s.Pid)
	if err != nil {
		m.log.WithError(err).WithField("container", c.id).Debug("The usage of a container could not be read")
		return cs, nil
	}
	cs.Cpu, cs.Memory, cs.Swap = cpuUsage(u), memoryUsage(u), swapUsage(u)
	if u.IOPSI != nil {
		cs.Io = &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: psi(u.IOPSI)}
	}
	return cs, &u
}

// usage reads the container's cgroup.
func (m *Manager) usage(c *container, pid int) (stats.Usage, error) {
	cg, err := c.findCgroup(pid)
	if err != nil {
		return stats.Usage{}, err
	}
	return m.samples.Read(cg)
}

// findCgroup returns the container's cgroup, which is found once by its first process.
func (c *container) findCgroup(pid int) (stats.Cgroup, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cgroup == nil {
		found, err := stats.OfProcess(pid)
		if err != nil {
			return stats.Cgroup{}, err
		}
		c.cgroup = &found
	}
	return *c.cgroup, nil
}

// PodStats says what a pod uses.
func (m *Manager) PodStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	p, err := m.findPod(id)
	if err != nil {
		return nil, err
	}
	if s := p.snapshot(); s.State != PodReady {
		return nil, fmt.Errorf("stats: %w", notReady(s))
	}
	return m.podStats(p), ctx.Err()
}

// PodsStats says what the ready pods use that keep accepts.
func (m *Manager) PodsStats(ctx context.Context, keep func(Pod) bool) []*runtimeapi.PodSandboxStats {
	return collect(ctx, m.allPods(), func(p *pod) *runtimeapi.PodSandboxStats {
		if s := p.snapshot(); s.State != PodReady || !keep(s) {
			return nil
		}
		return m.podStats(p)
	})
}

func (m *Manager) podStats(p *pod) *runtimeapi.PodSandboxStats {
	s := m.podSnapshot(p)
	l := &runtimeapi.LinuxPodSandboxStats{}
	var parts []stats.Usage
	pid := s.InitPid
	for _, c := range p.all() {
		running := c.snapshot()
		if running.State != ContainerRunning {
			continue
		}
		pid = running.Pid
		cs, u := m.containerStats(c)
		l.Containers = append(l.Containers, cs)
		if u != nil {
			parts = append(parts, *u)
		}
	}
	if u, err := m.podUsage(s, parts); err == nil {
		l.Cpu, l.Memory = cpuUsage(u), memoryUsage(u)
		l.Process = &runtimeapi.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: &runtimeapi.UInt64Value{Value: u.Pids}}
		if u.IOPSI != nil {
			l.Io = &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: psi(u.IOPSI)}
		}
	} else if !errdefs.IsNotFound(err) {
		m.log.WithError(err).WithField("pod", p.id).Debug("The usage of a pod could not be read")
	}
	l.Network = m.networkUsage(s, pid)
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.id,
			Metadata:    s.Config.GetMetadata(),
			Labels:      s.Config.GetLabels(),
			Annotations: s.Config.GetAnnotations(),
		},
		Linux: l,
	}
}

// podUsage reads the cgroup that the pod was given. A pod without one uses what its containers do, and its init.
func (m *Manager) podUsage(s Pod, containers []stats.Usage) (stats.Usage, error) {
	if parent := s.Config.GetLinux().GetCgroupParent(); parent != "" {
		return m.samples.Read(stats.OfPath(parent, m.o.Defaults.SystemdCgroup))
	}
	if s.InitPid == 0 {
		return stats.Sum(containers), nil
	}
	cg, err := stats.OfProcess(s.InitPid)
	if err != nil {
		return stats.Usage{}, err
	}
	init, err := m.samples.Read(cg)
	if err != nil {
		return stats.Usage{}, err
	}
	return stats.Sum(append(containers, init)), nil
}

// networkUsage takes a process of the pod, 0 for none.
func (m *Manager) networkUsage(s Pod, pid int) *runtimeapi.NetworkUsage {
	if s.NetNS == "" {
		return nil
	}
	list, err := stats.Interfaces(s.NetNS, pid)
	if err != nil {
		m.log.WithError(err).WithField("pod", s.ID).Debug("The interfaces of a pod could not be read")
		return nil
	}
	u := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, i := range list {
		nu := &runtimeapi.NetworkInterfaceUsage{
			Name:     i.Name,
			RxBytes:  &runtimeapi.UInt64Value{Value: i.RxBytes},
			RxErrors: &runtimeapi.UInt64Value{Value: i.RxErrors},
			TxBytes:  &runtimeapi.UInt64Value{Value: i.TxBytes},
			TxErrors: &runtimeapi.UInt64Value{Value: i.TxErrors},
		}
		u.Interfaces = append(u.Interfaces, nu)
		if i.Name == "eth0" {
			u.DefaultInterface = nu
		}
	}
	return u
}

func uint64Value(v *uint64) *runtimeapi.UInt64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: *v}
}

func cpuUsage(u stats.Usage) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp:            u.At.UnixNano(),
		UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: u.CPUNanos},
		UsageNanoCores:       uint64Value(u.CPURate),
		Psi:                  psi(u.CPUPSI),
	}
}

func memoryUsage(u stats.Usage) *runtimeapi.MemoryUsage {
	mu := &runtimeapi.MemoryUsage{
		Timestamp:       u.At.UnixNano(),
		WorkingSetBytes: &runtimeapi.UInt64Value{Value: u.WorkingSet},
		UsageBytes:      &runtimeapi.UInt64Value{Value: u.MemoryUsage},
		RssBytes:        &runtimeapi.UInt64Value{Value: u.RSS},
		PageFaults:      &runtimeapi.UInt64Value{Value: u.PageFaults},
		MajorPageFaults: &runtimeapi.UInt64Value{Value: u.MajorPageFaults},
		Psi:             psi(u.MemoryPSI),
	}
	if u.MemoryLimit != nil {
		mu.AvailableBytes = &runtimeapi.UInt64Value{Value: *u.MemoryLimit - min(u.WorkingSet, *u.MemoryLimit)}
	}
	return mu
}

func swapUsage(u stats.Usage) *runtimeapi.SwapUsage {
	su := &runtimeapi.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: uint64Value(u.SwapUsage)}
	if u.SwapLimit != nil && u.SwapUsage != nil {
		su.SwapAvailableBytes = &runtimeapi.UInt64Value{Value: *u.SwapLimit - min(*u.SwapUsage, *u.SwapLimit)}
	}
	return su
}

func psi(p *stats.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(d stats.PSIData) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &runtimeapi.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}

// diskAge is how old a figure of a writable layer may be.
const diskAge = 10 * time.Second

// diskUsage knows what the writable layers occupy. Walking a layer takes time,
// so an old figure is given while a new one is made, by one walk at a time.
type diskUsage struct {
	m    *Manager
	walk sync.Mutex // one walk at a time

	mu      sync.Mutex
	layers  map[string]layerUsage
	walking map[string]bool
}

type layerUsage struct {
	at            time.Time
	bytes, inodes uint64
}

func newDiskUsage(m *Manager) *diskUsage {
	return &diskUsage{m: m, layers: map[string]layerUsage{}, walking: map[string]bool{}}
}

// of returns the usage of a container's writable layer, nil until it was first measured.
func (d *diskUsage) of(id string) *runtimeapi.FilesystemUsage {
	d.mu.Lock()
	u, ok := d.layers[id]
	d.mu.Unlock()
	switch {
	case !ok:
		u = d.measure(id) // a first walk finds next to nothing
	case time.Since(u.at) > diskAge:
		d.refresh(id)
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  u.at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: d.m.containersDir()},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.inodes},
	}
}

func (d *diskUsage) refresh(id string) {
	d.mu.Lock()
	busy := d.walking[id]
	d.walking[id] = true
	d.mu.Unlock()
	if busy {
		return
	}
	d.m.background(func(context.Context) {
		d.measure(id)
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.walking, id)
	})
}

func (d *diskUsage) measure(id string) layerUsage {
	d.walk.Lock()
	defer d.walk.Unlock()
	u := layerUsage{at: time.Now()}
	var err error
	if u.bytes, u.inodes, err = stats.Disk(d.m.containerDir(id)); err != nil {
		d.m.log.WithError(err).WithField("container", id).Debug("A writable layer could not be measured")
	}
	d.m.mu.RLock()
	defer d.m.mu.RUnlock()
	if _, ok := d.m.containers[id]; ok {
		d.mu.Lock()
		d.layers[id] = u
		d.mu.Unlock()
	}
	return u
}

func (d *diskUsage) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.layers, id)
}

// FSUsage is what the writable layers of all containers occupy.
func (m *Manager) FSUsage(ctx context.Context) (imagesvc.Usage, error) {
	u, err := imagesvc.UsageOn(m.containersDir())
	if err != nil {
		return u, err
	}
	for _, c := range m.allContainers() {
		layer := m.disk.of(c.id)
		u.Bytes += layer.GetUsedBytes().GetValue()
		u.Inodes += layer.GetInodesUsed().GetValue()
	}
	return u, ctx.Err()
}
