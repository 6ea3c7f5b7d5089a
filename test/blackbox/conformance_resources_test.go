package blackbox

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

var nodeKill = (*node.Node).Kill

// device is what a path is on.
func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("%q: %v", path, err)
	}
	return st.Dev
}

// cgroupFile is a file of a cgroup below the tests' own, under its name of v1 or of v2.
func cgroupFile(t *testing.T, dir, v1, v2 string) string {
	t.Helper()
	parent := node.CgroupParent()
	for _, f := range []string{filepath.Join("/sys/fs/cgroup", strings.Split(v1, ".")[0], parent, dir, v1), filepath.Join("/sys/fs/cgroup", parent, dir, v2)} {
		if b, err := os.ReadFile(f); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatalf("neither %s nor %s is below %s", v1, v2, filepath.Join(parent, dir))
	return ""
}

// Limits arrive in the cgroup before the start, change while it runs, and the status follows.
// rows: L-02, L-03, L-04, L-06, L-07, L-08, L-12, R-15, T-22, P-061, P-061a, P-063, P-068, P-070, D-201, D-207, X-12
func TestLimitsOfCgroups(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.create(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes, r.CpuShares, r.CpusetCpus, r.CpusetMems = 200<<20, 512, "0", "0"
		r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}, {PageSize: "64KB"}} // as the kubelet sends them
		r.Unified = map[string]string{"memory.high": "max", "memory.oom.group": "1"}
	}))
	own := "criserver-" + c.id
	limit := func(want int64) {
		t.Helper()
		equal(t, "memory limit", cgroupFile(t, own, "memory.limit_in_bytes", "memory.max"), itoa(int(want)))
		equal(t, "memory limit in the status", c.status().GetResources().GetLinux().GetMemoryLimitInBytes(), want)
	}
	update := func(r *runtimeapi.LinuxContainerResources) {
		t.Helper()
		if _, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r}); err != nil {
			t.Fatal(err)
		}
	}
	limit(200 << 20)
	update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 400 << 20})
	limit(400 << 20)
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	limit(400 << 20)
	update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 800 << 20})
	limit(800 << 20)
	equal(t, "cpuset", cgroupFile(t, own, "cpuset.cpus", "cpuset.cpus")+" "+cgroupFile(t, own, "cpuset.mems", "cpuset.mems"), "0 0")
	if _, err := os.Stat("/sys/fs/cgroup/cpu/cpu.shares"); err == nil {
		equal(t, "shares", cgroupFile(t, own, "cpu.shares", ""), "512")
		update(&runtimeapi.LinuxContainerResources{CpuShares: 1})
		equal(t, "shares", cgroupFile(t, own, "cpu.shares", ""), "2") // the kernel's least
	}
	got := c.status().GetResources().GetLinux()
	equal(t, "cpuset in the status after updates of other things", got.GetCpusetCpus(), "0")

	free := p.start(asleep(), func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = nil })
	unlimited := cgroupFile(t, "criserver-"+free.id, "memory.limit_in_bytes", "memory.max")
	equal(t, "a memory limit without resources", unlimited == "max" || len(unlimited) > 15, true)
	p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 8 << 20 })).status()

	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil {
		swapped := p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 64<<20, 96<<20
		}))
		equal(t, "memory and swap", cgroupFile(t, "criserver-"+swapped.id, "memory.memsw.limit_in_bytes", ""), itoa(96<<20))
		s := p.stats(&runtimeapi.ContainerStatsFilter{Id: swapped.id})[0].GetSwap()
		equal(t, "swap that is left", s.GetSwapAvailableBytes().GetValue(), 32<<20)
	}
	_, err := p.tryCreate(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 1 << 20}}
	}))
	refused(t, err, codes.InvalidArgument, "hugepage_limits")
}

// hungry takes so many MiB of memory and keeps it.
func hungry(mib int) containerTweak {
	return sh(`awk 'BEGIN { s = sprintf("%1048576s", ""); for (i = 0; i < ` + itoa(mib) + `; i++) a[i] = s i; print "full"; fflush(); system("sleep 1000") }'`)
}

// A limit below what is used is refused, and the old one stays; a higher one is taken.
// rows: X-11, P-069a
func TestLimitBelowUsage(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(hungry(60), resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 200 << 20 }))
	c.hasLogged("full")
	set := func(limit int64) error {
		_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
			Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit}})
		return err
	}
	if err := set(16 << 20); err == nil {
		t.Error("a limit below the usage was taken")
	}
	equal(t, "memory limit", cgroupFile(t, "criserver-"+c.id, "memory.limit_in_bytes", "memory.max"), itoa(200<<20))
	equal(t, "memory limit in the status", c.status().GetResources().GetLinux().GetMemoryLimitInBytes(), 200<<20)
	equal(t, "state", c.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	if err := set(300 << 20); err != nil {
		t.Errorf("a higher limit: %v", err)
	}
}

// Every container that runs out of memory is reported as such, also if a child of its first process did, and with
// many of them at once.
// rows: D-30, D-31, T-19, P-079, CT-122
func TestOutOfMemory(t *testing.T) {
	p := newPod(t)
	small := resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 20 << 20 })
	for round := range 3 {
		var all []*container
		for i := range 8 {
			script := "exec dd if=/dev/zero of=/dev/null bs=200M count=1"
			if i%2 == 1 { // a child
				script = "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?"
			}
			all = append(all, p.create(sh(script), small))
		}
		var group sync.WaitGroup
		for _, c := range all {
			group.Go(func() {
				if err := c.start(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for i, c := range all {
			if s := c.ended(); s.Reason != "OOMKilled" || s.ExitCode != 137 {
				t.Errorf("round %d, container %d: %d %s", round, i, s.ExitCode, s.Reason)
			}
			c.remove()
		}
	}
}

// Stats of a container against what it does and what its cgroup says.
// rows, P-071, P-072, P-076a, GAP-25
func TestStatsOfAContainer(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(sh("echo ready; while [ ! -e /go ]; do sleep 0.05; done; while :; do :; done"), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes, r.CpuPeriod, r.CpuQuota = 300<<20, 100000, 20000
	}))
	c.hasLogged("ready")
	stats := func() *runtimeapi.ContainerStats {
		t.Helper()
		r, err := n.Runtimes.ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats
	}
	before := stats()
	equal(t, "labels", before.GetAttributes().GetLabels()["container"], c.config.Labels["container"])
	m := before.GetMemory()
	equal(t, "available and working set", m.GetAvailableBytes().GetValue()+m.GetWorkingSetBytes().GetValue(), 300<<20)
	if m.GetUsageBytes() == nil || m.GetRssBytes() == nil || m.GetPageFaults().GetValue() == 0 || m.GetMajorPageFaults() == nil {
		t.Errorf("memory: %v", m)
	}
	if before.GetSwap().GetSwapUsageBytes() == nil || before.GetSwap().GetSwapAvailableBytes() == nil {
		t.Errorf("swap: %v", before.GetSwap())
	}
	for what, at := range map[string]int64{"cpu": before.GetCpu().GetTimestamp(), "memory": m.GetTimestamp(), "swap": before.GetSwap().GetTimestamp()} {
		if age := time.Since(time.Unix(0, at)); age < 0 || age > 15*time.Second {
			t.Errorf("stats of %s are of %v ago", what, age)
		}
	}
	c.sh("touch /go; dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null")
	hog := p.start(hungry(100))
	hog.hasLogged("full")
	if ws := p.stats(&runtimeapi.ContainerStatsFilter{Id: hog.id})[0].GetMemory().GetWorkingSetBytes().GetValue(); ws < 100<<20 || ws > 150<<20 {
		t.Errorf("working set with 100 MiB in use: %d", ws)
	}
	eventually(t, 20*time.Second, "a fifth of a processor and 20 MiB are in the stats", func() (bool, string) {
		s := stats()
		rate, disk := s.GetCpu().GetUsageNanoCores().GetValue(), s.GetWritableLayer().GetUsedBytes().GetValue()
		return rate > 100e6 && rate < 300e6 && disk >= 20<<20 && s.GetWritableLayer().GetInodesUsed().GetValue() > 0, s.String()
	})
	after := stats()
	if after.GetCpu().GetUsageCoreNanoSeconds().GetValue() <= before.GetCpu().GetUsageCoreNanoSeconds().GetValue() {
		t.Error("the time that was used does not grow")
	}
	fs, err := n.Images.ImageFsInfo(p.ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "device of the writable layer", device(t, after.GetWritableLayer().GetFsId().GetMountpoint()), device(t, fs.ContainerFilesystems[0].FsId.Mountpoint))
	if other := p.stats(&runtimeapi.ContainerStatsFilter{Id: hog.id})[0].GetWritableLayer().GetUsedBytes().GetValue(); other >= 20<<20 {
		t.Errorf("another container's layer has %d bytes", other)
	}
}

// Stats of a pod against its cgroup.
// rows, P-076, P-077, R-24
func TestStatsOfAPod(t *testing.T) {
	ours(t)
	p := newPod(t)
	p.start(sh("for i in 1 2 3 4 5; do sleep 1000 & done; echo ready; wait")).hasLogged("ready")
	hog := p.start(hungry(40))
	hog.hasLogged("full")
	p.start(sh("exit 0")).ended()
	r, err := n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Stats.GetLinux()
	equal(t, "running containers", len(s.GetContainers()), 2)
	equal(t, "processes", s.GetProcess().GetProcessCount().GetValue(), 8) // 6 and awk with its sleep
	usage, err := strconv.ParseFloat(cgroupFile(t, "", "memory.usage_in_bytes", "memory.current"), 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(s.GetMemory().GetUsageBytes().GetValue()); got < 0.8*usage || got > 1.2*usage {
		t.Errorf("memory %.0f, the cgroup has %.0f", got, usage)
	}
	if s.GetMemory().GetWorkingSetBytes().GetValue() < 40<<20 || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("memory %v, cpu %v", s.GetMemory(), s.GetCpu())
	}
	var names []string
	for _, i := range s.GetNetwork().GetInterfaces() {
		names = append(names, i.Name)
		if i.RxBytes == nil || i.RxErrors == nil || i.TxBytes == nil || i.TxErrors == nil {
			t.Errorf("interface %v", i)
		}
	}
	names = append(names, s.GetNetwork().GetDefaultInterface().GetName())
	equal(t, "loopback among the interfaces", slices.Contains(names, "lo"), false)
	equal(t, "default interface", s.GetNetwork().GetDefaultInterface().GetName(), "eth0")
}

// A pod that was given no cgroup uses what its containers do, and its own process.
// rows
func TestStatsOfAPodWithoutCgroup(t *testing.T) {
	ours(t)
	t.Cleanup(removeDefaultCgroup)
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = ""
		c.Linux.SecurityContext.NamespaceOptions.Pid = modePod
	})
	shared := security(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.NamespaceOptions.Pid = modePod })
	stats := func() *runtimeapi.LinuxPodSandboxStats {
		t.Helper()
		r, err := n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats.GetLinux()
	}
	equal(t, "processes of an empty pod", stats().GetProcess().GetProcessCount().GetValue(), 1)
	for range 2 {
		p.start(hungry(20), shared).hasLogged("full")
	}
	var s *runtimeapi.LinuxPodSandboxStats
	eventually(t, 10*time.Second, "a rate of all", func() (bool, string) {
		s = stats()
		return s.GetCpu().GetUsageNanoCores() != nil, s.String()
	})
	equal(t, "processes", s.GetProcess().GetProcessCount().GetValue(), 5) // init, and twice awk with its sleep
	var cpu, memory uint64
	for _, c := range s.GetContainers() {
		cpu += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory += c.GetMemory().GetWorkingSetBytes().GetValue()
	}
	if got := s.GetCpu().GetUsageCoreNanoSeconds().GetValue(); got < cpu || got > cpu+uint64(time.Second) || cpu == 0 {
		t.Errorf("cpu %d, of the containers %d", got, cpu)
	}
	if got := s.GetMemory().GetWorkingSetBytes().GetValue(); got < memory || got > memory+10<<20 || memory < 40<<20 {
		t.Errorf("memory %d, of the containers %d", got, memory)
	}
	if s.GetMemory().GetAvailableBytes() != nil || s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 {
		t.Errorf("cpu %v, memory %v", s.GetCpu(), s.GetMemory())
	}
}

// removeDefaultCgroup removes where pods are that were given no cgroup, unless another runtime of this machine has some.
func removeDefaultCgroup() {
	for _, pattern := range []string{"/sys/fs/cgroup/criserver", "/sys/fs/cgroup/*/criserver"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			_ = os.Remove(dir)
		}
	}
}

// What a pod may have that does not change what it is.
// rows: S-20, S-21, K-25, D-200, D-206
func TestPodsWithMore(t *testing.T) {
	ours(t)
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Labels = map[string]string{"io.kubernetes.pod.name": "n", "io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.uid": "u"}
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 10 << 20, CpuShares: 100}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuQuota: 10000, CpuPeriod: 100000}
		sc := c.Linux.SecurityContext
		sc.NamespaceOptions.Pid = modePod
		sc.RunAsUser, sc.RunAsGroup, sc.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}, []int64{3000}
	})
	c := p.start(asleep(), func(c *runtimeapi.ContainerConfig) {
		c.Labels = map[string]string{"io.kubernetes.container.name": "c"}
		c.Annotations = map[string]string{"io.kubernetes.container.hash": "1", "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
			"io.kubernetes.pod.terminationGracePeriod": "30"}
	})
	equal(t, "user of a container that says nothing", c.sh("id -u"), "0")
	r, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := dig(details(t, r.Info), "pid").(float64)
	status := nodeFile(t, "/proc/"+itoa(int(pid))+"/status")
	contains(t, "the pod's process, whoever it was to run as,", status, "CapPrm:\t0000000000000000", "NoNewPrivs:\t1")

	smaller := podConfig("other", p.config.LogDirectory)
	smaller.Metadata, smaller.Linux.Resources = p.config.Metadata, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	_, err = n.Runtimes.CreateContainer(p.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: containerConfig("differs", asleep()), SandboxConfig: smaller})
	if err != nil {
		t.Errorf("a pod whose resources have changed meanwhile: %v", err)
	}
}

// A creation that is asked for again, while it goes on or after, gives the container that is made; another is refused.
// rows: X-1, D-18, P-010b, GAP-17, K-01
func TestCreateContainerAgain(t *testing.T) {
	ours(t)
	p := newPod(t)
	cfg := containerConfig("again", asleep())
	create := func(ctx context.Context, cfg *runtimeapi.ContainerConfig) (string, error) {
		r, err := n.Runtimes.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.config})
		return r.GetContainerId(), err
	}
	hurried, cancel := context.WithTimeout(p.ctx, 2*time.Millisecond)
	defer cancel()
	_, _ = create(hurried, cfg) // may or may not be too late
	ids := make([]string, 5)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			var err error
			if ids[i], err = create(p.ctx, cfg); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	slices.Sort(ids)
	equal(t, "IDs", ids[0] == ids[len(ids)-1], true)
	equal(t, "containers", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})), 1)
	differs := containerConfig("again", sh("true"))
	_, err := create(p.ctx, differs)
	refused(t, err, codes.AlreadyExists, "again")
}

// A hundred pods: the kubelet's questions of each second are answered in a moment, and a restart knows them all.
// rows: A-22, D-209, P-159, R-06, D-183
func TestHundredPods(t *testing.T) {
	ours(t)
	leavesNothing(t)
	const count = 100
	pods := make([]*pod, count)
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range pods {
		pods[i] = &pod{t: t, node: n, ctx: context.Background(), config: podConfig("hundred", t.TempDir())}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			r, err := n.Runtimes.RunPodSandbox(pods[i].ctx, &runtimeapi.RunPodSandboxRequest{Config: pods[i].config})
			if err != nil {
				t.Error(err)
				return
			}
			pods[i].id = r.PodSandboxId
			c, err := pods[i].tryCreate(sh("exec sleep 1000"))
			if err == nil {
				err = c.start()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	defer func() {
		for _, p := range pods {
			slots <- struct{}{}
			group.Go(func() { defer func() { <-slots }(); p.remove() })
		}
		group.Wait()
	}()
	ask := func() {
		t.Helper()
		for what, question := range map[string]func() int{
			"containers": func() int {
				return len(pods[0].containers(&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}))
			},
			"pods":  func() int { return len(pods[0].list(nil)) },
			"stats": func() int { return len(pods[0].stats(nil)) },
			"stats of pods": func() int {
				r, err := n.Runtimes.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
				if err != nil {
					t.Fatal(err)
				}
				return len(r.Stats)
			},
		} {
			start := time.Now()
			equal(t, what, question(), count)
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s took %v", what, took)
			}
		}
	}
	ask()
	start := time.Now()
	restart(t, n, nodeKill)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the restart took %v", took)
	}
	ask()
}
