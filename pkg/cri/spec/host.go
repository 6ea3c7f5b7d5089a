package spec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// DetectHost looks at the machine. A hybrid layout, where cgroup v2 is mounted but has no controllers of use, is v1.
func DetectHost() (Host, error) {
	h := Host{CgroupV2: cgroups.IsCgroup2UnifiedMode(), HugePageSizes: cgroups.HugePageSizes()}
	var err error
	if h.CgroupV2 {
		h.Controllers, err = controllersV2(cgroupRoot)
		h.SwapAccounting = h.Controllers["memory"] && swapV2(cgroupRoot)
	} else {
		h.Controllers, h.SwapAccounting, err = controllersV1("/proc/cgroups")
	}
	if err != nil {
		return Host{}, fmt.Errorf("cgroup controllers: %w", err)
	}
	if h.Capabilities, err = boundingSet(); err != nil {
		return Host{}, fmt.Errorf("capabilities: %w", err)
	}
	if h.MinOOMScoreAdj, err = minOOMScoreAdj(); err != nil {
		return Host{}, fmt.Errorf("oom_score_adj: %w", err)
	}
	// With a filter at a null address a kernel that has seccomp filters answers EFAULT, one without EINVAL.
	h.Seccomp = errors.Is(unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0), unix.EFAULT)
	h.MountSetattr = !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
	h.SELinux = exists("/sys/fs/selinux/enforce")
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.AppArmor = strings.HasPrefix(string(enabled), "Y") && exists("/sys/kernel/security/apparmor")
	return h, nil
}

// controllersV2 reads what the root of the hierarchy can hand down.
func controllersV2(root string) (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for c := range strings.FieldsSeq(string(text)) {
		out[c] = true
	}
	return out, nil
}

// swapV2 looks for the file that limits swap. The root has none, so it takes a cgroup below; without one to look at, a
// kernel that can swap accounts for it.
func swapV2(root string) bool {
	if limits, _ := filepath.Glob(root + "/*/memory.max"); len(limits) > 0 {
		return slices.ContainsFunc(limits, func(l string) bool { return exists(filepath.Join(filepath.Dir(l), "memory.swap.max")) })
	}
	return exists("/proc/swaps")
}

// controllersV1 finds the controllers that the kernel has (proc: /proc/cgroups) and that are mounted, and whether the one
// for memory counts swap.
func controllersV1(proc string) (controllers map[string]bool, swap bool, err error) {
	text, err := os.ReadFile(proc)
	if err != nil {
		return nil, false, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return nil, false, err
	}
	controllers = map[string]bool{}
	for line := range strings.Lines(string(text)) {
		// subsys_name hierarchy num_cgroups enabled
		f := strings.Fields(line)
		if len(f) != 4 || f[3] != "1" {
			continue
		}
		for _, m := range mounts {
			if !slices.Contains(strings.Split(m.VFSOptions, ","), f[0]) {
				continue
			}
			controllers[f[0]] = true
			swap = swap || (f[0] == "memory" && exists(filepath.Join(m.Mountpoint, "memory.memsw.limit_in_bytes")))
		}
	}
	return controllers, swap, nil
}

// boundingSet lists the capabilities that our children can have, sorted.
func boundingSet() ([]string, error) {
	known, err := capability.ListSupported()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range known {
		ok, err := capability.GetBound(c)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// minOOMScoreAdj is the lowest value that we may set (proc_pid_oom_score_adj(5)).
func minOOMScoreAdj() (int, error) {
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return 0, err
	}
	if caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		return -1000, nil
	}
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
