package stats

import (
	"reflect"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	a := Usage{CPUNanos: 1, CPURate: n(2), MemoryUsage: 3, WorkingSet: 4, RSS: 5, PageFaults: 6, MajorPageFaults: 7,
		MemoryLimit: n(8), SwapUsage: n(9), SwapLimit: n(10), Pids: 11, CPUPSI: &PSI{}, MemoryPSI: &PSI{}, IOPSI: &PSI{}}
	first := a
	first.CPURate, first.SwapUsage = nil, nil
	for _, tc := range []struct {
		name string
		all  []Usage
		want Usage
	}{
		{"none", nil, Usage{CPURate: n(0), SwapUsage: n(0)}},
		{"two", []Usage{a, a}, Usage{CPUNanos: 2, CPURate: n(4), MemoryUsage: 6, WorkingSet: 8, RSS: 10, PageFaults: 12, MajorPageFaults: 14, SwapUsage: n(18), Pids: 22}},
		{"one of them seen for the first time", []Usage{a, first}, Usage{CPUNanos: 2, MemoryUsage: 6, WorkingSet: 8, RSS: 10, PageFaults: 12, MajorPageFaults: 14, Pids: 22}},
	} {
		before := time.Now()
		got := Sum(tc.all)
		if got.At.Before(before) || got.At.After(time.Now()) {
			t.Errorf("%s: at %v", tc.name, got.At)
		}
		if tc.want.At = got.At; !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
