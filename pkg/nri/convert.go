package nri

import (
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// pod is a pod in the words of NRI.
func pod(p sandbox.Pod) *api.PodSandbox {
	meta, parent := p.Config.GetMetadata(), p.Config.GetLinux().GetCgroupParent()
	out := &api.PodSandbox{
		Id:             p.ID,
		Name:           meta.GetName(),
		Uid:            meta.GetUid(),
		Namespace:      meta.GetNamespace(),
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
		Pid:            uint32(p.InitPid),
		Linux: &api.LinuxPodSandbox{
			PodOverhead:  toResources(p.Overhead),
			PodResources: toResources(p.Resources),
			CgroupParent: parent,
			CgroupsPath:  parent, // the pod's own: its containers are below
		},
	}
	for _, ip := range p.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	if p.NetNS != "" {
		out.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: p.NetNS}}
	}
	return out
}

var states = map[sandbox.ContainerState]api.ContainerState{
	sandbox.ContainerCreated:  api.ContainerState_CONTAINER_CREATED,
	sandbox.ContainerRunning:  api.ContainerState_CONTAINER_RUNNING,
	sandbox.ContainerExited:   api.ContainerState_CONTAINER_STOPPED,
	sandbox.ContainerRemoving: api.ContainerState_CONTAINER_STOPPED,
}

// container is a container in the words of NRI. What its spec says is left out if that cannot be read any more.
func (s *Service) container(o sandbox.HookObject) *api.Container {
	c := o.Container
	out := &api.Container{
		Id:            c.ID,
		PodSandboxId:  c.PodID,
		Name:          c.Config.GetMetadata().GetName(),
		State:         states[c.State], // unknown while it is being created
		Labels:        maps.Clone(c.Config.GetLabels()),
		Annotations:   maps.Clone(c.Config.GetAnnotations()),
		Pid:           uint32(c.Pid),
		CreatedAt:     c.CreatedAt.UnixNano(),
		ExitCode:      c.ExitCode,
		StatusReason:  c.Reason,
		StatusMessage: c.Message,
		User:          &api.User{Uid: c.User.UID, Gid: c.User.GID, AdditionalGids: c.User.Groups},
		Image:         &api.Image{Name: imageName(c.Config.GetImage()), Digest: c.ImageRef, ConfigDigest: c.ImageID.String()},
		Linux:         &api.LinuxContainer{SeccompProfile: seccompProfile(c.Config)},
	}
	if !c.StartedAt.IsZero() {
		out.StartedAt = c.StartedAt.UnixNano()
	}
	if !c.FinishedAt.IsZero() {
		out.FinishedAt = c.FinishedAt.UnixNano()
	}
	for _, d := range c.Config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	oci, err := o.Spec()
	if err != nil {
		s.log.WithError(err).WithField("container", c.ID).Debug("The spec of a container cannot be read")
		return out
	}
	addSpec(out, oci)
	if c.Resources != nil && out.Linux.Resources != nil && c.State != sandbox.ContainerCreating {
		overlay(out.Linux.Resources, toResources(c.Resources)) // as they are since the last update
	}
	return out
}

// addSpec adds what stands in the spec. It shares no map or list with it: the library notes in the container what plugins
// change, for the plugins that come after.
func addSpec(c *api.Container, oci *specs.Spec) {
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	maps.Copy(c.Annotations, oci.Annotations)
	c.Mounts = api.FromOCIMounts(oci.Mounts)
	c.Hooks = api.FromOCIHooks(oci.Hooks)
	if p := oci.Process; p != nil {
		c.Args, c.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		c.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		c.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		c.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		c.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		for _, l := range p.Rlimits {
			c.Rlimits = append(c.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	if l := oci.Linux; l != nil {
		c.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
		c.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
		c.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
		c.Linux.CgroupsPath = l.CgroupsPath
		c.Linux.Sysctl = maps.Clone(l.Sysctl)
		c.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
		if l.Seccomp != nil {
			c.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
	}
}

func imageName(i *runtimeapi.ImageSpec) string {
	if name := i.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return i.GetImage()
}

// seccompProfile is what the request says; a privileged container has none.
func seccompProfile(cfg *runtimeapi.ContainerConfig) *api.SecurityProfile {
	sc := cfg.GetLinux().GetSecurityContext()
	p := &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	switch s := sc.GetSeccomp(); {
	case s == nil || sc.GetPrivileged():
	case s.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault:
		p.ProfileType = api.SecurityProfile_RUNTIME_DEFAULT
	case s.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		p.ProfileType, p.LocalhostRef = api.SecurityProfile_LOCALHOST, s.GetLocalhostRef()
	}
	return p
}

// toResources translates from CRI, where 0 and empty mean that nothing is said.
func toResources(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{
		Cpu:     &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Memory:  &api.LinuxMemory{},
		Unified: map[string]string{},
	}
	maps.Copy(out.Unified, r.GetUnified())
	if v := r.GetCpuShares(); v != 0 {
		out.Cpu.Shares = api.UInt64(v)
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		out.Cpu.Period = api.UInt64(v)
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		out.Memory.Swap = api.Int64(v)
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out
}

// overlay changes r by what change says.
func overlay(r, change *api.LinuxResources) {
	if r.Cpu == nil {
		r.Cpu = &api.LinuxCPU{}
	}
	if r.Memory == nil {
		r.Memory = &api.LinuxMemory{}
	}
	set(&r.Cpu.Shares, change.GetCpu().GetShares())
	set(&r.Cpu.Quota, change.GetCpu().GetQuota())
	set(&r.Cpu.Period, change.GetCpu().GetPeriod())
	set(&r.Memory.Limit, change.GetMemory().GetLimit())
	set(&r.Memory.Swap, change.GetMemory().GetSwap())
	if v := change.GetCpu().GetCpus(); v != "" {
		r.Cpu.Cpus = v
	}
	if v := change.GetCpu().GetMems(); v != "" {
		r.Cpu.Mems = v
	}
	if v := change.GetHugepageLimits(); len(v) > 0 {
		r.HugepageLimits = v
	}
	if v := change.GetUnified(); len(v) > 0 {
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		maps.Copy(r.Unified, v)
	}
}

func set[T any](to **T, v *T) {
	if v != nil {
		*to = v
	}
}

// fromResources translates to CRI; nil if nothing is said that the CRI has.
func fromResources(r *api.LinuxResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		CpuShares:              int64(r.GetCpu().GetShares().GetValue()),
		CpuQuota:               r.GetCpu().GetQuota().GetValue(),
		CpuPeriod:              int64(r.GetCpu().GetPeriod().GetValue()),
		CpusetCpus:             r.GetCpu().GetCpus(),
		CpusetMems:             r.GetCpu().GetMems(),
		MemoryLimitInBytes:     r.GetMemory().GetLimit().GetValue(),
		MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
		Unified:                maps.Clone(r.GetUnified()),
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	if proto.Size(out) == 0 {
		return nil
	}
	return out
}
