package spec

import (
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces fills in which namespaces to make and which to join. Network, IPC and UTS are always the pod's. A container
// that asks for the pod's PID namespace gets one of its own where the pod has none to share: POD is also what a request
// without namespace_options says.
func (b *builder) namespaces(s *specs.Spec) error {
	join := func(t specs.LinuxNamespaceType, path string) {
		if path != "" {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	own := func(t specs.LinuxNamespaceType) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	if uids, gids := Mappings(b.Pod); uids != nil {
		if b.Namespaces.User == "" {
			s.Linux.UIDMappings, s.Linux.GIDMappings = uids, gids
			own(specs.UserNamespace)
		}
		join(specs.UserNamespace, b.Namespaces.User)
	}
	own(specs.MountNamespace)
	join(specs.NetworkNamespace, b.Namespaces.Net)
	join(specs.IPCNamespace, b.Namespaces.IPC)
	join(specs.UTSNamespace, b.Namespaces.UTS)
	switch pid := b.pidMode(); {
	case pid == runtimeapi.NamespaceMode_NODE:
	case pid == runtimeapi.NamespaceMode_CONTAINER || b.Namespaces.PID == "":
		own(specs.PIDNamespace)
	default:
		join(specs.PIDNamespace, b.Namespaces.PID)
	}
	if b.Host.CgroupV2 && !b.sc.GetPrivileged() {
		own(specs.CgroupNamespace)
	}
	return nil
}

// pidMode is the container's or, if it says nothing, the pod's.
func (b *builder) pidMode() runtimeapi.NamespaceMode {
	if o := b.sc.GetNamespaceOptions(); o != nil {
		return o.GetPid()
	}
	return podOptions(b.Pod).GetPid()
}

// Mappings are those of the pod's user namespace, nil if it has none. Root filesystems are mounted with them.
func Mappings(cfg *runtimeapi.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping) {
	u := podOptions(cfg).GetUsernsOptions()
	if u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD {
		return nil, nil
	}
	return idMappings(u.GetUids()), idMappings(u.GetGids())
}

func idMappings(ms []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range ms {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// mapped says whether the ID of the container has a counterpart on the host.
func mapped(id uint32, ms []specs.LinuxIDMapping) bool {
	for _, m := range ms {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return true
		}
	}
	return false
}

func podOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// HostNetwork says whether the pod uses the network of the host.
func HostNetwork(cfg *runtimeapi.PodSandboxConfig) bool {
	return podOptions(cfg).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// HostIPC says whether the pod uses the IPC namespace of the host, with its /dev/shm.
func HostIPC(cfg *runtimeapi.PodSandboxConfig) bool {
	return podOptions(cfg).GetIpc() == runtimeapi.NamespaceMode_NODE
}

const fieldNamespaces = "linux.security_context.namespace_options"

// checkPodNamespaces accepts the modes that the CRI gives a meaning for a pod.
func checkPodNamespaces(o *runtimeapi.NamespaceOption) error {
	if err := checkShared(o); err != nil {
		return err
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	default:
		return invalid(fieldNamespaces+".pid", "%s has no meaning for a pod", o.GetPid())
	}
	if o.GetTargetId() != "" {
		return invalid(fieldNamespaces+".target_id", "is only for containers")
	}
	return checkUserns(o)
}

// checkShared judges network and IPC, which are shared within a pod by definition.
func checkShared(o *runtimeapi.NamespaceOption) error {
	for field, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			return invalid(fieldNamespaces+"."+field, "%s is not possible; use POD or NODE", mode)
		}
	}
	return nil
}

// checkUserns wants one mapping of user IDs and one of group IDs that begin with ID 0 of the container. A user namespace
// owns the PID and IPC namespaces made with it; /proc and /dev/mqueue of the host's cannot be mounted from within it.
func checkUserns(o *runtimeapi.NamespaceOption) error {
	const field = fieldNamespaces + ".userns_options"
	u := o.GetUsernsOptions()
	if u == nil {
		return nil
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids()) > 0 || len(u.GetGids()) > 0 {
			return invalid(field, "mappings are only for mode POD")
		}
		return nil
	case runtimeapi.NamespaceMode_POD:
	default:
		return invalid(field+".mode", "%s is not possible; use POD or NODE", u.GetMode())
	}
	for i, list := range [][]*runtimeapi.IDMapping{u.GetUids(), u.GetGids()} {
		f := field + []string{".uids", ".gids"}[i]
		if len(list) != 1 {
			return invalid(f, "%d mappings are given; exactly one is possible", len(list))
		}
		if err := checkMappings(f, list); err != nil {
			return err
		}
		if list[0].GetContainerId() != 0 {
			return invalid(f, "begins with ID %d of the container; it must begin with 0", list[0].GetContainerId())
		}
	}
	if o.GetPid() == runtimeapi.NamespaceMode_NODE || o.GetIpc() == runtimeapi.NamespaceMode_NODE {
		return invalid(field, "cannot be combined with the PID or IPC namespace of the host")
	}
	return nil
}

// checkMappings refuses empty ranges and those that go beyond 32 bits.
func checkMappings(field string, ms []*runtimeapi.IDMapping) error {
	if len(ms) > maxIDMaps {
		return invalid(field, "%d mappings; the kernel takes %d", len(ms), maxIDMaps)
	}
	for i, m := range ms {
		n := uint64(m.GetLength())
		if n == 0 || uint64(m.GetHostId())+n > math.MaxUint32 || uint64(m.GetContainerId())+n > math.MaxUint32 {
			return invalid(item(field, i), "host_id %d, container_id %d, length %d is no range of IDs",
				m.GetHostId(), m.GetContainerId(), m.GetLength())
		}
	}
	return nil
}

// namespaces accepts what fits the pod: a container has a namespace of the host only where its pod has it, and the pod's
// user namespace.
func (c *check) namespaces() error {
	o, pod := c.sc.GetNamespaceOptions(), podOptions(c.pod)
	if o == nil {
		return nil
	}
	if err := checkShared(o); err != nil {
		return err
	}
	const node = runtimeapi.NamespaceMode_NODE
	for _, m := range []struct {
		field    string
		own, pod runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork(), pod.GetNetwork()}, {"ipc", o.GetIpc(), pod.GetIpc()}, {"pid", o.GetPid(), pod.GetPid()}} {
		if m.own == node && m.pod != node {
			return invalid(fieldNamespaces+"."+m.field, "NODE is only possible in a pod that has NODE too")
		}
	}
	switch _, known := runtimeapi.NamespaceMode_name[int32(o.GetPid())]; {
	case !known:
		return invalid(fieldNamespaces+".pid", "unknown mode %d", o.GetPid())
	case o.GetPid() == runtimeapi.NamespaceMode_TARGET && o.GetTargetId() == "":
		return invalid(fieldNamespaces+".target_id", "is missing for pid TARGET")
	case o.GetPid() != runtimeapi.NamespaceMode_TARGET && o.GetTargetId() != "":
		return invalid(fieldNamespaces+".target_id", "is only for pid TARGET")
	}
	if err := checkUserns(o); err != nil {
		return err
	}
	if !sameUserns(o.GetUsernsOptions(), pod.GetUsernsOptions()) {
		return invalid(fieldNamespaces+".userns_options", "differs from the pod's")
	}
	return nil
}

// sameUserns compares; nil is the same as NODE.
func sameUserns(a, b *runtimeapi.UserNamespace) bool {
	node := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	if a == nil {
		a = node
	}
	if b == nil {
		b = node
	}
	return proto.Equal(a, b)
}
