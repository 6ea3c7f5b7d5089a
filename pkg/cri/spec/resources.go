package spec

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const fieldResources = "linux.resources"

// resources fills in the cgroup and its limits.
func (b *builder) resources(s *specs.Spec) error {
	r, err := Resources(b.Container.GetLinux().GetResources(), b.Host)
	if err != nil {
		return err
	}
	if b.Defaults.PidsLimit > 0 && b.Host.Controllers["pids"] {
		r.Pids = &specs.LinuxPids{Limit: &b.Defaults.PidsLimit}
	}
	s.Linux.Resources = r
	s.Linux.CgroupsPath, err = CgroupsPath(b.Pod.GetLinux().GetCgroupParent(), b.ID, b.Defaults.SystemdCgroup)
	return err
}

// Resources translates CRI resources for Build and for UpdateContainerResources. What is 0 or empty in the CRI is not
// specified and stays so. A limit that this host has no controller for is an error, with the exceptions that the kubelet
// relies on: a huge page limit of 0, swap without swap accounting, and unified keys on cgroup v1 are left out.
func Resources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	if err := CheckResources(r); err != nil {
		return nil, err
	}
	for _, need := range []struct {
		field, controller string
		asked             bool
	}{
		{"cpu_period", "cpu", r.GetCpuPeriod() != 0},
		{"cpu_quota", "cpu", r.GetCpuQuota() != 0},
		{"cpu_shares", "cpu", r.GetCpuShares() != 0},
		{"cpuset_cpus", "cpuset", r.GetCpusetCpus() != ""},
		{"cpuset_mems", "cpuset", r.GetCpusetMems() != ""},
		{"memory_limit_in_bytes", "memory", r.GetMemoryLimitInBytes() != 0},
	} {
		if need.asked && !h.Controllers[need.controller] {
			return nil, invalid(fieldResources+"."+need.field, "this host has no %s controller", need.controller)
		}
	}
	out.CPU = cpu(r)
	out.Memory = memory(r, h)
	var err error
	if out.HugepageLimits, err = hugepages(r.GetHugepageLimits(), h); err != nil {
		return nil, err
	}
	out.Unified, err = unified(r.GetUnified(), h)
	return out, err
}

// ResourceChange translates an update of resources that are old. Fields that bound one another, of which one changes, are
// judged and set together. On cgroup v2 a memory limit below what is in use is refused: the kernel would kill.
func ResourceChange(old, change *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	if err := checkResourceValues(change); err != nil {
		return nil, err
	}
	full := proto.CloneOf(change)
	if change.GetMemoryLimitInBytes() != 0 || change.GetMemorySwapLimitInBytes() != 0 {
		full.MemoryLimitInBytes = cmp.Or(change.GetMemoryLimitInBytes(), old.GetMemoryLimitInBytes())
		full.MemorySwapLimitInBytes = cmp.Or(change.GetMemorySwapLimitInBytes(), old.GetMemorySwapLimitInBytes())
	}
	out, err := Resources(full, h)
	if err == nil && h.CgroupV2 && out.Memory != nil && out.Memory.Limit != nil {
		check := true
		out.Memory.CheckBeforeUpdate = &check
	}
	return out, err
}

// The kernel's bounds: CPU shares of cgroup v1 (the kernel cuts off silently, the OCI runtime takes that for a failure),
// and CFS period and quota in microseconds.
const (
	minShares, maxShares = 2, 262144
	minPeriod, maxPeriod = 1000, 1000000
	maxCPU, maxNode      = 8191, 1023 // CONFIG_NR_CPUS, MAX_NUMNODES
)

func cpu(r *runtimeapi.LinuxContainerResources) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if p := uint64(r.GetCpuPeriod()); p != 0 {
		c.Period = &p
	}
	if q := r.GetCpuQuota(); q != 0 {
		c.Quota = &q
	}
	if v := r.GetCpuShares(); v != 0 {
		shares := uint64(min(max(v, minShares), maxShares))
		c.Shares = &shares
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

// memory: without a limit for swap a container has none, so memory and swap together equal the memory limit.
func memory(r *runtimeapi.LinuxContainerResources, h Host) *specs.LinuxMemory {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit == 0 && (swap == 0 || !h.SwapAccounting) {
		return nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if swap == 0 {
		swap = limit
	}
	if h.SwapAccounting {
		m.Swap = &swap
	}
	return m
}

// hugepages keeps a limit of 0 where the controller is: it is a limit too.
func hugepages(limits []*runtimeapi.HugepageLimit, h Host) ([]specs.LinuxHugepageLimit, error) {
	var out []specs.LinuxHugepageLimit
	for i, l := range limits {
		known := h.Controllers["hugetlb"] && slices.Contains(h.HugePageSizes, l.GetPageSize())
		switch {
		case known:
			out = append(out, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		case l.GetLimit() != 0 && !h.Controllers["hugetlb"]:
			return nil, invalid(item(fieldResources+".hugepage_limits", i), "this host has no hugetlb controller")
		case l.GetLimit() != 0:
			return nil, invalid(item(fieldResources+".hugepage_limits", i)+".page_size", "%s is not one of this host's: %s",
				show(l.GetPageSize()), strings.Join(h.HugePageSizes, ", "))
		}
	}
	return out, nil
}

// unified passes on the files of cgroup v2 that set something. Those of the cgroup core (cgroup.procs, cgroup.kill, ...) are
// the runtime's.
func unified(files map[string]string, h Host) (map[string]string, error) {
	if !h.CgroupV2 || len(files) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(files))
	for k, v := range files {
		controller, _, _ := strings.Cut(k, ".")
		if !h.Controllers[controller] {
			return nil, invalid(fieldResources+".unified", "%s: this host has no %s controller", show(k), show(controller))
		}
		if strings.HasPrefix(k, "memory.swap.") && !h.SwapAccounting {
			continue
		}
		out[k] = v
	}
	return out, nil
}

// CheckResources judges what does not depend on the host.
func CheckResources(r *runtimeapi.LinuxContainerResources) error {
	if err := checkResourceValues(r); err != nil {
		return err
	}
	const field = fieldResources + ".memory_swap_limit_in_bytes"
	switch limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes(); {
	case swap > 0 && limit <= 0:
		return invalid(field, "needs memory_limit_in_bytes")
	case swap > 0 && swap < limit:
		return invalid(field, "%d is the limit of memory and swap together; it cannot be less than memory_limit_in_bytes, %d", swap, limit)
	}
	return nil
}

// checkResourceValues judges each value by itself.
func checkResourceValues(r *runtimeapi.LinuxContainerResources) error {
	bad := func(field, format string, a ...any) error { return invalid(fieldResources+"."+field, format, a...) }
	period, quota, limit, swap := r.GetCpuPeriod(), r.GetCpuQuota(), r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case period != 0 && (period < minPeriod || period > maxPeriod):
		return bad("cpu_period", "%d is not within %d and %d microseconds", period, minPeriod, maxPeriod)
	case quota < -1 || (quota > 0 && quota < minPeriod):
		return bad("cpu_quota", "%d is neither -1 (unlimited) nor at least %d microseconds", quota, minPeriod)
	case r.GetCpuShares() < 0:
		return bad("cpu_shares", "%d is negative", r.GetCpuShares())
	case limit < -1:
		return bad("memory_limit_in_bytes", "%d is negative; -1 means unlimited", limit)
	case swap < -1:
		return bad("memory_swap_limit_in_bytes", "%d is negative; -1 means unlimited", swap)
	case r.GetOomScoreAdj() < -1000 || r.GetOomScoreAdj() > 1000:
		return bad("oom_score_adj", "%d is not within -1000 and 1000", r.GetOomScoreAdj())
	}
	if !cpuList(r.GetCpusetCpus(), maxCPU) {
		return bad("cpuset_cpus", "%s is no list of CPUs like 0-3,5", show(r.GetCpusetCpus()))
	}
	if !cpuList(r.GetCpusetMems(), maxNode) {
		return bad("cpuset_mems", "%s is no list of memory nodes like 0-1", show(r.GetCpusetMems()))
	}
	if err := checkCount(fieldResources+".hugepage_limits", len(r.GetHugepageLimits())); err != nil {
		return err
	}
	return checkUnified(r.GetUnified())
}

// checkUnified wants names of files of one controller.
func checkUnified(files map[string]string) error {
	const field = fieldResources + ".unified"
	if err := checkCount(field, len(files)); err != nil {
		return err
	}
	for k, v := range files {
		controller, name, _ := strings.Cut(k, ".")
		if name == "" || controller == "cgroup" || len(k) > 128 || strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") != "" {
			return invalid(field, "%s is no file that can be set", show(k))
		}
		if len(v) > maxPath || strings.ContainsAny(v, "\x00\n") {
			return invalid(field, "%s: the value has a NUL, a line break or more than %d bytes", show(k), maxPath)
		}
	}
	return nil
}

// cpuList says whether s is empty or a list of numbers and ranges (cpuset(7), "List format") up to limit.
func cpuList(s string, limit uint64) bool {
	if s == "" {
		return true
	}
	if len(s) > maxPath {
		return false
	}
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseUint(low, 10, 32)
		to := from
		if isRange && err == nil {
			to, err = strconv.ParseUint(high, 10, 32)
		}
		if err != nil || from > to || to > limit {
			return false
		}
	}
	return true
}
