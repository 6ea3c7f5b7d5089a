package stats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// files writes the files of a cgroup.
func files(t *testing.T, contents map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range contents {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

// asPages makes the machine one with a size of huge pages.
func asPages(t *testing.T, sizes ...string) {
	t.Helper()
	before := hugePageSizes
	hugePageSizes = func() []string { return sizes }
	t.Cleanup(func() { hugePageSizes = before })
}

// rows: M1, M2, M3, M10
func TestDetailV2(t *testing.T) {
	asPages(t, "2MB")
	dir := files(t, map[string]string{
		"cpu.stat":            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 4\nthrottled_usec 3\nnr_bursts 9\n",
		"memory.current":      "1000\n",
		"memory.max":          "max\n",
		"memory.peak":         "2000\n",
		"memory.stat":         "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 5\nactive_file 6\npgfault 7\npgmajfault 8\n",
		"memory.events":       "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\n",
		"memory.swap.current": "9\n",
		"memory.swap.max":     "max\n",
		"pids.current":        "2\n",
		"pids.max":            "100\n",
		"io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 \nfoo rbytes=1\n",
		"hugetlb.2MB.current": "4194304\n",
		"hugetlb.2MB.max":     "max\n",
		"memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
		"hugetlb.1GB.current": "1\n", // of a size that the machine does not have
	})
	got, err := Cgroup{unified: dir}.Detail()
	if err != nil {
		t.Fatal(err)
	}
	want := Detail{
		Usage: Usage{
			CPUNanos: 30000, MemoryUsage: 1000, WorkingSet: 995, RSS: 1, PageFaults: 7, MajorPageFaults: 8,
			SwapUsage: pointer(9), Pids: 2, MemoryPSI: &PSI{PSIData{Total: 11000}, PSIData{Total: 10000}},
		},
		CPUUserNanos: 20000, CPUSystemNanos: 10000, Periods: 5, ThrottledPeriods: 4, ThrottledNanos: 3000,
		Cache: 2, MappedFile: 4, ActiveFile: 6, InactiveFile: 5, KernelMemory: 3, MaxMemory: pointer(2000),
		OwnPageFaults: 7, OwnMajorPageFaults: 8, MemoryFailures: 3, OOMKills: 5, PidsLimit: pointer(100),
		IO:        []DeviceIO{{DeviceName(8, 0), 8, 0, 1, 2, 5, 3, 4}, {DeviceName(254, 16), 254, 16, 0, 0, 0, 0, 0}},
		HugePages: []HugePages{{"2MB", 4194304, nil}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Usage{}, "At")); diff != "" {
		t.Error(diff)
	}
}

// rows: M1, M2, M3, M10
func TestDetailV1(t *testing.T) {
	asPages(t, "2MB")
	dir := files(t, map[string]string{
		"cpuacct.usage":              "30000\n",
		"cpuacct.stat":               "user 2\nsystem 1\n",
		"cpu.stat":                   "nr_periods 5\nnr_throttled 4\nthrottled_time 3000\n",
		"memory.usage_in_bytes":      "1000\n",
		"memory.limit_in_bytes":      "9223372036854771712\n",
		"memory.max_usage_in_bytes":  "2000\n",
		"memory.failcnt":             "3\n",
		"memory.kmem.usage_in_bytes": "33\n",
		"memory.oom_control":         "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
		"memory.stat":                "cache 1\npgfault 70\npgmajfault 80\ntotal_cache 2\ntotal_rss 1\ntotal_mapped_file 4\ntotal_swap 9\ntotal_pgfault 7\ntotal_pgmajfault 8\ntotal_inactive_file 5\ntotal_active_file 6\n",
		"pids.current":               "2\n",
		"pids.max":                   "max\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Async 0\n8:0 Discard 5\n8:0 Total 3\nTotal 3\n",
		"blkio.throttle.io_serviced_recursive":      "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n",
		"hugetlb.2MB.usage_in_bytes":                "4194304\n",
		"hugetlb.2MB.max_usage_in_bytes":            "6291456\n",
	})
	got, err := Cgroup{v1: v1Dirs{cpu: dir, cpuacct: dir, memory: dir, pids: dir, blkio: dir, hugetlb: dir}}.Detail()
	if err != nil {
		t.Fatal(err)
	}
	want := Detail{
		Usage: Usage{
			CPUNanos: 30000, MemoryUsage: 1000, WorkingSet: 995, RSS: 1, PageFaults: 7, MajorPageFaults: 8,
			SwapUsage: pointer(9), SwapLimit: pointer(0), Pids: 2,
		},
		CPUUserNanos: 20_000_000, CPUSystemNanos: 10_000_000, Periods: 5, ThrottledPeriods: 4, ThrottledNanos: 3000,
		Cache: 2, MappedFile: 4, ActiveFile: 6, InactiveFile: 5, KernelMemory: 33, MaxMemory: pointer(2000),
		OwnPageFaults: 70, OwnMajorPageFaults: 80, MemoryFailures: 3, OOMKills: 5,
		IO:        []DeviceIO{{DeviceName(8, 0), 8, 0, 1, 2, 5, 3, 4}},
		HugePages: []HugePages{{"2MB", 4194304, pointer(6291456)}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Usage{}, "At")); diff != "" {
		t.Error(diff)
	}
}

// TestDetailDamaged has a file that is no number, which does not keep the others back.
func TestDetailDamaged(t *testing.T) {
	dir := files(t, map[string]string{
		"cpu.stat": "usage_usec 30\n", "memory.current": "1000\n", "memory.stat": "anon 1\n", "memory.max": "max\n",
		"memory.swap.max": "max\n", "pids.current": "2\n", "memory.peak": "x\n", "pids.max": "7\n",
	})
	d, err := Cgroup{unified: dir}.Detail()
	if !errdefs.IsDataLoss(err) || d.RSS != 1 || d.PidsLimit == nil || *d.PidsLimit != 7 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := (Cgroup{unified: dir + "/gone"}).Detail(); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
}

// TestRealDetail reads what a child did, and its pod's.
// rows: M1, M2
func TestRealDetail(t *testing.T) {
	name := "criserver-stats-detail-" + strconv.Itoa(os.Getpid())
	pod := makeCgroup(t, name)
	container := makeCgroup(t, name+"/c1")
	p := startProcess(t, container)
	p.do(t, "touch")
	p.do(t, "burn")
	for what, c := range map[string]Cgroup{"container": container, "pod": pod} {
		d, err := c.Detail()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if sum := d.CPUUserNanos + d.CPUSystemNanos; sum < uint64(burnt)/2 || sum > 2*d.CPUNanos {
			t.Errorf("%s: user %d and system %d of %d", what, d.CPUUserNanos, d.CPUSystemNanos, d.CPUNanos)
		}
		if d.MaxMemory != nil && *d.MaxMemory < touched {
			t.Errorf("%s: at most %d bytes, touched %d", what, *d.MaxMemory, touched)
		}
		if d.OOMKills != 0 || d.PidsLimit != nil {
			t.Errorf("%s: %d killed, limit of processes %v", what, d.OOMKills, d.PidsLimit)
		}
	}
	if container.Name() != "/"+name+"/c1" {
		t.Errorf("name %s", container.Name())
	}
}

// rows: M7
func TestProcesses(t *testing.T) {
	name := "criserver-stats-processes-" + strconv.Itoa(os.Getpid())
	pod := makeCgroup(t, name)
	p := startProcess(t, makeCgroup(t, name+"/c1"))
	p.do(t, "nothing") // it has all its threads then
	before, err := pod.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if before.Count != 1 || before.Threads < 2 || before.Descriptors < 3 {
		t.Errorf("%+v", before)
	}
	if s := before.States; s.Running+s.Sleeping+s.Uninterruptible+s.Stopped+s.Zombie != before.Threads {
		t.Errorf("%+v", before)
	}
	p.do(t, "socket")
	after, err := pod.Processes(context.Background())
	if err != nil || after.Sockets != before.Sockets+1 || after.Descriptors < before.Descriptors+1 {
		t.Errorf("%+v after %+v, %v", after, before, err)
	}
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; { // a signal takes its time; the test's own limit ends this
		s, err := pod.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		stopped = s.Threads > 0 && s.States.Stopped == s.Threads
	}
	if err := syscall.Kill(p.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := pod.Processes(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	if _, err := OfPath("/criserver-stats-none", false).Processes(context.Background()); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
}

// rows: M7
func TestSoftLimits(t *testing.T) {
	var want syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	got, err := SoftLimits(os.Getpid())
	if err != nil || got["max_open_files"] != want.Cur {
		t.Errorf("%v, %v, want %d open files", got, err, want.Cur)
	}
	if _, err := SoftLimits(1 << 22); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
	parsed := parseLimits([]byte("Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max cpu time              unlimited            unlimited            seconds   \n" +
		"Max open files            1024                 4096                 files     \n"))
	if diff := cmp.Diff(map[string]uint64{"max_open_files": 1024}, parsed); diff != "" {
		t.Error(diff)
	}
}

// rows: M5
func TestFilesystemOf(t *testing.T) {
	dir := t.TempDir()
	got, err := FilesystemOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if got.Size != st.Blocks*uint64(st.Bsize) || got.Inodes != st.Files || got.Device == "" {
		t.Errorf("%+v of %+v", got, st)
	}
	if name := DeviceName(0, 99999); name != "0:99999" {
		t.Errorf("no device is called %s", name)
	}
	if _, err := FilesystemOf(dir + "/gone"); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
}

// TestKernelOf holds what is said of the kernel against the files of a cgroup of it.
func TestKernelOf(t *testing.T) {
	k, err := KernelOf()
	if err != nil {
		t.Fatal(err)
	}
	c := makeCgroup(t, "criserver-stats-kernel-"+strconv.Itoa(os.Getpid()))
	d, err := c.Detail()
	if err != nil {
		t.Fatal(err)
	}
	if k.MaxMemory != (d.MaxMemory != nil) || k.PSI != (d.CPUPSI != nil) || k.HugePages != (len(d.HugePages) > 0) {
		t.Errorf("%+v, but %+v", k, d)
	}
}

func BenchmarkDetail(b *testing.B) {
	c, err := OfProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Detail(); err != nil {
			b.Fatal(err)
		}
	}
}
