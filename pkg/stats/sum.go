package stats

import "time"

// Sum is what cgroups without a common parent use together, now: that of none is zero. The rate and the swap are nil
// unless each has them. Limits and pressures do not add up, and are nil.
func Sum(all []Usage) Usage {
	sum := Usage{CPURate: new(uint64), SwapUsage: new(uint64)}
	for _, u := range all {
		sum.CPUNanos += u.CPUNanos
		sum.MemoryUsage += u.MemoryUsage
		sum.WorkingSet += u.WorkingSet
		sum.RSS += u.RSS
		sum.PageFaults += u.PageFaults
		sum.MajorPageFaults += u.MajorPageFaults
		sum.Pids += u.Pids
		sum.CPURate = plus(sum.CPURate, u.CPURate)
		sum.SwapUsage = plus(sum.SwapUsage, u.SwapUsage)
	}
	sum.At = time.Now()
	return sum
}

func plus(a, b *uint64) *uint64 {
	if a == nil || b == nil {
		return nil
	}
	sum := *a + *b
	return &sum
}
