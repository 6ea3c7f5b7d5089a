package blackbox

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limits reads, from within a container, what the kernel limits it to; both versions of cgroups.
const limits = `
for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do [ -e $f ] && echo memory $(cat $f); done
for f in /sys/fs/cgroup/cpu/cpu.cfs_quota_us; do [ -e $f ] && echo quota $(cat $f) $(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us); done
[ -e /sys/fs/cgroup/cpu.max ] && echo quota $(cat /sys/fs/cgroup/cpu.max)
for f in /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; do [ -e $f ] && echo pids $(cat $f); done
for f in /sys/fs/cgroup/cpuset/cpuset.cpus /sys/fs/cgroup/cpuset.cpus; do [ -e $f ] && echo cpus $(cat $f); done; true`

// rows: L-01, L-03, L-06, R-15, T-22, P-061a, P-063
func TestLimits(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes, r.CpuQuota, r.CpuPeriod, r.CpuShares, r.CpusetCpus = 64<<20, 50000, 100000, 512, "0"
	}))
	contains(t, "limits", c.sh(limits), "memory 67108864", "quota 50000 100000", "cpus 0")

	_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 75000, CpuPeriod: 100000}})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "limits after the update", c.sh(limits), "memory 100663296", "quota 75000 100000", "cpus 0")
	got := c.status().GetResources().GetLinux()
	equal(t, "memory limit in the status", got.GetMemoryLimitInBytes(), 96<<20)
	equal(t, "quota in the status", got.GetCpuQuota(), 75000)
}

// An update that the kernel refuses changes nothing.
// rows: R-15
func TestUpdateIsAllOrNothing(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 64 << 20 }))
	before := c.sh(limits)
	_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpusetCpus: "4000"}})
	if err == nil {
		t.Fatal("processor 4000 was given")
	}
	equal(t, "limits", c.sh(limits), before)
	equal(t, "memory limit in the status", c.status().GetResources().GetLinux().GetMemoryLimitInBytes(), 64<<20)
}

// rows
func TestContainerStats(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`trap 'exit 0' TERM
		dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null
		i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; sleep 1000 & wait`))
	c.hasLogged("ready")
	var s *runtimeapi.ContainerStats
	eventually(t, 20*time.Second, "the stats have all that was used", func() (bool, string) {
		r, err := n.Runtimes.ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		return s.GetWritableLayer().GetUsedBytes().GetValue() >= 3<<20, s.String()
	})
	equal(t, "ID", s.GetAttributes().GetId(), c.id)
	equal(t, "name", s.GetAttributes().GetMetadata().GetName(), c.config.Metadata.Name)
	if cpu := s.GetCpu().GetUsageCoreNanoSeconds().GetValue(); cpu < 1e6 || cpu > 60e9 {
		t.Errorf("cpu: %d ns", cpu)
	}
	if mem := s.GetMemory().GetWorkingSetBytes().GetValue(); mem < 10_000 || mem > 100<<20 {
		t.Errorf("working set: %d bytes", mem)
	}
	if len(p.stats(&runtimeapi.ContainerStatsFilter{PodSandboxId: p.id})) != 1 || len(p.stats(&runtimeapi.ContainerStatsFilter{Id: c.id})) != 1 {
		t.Error("the container is not found by its pod and by its ID")
	}
	equal(t, "stats of another label", len(p.stats(&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"container": "other"}})), 0)
}

func (p *pod) stats(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	p.t.Helper()
	r, err := p.node.Runtimes.ListContainerStats(p.ctx, &runtimeapi.ListContainerStatsRequest{Filter: f})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Stats
}

// rows
func TestPodStats(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	c.sh("wget -qO- http://" + bridgeAddress(t, p) + ":1/ 2>/dev/null || true") // some packets
	r, err := n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	linux := r.Stats.GetLinux()
	equal(t, "containers", len(linux.GetContainers()), 1)
	equal(t, "interface", linux.GetNetwork().GetDefaultInterface().GetName(), "eth0")
	if linux.GetNetwork().GetDefaultInterface().GetTxBytes().GetValue() == 0 {
		t.Error("nothing was sent")
	}
	if linux.GetProcess().GetProcessCount().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("no processes, no memory or no cpu: %v", linux)
	}
	list, err := n.Runtimes.ListPodSandboxStats(p.ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: p.id}})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "pods in the list", len(list.Stats), 1)
}

// The container's processes are where the kubelet asked for.
// rows: S-17, D-100, Q-13, D-102
func TestCgroupParent(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	var found bool
	for _, hierarchy := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		files, _ := filepath.Glob(filepath.Join(hierarchy, p.config.Linux.CgroupParent, "*"+c.id+"*", "cgroup.procs"))
		for _, f := range files {
			procs, err := os.ReadFile(f)
			found = found || err == nil && len(procs) > 0
		}
	}
	if !found {
		t.Errorf("no process of the container is below %s: %s", p.config.Linux.CgroupParent, c.id)
	}
}
