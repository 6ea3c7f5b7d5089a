package stats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Detail is a Usage (without the rate) with what only metrics tell. A pointer
// is nil where the kernel or the hierarchy has no such value. Counters are of
// the cgroup and those below, unless they are called own.
type Detail struct {
	Usage

	CPUUserNanos, CPUSystemNanos uint64 // cumulative

	// Periods in which the CPU quota was enforced, and in how many of them
	// and for how long the cgroup had to wait; cumulative.
	Periods, ThrottledPeriods, ThrottledNanos uint64

	// In bytes.
	Cache, MappedFile, ActiveFile, InactiveFile, KernelMemory uint64
	MaxMemory                                                 *uint64 // the most there ever was

	OwnPageFaults, OwnMajorPageFaults uint64 // cumulative
	MemoryFailures                    uint64 // how often the limit was reached
	OOMKills                          uint64 // processes killed for want of memory

	PidsLimit *uint64 // nil: none
	IO        []DeviceIO
	HugePages []HugePages
}

// DeviceIO is what was read from and written to a block device; cumulative.
type DeviceIO struct {
	Device                              string // see DeviceName
	Major, Minor                        uint32
	ReadBytes, WriteBytes, DiscardBytes uint64
	Reads, Writes                       uint64
}

// HugePages are those of one size, e.g. "2MB", in bytes. Max is the most there ever was.
type HugePages struct {
	Size  string
	Usage uint64
	Max   *uint64
}

// Detail reads all files of a cgroup. It is ErrNotFound when the cgroup is
// gone. With another error comes what could be read.
func (c Cgroup) Detail() (Detail, error) {
	var d Detail
	if err := c.readInto(&d); err != nil {
		return Detail{}, err
	}
	var r optional
	if c.v1 != (v1Dirs{}) {
		r.v1(c.v1, &d)
	} else {
		r.in(c.unified, func(dir dir) { r.v2(dir, &d) })
	}
	if err := errors.Join(r.errs...); err != nil {
		return d, fmt.Errorf("cgroup detail: %w", err)
	}
	return d, nil
}

// optional reads files that need not be there, and collects other errors.
type optional struct{ errs []error }

func (r *optional) check(err error) bool {
	if err != nil && !errdefs.IsNotFound(err) {
		r.errs = append(r.errs, err)
	}
	return err == nil
}

// in opens a directory for read, unless there is none.
func (r *optional) in(path string, read func(dir)) {
	if path == "" {
		return
	}
	d, err := openDir(path)
	if r.check(err) {
		read(d)
		d.close()
	}
}

// number is nil if the file is not there.
func (r *optional) number(d dir, file string) *uint64 {
	n, err := d.number(file)
	if !r.check(err) {
		return nil
	}
	return &n
}

// keys yields the pairs of a flat keyed file.
func (r *optional) keys(d dir, file string, each func(key string, value uint64)) {
	b, done, err := d.small(file)
	defer done()
	if r.check(err) {
		for key, value := range values(b) {
			each(string(key), value)
		}
	}
}

func (r *optional) limit(d dir, file string) *uint64 {
	n, err := d.limit(file)
	r.check(err)
	return n
}

func (r *optional) v2(dir dir, d *Detail) {
	d.MaxMemory = r.number(dir, "memory.peak")
	r.keys(dir, "memory.events", func(key string, value uint64) {
		switch key {
		case "max":
			d.MemoryFailures = value
		case "oom_kill":
			d.OOMKills = value
		}
	})
	d.PidsLimit = r.limit(dir, "pids.max")
	r.ioStat(dir, d)
	for _, size := range hugePageSizes() {
		if n := r.number(dir, "hugetlb."+size+".current"); n != nil {
			d.HugePages = append(d.HugePages, HugePages{Size: size, Usage: *n})
		}
	}
}

// userHZ is the unit in which the kernel tells times to user space: it is 100 on all platforms that Go runs on.
const userHZ = 100

func (r *optional) v1(v v1Dirs, d *Detail) {
	r.keys(anywhere, v.cpuacct+"/cpuacct.stat", func(key string, value uint64) {
		switch key {
		case "user":
			d.CPUUserNanos = value * (1e9 / userHZ)
		case "system":
			d.CPUSystemNanos = value * (1e9 / userHZ)
		}
	})
	if v.cpu != "" {
		r.keys(anywhere, v.cpu+"/cpu.stat", func(key string, value uint64) {
			switch key {
			case "nr_periods":
				d.Periods = value
			case "nr_throttled":
				d.ThrottledPeriods = value
			case "throttled_time":
				d.ThrottledNanos = value
			}
		})
	}
	r.in(v.memory, func(dir dir) { r.v1Memory(dir, d) })
	if v.pids != "" {
		d.PidsLimit = r.limit(anywhere, v.pids+"/pids.max")
	}
	r.in(v.blkio, func(dir dir) { r.blkio(dir, d) })
	r.in(v.hugetlb, func(dir dir) {
		for _, size := range hugePageSizes() {
			if n := r.number(dir, "hugetlb."+size+".usage_in_bytes"); n != nil {
				d.HugePages = append(d.HugePages, HugePages{size, *n, r.number(dir, "hugetlb."+size+".max_usage_in_bytes")})
			}
		}
	})
}

func (r *optional) v1Memory(dir dir, d *Detail) {
	d.MaxMemory = r.number(dir, "memory.max_usage_in_bytes")
	if n := r.number(dir, "memory.failcnt"); n != nil {
		d.MemoryFailures = *n
	}
	if n := r.number(dir, "memory.kmem.usage_in_bytes"); n != nil {
		d.KernelMemory = *n
	}
	r.keys(dir, "memory.oom_control", func(key string, value uint64) {
		if key == "oom_kill" {
			d.OOMKills = value
		}
	})
}

// ioStat reads lines like "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func (r *optional) ioStat(dir dir, d *Detail) {
	b, done, err := dir.small("io.stat")
	defer done()
	if !r.check(err) {
		return
	}
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		device := d.device(string(fields[0]))
		if device == nil {
			continue
		}
		for _, field := range fields[1:] {
			key, text, _ := bytes.Cut(field, []byte("="))
			value, _ := number(text)
			switch string(key) {
			case "rbytes":
				device.ReadBytes = value
			case "wbytes":
				device.WriteBytes = value
			case "dbytes":
				device.DiscardBytes = value
			case "rios":
				device.Reads = value
			case "wios":
				device.Writes = value
			}
		}
	}
}

// blkio reads the counters of the throttling layer, which all I/O passes, whatever its scheduler.
func (r *optional) blkio(dir dir, d *Detail) {
	r.operations(dir, "blkio.throttle.io_service_bytes_recursive", d, func(device *DeviceIO, operation string, value uint64) {
		switch operation {
		case "Read":
			device.ReadBytes = value
		case "Write":
			device.WriteBytes = value
		case "Discard":
			device.DiscardBytes = value
		}
	})
	r.operations(dir, "blkio.throttle.io_serviced_recursive", d, func(device *DeviceIO, operation string, value uint64) {
		switch operation {
		case "Read":
			device.Reads = value
		case "Write":
			device.Writes = value
		}
	})
}

// operations reads lines like "8:0 Read 4096"; the last line is a total without a device.
func (r *optional) operations(dir dir, file string, d *Detail, each func(device *DeviceIO, operation string, value uint64)) {
	b, done, err := dir.small(file)
	defer done()
	if !r.check(err) {
		return
	}
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			continue
		}
		value, ok := number(fields[2])
		if device := d.device(string(fields[0])); ok && device != nil {
			each(device, string(fields[1]), value)
		}
	}
}

// device returns the counters of a device, "MAJOR:MINOR"; nil if it is no such thing.
func (d *Detail) device(id string) *DeviceIO {
	majorText, minorText, _ := strings.Cut(id, ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if err != nil {
		return nil
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return nil
	}
	for i := range d.IO {
		if d.IO[i].Major == uint32(major) && d.IO[i].Minor == uint32(minor) {
			return &d.IO[i]
		}
	}
	d.IO = append(d.IO, DeviceIO{Device: DeviceName(uint32(major), uint32(minor)), Major: uint32(major), Minor: uint32(minor)})
	return &d.IO[len(d.IO)-1]
}

// hugePageSizes are those of this machine as files of cgroups name them: "64KB", "2MB", "1GB".
var hugePageSizes = sync.OnceValue(func() []string {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages") // not there: no huge pages
	var sizes []string
	for _, e := range entries {
		kilobytes, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			sizes = append(sizes, hugePageSize(kilobytes))
		}
	}
	return sizes
})

func hugePageSize(kilobytes uint64) string {
	switch {
	case kilobytes >= 1<<20:
		return strconv.FormatUint(kilobytes>>20, 10) + "GB"
	case kilobytes >= 1<<10:
		return strconv.FormatUint(kilobytes>>10, 10) + "MB"
	}
	return strconv.FormatUint(kilobytes, 10) + "KB"
}

// DeviceName returns the path of a block device, e.g. "/dev/sda", or
// "MAJOR:MINOR" of what is none, like a filesystem without a device.
func DeviceName(major, minor uint32) string {
	id := fmt.Sprintf("%d:%d", major, minor)
	link, err := os.Readlink("/sys/dev/block/" + id)
	if err != nil {
		return id
	}
	return "/dev/" + link[strings.LastIndexByte(link, '/')+1:]
}

// Filesystem is the filesystem that a directory is on. Sizes are in bytes.
type Filesystem struct {
	Device             string // see DeviceName
	Major, Minor       uint32
	Size               uint64
	Inodes, InodesFree uint64
}

// FilesystemOf returns the filesystem that a directory is on.
func FilesystemOf(dir string) (Filesystem, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Filesystem{}, fmt.Errorf("filesystem of %w", fileError(dir, err))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Filesystem{}, fmt.Errorf("filesystem of %w", fileError(dir, err))
	}
	major, minor := unix.Major(st.Dev), unix.Minor(st.Dev)
	return Filesystem{
		Device: DeviceName(major, minor), Major: major, Minor: minor,
		Size: fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, InodesFree: fs.Ffree,
	}, nil
}

// Kernel says which values the kernel of this machine has at all.
type Kernel struct {
	CPUQuota  bool // Detail.Periods and so on
	MaxMemory bool
	PSI       bool
	IO        bool
	HugePages bool
	MaxHuge   bool // HugePages.Max
}

// KernelOf returns what this machine has; it does not change while it runs.
func KernelOf() (Kernel, error) {
	h, err := system()
	if err != nil {
		return Kernel{}, err
	}
	var k Kernel
	_, err = os.Stat("/proc/pressure/cpu")
	k.PSI = err == nil && h.unified.mountpoint != ""
	if h.v1() {
		k.CPUQuota, k.MaxMemory = h.cpu.mountpoint != "", true
		k.IO = h.blkio.mountpoint != ""
		k.HugePages = h.hugetlb.mountpoint != "" && len(hugePageSizes()) > 0
		k.MaxHuge = k.HugePages
		return k, nil
	}
	controllers, err := os.ReadFile(h.unified.mountpoint + "/cgroup.controllers")
	if err != nil {
		return Kernel{}, fmt.Errorf("cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(controllers)) {
		switch c {
		case "cpu":
			k.CPUQuota = true
		case "io":
			k.IO = true
		case "hugetlb":
			k.HugePages = len(hugePageSizes()) > 0
		}
	}
	k.MaxMemory = kernelSince(5, 19)
	return k, nil
}

// kernelSince says whether the kernel has at least a version.
func kernelSince(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var haveMajor, haveMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &haveMajor, &haveMinor); err != nil {
		return false
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}
