package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxDevices limits the devices of one container.
const maxDevices = 4096

// devices fills in the nodes to make and what the device cgroup allows. That is nothing but what the request asks for: the
// nodes that every container has (/dev/null, /dev/zero, ... terminals) are added, with their rules, by the OCI runtime.
func (b *builder) devices(s *specs.Spec) error {
	privileged := b.sc.GetPrivileged()
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
	at := map[string]int{} // index in s.Linux.Devices
	if privileged {
		found, err := b.Host.Lookup.Devices("/dev", maxDevices)
		if err != nil {
			return invalid("linux.security_context.privileged", "list /dev of the host: %s", reason(err))
		}
		for _, d := range found {
			addDevice(s, at, "/dev"+d.Path, d)
		}
	}
	for i, d := range b.Container.GetDevices() {
		field := item("devices", i)
		found, err := b.Host.Lookup.Devices(d.GetHostPath(), maxDevices)
		if err != nil {
			return invalid(field+".host_path", "%s: %s", show(d.GetHostPath()), reason(err))
		}
		if len(found) == 0 {
			return invalid(field+".host_path", "%s is neither a device nor a directory with devices", show(d.GetHostPath()))
		}
		dest := path.Clean(d.GetContainerPath())
		for _, f := range found {
			addDevice(s, at, dest+f.Path, f)
			if !privileged {
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
					Allow: true, Type: f.Type, Major: &f.Major, Minor: &f.Minor, Access: d.GetPermissions(),
				})
			}
		}
		if len(s.Linux.Devices) > maxDevices {
			return invalid(field, "with it there are more than %d devices", maxDevices)
		}
	}
	return nil
}

// addDevice adds a node; of two for one path the last wins.
func addDevice(s *specs.Spec, at map[string]int, dest string, d Device) {
	node := specs.LinuxDevice{
		Path: dest, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &d.Mode, UID: &d.UID, GID: &d.GID,
	}
	if i, ok := at[dest]; ok {
		s.Linux.Devices[i] = node
		return
	}
	at[dest] = len(s.Linux.Devices)
	s.Linux.Devices = append(s.Linux.Devices, node)
}

// devices judges what can be known of the devices without looking at the host.
func (c *check) devices() error {
	if err := checkCount("devices", len(c.cfg.GetDevices())); err != nil {
		return err
	}
	for i, d := range c.cfg.GetDevices() {
		field := item("devices", i)
		if err := checkAbs(field+".host_path", d.GetHostPath()); err != nil {
			return err
		}
		if err := checkAbs(field+".container_path", d.GetContainerPath()); err != nil {
			return err
		}
		dest := path.Clean(d.GetContainerPath())
		if dest == "/" || below(dest, "/proc") || below(dest, "/sys") {
			return invalid(field+".container_path", "%s cannot be a device", show(dest))
		}
		p := d.GetPermissions()
		if p == "" || len(p) > 3 || strings.Trim(p, "rwm") != "" {
			return invalid(field+".permissions", `%s is not made of "r", "w" and "m"`, show(p))
		}
	}
	return nil
}
