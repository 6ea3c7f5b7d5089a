package stats

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

func mount(fstype, root, mountpoint, options string) *mountinfo.Info {
	return &mountinfo.Info{FSType: fstype, Root: root, Mountpoint: mountpoint, VFSOptions: options}
}

var (
	pure   = findHierarchies([]*mountinfo.Info{mount("cgroup2", "/", "/sys/fs/cgroup", "rw,nsdelegate")})
	hybrid = findHierarchies([]*mountinfo.Info{
		mount("cgroup2", "/", "/sys/fs/cgroup/unified", "rw"),
		mount("cgroup", "/", "/sys/fs/cgroup/systemd", "rw,name=systemd"),
		mount("cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct"),
		mount("cgroup", "/", "/sys/fs/cgroup/memory", "rw,memory"),
		mount("cgroup", "/kubepods/x", "/var/lib/elsewhere", "rw,memory"),
		mount("cgroup", "/", "/sys/fs/cgroup/pids", "rw,pids"),
		mount("cgroup", "/", "/sys/fs/cgroup/blkio", "rw,blkio"),
		mount("cgroup", "/", "/sys/fs/cgroup/hugetlb", "rw,hugetlb"),
	})
	// hybridDirs are those of one name in all hierarchies.
	hybridDirs = func(name string) v1Dirs {
		return v1Dirs{
			cpu: "/sys/fs/cgroup/cpu,cpuacct" + name, cpuacct: "/sys/fs/cgroup/cpu,cpuacct" + name, memory: "/sys/fs/cgroup/memory" + name,
			pids: "/sys/fs/cgroup/pids" + name, blkio: "/sys/fs/cgroup/blkio" + name, hugetlb: "/sys/fs/cgroup/hugetlb" + name,
		}
	}
	// In a container without a cgroup namespace.
	nested = findHierarchies([]*mountinfo.Info{
		mount("cgroup", "/docker/abc", "/sys/fs/cgroup/cpuacct", "rw,cpuacct"),
		mount("cgroup", "/docker/abc", "/sys/fs/cgroup/memory", "rw,memory"),
	})
)

func TestOfProcessFile(t *testing.T) {
	for name, test := range map[string]struct {
		h    hierarchies
		file string
		want Cgroup
	}{
		"v2": {pure, "0::/kubepods/pod1/c1\n", Cgroup{unified: "/sys/fs/cgroup/kubepods/pod1/c1"}},
		"v1": {hybrid, "11:hugetlb:/p/c1\n10:blkio:/p/c1\n9:name=systemd:/c1\n8:pids:/p/c1\n4:memory:/p/c1\n2:cpu,cpuacct:/p/c1\n0::/p/c1\n", Cgroup{
			unified: "/sys/fs/cgroup/unified/p/c1",
			v1:      hybridDirs("/p/c1"),
		}},
		"left in the unified hierarchy": {hybrid, "11:hugetlb:/c1\n10:blkio:/c1\n8:pids:/c1\n4:memory:/c1\n2:cpu,cpuacct:/c1\n0::/system.slice/shim\n", Cgroup{
			v1: hybridDirs("/c1"),
		}},
		"colons": {pure, "0::/a:b:c\n", Cgroup{unified: "/sys/fs/cgroup/a:b:c"}},
		"nested": {nested, "4:memory:/docker/abc/c1\n2:cpuacct:/docker/abc/c1\n", Cgroup{
			v1: v1Dirs{cpuacct: "/sys/fs/cgroup/cpuacct/c1", memory: "/sys/fs/cgroup/memory/c1"},
		}},
	} {
		got, err := test.h.ofProcess([]byte(test.file))
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, test.want)
		}
	}
	for name, file := range map[string]string{"damaged": "0\n", "not in v2": "1:name=systemd:/\n"} {
		if got, err := pure.ofProcess([]byte(file)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestOfPathStaysBelow(t *testing.T) {
	for path, want := range map[string]string{
		"kubepods/pod1": "/sys/fs/cgroup/kubepods/pod1", "/kubepods": "/sys/fs/cgroup/kubepods",
		"": "/sys/fs/cgroup", "../../../etc": "/sys/fs/cgroup/etc",
	} {
		if got := pure.ofPath(path); got != (Cgroup{unified: want}) {
			t.Errorf("%q: %+v, want %s", path, got, want)
		}
	}
	want := Cgroup{"/sys/fs/cgroup/unified/p", hybridDirs("/p")}
	if got := hybrid.ofPath("/p"); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestSlicePath(t *testing.T) {
	for slice, want := range map[string]string{
		"kubepods.slice":                            "/kubepods.slice",
		"kubepods-besteffort-pod1_2.slice":          "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
		"/kubepods.slice/kubepods-besteffort.slice": "/kubepods.slice/kubepods-besteffort.slice",
		"-.slice":                   "/",
		"system.slice/crio.service": "system.slice/crio.service",
	} {
		if got := slicePath(slice); got != want {
			t.Errorf("%s: %s, want %s", slice, got, want)
		}
	}
}

func TestName(t *testing.T) {
	for name, test := range map[string]struct {
		h    hierarchies
		c    Cgroup
		want string
	}{
		"v2":     {pure, pure.ofPath("kubepods/pod1"), "/kubepods/pod1"},
		"hybrid": {hybrid, hybrid.ofPath("/kubepods/pod1"), "/kubepods/pod1"},
		"root":   {pure, pure.ofPath("/"), "/"},
	} {
		if got := test.h.name(test.c); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}
