// Package stats reads what containers and pods use: CPU, memory and processes
// from cgroup files (v1 and v2), network counters, and disk. Each cgroup file
// is read with one open. It keeps nothing but the last CPU samples of a cgroup.
//
// How to think of it: a Cgroup is where to look, found once; a Usage is what
// was seen there; a Sampler turns two of them into a rate. A Detail and
// Processes are more than a Usage and cost more: they are for metrics, which
// are collected less often. Everything is read from plain files at the moment
// of the call, in the caller's goroutine.
package stats

import "time"

// Usage is one sample. A pointer is nil where the kernel or the hierarchy has no such value.
type Usage struct {
	At       time.Time
	CPUNanos uint64 // cumulative
	// CPURate is in nanocores, over the time since an earlier sample of this
	// cgroup: the last that is at least a second old, else the oldest there
	// is. It is nil on the first.
	CPURate *uint64

	// MemoryUsage, WorkingSet and RSS are in bytes. WorkingSet is the usage
	// without the page cache that is inactive, as the kubelet's eviction sees it.
	MemoryUsage, WorkingSet, RSS uint64
	PageFaults, MajorPageFaults  uint64  // cumulative
	MemoryLimit                  *uint64 // nil: none

	// SwapUsage is 0 where swap is not accounted. SwapLimit is what may be
	// swapped out beside the memory limit, and nil if that is not limited.
	SwapUsage, SwapLimit *uint64

	// Pids is what the pids controller counts. Where it is missing, the number of processes.
	Pids uint64

	CPUPSI, MemoryPSI, IOPSI *PSI
}

// PSI is a pressure file (Documentation/accounting/psi.rst): total in
// nanoseconds (CRI has nanoseconds, the kernel microseconds), averages in percent.
type PSI struct{ Some, Full PSIData }

// PSIData is one of its lines.
type PSIData struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// Interface are the counters of a network interface.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
