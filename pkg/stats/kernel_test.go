package stats

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// childEnv makes the test binary the process that is measured.
const childEnv = "STATS_TEST_CHILD"

const (
	touched = 64 << 20
	burnt   = 300 * time.Millisecond
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

// child does one piece of work for each line that it reads, and answers with a line.
func child() {
	var memory []byte
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "touch":
			memory = make([]byte, touched)
			for i := 0; i < len(memory); i += 4096 {
				memory[i] = 1
			}
		case "burn":
			for used := cpuTime(); cpuTime()-used < burnt; {
			}
		case "socket":
			if _, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0); err != nil {
				panic(err)
			}
		}
		fmt.Println("done", len(memory))
	}
}

func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// process is a child in a cgroup.
type process struct {
	pid int
	in  io.WriteCloser
	out *bufio.Reader
}

func startProcess(t *testing.T, c Cgroup) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd.Process.Pid, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	})
	for _, dir := range c.directories() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *process) do(t *testing.T, what string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, what); err != nil {
		t.Fatal(err)
	}
	if line, err := p.out.ReadString('\n'); err != nil || !strings.HasPrefix(line, "done") {
		t.Fatalf("child: %q, %v", line, err)
	}
}

// directories are all that the cgroup has.
func (c Cgroup) directories() []string {
	var all []string
	for _, dir := range []string{c.unified, c.v1.cpu, c.v1.cpuacct, c.v1.memory, c.v1.pids, c.v1.blkio, c.v1.hugetlb} {
		if dir != "" && !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return all
}

// makeCgroup makes a cgroup in all hierarchies until the test ends.
func makeCgroup(t testing.TB, name string) Cgroup {
	t.Helper()
	c := OfPath(name, false)
	for _, dir := range c.directories() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
				t.Errorf("rmdir %s: %v", dir, err)
			}
		})
	}
	return c
}

// TestRealCgroup measures a process in a container's cgroup below a pod's.
// rows
func TestRealCgroup(t *testing.T) {
	name := "criserver-stats-" + strconv.Itoa(os.Getpid())
	pod := makeCgroup(t, name)
	container := makeCgroup(t, name+"/c1")
	p := startProcess(t, container)

	found, err := OfProcess(p.pid)
	if err != nil || found != container {
		t.Fatalf("found %+v, %v, want %+v", found, err, container)
	}
	s := NewSampler()
	first, err := s.Read(found)
	if err != nil {
		t.Fatal(err)
	}
	if first.CPURate != nil {
		t.Errorf("a rate of %d from one sample", *first.CPURate)
	}
	p.do(t, "touch")
	p.do(t, "burn")
	for what, c := range map[string]Cgroup{"container": found, "pod": pod} {
		u, err := s.Read(c)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if used := time.Duration(u.CPUNanos - first.CPUNanos); used < burnt || used > 20*burnt {
			t.Errorf("%s: %v CPU used, want %v and a little", what, used, burnt)
		}
		if u.RSS < touched || u.MemoryUsage < u.RSS || u.WorkingSet < u.RSS || u.WorkingSet > u.MemoryUsage {
			t.Errorf("%s: rss %d, working set %d, usage %d, touched %d", what, u.RSS, u.WorkingSet, u.MemoryUsage, touched)
		}
		if u.PageFaults < touched/(2<<20) || u.Pids < 1 || u.Pids > 50 {
			t.Errorf("%s: %d page faults, %d pids", what, u.PageFaults, u.Pids)
		}
		if u.SwapUsage == nil || u.MemoryLimit != nil {
			t.Errorf("%s: swap %v, limit %v", what, u.SwapUsage, u.MemoryLimit)
		}
		if _, err := os.Stat("/proc/pressure/cpu"); err == nil && (u.CPUPSI == nil || u.MemoryPSI == nil || u.IOPSI == nil) {
			t.Errorf("%s: pressure %v %v %v", what, u.CPUPSI, u.MemoryPSI, u.IOPSI)
		}
		if what == "pod" {
			continue
		}
		want := float64(u.CPUNanos-first.CPUNanos) / u.At.Sub(first.At).Seconds()
		if u.CPURate == nil || float64(*u.CPURate) < want-1 || float64(*u.CPURate) > want+1 {
			t.Errorf("rate %v, want %f", u.CPURate, want)
		}
	}
}

// TestRealLimits reads back what was written.
// rows: A-07
func TestRealLimits(t *testing.T) {
	c := makeCgroup(t, "criserver-stats-limits-"+strconv.Itoa(os.Getpid()))
	memory, memsw := filepath.Join(c.v1.memory, "memory.limit_in_bytes"), filepath.Join(c.v1.memory, "memory.memsw.limit_in_bytes")
	swap := "33554432" // together with memory
	if c.v1.memory == "" {
		memory, memsw = filepath.Join(c.unified, "memory.max"), filepath.Join(c.unified, "memory.swap.max")
		swap = "16777216"
	}
	write(t, memory, "16777216")
	wantSwap := uint64(0)
	if _, err := os.Stat(memsw); err == nil {
		write(t, memsw, swap)
		wantSwap = 16777216
	}
	u, err := NewSampler().Read(c)
	if err != nil {
		t.Fatal(err)
	}
	if u.MemoryLimit == nil || *u.MemoryLimit != 16777216 || u.SwapLimit == nil || *u.SwapLimit != wantSwap {
		t.Errorf("limits %v %v, want 16777216 %d", u.MemoryLimit, u.SwapLimit, wantSwap)
	}
}

// rows: A-21
func TestRealGone(t *testing.T) {
	c := makeCgroup(t, "criserver-stats-gone-"+strconv.Itoa(os.Getpid()))
	s := NewSampler()
	if _, err := s.Read(c); err != nil {
		t.Fatal(err)
	}
	for _, dir := range c.directories() {
		if err := syscall.Rmdir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Read(c); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
	if len(s.history) != 0 {
		t.Errorf("%d histories are kept", len(s.history))
	}
	if _, err := OfProcess(1 << 22); !errdefs.IsNotFound(err) { // above the largest pid there can be
		t.Errorf("%v, want not found", err)
	}
}

func BenchmarkRead(b *testing.B) {
	c, err := OfProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	s := NewSampler()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Read(c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadHundred is what a list of the stats of 100 containers costs.
func BenchmarkReadHundred(b *testing.B) {
	name := "criserver-stats-hundred-" + strconv.Itoa(os.Getpid())
	makeCgroup(b, name)
	var all []Cgroup
	for i := range 100 {
		all = append(all, makeCgroup(b, fmt.Sprintf("%s/c%d", name, i)))
	}
	s := NewSampler()
	b.ReportAllocs()
	for b.Loop() {
		for _, c := range all {
			if _, err := s.Read(c); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkOfProcess(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OfProcess(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}
