package stats

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// Cgroup is one cgroup: its directory in the unified hierarchy or in each v1
// hierarchy. It is comparable; the zero value is no cgroup.
type Cgroup struct {
	// unified is set with cgroup v2. Beside v1 hierarchies (hybrid) it is set
	// if the process has there the cgroup of the same name: it has then no
	// controllers, but pressure.
	unified string
	v1      v1Dirs // empty with cgroup v2
}

// v1Dirs are the directories in the hierarchies of the v1 controllers, which
// may be one hierarchy or another for each.
type v1Dirs struct{ cpu, cpuacct, memory, pids, blkio, hugetlb string }

// hierarchy is a mounted cgroup hierarchy.
type hierarchy struct {
	mountpoint string
	root       string // the cgroup that is seen at the mountpoint
}

// hierarchies are all that are mounted; a zero hierarchy is not mounted.
type hierarchies struct{ unified, cpu, cpuacct, memory, pids, blkio, hugetlb hierarchy }

// of returns the hierarchy of a v1 controller, nil for those that are not read.
func (h *hierarchies) of(controller string) *hierarchy {
	switch controller {
	case "cpu":
		return &h.cpu
	case "cpuacct":
		return &h.cpuacct
	case "memory":
		return &h.memory
	case "pids":
		return &h.pids
	case "blkio":
		return &h.blkio
	case "hugetlb":
		return &h.hugetlb
	}
	return nil
}

// system returns the hierarchies of this machine, which do not change while it runs.
var system = sync.OnceValues(func() (hierarchies, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return hierarchies{}, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	return findHierarchies(mounts), nil
})

func findHierarchies(mounts []*mountinfo.Info) hierarchies {
	var h hierarchies
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			h.unified.found(m)
			continue
		}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if hierarchy := h.of(option); hierarchy != nil {
				hierarchy.found(m)
			}
		}
	}
	return h
}

// found takes the mount that shows most, of several the first.
func (h *hierarchy) found(m *mountinfo.Info) {
	if h.mountpoint == "" || len(m.Root) < len(h.root) {
		*h = hierarchy{m.Mountpoint, m.Root}
	}
}

// dir returns the directory of a cgroup, whose name is as /proc/PID/cgroup has it.
func (h hierarchy) dir(name string) string {
	if h.mountpoint == "" {
		return ""
	}
	name = path.Clean("/" + name)
	if h.root != "/" {
		if below, ok := strings.CutPrefix(name, h.root); ok && (below == "" || below[0] == '/') {
			name = below
		}
	}
	return filepath.Join(h.mountpoint, name)
}

func (h hierarchies) v1() bool { return h.memory.mountpoint != "" || h.cpuacct.mountpoint != "" }

// OfProcess returns the cgroup of a process. It is ErrNotFound when there is
// no such process. A cgroup namespace of the process plays no role.
func OfProcess(pid int) (Cgroup, error) {
	h, err := system()
	if err != nil {
		return Cgroup{}, err
	}
	b, done, err := anywhere.small("/proc/" + strconv.Itoa(pid) + "/cgroup")
	defer done()
	if err != nil {
		return Cgroup{}, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	c, err := h.ofProcess(b)
	if err != nil {
		return Cgroup{}, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	return c, nil
}

// ofProcess takes a /proc/PID/cgroup, see cgroups(7).
func (h hierarchies) ofProcess(file []byte) (Cgroup, error) {
	names := map[string]string{} // by controller; "" is the unified hierarchy
	lines := bufio.NewScanner(bytes.NewReader(file))
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) != 3 {
			return Cgroup{}, fmt.Errorf("line %q: %w", lines.Text(), errdefs.ErrDataLoss)
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			names[controller] = fields[2]
		}
	}
	unified, hasUnified := names[""]
	if !h.v1() {
		if !hasUnified {
			return Cgroup{}, fmt.Errorf("not in the cgroup v2 hierarchy: %w", errdefs.ErrNotFound)
		}
		return Cgroup{unified: h.unified.dir(unified)}, nil
	}
	c := Cgroup{v1: h.v1Dirs(func(controller string) string { return names[controller] })}
	// A process that was not moved in the unified hierarchy is there with its
	// parent: whose pressure that is, is not known.
	if hasUnified && unified == names["memory"] && unified != "/" {
		c.unified = h.unified.dir(unified)
	}
	return c, nil
}

// OfPath returns the cgroup with a path relative to the hierarchies' roots, e.g. a pod's cgroup_parent (cgroupfs) or
// an expanded slice (systemd: pass the slice's name). Whether it is there is seen when it is read.
func OfPath(path string, systemd bool) Cgroup {
	h, err := system()
	if err != nil {
		return Cgroup{}
	}
	if systemd {
		path = slicePath(path)
	}
	return h.ofPath(path)
}

func (h hierarchies) ofPath(name string) Cgroup {
	c := Cgroup{unified: h.unified.dir(name)}
	if h.v1() {
		c.v1 = h.v1Dirs(func(string) string { return name })
	}
	return c
}

// v1Dirs returns the directories of a cgroup, whose name each controller has its own of.
func (h hierarchies) v1Dirs(name func(controller string) string) v1Dirs {
	return v1Dirs{
		cpu:     h.cpu.dir(name("cpu")),
		cpuacct: h.cpuacct.dir(name("cpuacct")),
		memory:  h.memory.dir(name("memory")),
		pids:    h.pids.dir(name("pids")),
		blkio:   h.blkio.dir(name("blkio")),
		hugetlb: h.hugetlb.dir(name("hugetlb")),
	}
}

// Name returns the name that the cgroup has in its hierarchy (that of the
// memory controller, if there are several), e.g. "/kubepods/pod1/c1".
func (c Cgroup) Name() string {
	h, err := system()
	if err != nil {
		return ""
	}
	return h.name(c)
}

func (h hierarchies) name(c Cgroup) string {
	at, dir := h.unified, c.unified
	if c.v1.memory != "" {
		at, dir = h.memory, c.v1.memory
	}
	below, _ := strings.CutPrefix(dir, at.mountpoint)
	return path.Join("/", below)
}

// slicePath returns where systemd has a slice: a-b.slice is in a.slice
// (systemd.slice(5)); -.slice is the root.
func slicePath(slice string) string {
	name, ok := strings.CutSuffix(path.Base(slice), ".slice")
	if !ok {
		return slice
	}
	if name == "-" {
		return "/"
	}
	at := "/"
	for i := range len(name) + 1 {
		if i == len(name) || name[i] == '-' {
			at = path.Join(at, name[:i]+".slice")
		}
	}
	return at
}
