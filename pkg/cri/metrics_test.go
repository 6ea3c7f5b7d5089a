package cri

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
	"github.com/criserver/criserver/pkg/stats"
)

// everything is a kernel that has all values.
var everything = stats.Kernel{CPUQuota: true, MaxMemory: true, PSI: true, IO: true, HugePages: true, MaxHuge: true}

func number(n uint64) *uint64 { return &n }

// fullReading has a different number in each place.
func fullReading() sandbox.Reading {
	return sandbox.Reading{
		At: time.Unix(2000, 5), Since: time.Unix(1000, 5), Cgroup: "/kubepods/pod1/c1",
		Detail: &stats.Detail{
			Usage: stats.Usage{
				CPUNanos: 3_500_000_000, MemoryUsage: 1, WorkingSet: 2, RSS: 3, SwapUsage: number(4), PageFaults: 5, MajorPageFaults: 6,
				CPUPSI:    &stats.PSI{Some: stats.PSIData{Total: 7e9}, Full: stats.PSIData{Total: 8e9}},
				MemoryPSI: &stats.PSI{Some: stats.PSIData{Total: 9e9}, Full: stats.PSIData{Total: 10e9}},
				IOPSI:     &stats.PSI{Some: stats.PSIData{Total: 11e9}, Full: stats.PSIData{Total: 12e9}},
			},
			CPUUserNanos: 2e9, CPUSystemNanos: 1e9, Periods: 13, ThrottledPeriods: 14, ThrottledNanos: 15e9,
			Cache: 16, MappedFile: 17, ActiveFile: 18, InactiveFile: 19, KernelMemory: 20, MaxMemory: number(21),
			OwnPageFaults: 22, OwnMajorPageFaults: 23, MemoryFailures: 24, OOMKills: 25, PidsLimit: number(26),
			IO:        []stats.DeviceIO{{Device: "0:77", Major: 0, Minor: 77, ReadBytes: 1024, WriteBytes: 2048, DiscardBytes: 27, Reads: 28, Writes: 29}},
			HugePages: []stats.HugePages{{Size: "2MB", Usage: 30, Max: number(31)}},
		},
		Processes:  &stats.Processes{Count: 32, Threads: 33, Descriptors: 34, Sockets: 35, States: stats.States{Running: 36, Sleeping: 37, Stopped: 38, Uninterruptible: 39, Zombie: 40}},
		SoftLimits: map[string]uint64{"max_open_files": 41, "max_cpu_time": 42},
		Interfaces: []stats.Interface{{Name: "eth0", RxBytes: 43, RxPackets: 44, RxErrors: 45, RxDropped: 46, TxBytes: 47, TxPackets: 48, TxErrors: 49, TxDropped: 50}},
		Layer:      &sandbox.LayerReading{Bytes: 51, Filesystem: stats.Filesystem{Device: "/dev/x", Major: 0, Minor: 78, Size: 53, Inodes: 54, InodesFree: 55}},
		Resources: &runtimeapi.LinuxContainerResources{
			CpuPeriod: 56, CpuQuota: -1, CpuShares: 57, MemoryLimitInBytes: 58, MemorySwapLimitInBytes: 59, Unified: map[string]string{"memory.low": "60"},
		},
	}
}

// text has a line for each value: the name, the labels beyond the base labels, the value.
func text(all []*runtimeapi.Metric) string {
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintln(&b, strings.TrimPrefix(m.Name, "container_"), m.LabelValues[len(baseLabels):], m.Value.Value, m.MetricType)
	}
	return b.String()
}

// wantMetrics are the values of fullReading.
const wantMetrics = `cpu_usage_seconds_total [total] 3 COUNTER
cpu_user_seconds_total [] 2 COUNTER
cpu_system_seconds_total [] 1 COUNTER
cpu_cfs_periods_total [] 13 COUNTER
cpu_cfs_throttled_periods_total [] 14 COUNTER
cpu_cfs_throttled_seconds_total [] 15 COUNTER
memory_usage_bytes [] 1 GAUGE
memory_working_set_bytes [] 2 GAUGE
memory_rss [] 3 GAUGE
memory_cache [] 16 GAUGE
memory_swap [] 4 GAUGE
memory_kernel_usage [] 20 GAUGE
memory_mapped_file [] 17 GAUGE
memory_max_usage_bytes [] 21 GAUGE
memory_total_active_file_bytes [] 18 GAUGE
memory_total_inactive_file_bytes [] 19 GAUGE
memory_failcnt [] 24 COUNTER
memory_failures_total [pgfault container] 22 COUNTER
memory_failures_total [pgmajfault container] 23 COUNTER
memory_failures_total [pgfault hierarchy] 5 COUNTER
memory_failures_total [pgmajfault hierarchy] 6 COUNTER
oom_events_total [] 25 COUNTER
hugetlb_usage_bytes [2MB] 30 GAUGE
hugetlb_max_usage_bytes [2MB] 31 GAUGE
pressure_cpu_waiting_seconds_total [] 7 COUNTER
pressure_cpu_stalled_seconds_total [] 8 COUNTER
pressure_memory_waiting_seconds_total [] 9 COUNTER
pressure_memory_stalled_seconds_total [] 10 COUNTER
pressure_io_waiting_seconds_total [] 11 COUNTER
pressure_io_stalled_seconds_total [] 12 COUNTER
fs_usage_bytes [/dev/x] 51 GAUGE
fs_limit_bytes [/dev/x] 53 GAUGE
fs_inodes_free [/dev/x] 55 GAUGE
fs_inodes_total [/dev/x] 54 GAUGE
fs_reads_total [0:77] 28 COUNTER
fs_reads_total [/dev/x] 0 COUNTER
fs_writes_total [0:77] 29 COUNTER
fs_writes_total [/dev/x] 0 COUNTER
fs_reads_bytes_total [0:77] 1024 COUNTER
fs_reads_bytes_total [/dev/x] 0 COUNTER
fs_writes_bytes_total [0:77] 2048 COUNTER
fs_writes_bytes_total [/dev/x] 0 COUNTER
fs_sector_reads_total [0:77] 2 COUNTER
fs_sector_reads_total [/dev/x] 0 COUNTER
fs_sector_writes_total [0:77] 4 COUNTER
fs_sector_writes_total [/dev/x] 0 COUNTER
blkio_device_usage_total [0:77 0 77 Read] 1024 COUNTER
blkio_device_usage_total [0:77 0 77 Write] 2048 COUNTER
blkio_device_usage_total [0:77 0 77 Discard] 27 COUNTER
blkio_device_usage_total [/dev/x 0 78 Read] 0 COUNTER
blkio_device_usage_total [/dev/x 0 78 Write] 0 COUNTER
blkio_device_usage_total [/dev/x 0 78 Discard] 0 COUNTER
processes [] 32 GAUGE
threads [] 33 GAUGE
file_descriptors [] 34 GAUGE
sockets [] 35 GAUGE
threads_max [] 26 GAUGE
tasks_state [sleeping] 37 GAUGE
tasks_state [running] 36 GAUGE
tasks_state [stopped] 38 GAUGE
tasks_state [uninterruptible] 39 GAUGE
tasks_state [zombie] 40 GAUGE
ulimits_soft [max_cpu_time] 42 GAUGE
ulimits_soft [max_open_files] 41 GAUGE
network_receive_bytes_total [eth0] 43 COUNTER
network_receive_packets_total [eth0] 44 COUNTER
network_receive_packets_dropped_total [eth0] 46 COUNTER
network_receive_errors_total [eth0] 45 COUNTER
network_transmit_bytes_total [eth0] 47 COUNTER
network_transmit_packets_total [eth0] 48 COUNTER
network_transmit_packets_dropped_total [eth0] 50 COUNTER
network_transmit_errors_total [eth0] 49 COUNTER
spec_cpu_period [] 56 GAUGE
spec_cpu_quota [] 0 GAUGE
spec_cpu_shares [] 57 GAUGE
spec_memory_limit_bytes [] 58 GAUGE
spec_memory_swap_limit_bytes [] 59 GAUGE
spec_memory_reservation_limit_bytes [] 60 GAUGE
start_time_seconds [] 1000 GAUGE
last_seen [] 2000 GAUGE
scrape_error [] 0 GAUGE
`

// rows: M1, M2, M3, M4, M5, M6, M8, M9, M10, M11, M12
func TestMetricValues(t *testing.T) {
	s := &Server{metrics: servedMetrics(Options{Kernel: everything})}
	r := fullReading()
	none := func(*metric) []string { return make([]string, len(baseLabels)) }
	if diff := cmp.Diff(wantMetrics, text(s.values(&r, none))); diff != "" {
		t.Error(diff)
	}
	bare := sandbox.Reading{At: time.Unix(2000, 0), Since: time.Unix(1000, 0), Failed: true}
	const want = "start_time_seconds [] 1000 GAUGE\nlast_seen [] 2000 GAUGE\nscrape_error [] 1 GAUGE\n"
	if diff := cmp.Diff(want, text(s.values(&bare, none))); diff != "" {
		t.Error(diff)
	}
}

// TestMetricDescriptors holds that every kind of value is described with its labels, and that what a kernel lacks is not.
// rows: R-33
func TestMetricDescriptors(t *testing.T) {
	labels := map[string]int{}
	for _, m := range servedMetrics(Options{Kernel: everything}) {
		if labels[m.name] != 0 {
			t.Errorf("%s is there twice", m.name)
		}
		labels[m.name] = len(baseLabels) + len(m.labels)
		if m.help == "" {
			t.Errorf("%s has no help", m.name)
		}
	}
	r := fullReading()
	s := &Server{metrics: metrics}
	for _, v := range s.values(&r, func(*metric) []string { return baseLabels }) {
		if len(v.LabelValues) != labels[v.Name] {
			t.Errorf("%s has the labels %v, described are %d", v.Name, v.LabelValues, labels[v.Name])
		}
	}
	for _, m := range servedMetrics(Options{}) {
		for _, part := range []string{"_cfs_", "_pressure_", "_hugetlb_", "_blkio_", "_max_usage_", "_reads_", "_writes_"} {
			if strings.Contains(m.name, part) {
				t.Errorf("a kernel with nothing has %s", m.name)
			}
		}
	}
}

// rows
func TestListPodSandboxMetrics(t *testing.T) {
	e := newEdge(t)
	pod, container := e.sandboxes.pods[0], e.sandboxes.containers[0]
	e.sandboxes.readings = []*sandbox.PodReading{{
		Pod: pod, Reading: fullReading(), Containers: []sandbox.ContainerReading{{Container: container, Reading: fullReading()}},
	}}
	list, err := e.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.PodMetrics) != 1 || len(list.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatal(list, err)
	}
	got := list.PodMetrics[0]
	if got.PodSandboxId != pod.ID || got.ContainerMetrics[0].ContainerId != container.ID {
		t.Errorf("IDs %s and %s", got.PodSandboxId, got.ContainerMetrics[0].ContainerId)
	}
	meta := pod.Config.Metadata
	labelsOf := func(all []*runtimeapi.Metric, name string) []string {
		t.Helper()
		i := slices.IndexFunc(all, func(m *runtimeapi.Metric) bool { return m.Name == name })
		if i < 0 {
			t.Fatalf("no %s", name)
		}
		return all[i].LabelValues
	}
	for what, c := range map[string]struct{ got, want []string }{
		"pod":     {labelsOf(got.Metrics, "container_memory_rss"), []string{"", "/kubepods/pod1/c1", "", "", meta.Namespace, meta.Name}},
		"network": {labelsOf(got.Metrics, "container_network_receive_bytes_total"), []string{"", "/kubepods/pod1/c1", sandboxImage, pod.ID, meta.Namespace, meta.Name, "eth0"}},
		"container": {labelsOf(got.ContainerMetrics[0].Metrics, "container_memory_rss"),
			[]string{container.Config.Metadata.Name, "/kubepods/pod1/c1", e.namedImage(container).Image, container.ID, meta.Namespace, meta.Name}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}

	stream, err := e.runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var streamed []*runtimeapi.PodSandboxMetrics
	for {
		piece, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		streamed = append(streamed, piece.PodSandboxMetrics...)
	}
	if fmt.Sprint(streamed) != fmt.Sprint(list.PodMetrics) {
		t.Errorf("streamed %v, listed %v", streamed, list.PodMetrics)
	}
}
