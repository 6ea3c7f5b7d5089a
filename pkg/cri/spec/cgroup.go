package spec

import (
	"path"
	"strings"
)

// What our cgroups are called: criserver-<id>, and with systemd criserver-<id>.scope.
const cgroupPrefix = "criserver"

// CgroupsPath is the OCI linux.cgroupsPath of a container or of a pod's init: "<parent>/criserver-<id>" with cgroupfs,
// "<slice>:criserver:<id>" with systemd. An empty parent means "/criserver" or "system.slice". With systemd the parent
// is a slice or, as the kubelet has it, the path of one: "/kubepods.slice/kubepods-pod1.slice".
func CgroupsPath(parent, id string, systemd bool) (string, error) {
	if err := checkCgroupParent(parent); err != nil {
		return "", err
	}
	if !systemd {
		if parent == "" {
			parent = "/" + cgroupPrefix
		}
		return path.Join("/", parent, cgroupPrefix+"-"+id), nil
	}
	if parent == "" {
		parent = "system.slice"
	}
	for part := range strings.SplitSeq(strings.Trim(parent, "/"), "/") {
		if !strings.HasSuffix(part, ".slice") {
			return "", invalid("linux.cgroup_parent", "%s is no slice, which the systemd cgroup driver needs", show(parent))
		}
	}
	return path.Base(parent) + ":" + cgroupPrefix + ":" + id, nil
}

// checkCgroupParent judges what holds for both cgroup drivers. ":" separates the parts of systemd's form.
func checkCgroupParent(parent string) error {
	const field = "linux.cgroup_parent"
	if err := checkText(field, parent, maxPath-1); err != nil {
		return err
	}
	if strings.ContainsAny(parent, ": ") {
		return invalid(field, `%s has a ":" or a space`, show(parent))
	}
	if parent != "" && parent != "/" {
		for part := range strings.SplitSeq(strings.TrimPrefix(parent, "/"), "/") {
			if part == "" || part == "." || part == ".." || len(part) > 255 {
				return invalid(field, "%s is no clean path", show(parent))
			}
		}
	}
	return nil
}
