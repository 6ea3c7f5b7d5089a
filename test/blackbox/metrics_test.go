package blackbox

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/stats"
)

// cadvisorMetrics are the names that dashboards ask for, without "container_"; of the last ones not every kernel has values.
const cadvisorMetrics = `
	cpu_usage_seconds_total cpu_user_seconds_total cpu_system_seconds_total
	memory_usage_bytes memory_working_set_bytes memory_rss memory_cache memory_swap memory_kernel_usage memory_mapped_file
	memory_failcnt memory_failures_total memory_total_active_file_bytes memory_total_inactive_file_bytes
	network_receive_bytes_total network_receive_packets_total network_receive_packets_dropped_total network_receive_errors_total
	network_transmit_bytes_total network_transmit_packets_total network_transmit_packets_dropped_total network_transmit_errors_total
	fs_usage_bytes fs_limit_bytes fs_inodes_free fs_inodes_total
	processes threads threads_max file_descriptors sockets ulimits_soft tasks_state
	spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
	oom_events_total start_time_seconds last_seen scrape_error`

var cadvisorMetricsByKernel = []struct {
	has   func(stats.Kernel) bool
	names string
}{
	{func(k stats.Kernel) bool { return k.CPUQuota }, "cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total"},
	{func(k stats.Kernel) bool { return k.MaxMemory }, "memory_max_usage_bytes"},
	{func(k stats.Kernel) bool { return k.IO }, `fs_reads_total fs_writes_total fs_reads_bytes_total fs_writes_bytes_total
		fs_sector_reads_total fs_sector_writes_total blkio_device_usage_total`},
	{func(k stats.Kernel) bool { return k.HugePages }, "hugetlb_usage_bytes"},
	{func(k stats.Kernel) bool { return k.MaxHuge }, "hugetlb_max_usage_bytes"},
	{func(k stats.Kernel) bool { return k.PSI }, `pressure_cpu_waiting_seconds_total pressure_cpu_stalled_seconds_total pressure_memory_waiting_seconds_total
		pressure_memory_stalled_seconds_total pressure_io_waiting_seconds_total pressure_io_stalled_seconds_total`},
}

// described are the labels of each metric.
func described(t *testing.T) map[string][]string {
	t.Helper()
	r, err := n.Runtimes.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, d := range r.Descriptors {
		if all[d.Name] != nil || d.Help == "" {
			t.Errorf("described twice, or without help: %v", d)
		}
		all[d.Name] = d.LabelKeys
	}
	return all
}

// metrics are those of the pod and of one of its containers.
func (p *pod) metrics(container string) (ofPod, ofContainer []*runtimeapi.Metric) {
	p.t.Helper()
	r, err := n.Runtimes.ListPodSandboxMetrics(p.ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, pm := range r.PodMetrics {
		if pm.PodSandboxId != p.id {
			continue
		}
		ofPod = pm.Metrics
		for _, cm := range pm.ContainerMetrics {
			if cm.ContainerId == container {
				ofContainer = cm.Metrics
			}
		}
	}
	return ofPod, ofContainer
}

// sum adds the values of a metric whose labels contain all that are named.
func sum(all []*runtimeapi.Metric, name string, labels ...string) (total uint64) {
	for _, m := range all {
		if m.Name == "container_"+name && !slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(m.LabelValues, l) }) {
			total += m.Value.GetValue()
		}
	}
	return total
}

// Every metric of cAdvisor's names is described, and what is described is served with its labels, by a plain container in a pod.
// rows, M1, M2, M3, M4, M5, M6, M7, M8, M9, M10, M11, M12, GAP-24, P-078, P-078b, P-078c, P-078d, P-078e
func TestMetricsOfCAdvisor(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	descriptors := described(t)
	kernel, err := stats.KernelOf()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(cadvisorMetrics)
	for _, more := range cadvisorMetricsByKernel {
		if more.has(kernel) {
			want = append(want, strings.Fields(more.names)...)
		}
	}
	for _, name := range want {
		if descriptors["container_"+name] == nil {
			t.Errorf("container_%s is not described", name)
		}
	}
	ofPod, ofContainer := p.metrics(c.id)
	all := slices.Concat(ofPod, ofContainer)
	seen := map[string]bool{}
	for _, m := range all {
		keys := descriptors[m.Name]
		equal(t, "labels of "+m.Name, len(m.LabelValues), len(keys))
		series := m.Name + strings.Join(m.LabelValues, "|")
		if seen[series] {
			t.Errorf("%s is there twice", series)
		}
		seen[series], seen[m.Name] = true, true
		if slices.Contains(keys, "pod") {
			equal(t, "pod of "+m.Name, m.LabelValues[slices.Index(keys, "pod")], p.config.Metadata.Name)
		}
	}
	for name := range descriptors {
		if !seen[name] {
			t.Errorf("%s is described and not served", name)
		}
	}
	for _, m := range ofContainer {
		keys := descriptors[m.Name]
		equal(t, "image of "+m.Name, m.LabelValues[slices.Index(keys, "image")], c.status().Image.Image)
		equal(t, "name of "+m.Name, m.LabelValues[slices.Index(keys, "name")], c.id)
		equal(t, "container of "+m.Name, m.LabelValues[slices.Index(keys, "container")], c.config.Metadata.Name)
	}
	equal(t, "failures to read", sum(all, "scrape_error"), 0)
}

// Values follow what the container does and what its cgroup says.
// rows: M1, M2, M4, M5, M7, M8, M9, M12, D-173, GAP-24, P-078, P-078b, P-078d, P-078e
func TestMetricsFollow(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(serves("hello"), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes = 50000, 40000, 512, 200<<20
	}))
	eventually(t, 10*time.Second, "the server listens", func() (bool, string) {
		_, m := p.metrics(c.id)
		return sum(m, "sockets") > 0, ""
	})
	get(t, p.ips()[0])
	c.sh("dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; (while :; do :; done) >/dev/null 2>&1 &")

	processes, err := strconv.ParseUint(cgroupFile(t, "criserver-"+c.id, "pids.current", "pids.current"), 10, 64) // none has threads
	if err != nil {
		t.Fatal(err)
	}
	ofPod, m := p.metrics(c.id)
	for name, want := range map[string]uint64{
		"processes": processes, "spec_cpu_period": 50000, "spec_cpu_quota": 40000, "spec_cpu_shares": 512,
		"spec_memory_limit_bytes": 200 << 20, "oom_events_total": 0,
	} {
		equal(t, name, sum(m, name), want)
	}
	equal(t, "start", int64(sum(m, "start_time_seconds")), time.Unix(0, c.status().StartedAt).Unix())
	limit, err := strconv.ParseUint(c.sh("ulimit -n"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "limit of open files", sum(m, "ulimits_soft", "max_open_files"), limit)
	usage, err := strconv.ParseFloat(cgroupFile(t, "criserver-"+c.id, "memory.usage_in_bytes", "memory.current"), 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(sum(m, "memory_usage_bytes")); got < 0.8*usage || got > 1.2*usage {
		t.Errorf("memory %.0f, the cgroup has %.0f", got, usage)
	}
	if last := time.Unix(int64(sum(m, "last_seen")), 0); time.Since(last) > 15*time.Second {
		t.Errorf("last seen %v", last)
	}
	equal(t, "tasks in all states", sum(m, "tasks_state"), processes)
	if sum(m, "memory_failures_total", "pgfault") == 0 {
		t.Error("there was no page fault")
	}
	for _, name := range []string{"network_receive_bytes_total", "network_transmit_bytes_total", "network_receive_packets_total", "network_transmit_packets_total"} {
		if sum(ofPod, name, "eth0") == 0 {
			t.Errorf("%s is 0 after a request", name)
		}
	}
	eventually(t, 20*time.Second, "20 MiB and a processor's time are in the metrics", func() (bool, string) {
		_, m := p.metrics(c.id)
		disk, cpu, periods := sum(m, "fs_usage_bytes"), sum(m, "cpu_usage_seconds_total"), sum(m, "cpu_cfs_periods_total")
		return disk >= 20<<20 && cpu > 0 && periods > 0, fmt.Sprintf("%d bytes, %d seconds, %d periods", disk, cpu, periods)
	})
}

// The stream has what the list has, and neither has a pod that was stopped.
// rows
func TestMetricsStreamed(t *testing.T) {
	ours(t)
	p, stopped := newPod(t), newPod(t)
	c := p.start(asleep())
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id}); err != nil {
		t.Fatal(err)
	}
	stream, err := n.Runtimes.StreamPodSandboxMetrics(p.ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	streamed := map[string]*runtimeapi.PodSandboxMetrics{}
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, pm := range r.PodSandboxMetrics {
			streamed[pm.PodSandboxId] = pm
		}
	}
	listed, none := stopped.metrics("")
	equal(t, "metrics of a stopped pod", len(listed)+len(none), 0)
	equal(t, "stream of a stopped pod", len(streamed[stopped.id].GetMetrics()), 0)
	ofPod, ofContainer := p.metrics(c.id)
	got := streamed[p.id]
	if len(got.GetContainerMetrics()) != 1 {
		t.Fatalf("%v", got)
	}
	equal(t, "pod's metrics", names(got.Metrics), names(ofPod))
	equal(t, "container's metrics", names(got.ContainerMetrics[0].Metrics), names(ofContainer))
}

// names are the names and labels.
func names(all []*runtimeapi.Metric) string {
	var b strings.Builder
	for _, m := range all {
		b.WriteString(m.Name + "{" + strings.Join(m.LabelValues, ",") + "}\n")
	}
	return b.String()
}
