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
	var u Usage
	var err error
	switch {
	case c.v1 != v1Dirs{}:
		err = c.v1.read(&u)
	case c.unified != "":
		err = readV2(c.unified, &u)
	default:
		err = fmt.Errorf("no cgroup hierarchy is mounted: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("cgroup usage: %w", err)
	}
	if c.unified != "" {
		u.CPUPSI = readPSI(c.unified + "/cpu.pressure")
		u.MemoryPSI = readPSI(c.unified + "/memory.pressure")
		u.IOPSI = readPSI(c.unified + "/io.pressure")
	}
	return u, nil
}

// readV2 reads the files of Documentation/admin-guide/cgroup-v2.rst.
func readV2(dir string, u *Usage) error {
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
	return readPids(dir, dir, u)
}

func readV2CPU(dir string, u *Usage) error {
	b, done, err := readSmall(dir + "/cpu.stat")
	defer done()
	if err != nil {
		return err
	}
	u.At = time.Now()
	for key, value := range values(b) {
		if string(key) == "usage_usec" {
			u.CPUNanos = value * 1000
			break
		}
	}
	return nil
}

func readV2MemoryStat(dir string, u *Usage) error {
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
		case "anon":
			u.RSS = value
		case "pgfault":
			u.PageFaults = value
		case "pgmajfault":
			u.MajorPageFaults = value
		}
	}
	return nil
}

// read reads the files of Documentation/admin-guide/cgroup-v1. All values
// are of the cgroup and those below.
func (d v1Dirs) read(u *Usage) error {
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
	return readPids(d.pids, d.memory, u)
}

func (d v1Dirs) readMemoryStat(u *Usage) error {
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
		case "total_rss":
			u.RSS = value
		case "total_swap":
			*u.SwapUsage = value
		case "total_pgfault":
			u.PageFaults = value
		case "total_pgmajfault":
			u.MajorPageFaults = value
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
