package spec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// procMounts are the only files below /proc that may be mounted: those that lxcfs stands in for. The list is the one of
// the OCI runtime, which refuses all others.
var procMounts = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
	"/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

// mounts lists all mounts, parents before what lies below them. A mount of the request takes the place of ours at the
// same path and, as containerd has it, hides our kernel filesystems below it: whoever mounts /dev gets all of it.
func (b *builder) mounts(s *specs.Spec) error {
	asked := make(map[string]bool, len(b.Container.GetMounts()))
	for _, m := range b.Container.GetMounts() {
		asked[path.Clean(m.GetContainerPath())] = true
	}
	covered := func(dest string) bool {
		for ; dest != "/"; dest = path.Dir(dest) {
			if asked[dest] {
				return true
			}
		}
		return false
	}
	out := make([]specs.Mount, 0, 12+len(asked)+len(b.Volumes))
	kernel, err := b.kernelMounts()
	if err != nil {
		return err
	}
	for _, m := range kernel {
		if !covered(m.Destination) {
			out = append(out, m)
		}
	}
	for _, m := range b.fileMounts() {
		if !asked[m.Destination] {
			out = append(out, m)
		}
	}
	for _, dest := range slices.Sorted(maps.Keys(b.Volumes)) {
		if !asked[dest] {
			out = append(out, bind(b.Volumes[dest], dest, "rw"))
		}
	}
	for i, m := range b.Container.GetMounts() {
		mount, err := b.mount(s, item("mounts", i), m)
		if err != nil {
			return err
		}
		out = append(out, mount)
	}
	slices.SortStableFunc(out, func(x, y specs.Mount) int {
		return cmp.Compare(strings.Count(x.Destination, "/"), strings.Count(y.Destination, "/"))
	})
	s.Mounts = out
	return nil
}

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// kernelMounts are the filesystems that the kernel provides (OCI runtime spec, config-linux, "Default Filesystems").
func (b *builder) kernelMounts() ([]specs.Mount, error) {
	access, cgroups := "ro", "ro"
	if b.sc.GetPrivileged() {
		access = "rw"
	}
	writable, err := b.Handler.writableCgroups(b.Pod)
	if err != nil {
		return nil, err
	}
	if b.sc.GetPrivileged() || writable && b.Host.CgroupV2 {
		cgroups = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}
	uids, gids := Mappings(b.Pod)
	if uids != nil && !mapped(5, gids) {
		pts = pts[:len(pts)-1]
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if uids != nil && HostNetwork(b.Pod) {
		// sysfs shows the devices of a network namespace; only the user namespace that owns it may mount it.
		sys = bind("/sys", "/sys", "nosuid", "noexec", "nodev", "ro", "rro")
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		sys,
	}
	if sys.Type == "sysfs" && access == "rw" {
		// All mounts of a network namespace have one superblock, which is read-only if that of the pod's first container was.
		sys.Options = append([]string{"remount"}, sys.Options...)
		mounts = append(mounts, sys)
	}
	return append(mounts, []specs.Mount{
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroups}},
	}...), nil
}

// fileMounts are the files of the pod. /dev/shm keeps the flags of its filesystem: a remount that does not name them
// clears them.
func (b *builder) fileMounts() []specs.Mount {
	access := "rw"
	if b.sc.GetReadonlyRootfs() {
		access = "ro"
	}
	shm := b.Files.Shm
	if HostIPC(b.Pod) {
		shm = "/dev/shm"
	}
	var out []specs.Mount
	for _, f := range []struct{ source, dest string }{
		{b.Files.Hosts, "/etc/hosts"}, {b.Files.Hostname, "/etc/hostname"}, {b.Files.ResolvConf, "/etc/resolv.conf"},
	} {
		if f.source != "" {
			out = append(out, bind(f.source, f.dest, access))
		}
	}
	if shm != "" {
		out = append(out, bind(shm, "/dev/shm", "nosuid", "noexec", "nodev", "rw"))
	}
	return out
}

// mount translates one mount of the request and widens the propagation of the root if the mount needs it.
func (b *builder) mount(s *specs.Spec, field string, m *runtimeapi.Mount) (specs.Mount, error) {
	dest := path.Clean(m.GetContainerPath())
	out := specs.Mount{
		Destination: dest, Type: "bind",
		UIDMappings: idMappings(m.GetUidMappings()), GIDMappings: idMappings(m.GetGidMappings()),
	}
	propagation := "rprivate"
	if IsImage(m) {
		dir, ok := b.Volumes[dest]
		if !ok {
			return out, imageError(invalid(field+".image", "image %s is not mounted", show(m.GetImage().GetImage())))
		}
		out.Source = dir
		out.UIDMappings, out.GIDMappings = nil, nil // it is mounted with the pod's, which are the same: checkImage
	} else {
		source, err := b.Host.Lookup.Resolve(m.GetHostPath())
		if err != nil {
			return out, invalid(field+".host_path", "%s: %s", show(m.GetHostPath()), reason(err))
		}
		out.Source = source
		if propagation, err = b.propagation(s, field, source, m.GetPropagation()); err != nil {
			return out, err
		}
	}
	out.Options = []string{"rbind", propagation}
	switch {
	case m.GetRecursiveReadOnly() && !b.Host.MountSetattr:
		return out, &RROUnsupportedError{invalid(field+".recursive_read_only", "the kernel of this host cannot do it (Linux 5.12 can)")}
	case m.GetRecursiveReadOnly():
		out.Options = append(out.Options, "ro", "rro")
	case m.GetReadonly() || IsImage(m):
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(out.Options, o) {
			out.Options = append(out.Options, o)
		}
	}
	return out, nil
}

// propagation gives the option of mount(8) for the mode asked for, and makes sure that the source can do it.
func (b *builder) propagation(s *specs.Spec, field, source string, mode runtimeapi.MountPropagation) (string, error) {
	if mode == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		for _, root := range b.Defaults.StorageRoots {
			if below(path.Clean(root), source) {
				return "rslave", nil
			}
		}
		return "rprivate", nil
	}
	shared, slave, err := b.Host.Lookup.Propagation(source)
	if err != nil {
		return "", invalid(field+".propagation", "%s: %s", show(source), reason(err))
	}
	if mode == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		if !shared {
			return "", invalid(field+".propagation", "%s is not on a shared mount of the host", show(source))
		}
		s.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	}
	if !shared && !slave {
		return "", invalid(field+".propagation", "%s is not on a shared or slave mount of the host", show(source))
	}
	if s.Linux.RootfsPropagation == "" {
		s.Linux.RootfsPropagation = "rslave"
	}
	return "rslave", nil
}

// reason is the cause of a failure without the path, which the message has already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// VolumePaths lists the VOLUMEs of the image that no mount of the request covers, clean and sorted; each wants a
// directory in Input.Volumes. What an image may not have as a volume is an error.
func VolumePaths(image *ocispec.Image, cfg *runtimeapi.ContainerConfig) ([]string, error) {
	const field = "VOLUME of the image"
	if image == nil {
		return nil, nil
	}
	if err := checkCount(field, len(image.Config.Volumes)); err != nil {
		return nil, err
	}
	asked := make(map[string]bool)
	for _, m := range cfg.GetMounts() {
		asked[path.Clean(m.GetContainerPath())] = true
	}
	var out []string
	for v := range image.Config.Volumes {
		dest := path.Clean("/" + v) // a relative VOLUME is meant from the root, and ".." ends there
		if err := checkText(field, v, maxPath-1); err != nil {
			return nil, err
		}
		if err := checkDestination(field, dest); err != nil {
			return nil, err
		}
		if !asked[dest] {
			out = append(out, dest)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// checkDestination refuses to mount over the root or into /proc.
func checkDestination(field, dest string) error {
	switch {
	case dest == "/":
		return invalid(field, "the root filesystem cannot be mounted over")
	case below(dest, "/proc") && !slices.Contains(procMounts, dest):
		return invalid(field, "%s: /proc and what lies below it cannot be mounted over", show(dest))
	}
	return nil
}

// mounts judges what can be known of the mounts without looking at the host.
func (c *check) mounts() error {
	if err := checkCount("mounts", len(c.cfg.GetMounts())); err != nil {
		return err
	}
	seen := make(map[string]int, len(c.cfg.GetMounts()))
	for i, m := range c.cfg.GetMounts() {
		field := item("mounts", i)
		if err := checkAbs(field+".container_path", m.GetContainerPath()); err != nil {
			return err
		}
		dest := path.Clean(m.GetContainerPath())
		if err := checkDestination(field+".container_path", dest); err != nil {
			return err
		}
		if j, ok := seen[dest]; ok {
			return invalid(field+".container_path", "%s is that of mounts[%d] too", show(dest), j)
		}
		seen[dest] = i
		if err := c.source(field, m); err != nil {
			return err
		}
		if err := checkMountFlags(field, m); err != nil {
			return err
		}
	}
	return nil
}

// source wants a path of the host or an image, and not both.
func (c *check) source(field string, m *runtimeapi.Mount) error {
	switch {
	case IsImage(m) && m.GetHostPath() != "":
		return invalid(field+".host_path", "cannot be given together with image")
	case IsImage(m):
		return imageError(c.image(field, m))
	case m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "needs image")
	}
	return checkAbs(field+".host_path", m.GetHostPath())
}

// image judges a mount whose source is an image.
func (c *check) image(field string, m *runtimeapi.Mount) error {
	if err := checkText(field+".image.image", m.GetImage().GetImage(), maxPath); err != nil {
		return err
	}
	if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return invalid(field+".propagation", "an image has no mounts to propagate")
	}
	uids, gids := Mappings(c.pod)
	if own := idMappings(m.GetUidMappings()); own != nil && !slices.Equal(own, uids) {
		return invalid(field+".uidMappings", "an image can only be mapped as the pod is")
	}
	if own := idMappings(m.GetGidMappings()); own != nil && !slices.Equal(own, gids) {
		return invalid(field+".gidMappings", "an image can only be mapped as the pod is")
	}
	if sub := m.GetImageSubPath(); path.IsAbs(sub) {
		return invalid(field+".image_sub_path", "%s is not relative", show(sub))
	}
	return checkPath(field+".image_sub_path", m.GetImageSubPath())
}

// IsImage says whether the source of a mount is an image.
func IsImage(m *runtimeapi.Mount) bool { return m.GetImage().GetImage() != "" }

// RROUnsupportedError says that this host has no recursive read-only mounts. The edge marks it for the kubelet.
type RROUnsupportedError struct{ Err error }

func (e *RROUnsupportedError) Error() string { return e.Err.Error() }

func (e *RROUnsupportedError) Unwrap() error { return e.Err }

// ImageVolumeError says that an image cannot be mounted as a volume. The edge marks it for the kubelet.
type ImageVolumeError struct{ Err error }

func (e *ImageVolumeError) Error() string { return e.Err.Error() }

func (e *ImageVolumeError) Unwrap() error { return e.Err }

func imageError(err error) error {
	if err == nil {
		return nil
	}
	return &ImageVolumeError{err}
}

// checkMountFlags judges how the source is to be mounted.
func checkMountFlags(field string, m *runtimeapi.Mount) error {
	if _, known := runtimeapi.MountPropagation_name[int32(m.GetPropagation())]; !known {
		return invalid(field+".propagation", "unknown mode %d", m.GetPropagation())
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			return invalid(field+".recursive_read_only", "needs readonly")
		}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			return invalid(field+".recursive_read_only", "needs private propagation")
		}
	}
	for i, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return invalid(fmt.Sprintf("%s.mount_options[%d]", field, i), "%s is not possible; use noexec, nodev, nosuid", show(o))
		}
	}
	if (len(m.GetUidMappings()) > 0) != (len(m.GetGidMappings()) > 0) {
		return invalid(field, "uidMappings and gidMappings need each other")
	}
	if err := checkMappings(field+".uidMappings", m.GetUidMappings()); err != nil {
		return err
	}
	return checkMappings(field+".gidMappings", m.GetGidMappings())
}
