package cri

import (
	"maps"
	"slices"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
	"github.com/criserver/criserver/pkg/stats"
)

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// metric is one metric: what describes it, and what makes its values. Names, labels and units are those that cAdvisor
// has (KEP-2371), so that what reads the kubelet's /metrics/cadvisor need not know who made them. A value is a whole
// number (Metric.value), so seconds are cut.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string                // beside baseLabels
	served     func(stats.Kernel) bool // nil: by every kernel
	ofSandbox  bool                    // it has the sandbox's own name and image, where others of a pod are of its cgroup
	values     func(*sandbox.Reading, addValue)
}

// addValue takes a value and those of metric.labels.
type addValue func(value uint64, labels ...string)

// baseLabels are those of every metric. The metrics of a pod have no container.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// metrics are all that there are.
var metrics = slices.Concat(cpuMetrics, memoryMetrics, pressureMetrics, ioMetrics, processMetrics, networkMetrics, requestedMetrics, lifeMetrics)

// ofDetail makes the values of what has a cgroup.
func ofDetail(values func(*stats.Detail, addValue)) func(*sandbox.Reading, addValue) {
	return func(r *sandbox.Reading, add addValue) {
		if r.Detail != nil {
			values(r.Detail, add)
		}
	}
}

// detail makes the one value of what has a cgroup.
func detail(value func(*stats.Detail) uint64) func(*sandbox.Reading, addValue) {
	return ofDetail(func(d *stats.Detail, add addValue) { add(value(d)) })
}

func wholeSeconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }

var cpuMetrics = []metric{
	{name: "container_cpu_usage_seconds_total", help: "Processor time used, in seconds.", kind: counter, labels: []string{"cpu"},
		values: ofDetail(func(d *stats.Detail, add addValue) { add(wholeSeconds(d.CPUNanos), "total") })},
	{name: "container_cpu_user_seconds_total", help: "Processor time used in user mode, in seconds.", kind: counter,
		values: detail(func(d *stats.Detail) uint64 { return wholeSeconds(d.CPUUserNanos) })},
	{name: "container_cpu_system_seconds_total", help: "Processor time used in kernel mode, in seconds.", kind: counter,
		values: detail(func(d *stats.Detail) uint64 { return wholeSeconds(d.CPUSystemNanos) })},
	{name: "container_cpu_cfs_periods_total", help: "Periods in which the quota of processor time was enforced.", kind: counter,
		served: quota, values: detail(func(d *stats.Detail) uint64 { return d.Periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the quota of processor time was used up.", kind: counter,
		served: quota, values: detail(func(d *stats.Detail) uint64 { return d.ThrottledPeriods })},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Time spent waiting for the next period, in seconds.", kind: counter,
		served: quota, values: detail(func(d *stats.Detail) uint64 { return wholeSeconds(d.ThrottledNanos) })},
}

func quota(k stats.Kernel) bool { return k.CPUQuota }

var memoryMetrics = []metric{
	{name: "container_memory_usage_bytes", help: "Memory in use, with caches.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.MemoryUsage })},
	{name: "container_memory_working_set_bytes", help: "Memory in use without the file pages that were not used of late.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.WorkingSet })},
	{name: "container_memory_rss", help: "Anonymous memory, in bytes.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.RSS })},
	{name: "container_memory_cache", help: "Page cache, in bytes.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.Cache })},
	{name: "container_memory_swap", help: "Swap in use, in bytes.", kind: gauge,
		values: ofDetail(func(d *stats.Detail, add addValue) { addPointer(add, d.SwapUsage) })},
	{name: "container_memory_kernel_usage", help: "Memory that the kernel uses on behalf of the processes, in bytes.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.KernelMemory })},
	{name: "container_memory_mapped_file", help: "Mapped files, in bytes.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.MappedFile })},
	{name: "container_memory_max_usage_bytes", help: "The most memory that was ever in use.", kind: gauge,
		served: func(k stats.Kernel) bool { return k.MaxMemory },
		values: ofDetail(func(d *stats.Detail, add addValue) { addPointer(add, d.MaxMemory) })},
	{name: "container_memory_total_active_file_bytes", help: "Page cache that was used of late.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.ActiveFile })},
	{name: "container_memory_total_inactive_file_bytes", help: "Page cache that was not used of late.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 { return d.InactiveFile })},
	{name: "container_memory_failcnt", help: "How often the limit of memory was reached.", kind: counter,
		values: detail(func(d *stats.Detail) uint64 { return d.MemoryFailures })},
	{name: "container_memory_failures_total", help: "Page faults.", kind: counter, labels: []string{"failure_type", "scope"},
		values: ofDetail(func(d *stats.Detail, add addValue) {
			add(d.OwnPageFaults, "pgfault", "container")
			add(d.OwnMajorPageFaults, "pgmajfault", "container")
			add(d.PageFaults, "pgfault", "hierarchy")
			add(d.MajorPageFaults, "pgmajfault", "hierarchy")
		})},
	{name: "container_oom_events_total", help: "Processes killed for want of memory.", kind: counter,
		values: detail(func(d *stats.Detail) uint64 { return d.OOMKills })},
	{name: "container_hugetlb_usage_bytes", help: "Huge pages in use.", kind: gauge, labels: []string{"pagesize"},
		served: func(k stats.Kernel) bool { return k.HugePages },
		values: ofDetail(func(d *stats.Detail, add addValue) {
			for _, h := range d.HugePages {
				add(h.Usage, h.Size)
			}
		})},
	{name: "container_hugetlb_max_usage_bytes", help: "The most huge pages that were ever in use.", kind: gauge, labels: []string{"pagesize"},
		served: func(k stats.Kernel) bool { return k.MaxHuge },
		values: ofDetail(func(d *stats.Detail, add addValue) {
			for _, h := range d.HugePages {
				if h.Max != nil {
					add(*h.Max, h.Size)
				}
			}
		})},
}

func addPointer(add addValue, value *uint64) {
	if value != nil {
		add(*value)
	}
}

var pressureMetrics = slices.Concat(
	pressure("cpu", "the processor", func(d *stats.Detail) *stats.PSI { return d.CPUPSI }),
	pressure("memory", "memory", func(d *stats.Detail) *stats.PSI { return d.MemoryPSI }),
	pressure("io", "input and output", func(d *stats.Detail) *stats.PSI { return d.IOPSI }),
)

// pressure makes the two metrics of a resource, see Documentation/accounting/psi.rst.
func pressure(resource, words string, of func(*stats.Detail) *stats.PSI) []metric {
	total := func(data func(*stats.PSI) stats.PSIData) func(*sandbox.Reading, addValue) {
		return ofDetail(func(d *stats.Detail, add addValue) {
			if p := of(d); p != nil {
				add(wholeSeconds(data(p).Total))
			}
		})
	}
	served := func(k stats.Kernel) bool { return k.PSI }
	return []metric{
		{name: "container_pressure_" + resource + "_waiting_seconds_total", help: "Time in which some task waited for " + words + ", in seconds.",
			kind: counter, served: served, values: total(func(p *stats.PSI) stats.PSIData { return p.Some })},
		{name: "container_pressure_" + resource + "_stalled_seconds_total", help: "Time in which all tasks waited for " + words + ", in seconds.",
			kind: counter, served: served, values: total(func(p *stats.PSI) stats.PSIData { return p.Full })},
	}
}

var ioMetrics = []metric{
	layerMetric("container_fs_usage_bytes", "Bytes that the writable layer occupies.", func(l *sandbox.LayerReading) uint64 { return l.Bytes }),
	layerMetric("container_fs_limit_bytes", "Size of the filesystem of the writable layer.", func(l *sandbox.LayerReading) uint64 { return l.Filesystem.Size }),
	layerMetric("container_fs_inodes_free", "Inodes that are free in the filesystem of the writable layer.",
		func(l *sandbox.LayerReading) uint64 { return l.Filesystem.InodesFree }),
	layerMetric("container_fs_inodes_total", "Inodes of the filesystem of the writable layer.", func(l *sandbox.LayerReading) uint64 { return l.Filesystem.Inodes }),
	deviceMetric("container_fs_reads_total", "Reads completed.", func(io *stats.DeviceIO) uint64 { return io.Reads }),
	deviceMetric("container_fs_writes_total", "Writes completed.", func(io *stats.DeviceIO) uint64 { return io.Writes }),
	deviceMetric("container_fs_reads_bytes_total", "Bytes read.", func(io *stats.DeviceIO) uint64 { return io.ReadBytes }),
	deviceMetric("container_fs_writes_bytes_total", "Bytes written.", func(io *stats.DeviceIO) uint64 { return io.WriteBytes }),
	deviceMetric("container_fs_sector_reads_total", "Sectors read.", func(io *stats.DeviceIO) uint64 { return io.ReadBytes / sector }),
	deviceMetric("container_fs_sector_writes_total", "Sectors written.", func(io *stats.DeviceIO) uint64 { return io.WriteBytes / sector }),
	{name: "container_blkio_device_usage_total", help: "Bytes read from, written to and discarded on a block device.", kind: counter,
		labels: []string{"device", "major", "minor", "operation"}, served: deviceIO,
		values: func(r *sandbox.Reading, add addValue) {
			for _, io := range devices(r) {
				major, minor := strconv.Itoa(int(io.Major)), strconv.Itoa(int(io.Minor))
				add(io.ReadBytes, io.Device, major, minor, "Read")
				add(io.WriteBytes, io.Device, major, minor, "Write")
				add(io.DiscardBytes, io.Device, major, minor, "Discard")
			}
		}},
}

// sector is the unit of the block layer, whatever the device has.
const sector = 512

func layerMetric(name, help string, value func(*sandbox.LayerReading) uint64) metric {
	return metric{name: name, help: help, kind: gauge, labels: []string{"device"}, values: func(r *sandbox.Reading, add addValue) {
		if r.Layer != nil {
			add(value(r.Layer), r.Layer.Filesystem.Device)
		}
	}}
}

func deviceIO(k stats.Kernel) bool { return k.IO }

func deviceMetric(name, help string, value func(*stats.DeviceIO) uint64) metric {
	return metric{name: name, help: help, kind: counter, labels: []string{"device"}, served: deviceIO, values: func(r *sandbox.Reading, add addValue) {
		for _, io := range devices(r) {
			add(value(&io), io.Device)
		}
	}}
}

// devices are those that were read or written. That of the writable layer is always among them, so that its counters
// begin at zero and not when they first count.
func devices(r *sandbox.Reading) []stats.DeviceIO {
	if r.Detail == nil {
		return nil
	}
	all := r.Detail.IO
	if r.Layer == nil {
		return all
	}
	fs := r.Layer.Filesystem
	if slices.ContainsFunc(all, func(io stats.DeviceIO) bool { return io.Major == fs.Major && io.Minor == fs.Minor }) {
		return all
	}
	return append(slices.Clip(all), stats.DeviceIO{Device: fs.Device, Major: fs.Major, Minor: fs.Minor})
}

var processMetrics = []metric{
	processMetric("container_processes", "Processes.", func(p *stats.Processes) uint64 { return p.Count }),
	processMetric("container_threads", "Threads.", func(p *stats.Processes) uint64 { return p.Threads }),
	processMetric("container_file_descriptors", "Open file descriptors.", func(p *stats.Processes) uint64 { return p.Descriptors }),
	processMetric("container_sockets", "Open sockets.", func(p *stats.Processes) uint64 { return p.Sockets }),
	{name: "container_threads_max", help: "How many threads there may be; 0 is no limit.", kind: gauge,
		values: detail(func(d *stats.Detail) uint64 {
			if d.PidsLimit == nil {
				return 0
			}
			return *d.PidsLimit
		})},
	{name: "container_tasks_state", help: "Threads that are in a state.", kind: gauge, labels: []string{"state"},
		values: func(r *sandbox.Reading, add addValue) {
			if r.Processes == nil {
				return
			}
			s := r.Processes.States
			add(s.Sleeping, "sleeping")
			add(s.Running, "running")
			add(s.Stopped, "stopped")
			add(s.Uninterruptible, "uninterruptible")
			add(s.Zombie, "zombie")
		}},
	{name: "container_ulimits_soft", help: "Soft limits of the first process; what has no limit is left out.", kind: gauge, labels: []string{"ulimit"},
		values: func(r *sandbox.Reading, add addValue) {
			for _, name := range slices.Sorted(maps.Keys(r.SoftLimits)) {
				add(r.SoftLimits[name], name)
			}
		}},
}

func processMetric(name, help string, value func(*stats.Processes) uint64) metric {
	return metric{name: name, help: help, kind: gauge, values: func(r *sandbox.Reading, add addValue) {
		if r.Processes != nil {
			add(value(r.Processes))
		}
	}}
}

var networkMetrics = []metric{
	networkMetric("container_network_receive_bytes_total", "Bytes received.", func(i *stats.Interface) uint64 { return i.RxBytes }),
	networkMetric("container_network_receive_packets_total", "Packets received.", func(i *stats.Interface) uint64 { return i.RxPackets }),
	networkMetric("container_network_receive_packets_dropped_total", "Packets dropped on receipt.", func(i *stats.Interface) uint64 { return i.RxDropped }),
	networkMetric("container_network_receive_errors_total", "Errors on receipt.", func(i *stats.Interface) uint64 { return i.RxErrors }),
	networkMetric("container_network_transmit_bytes_total", "Bytes sent.", func(i *stats.Interface) uint64 { return i.TxBytes }),
	networkMetric("container_network_transmit_packets_total", "Packets sent.", func(i *stats.Interface) uint64 { return i.TxPackets }),
	networkMetric("container_network_transmit_packets_dropped_total", "Packets dropped on sending.", func(i *stats.Interface) uint64 { return i.TxDropped }),
	networkMetric("container_network_transmit_errors_total", "Errors on sending.", func(i *stats.Interface) uint64 { return i.TxErrors }),
}

func networkMetric(name, help string, value func(*stats.Interface) uint64) metric {
	return metric{name: name, help: help, kind: counter, labels: []string{"interface"}, ofSandbox: true, values: func(r *sandbox.Reading, add addValue) {
		for _, i := range r.Interfaces {
			add(value(&i), i.Name)
		}
	}}
}

var requestedMetrics = []metric{
	requestedMetric("container_spec_cpu_period", "Period of the quota of processor time, in microseconds; 0 is the kernel's.",
		func(r *runtimeapi.LinuxContainerResources) int64 { return r.GetCpuPeriod() }),
	requestedMetric("container_spec_cpu_quota", "Processor time in a period, in microseconds; 0 is no limit.",
		func(r *runtimeapi.LinuxContainerResources) int64 { return r.GetCpuQuota() }),
	requestedMetric("container_spec_cpu_shares", "Share of the processor's time.",
		func(r *runtimeapi.LinuxContainerResources) int64 { return r.GetCpuShares() }),
	requestedMetric("container_spec_memory_limit_bytes", "Limit of memory; 0 is none.",
		func(r *runtimeapi.LinuxContainerResources) int64 { return r.GetMemoryLimitInBytes() }),
	requestedMetric("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0 is none.",
		func(r *runtimeapi.LinuxContainerResources) int64 { return r.GetMemorySwapLimitInBytes() }),
	requestedMetric("container_spec_memory_reservation_limit_bytes", "Memory that is not taken away while there is other (memory.low); 0 is none.",
		func(r *runtimeapi.LinuxContainerResources) int64 {
			low, _ := strconv.ParseInt(r.GetUnified()["memory.low"], 10, 64) // "max" is no number of bytes
			return low
		}),
}

// requestedMetric tells what was asked for; a pod that was not given the sum of its containers has none.
func requestedMetric(name, help string, value func(*runtimeapi.LinuxContainerResources) int64) metric {
	return metric{name: name, help: help, kind: gauge, values: func(r *sandbox.Reading, add addValue) {
		if r.Resources != nil {
			add(uint64(max(value(r.Resources), 0))) // -1 is no limit
		}
	}}
}

var lifeMetrics = []metric{
	{name: "container_start_time_seconds", help: "When it was started, in seconds since 1970.", kind: gauge,
		values: func(r *sandbox.Reading, add addValue) { add(uint64(r.Since.Unix())) }},
	{name: "container_last_seen", help: "When it was last read, in seconds since 1970.", kind: gauge,
		values: func(r *sandbox.Reading, add addValue) { add(uint64(r.At.Unix())) }},
	{name: "container_scrape_error", help: "1 if a metric could not be read, else 0.", kind: gauge,
		values: func(r *sandbox.Reading, add addValue) {
			if r.Failed {
				add(1)
			} else {
				add(0)
			}
		}},
}
