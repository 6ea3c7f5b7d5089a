package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// update changes the resources that r names, all or none. The container's
// config.json has the new ones after, so that the next update starts from them.
func (s *Shim) update(id string, r *specs.LinuxResources) error {
	c, err := s.lock(id)
	if err != nil {
		return err
	}
	defer c.op.Unlock()
	if _, err := c.alive(); err != nil {
		return err
	}
	lc, err := s.load(c)
	if err != nil {
		return err
	}
	var spec specs.Spec
	path := filepath.Join(s.dir(id), configFile)
	if err := readJSON(path, &spec); err != nil {
		return err
	}
	if err := merge(&spec, r); err != nil {
		return err
	}
	changed, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: c.Args.SystemdCgroup, Spec: &spec,
	}, nil)
	if err != nil {
		return failf(wire.CodeInvalid, "resources: %w", err)
	}
	config := lc.Config()
	cgroup := *config.Cgroups
	changed.Resources.Devices = cgroup.Resources.Devices // not the update's business,
	changed.Resources.SkipDevices = true                 // nor touched, so that no device blinks
	cgroup.Resources = changed.Resources
	config.Cgroups = &cgroup
	before := readLimits(c.Cgroups, r)
	if err := lc.Set(config); err != nil {
		return errors.Join(fmt.Errorf("container %s: update resources: %w", id, err), before.restore())
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

// merge overwrites the resources of spec with those that r sets. As JSON, what r
// does not set is not there, which does for each field alike.
func merge(spec *specs.Spec, r *specs.LinuxResources) error {
	if r == nil {
		return failf(wire.CodeInvalid, "resources: none given")
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	// Without a limit there can be none with swap (runc's update does the same).
	if m := r.Memory; m != nil && m.Limit != nil && *m.Limit == -1 && m.Swap == nil && spec.Linux.Resources.Memory != nil {
		spec.Linux.Resources.Memory.Swap = nil
	}
	pages := spec.Linux.Resources.HugepageLimits
	if err := json.Unmarshal(b, spec.Linux.Resources); err != nil {
		return err
	}
	spec.Linux.Resources.HugepageLimits = mergeHugepages(pages, r.HugepageLimits)
	return nil
}

// mergeHugepages returns old with the limits of change for their page sizes.
func mergeHugepages(old, change []specs.LinuxHugepageLimit) []specs.LinuxHugepageLimit {
	merged := slices.Clone(change)
	for _, l := range old {
		if !slices.ContainsFunc(change, func(c specs.LinuxHugepageLimit) bool { return c.Pagesize == l.Pagesize }) {
			merged = append(merged, l)
		}
	}
	return merged
}

// limits are files of cgroups with what is in them.
type limits []limit

type limit struct{ dir, file, value string }

// readLimits remembers what an update may change. libcontainer takes a failed one
// back by setting the old values anew, but an old value that was never set is the
// kernel's own, which only the files tell.
func readLimits(cgroups map[string]string, r *specs.LinuxResources) limits {
	files := map[string][]string{
		"memory": {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
		"cpu":    {"cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares"},
		"cpuset": {"cpuset.cpus", "cpuset.mems"},
		"":       {"memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems"}, // of cgroup v2
	}
	for _, l := range r.HugepageLimits {
		name := "hugetlb." + l.Pagesize
		files["hugetlb"] = append(files["hugetlb"], name+".limit_in_bytes", name+".rsvd.limit_in_bytes")
		files[""] = append(files[""], name+".max", name+".rsvd.max")
	}
	for name := range r.Unified {
		files[""] = append(files[""], name)
	}
	var out limits
	for controller, dir := range cgroups {
		for _, name := range files[controller] {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil { // not every kernel has each
				out = append(out, limit{dir, name, strings.TrimSpace(string(b))})
			}
		}
	}
	return out
}

// restore writes what has changed since. Some limits bound one another, so that
// only another turn can set what the first could not.
func (l limits) restore() error {
	var errs []error
	for range 2 {
		errs = nil
		for _, f := range l {
			path := filepath.Join(f.dir, f.file)
			if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == f.value {
				continue
			}
			// A line break, for nothing at all would not be written, and that is how a cpuset is emptied.
			if err := os.WriteFile(path, []byte(f.value+"\n"), 0); err != nil {
				errs = append(errs, fmt.Errorf("set back: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
