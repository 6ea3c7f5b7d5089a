package stats

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// read returns what the files of a cgroup say, without the rate.
func (c Cgroup) read() (Usage, error) {
	var d Detail
	if err := c.readInto(&d); err != nil {
		return Usage{}, err
	}
	return d.Usage, nil
}

// readInto reads the files of a Usage, and takes of them what a Detail has more.
func (c Cgroup) readInto(d *Detail) error {
	var err error
	switch {
	case c.v1 != v1Dirs{}:
		err = c.v1.read(d)
	case c.unified != "":
		err = readV2(c.unified, d)
	default:
		err = fmt.Errorf("no cgroup hierarchy is mounted: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("cgroup usage: %w", err)
	}
	if c.unified != "" {
		d.CPUPSI = readPSI(c.unified + "/cpu.pressure")
		d.MemoryPSI = readPSI(c.unified + "/memory.pressure")
		d.IOPSI = readPSI(c.unified + "/io.pressure")
	}
	return nil
}

// readV2 reads the files of Documentation/admin-guide/cgroup-v2.rst.
func readV2(dir string, u *Detail) error {
	if err := readV2CPU(dir, u); err != nil {
		return err
	}
	var err error
	if u.MemoryUsage, err = readNumber(dir + "/memory.current"); err != nil {
		return err
	}
	if err := readV2MemoryStat(dir, u); err != nil {
		return err
	}
	if u.MemoryLimit, err = readLimit(dir + "/memory.max"); err != nil {
		return err
	}
	u.SwapUsage, u.SwapLimit = new(uint64), new(uint64)
	switch used, err := readNumber(dir + "/memory.swap.current"); {
	case err == nil:
		u.SwapUsage = &used
		if u.SwapLimit, err = readLimit(dir + "/memory.swap.max"); err != nil {
			return err
		}
	case !errdefs.IsNotFound(err): // not there: the kernel has no swap
		return err
	}
	return readPids(dir, dir, &u.Usage)
}

func readV2CPU(dir string, u *Detail) error {
	b, done, err := readSmall(dir + "/cpu.stat")
	defer done()
	if err != nil {
		return err
	}
	u.At = time.Now()
	for key, value := range values(b) {
		switch string(key) {
		case "usage_usec":
			u.CPUNanos = value * 1000
		case "user_usec":
			u.CPUUserNanos = value * 1000
		case "system_usec":
			u.CPUSystemNanos = value * 1000
		case "nr_periods":
			u.Periods = value
		case "nr_throttled":
			u.ThrottledPeriods = value
		case "throttled_usec":
			u.ThrottledNanos = value * 1000
		}
	}
	return nil
}

func readV2MemoryStat(dir string, u *Detail) error {
	b, done, err := readSmall(dir + "/memory.stat")
	defer done()
	if err != nil {
		return err
	}
	u.WorkingSet = u.MemoryUsage
	for key, value := range values(b) {
		switch string(key) {
		case "inactive_file":
			u.WorkingSet -= min(value, u.MemoryUsage)
			u.InactiveFile = value
		case "active_file":
			u.ActiveFile = value
		case "anon":
			u.RSS = value
		case "file":
			u.Cache = value
		case "file_mapped":
			u.MappedFile = value
		case "kernel": // since Linux 5.18
			u.KernelMemory = value
		case "pgfault":
			u.PageFaults = value
		case "pgmajfault":
			u.MajorPageFaults = value
		}
	}
	u.OwnPageFaults, u.OwnMajorPageFaults = u.PageFaults, u.MajorPageFaults // there is no other count
	return nil
}

// read reads the files of Documentation/admin-guide/cgroup-v1. All values
// are of the cgroup and those below.
func (d v1Dirs) read(u *Detail) error {
	if d.cpuacct == "" || d.memory == "" {
		return fmt.Errorf("the v1 controllers cpuacct and memory are not both mounted: %w", errdefs.ErrUnavailable)
	}
	var err error
	if u.CPUNanos, err = readNumber(d.cpuacct + "/cpuacct.usage"); err != nil {
		return err
	}
	u.At = time.Now()
	if u.MemoryUsage, err = readNumber(d.memory + "/memory.usage_in_bytes"); err != nil {
		return err
	}
	if err := d.readMemoryStat(u); err != nil {
		return err
	}
	if u.MemoryLimit, err = readLimit(d.memory + "/memory.limit_in_bytes"); err != nil {
		return err
	}
	if u.SwapLimit, err = d.readSwapLimit(u.MemoryLimit); err != nil {
		return err
	}
	return readPids(d.pids, d.memory, &u.Usage)
}

func (d v1Dirs) readMemoryStat(u *Detail) error {
	b, done, err := readSmall(d.memory + "/memory.stat")
	defer done()
	if err != nil {
		return err
	}
	u.WorkingSet = u.MemoryUsage
	u.SwapUsage = new(uint64)
	for key, value := range values(b) {
		switch string(key) {
		case "total_inactive_file":
			u.WorkingSet -= min(value, u.MemoryUsage)
			u.InactiveFile = value
		case "total_active_file":
			u.ActiveFile = value
		case "total_rss":
			u.RSS = value
		case "total_cache":
			u.Cache = value
		case "total_mapped_file":
			u.MappedFile = value
		case "total_swap":
			*u.SwapUsage = value
		case "total_pgfault":
			u.PageFaults = value
		case "total_pgmajfault":
			u.MajorPageFaults = value
		case "pgfault":
			u.OwnPageFaults = value
		case "pgmajfault":
			u.OwnMajorPageFaults = value
		}
	}
	return nil
}

// readSwapLimit returns what the limit of memory and swap together leaves for swap.
func (d v1Dirs) readSwapLimit(memory *uint64) (*uint64, error) {
	both, err := readLimit(d.memory + "/memory.memsw.limit_in_bytes")
	switch {
	case errdefs.IsNotFound(err): // swap is not accounted
		return new(uint64), nil
	case err != nil || both == nil:
		return nil, err
	case memory == nil: // the kernel does not let a limit of both be without one of memory
		return both, nil
	}
	swap := *both - min(*both, *memory)
	return &swap, nil
}

// readPids takes the count of the pids controller or counts the processes
// that are listed.
func readPids(pids, procs string, u *Usage) error {
	if pids != "" {
		n, err := readNumber(pids + "/pids.current")
		if err == nil {
			u.Pids = n
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	n, err := countProcs(procs, 0)
	u.Pids = n
	return err
}

// maxCgroupDepth bounds how deep a container may have made cgroups of its own that are counted.
const maxCgroupDepth = 32

// countProcs counts the lines of cgroup.procs here and below.
func countProcs(dir string, depth int) (uint64, error) {
	n, err := countLines(dir + "/cgroup.procs")
	if err != nil || depth == maxCgroupDepth {
		return n, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fileError(dir, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := countProcs(filepath.Join(dir, e.Name()), depth+1)
		if err != nil && !errdefs.IsNotFound(err) { // one that is gone has no processes
			return 0, err
		}
		n += below
	}
	return n, nil
}

func countLines(name string) (uint64, error) {
	fd, err := open(name)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	var lines uint64
	for {
		n, err := read(fd, *b)
		if err != nil || n == 0 {
			return lines, fileError(name, err)
		}
		lines += uint64(bytes.Count((*b)[:n], []byte("\n")))
	}
}
