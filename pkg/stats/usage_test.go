package stats

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func pointer(n uint64) *uint64 { return &n }

func TestReadV2(t *testing.T) {
	for dir, want := range map[string]Usage{
		"limited": {
			CPUNanos: 1234567000, MemoryUsage: 100 << 20, WorkingSet: 70 << 20, RSS: 40 << 20,
			PageFaults: 9001, MajorPageFaults: 42, MemoryLimit: pointer(200 << 20),
			SwapUsage: pointer(4096), SwapLimit: pointer(1 << 20), Pids: 17,
			CPUPSI:    &PSI{PSIData{3_000_000, 1.5, 0.25, 0.05}, PSIData{7000, 0.1, 0, 0}},
			MemoryPSI: &PSI{},
			IOPSI:     &PSI{Some: PSIData{123456789000, 99.99, 12, 3}},
		},
		// More inactive page cache than usage, no swap, no pids controller, no pressure.
		"plain": {
			CPUNanos: 1234567000, MemoryUsage: 100 << 20, WorkingSet: 0, RSS: 1, PageFaults: 7,
			SwapUsage: pointer(0), SwapLimit: pointer(0), Pids: 3,
		},
	} {
		got, err := Cgroup{unified: "testdata/v2/" + dir}.read()
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		if time.Since(got.At) > time.Minute {
			t.Errorf("%s: at %v", dir, got.At)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Usage{}, "At")); diff != "" {
			t.Errorf("%s: %s", dir, diff)
		}
	}
}

func TestReadV1(t *testing.T) {
	for dir, want := range map[string]Usage{
		"swap": {
			CPUNanos: 123456789012, MemoryUsage: 100 << 20, WorkingSet: 70 << 20, RSS: 40 << 20,
			PageFaults: 9001, MajorPageFaults: 42, MemoryLimit: pointer(200 << 20),
			SwapUsage: pointer(8192), SwapLimit: pointer(100 << 20), Pids: 5,
		},
		"noswap": { // booted with swapaccount=0
			CPUNanos: 123456789012, MemoryUsage: 100 << 20, WorkingSet: 70 << 20, RSS: 40 << 20,
			PageFaults: 9001, MajorPageFaults: 42,
			SwapUsage: pointer(0), SwapLimit: pointer(0), Pids: 1,
		},
	} {
		c := Cgroup{v1: v1Dirs{cpuacct: "testdata/v1/cpuacct/" + dir, memory: "testdata/v1/memory/" + dir, pids: "testdata/v1/pids/" + dir}}
		got, err := c.read()
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Usage{}, "At")); diff != "" {
			t.Errorf("%s: %s", dir, diff)
		}
	}
}

func TestReadErrors(t *testing.T) {
	damaged := t.TempDir()
	if err := os.CopyFS(damaged, os.DirFS("testdata/v2/limited")); err != nil {
		t.Fatal(err)
	}
	large := t.TempDir()
	if err := os.CopyFS(large, os.DirFS("testdata/v2/limited")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(damaged, "memory.current"), "a lot\n")
	write(t, filepath.Join(large, "memory.stat"), string(make([]byte, maxSmall+1)))
	for name, test := range map[string]struct {
		cgroup Cgroup
		kind   error
	}{
		"none":       {Cgroup{}, errdefs.ErrNotFound},
		"gone":       {Cgroup{unified: "testdata/v2/gone"}, errdefs.ErrNotFound},
		"gone v1":    {Cgroup{v1: v1Dirs{cpuacct: "testdata/v1/cpuacct/gone", memory: "testdata/v1/memory/gone"}}, errdefs.ErrNotFound},
		"no memory":  {Cgroup{v1: v1Dirs{cpuacct: "testdata/v1/cpuacct/swap"}}, errdefs.ErrUnavailable},
		"no number":  {Cgroup{unified: damaged}, errdefs.ErrDataLoss},
		"not so big": {Cgroup{unified: large}, errdefs.ErrOutOfRange},
	} {
		u, err := test.cgroup.read()
		if !errors.Is(err, test.kind) || u != (Usage{}) {
			t.Errorf("%s: %+v, %v, want %v", name, u, err, test.kind)
		}
	}
}

func write(t *testing.T, name, contents string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(contents), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNumber(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "7": 7, "9223372036854771712": 9223372036854771712, "18446744073709551609": 18446744073709551609} {
		if got, ok := number([]byte(text)); !ok || got != want {
			t.Errorf("%s: %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "-1", "1a", "99999999999999999999999"} {
		if got, ok := number([]byte(text)); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestRate(t *testing.T) {
	c := Cgroup{unified: "/c"}
	start := time.Now()
	for name, test := range map[string][]struct {
		after time.Duration
		nanos uint64
		rate  *uint64
	}{
		"one core": {{0, 5e9, nil}, {2 * time.Second, 7e9, pointer(1e9)}, {12 * time.Second, 12e9, pointer(5e8)}},
		// Two who ask in turn: the second does not shorten the window.
		"often": {
			{0, 0, nil}, {2 * time.Second, 2e9, pointer(1e9)},
			{2*time.Second + time.Millisecond, 2e9, pointer(999500249)},
			{3 * time.Second, 2e9, pointer(0)},
		},
		"soon":      {{0, 0, nil}, {time.Millisecond, 5e5, pointer(5e8)}},
		"same time": {{0, 0, nil}, {0, 0, nil}},
		"made anew": {{0, 9e9, nil}, {2 * time.Second, 1e9, nil}, {4 * time.Second, 2e9, pointer(5e8)}},
		"overtaken": {{2 * time.Second, 2e9, nil}, {time.Second, 1e9, nil}, {4 * time.Second, 3e9, pointer(5e8)}},
	} {
		s := NewSampler()
		for i, step := range test {
			got := s.rate(c, sample{start.Add(step.after), step.nanos})
			if diff := cmp.Diff(step.rate, got); diff != "" {
				t.Errorf("%s: step %d: %s", name, i, diff)
			}
		}
		s.Forget(c)
		if got := s.rate(c, sample{start.Add(time.Hour), 1e12}); got != nil || len(s.history) != 1 {
			t.Errorf("%s: %d after it was forgotten, %d histories", name, *got, len(s.history))
		}
	}
}
