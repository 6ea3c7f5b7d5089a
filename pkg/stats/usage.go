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
		err = c.v1.read(d, c.unified)
	case c.unified != "":
		err = readV2(c.unified, d)
	default:
		err = fmt.Errorf("no cgroup hierarchy is mounted: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("cgroup usage: %w", err)
	}
	return nil
}

// readPressure leaves nil what is not there.
func (u *Usage) readPressure(d dir) {
	u.CPUPSI = d.psi("cpu.pressure")
	u.MemoryPSI = d.psi("memory.pressure")
	u.IOPSI = d.psi("io.pressure")
}

// readV2 reads the files of Documentation/admin-guide/cgroup-v2.rst.
func readV2(path string, u *Detail) error {
	d, err := openDir(path)
	if err != nil {
		return err
	}
	defer d.close()
	if err := readV2CPU(d, u); err != nil {
		return err
	}
	if u.MemoryUsage, err = d.number("memory.current"); err != nil {
		return err
	}
	if err := readV2MemoryStat(d, u); err != nil {
		return err
	}
	if u.MemoryLimit, err = d.limit("memory.max"); err != nil {
		return err
	}
	u.SwapUsage, u.SwapLimit = new(uint64), new(uint64)
	switch used, err := d.number("memory.swap.current"); {
	case err == nil:
		u.SwapUsage = &used
		if u.SwapLimit, err = d.limit("memory.swap.max"); err != nil {
			return err
		}
	case !errdefs.IsNotFound(err): // not there: the kernel has no swap
		return err
	}
	u.readPressure(d)
	return readPids(d, path, &u.Usage)
}

func readV2CPU(d dir, u *Detail) error {
	b, done, err := d.small("cpu.stat")
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

func readV2MemoryStat(d dir, u *Detail) error {
	b, done, err := d.small("memory.stat")
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

// read reads the files of Documentation/admin-guide/cgroup-v1, and pressures
// of the unified hierarchy, if there is one. All values are of the cgroup and
// those below.
func (v v1Dirs) read(u *Detail, unified string) error {
	if v.cpuacct == "" || v.memory == "" {
		return fmt.Errorf("the v1 controllers cpuacct and memory are not both mounted: %w", errdefs.ErrUnavailable)
	}
	var err error
	if u.CPUNanos, err = anywhere.number(v.cpuacct + "/cpuacct.usage"); err != nil {
		return err
	}
	u.At = time.Now()
	d, err := openDir(v.memory)
	if err != nil {
		return err
	}
	defer d.close()
	if u.MemoryUsage, err = d.number("memory.usage_in_bytes"); err != nil {
		return err
	}
	if err := readV1MemoryStat(d, u); err != nil {
		return err
	}
	if u.MemoryLimit, err = d.limit("memory.limit_in_bytes"); err != nil {
		return err
	}
	if u.SwapLimit, err = readV1SwapLimit(d, u.MemoryLimit); err != nil {
		return err
	}
	if unified != "" {
		if d, err := openDir(unified); err == nil {
			u.readPressure(d)
			d.close()
		}
	}
	if v.pids == "" {
		u.Pids, err = countProcs(v.memory, 0)
		return err
	}
	pids, err := openDir(v.pids)
	if err != nil {
		return err
	}
	defer pids.close()
	return readPids(pids, v.memory, &u.Usage)
}

func readV1MemoryStat(d dir, u *Detail) error {
	b, done, err := d.small("memory.stat")
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

// readV1SwapLimit returns what the limit of memory and swap together leaves for swap.
func readV1SwapLimit(d dir, memory *uint64) (*uint64, error) {
	both, err := d.limit("memory.memsw.limit_in_bytes")
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
func readPids(pids dir, procs string, u *Usage) (err error) {
	if u.Pids, err = pids.number("pids.current"); errdefs.IsNotFound(err) {
		u.Pids, err = countProcs(procs, 0)
	}
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
	fd, err := anywhere.open(name, unix.O_RDONLY)
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
