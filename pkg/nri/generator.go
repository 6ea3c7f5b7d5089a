package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// generator makes the single changes of a spec that the library's Generator composes, in place of
// github.com/opencontainers/runtime-tools, whose releases know only an older spec. Every change replaces what it changes and
// alters nothing that the spec may share with others.
type generator struct{ s *specs.Spec }

var _ generate.UnderlyingGenerator = generator{}

func (g generator) Spec() *specs.Spec { return g.s }

// The parts of a spec that may be missing.

func (g generator) process() *specs.Process          { return made(&g.s.Process) }
func (g generator) hooks() *specs.Hooks              { return made(&g.s.Hooks) }
func (g generator) linux() *specs.Linux              { return made(&g.s.Linux) }
func (g generator) resources() *specs.LinuxResources { return made(&g.linux().Resources) }
func (g generator) cpu() *specs.LinuxCPU             { return made(&g.resources().CPU) }
func (g generator) memory() *specs.LinuxMemory       { return made(&g.resources().Memory) }

func made[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

// put sets a key of a map that may be missing.
func put(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

// replaced puts v in the place of the element that is the same, or at the end.
func replaced[T any](list []T, v T, same func(T) bool) []T {
	if i := slices.IndexFunc(list, same); i >= 0 {
		list = slices.Clone(list)
		list[i] = v
		return list
	}
	return append(slices.Clip(list), v)
}

// without is the list without the elements that match.
func without[T any](list []T, match func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), match)
}

func (g generator) AddAnnotation(key, value string)  { put(&g.s.Annotations, key, value) }
func (g generator) RemoveAnnotation(key string)      { delete(g.s.Annotations, key) }
func (g generator) AddLinuxSysctl(key, value string) { put(&g.linux().Sysctl, key, value) }
func (g generator) RemoveLinuxSysctl(key string)     { delete(g.linux().Sysctl, key) }

func (g generator) AddProcessEnv(name, value string) {
	p := g.process()
	p.Env = replaced(p.Env, name+"="+value, func(e string) bool { return strings.HasPrefix(e, name+"=") })
}
func (g generator) ClearProcessEnv()              { g.process().Env = nil }
func (g generator) SetProcessArgs(args []string)  { g.process().Args = args }
func (g generator) SetProcessOOMScoreAdj(adj int) { g.process().OOMScoreAdj = &adj }
func (g generator) AddPostStartHook(h specs.Hook) {
	g.hooks().Poststart = append(g.hooks().Poststart, h)
}
func (g generator) AddPostStopHook(h specs.Hook) { g.hooks().Poststop = append(g.hooks().Poststop, h) }
func (g generator) AddPreStartHook(h specs.Hook) {
	g.hooks().Prestart = append(g.hooks().Prestart, h) //nolint:staticcheck // deprecated, and not gone
}

func (g generator) Mounts() []specs.Mount { return g.s.Mounts }
func (g generator) ClearMounts()          { g.s.Mounts = nil }
func (g generator) AddMount(m specs.Mount) {
	g.s.Mounts = append(slices.Clip(g.s.Mounts), m)
}
func (g generator) RemoveMount(dest string) {
	g.s.Mounts = without(g.s.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
}

func (g generator) AddDevice(d specs.LinuxDevice) {
	l := g.linux()
	l.Devices = replaced(l.Devices, d, func(old specs.LinuxDevice) bool { return old.Path == d.Path })
}
func (g generator) RemoveDevice(path string) {
	l := g.linux()
	l.Devices = without(l.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}
func (g generator) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := g.resources()
	r.Devices = append(slices.Clip(r.Devices), specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

// namespaces are the types that there are: NRI has them as the spec has.
var namespaces = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
	specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

func namespaceType(name string) (specs.LinuxNamespaceType, error) {
	t := specs.LinuxNamespaceType(name)
	if !slices.Contains(namespaces, t) {
		return "", fmt.Errorf("there is no type of namespace %.80q: %w", name, errdefs.ErrInvalidArgument)
	}
	return t, nil
}

func (g generator) AddOrReplaceLinuxNamespace(name, path string) error {
	t, err := namespaceType(name)
	if err != nil {
		return err
	}
	l := g.linux()
	l.Namespaces = replaced(l.Namespaces, specs.LinuxNamespace{Type: t, Path: path}, func(n specs.LinuxNamespace) bool { return n.Type == t })
	return nil
}

func (g generator) RemoveLinuxNamespace(name string) error {
	t, err := namespaceType(name)
	if err != nil {
		return err
	}
	l := g.linux()
	l.Namespaces = without(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	return nil
}

func (g generator) SetLinuxRootPropagation(mode string) error {
	g.linux().RootfsPropagation = mode
	return nil
}
func (g generator) SetLinuxCgroupsPath(path string) { g.linux().CgroupsPath = path }

func (g generator) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := g.resources()
	r.HugepageLimits = replaced(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit},
		func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
}
func (g generator) AddLinuxResourcesUnified(key, value string) {
	put(&g.resources().Unified, key, value)
}
func (g generator) SetLinuxResourcesCPUCpus(cpus string)        { g.cpu().Cpus = cpus }
func (g generator) SetLinuxResourcesCPUMems(mems string)        { g.cpu().Mems = mems }
func (g generator) SetLinuxResourcesCPUPeriod(v uint64)         { g.cpu().Period = &v }
func (g generator) SetLinuxResourcesCPUQuota(v int64)           { g.cpu().Quota = &v }
func (g generator) SetLinuxResourcesCPURealtimePeriod(v uint64) { g.cpu().RealtimePeriod = &v }
func (g generator) SetLinuxResourcesCPURealtimeRuntime(v int64) { g.cpu().RealtimeRuntime = &v }
func (g generator) SetLinuxResourcesCPUShares(v uint64)         { g.cpu().Shares = &v }
func (g generator) SetLinuxResourcesMemoryLimit(v int64)        { g.memory().Limit = &v }
func (g generator) SetLinuxResourcesMemorySwap(v int64)         { g.memory().Swap = &v }
