package spec

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rows: L-01, L-02, L-03, L-04, L-06, L-07, L-08, X-21, D-201, P-070a, P-070b
func TestResources(t *testing.T) {
	v1 := Host{
		Controllers:    map[string]bool{"cpu": true, "cpuset": true, "memory": true, "pids": true, "hugetlb": true},
		SwapAccounting: true, HugePageSizes: []string{"2MB", "1GB"},
	}
	v2, noSwap, noHuge := v1, v1, v1
	v2.CgroupV2, noSwap.SwapAccounting = true, false
	noHuge.Controllers = maps.Clone(v1.Controllers)
	delete(noHuge.Controllers, "hugetlb")
	noSwapV2 := noSwap
	noSwapV2.CgroupV2 = true
	type res = runtimeapi.LinuxContainerResources
	for _, c := range []struct {
		host Host
		in   *res
		want string // JSON, or the field that is refused
	}{
		{v1, nil, `{}`},
		{v1, &res{}, `{}`},
		{v1, &res{CpuPeriod: 100000, CpuQuota: -1, CpuShares: 1024}, `{"cpu":{"shares":1024,"quota":-1,"period":100000}}`},
		{v1, &res{CpuShares: 1}, `{"cpu":{"shares":2}}`},
		{v1, &res{CpuShares: 1 << 40}, `{"cpu":{"shares":262144}}`},
		{v1, &res{CpusetCpus: "0-3,5", CpusetMems: "0"}, `{"cpu":{"cpus":"0-3,5","mems":"0"}}`},
		{v1, &res{MemoryLimitInBytes: 1 << 20}, `{"memory":{"limit":1048576,"swap":1048576}}`},
		{v1, &res{MemoryLimitInBytes: -1}, `{"memory":{"limit":-1,"swap":-1}}`},
		{v1, &res{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20}, `{"memory":{"limit":1048576,"swap":2097152}}`},
		{v1, &res{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: -1}, `{"memory":{"limit":1048576,"swap":-1}}`},
		{noSwap, &res{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20}, `{"memory":{"limit":1048576}}`},
		{noSwap, &res{MemorySwapLimitInBytes: -1}, `{}`},
		{v1, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}, {PageSize: "64KB"}}},
			`{"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"1GB","limit":0}]}`},
		{noHuge, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}, `{}`},
		{v1, &res{Unified: map[string]string{"memory.high": "1"}}, `{}`},
		{v2, &res{Unified: map[string]string{"memory.high": "1", "memory.swap.max": "0"}}, `{"unified":{"memory.high":"1","memory.swap.max":"0"}}`},
		{noSwapV2, &res{Unified: map[string]string{"memory.high": "1", "memory.swap.max": "0"}}, `{"unified":{"memory.high":"1"}}`},

		{noHuge, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, "hugepage_limits[0]"},
		{v1, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 1}}}, "hugepage_limits[0].page_size"},
		{v1, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: strings.Repeat("9", 1<<20), Limit: 1}}}, "hugepage_limits[0].page_size"},
		{v1, &res{CpuPeriod: -1}, "cpu_period"},
		{v1, &res{CpuPeriod: 999}, "cpu_period"},
		{v1, &res{CpuPeriod: 1000001}, "cpu_period"},
		{v1, &res{CpuQuota: -2}, "cpu_quota"},
		{v1, &res{CpuQuota: 10}, "cpu_quota"},
		{v1, &res{CpuShares: -1}, "cpu_shares"},
		{v1, &res{MemoryLimitInBytes: -2}, "memory_limit_in_bytes"},
		{v1, &res{MemorySwapLimitInBytes: -2}, "memory_swap_limit_in_bytes"},
		{v1, &res{MemorySwapLimitInBytes: 1}, "memory_swap_limit_in_bytes"},
		{v1, &res{MemoryLimitInBytes: 2, MemorySwapLimitInBytes: 1}, "memory_swap_limit_in_bytes"},
		{v1, &res{OomScoreAdj: -1001}, "oom_score_adj"},
		{v1, &res{OomScoreAdj: 1001}, "oom_score_adj"},
		{v1, &res{CpusetCpus: "0-99999"}, "cpuset_cpus"},
		{v1, &res{CpusetCpus: "3-1"}, "cpuset_cpus"},
		{v1, &res{CpusetCpus: "1,"}, "cpuset_cpus"},
		{v1, &res{CpusetCpus: "0\n1"}, "cpuset_cpus"},
		{v1, &res{CpusetCpus: "-1"}, "cpuset_cpus"},
		{v1, &res{CpusetMems: "all"}, "cpuset_mems"},
		{v1, &res{Unified: map[string]string{"a/b": "1"}}, "unified"}, // malformed is malformed on v1 too
		{v2, &res{Unified: map[string]string{"../memory.max": "1"}}, "unified"},
		{v2, &res{Unified: map[string]string{"memory.max\n": "1"}}, "unified"},
		{v2, &res{Unified: map[string]string{"memory.max": "1\n2"}}, "unified"},
		{v2, &res{Unified: map[string]string{"cgroup.kill": "1"}}, "unified"},
		{v2, &res{Unified: map[string]string{"memory": "1"}}, "unified"},
		{v2, &res{Unified: map[string]string{"memory.": "1"}}, "unified"},
		{v2, &res{Unified: map[string]string{"io.max": "1"}}, "unified"}, // no such controller
	} {
		got, err := Resources(c.in, c.host)
		if !strings.HasPrefix(c.want, "{") {
			expect(t, err, errdefs.ErrInvalidArgument, fieldResources+"."+c.want)
			continue
		}
		text, _ := json.Marshal(got)
		if err != nil || string(text) != c.want {
			t.Errorf("%v: got %s, %v; want %s", c.in, text, err, c.want)
		}
	}
}

// rows: L-05
func TestOOMScoreAdj(t *testing.T) {
	for _, c := range []struct{ asked, lowest, want int }{{978, -998, 978}, {-999, -998, -998}, {-999, -1000, -999}, {0, 100, 100}, {0, -1000, 0}} {
		in := kubelet()
		in.Container.Linux.Resources.OomScoreAdj, in.Host.MinOOMScoreAdj = int64(c.asked), c.lowest
		s, err := Build(in)
		if err != nil || *s.Process.OOMScoreAdj != c.want {
			t.Errorf("%+v: got %v, %v", c, s, err)
		}
	}
}

// rows: S-17, D-100, D-103, X-25
func TestCgroupsPath(t *testing.T) {
	for _, c := range []struct {
		parent  string
		systemd bool
		want    string // "" if it is refused
	}{
		{"", false, "/criserver/criserver-ID"},
		{"/kubepods/pod1", false, "/kubepods/pod1/criserver-ID"},
		{"kubepods", false, "/kubepods/criserver-ID"},
		{"/", false, "/criserver-ID"},
		{"/a.slice/b", false, "/a.slice/b/criserver-ID"},
		{"", true, "system.slice:criserver:ID"},
		{"user.slice", true, "user.slice:criserver:ID"},
		{"/kubepods.slice/kubepods-pod1.slice", true, "kubepods-pod1.slice:criserver:ID"},
		{"/kubepods/pod1", true, ""},
		{"a.slice/b", true, ""},
		{"a/b.slice", true, ""},
		{"/", true, ""},
		{"..", false, ""},
		{"/../x.slice", true, ""},
		{"x.slice:evil", true, ""},
	} {
		got, err := CgroupsPath(c.parent, "ID", c.systemd)
		if c.want == "" {
			expect(t, err, errdefs.ErrInvalidArgument, "linux.cgroup_parent")
		} else if err != nil || got != c.want {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

// rows: S-18, S-19, P-036c
func TestPodSysctls(t *testing.T) {
	const node = runtimeapi.NamespaceMode_NODE
	pod := func(o *runtimeapi.NamespaceOption, sysctls map[string]string) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
			Sysctls: sysctls, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: o},
		}}
	}
	ports := Defaults{UnprivilegedPorts: true}
	const low, ping = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"
	for name, c := range map[string]struct {
		cfg  *runtimeapi.PodSandboxConfig
		d    Defaults
		want map[string]string
	}{
		"nothing":      {&runtimeapi.PodSandboxConfig{}, Defaults{}, map[string]string{}},
		"defaults":     {&runtimeapi.PodSandboxConfig{}, ports, map[string]string{low: "0", ping: "0 2147483647"}},
		"host network": {pod(&runtimeapi.NamespaceOption{Network: node}, nil), ports, map[string]string{}},
		"userns":       {pod(&runtimeapi.NamespaceOption{UsernsOptions: userns()}, nil), ports, map[string]string{low: "0"}},
		"userns NODE":  {pod(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: node}}, nil), ports, map[string]string{low: "0", ping: "0 2147483647"}},
		"asked wins":   {pod(nil, map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}), ports, map[string]string{low: "80", ping: "0 2147483647"}},
		"both forms": {pod(nil, map[string]string{"net.ipv4.conf.eth0/1.rp_filter": "1", "net/ipv4/conf/eth0.2/rp_filter": "2", "kernel/shmmax": "3"}), Defaults{},
			map[string]string{"net/ipv4/conf/eth0.1/rp_filter": "1", "net/ipv4/conf/eth0.2/rp_filter": "2", "kernel/shmmax": "3"}},
		"ipc": {pod(&runtimeapi.NamespaceOption{Network: node}, map[string]string{"kernel.sem": "250\t32000 32 128", "kernel.msgmax": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "10"}), Defaults{},
			map[string]string{"kernel/sem": "250\t32000 32 128", "kernel/msgmax": "1", "kernel/shm_rmid_forced": "1", "fs/mqueue/msg_max": "10"}},
	} {
		got, err := PodSysctls(c.cfg, c.d)
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, c.want)
		}
	}
	for _, c := range []struct {
		o          *runtimeapi.NamespaceOption
		key, value string
	}{
		{nil, "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x"},
		{nil, "net.ipv4.ip_forward", "1\n"},
		{nil, "net.ipv4.ip_forward", "\x00"},
		{nil, "net.ipv4.ip_forward", strings.Repeat("1", 5000)},
		{&runtimeapi.NamespaceOption{Network: node}, "net.ipv4.ip_forward", "1"},
		{&runtimeapi.NamespaceOption{Ipc: node}, "kernel.shmmax", "1"},
		{nil, "kernel.core_pattern", "x"}, {nil, "kernel.hostname", "x"}, {nil, "kernel.sem/../core_pattern", "x"}, {nil, "vm.swappiness", "1"},
		{nil, "net/../kernel/core_pattern", "x"}, {nil, "net.ipv4.conf.eth0/1", "1"}, {nil, "net.ipv4.conf.//.x", "1"}, {nil, "net", "1"}, {nil, "", "1"},
		{nil, "net..ipv4", "1"}, {nil, "net/ipv4/", "1"}, {nil, "/net/ipv4/ip_forward", "1"}, {nil, "net.ipv4.ip_forward\x00", "1"}, {nil, "kernel.shm/x", "1"},
		{nil, "net." + strings.Repeat("a", 1<<20), "1"}, {nil, "fs.mqueue", "1"}, {nil, "netx.ipv4", "1"},
	} {
		_, err := PodSysctls(pod(c.o, map[string]string{c.key: c.value}), Defaults{})
		expect(t, err, errdefs.ErrInvalidArgument, "linux.sysctls")
	}
}

// rows: K-16
func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		image string
		asked runtimeapi.Signal
		want  syscall.Signal
	}{
		{"", 0, syscall.SIGTERM},
		{"SIGQUIT", 0, syscall.SIGQUIT},
		{"quit", 0, syscall.SIGQUIT},
		{"9", 0, syscall.SIGKILL},
		{"SIGIOT", 0, syscall.SIGABRT},
		{"RTMIN+3", 0, 37},
		{"SIGRTMAX-1", 0, 63},
		{"64", 0, 64},
		{"SIGQUIT", runtimeapi.Signal_SIGNAL_SIGUSR1, syscall.SIGUSR1},
		{"", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15, 49},
	} {
		image := &ocispec.Image{Config: ocispec.ImageConfig{StopSignal: c.image}}
		got, err := StopSignal(image, &runtimeapi.ContainerConfig{StopSignal: c.asked})
		if err != nil || SignalNumber(got) != c.want {
			t.Errorf("%+v: got %v = %d, %v", c, got, SignalNumber(got), err)
		}
	}
	seen := map[syscall.Signal]bool{}
	for n := range runtimeapi.Signal_name {
		number := SignalNumber(runtimeapi.Signal(n))
		if (number == 0) != (n == 0) {
			t.Errorf("%s is %d", runtimeapi.Signal_name[n], number)
		}
		seen[number] = true
	}
	for n := syscall.Signal(1); n <= 64; n++ {
		if seen[n] == (n == 32 || n == 33) { // those are the C library's own
			t.Errorf("signal %d: in the CRI %v", n, seen[n])
		}
	}
}

// Where the kernel has no recursive read-only mounts, who asks for one is told so, and not given a weaker one.
// rows: D-53
func TestRROUnsupported(t *testing.T) {
	in := kubelet()
	if _, err := Build(in); err != nil { // it asks for one
		t.Fatal(err)
	}
	in.Host.MountSetattr = false
	_, err := Build(in)
	var rro *RROUnsupportedError
	if !errors.As(err, &rro) || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "recursive_read_only") {
		t.Errorf("%v", err)
	}
}
