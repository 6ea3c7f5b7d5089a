package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Init is who the pod's init is and what confines it, by the pod's security context. The init has neither capabilities
// nor a file system to write to, whatever that says, and no image whose groups could be merged in.
type Init struct {
	UID, GID *uint32             // of the pod's user namespace; nil: the context leaves it open
	Groups   []uint32            // supplemental ones
	Seccomp  *specs.LinuxSeccomp // nil: unconfined
}

// BuildInit returns what the init of a pod is to be that CheckPod accepted. Its errors are ErrInvalidArgument and name the
// CRI field at fault.
func BuildInit(cfg *runtimeapi.PodSandboxConfig, h Host, d Defaults) (out Init, err error) {
	sc := cfg.GetLinux().GetSecurityContext()
	uids, gids := Mappings(cfg)
	if out.UID, err = initID("run_as_user", sc.GetRunAsUser(), uids); err != nil {
		return Init{}, err
	}
	if out.GID, err = initID("run_as_group", sc.GetRunAsGroup(), gids); err != nil {
		return Init{}, err
	}
	for i, g := range sc.GetSupplementalGroups() {
		id, err := initID(item("supplemental_groups", i), &runtimeapi.Int64Value{Value: g}, gids)
		if err != nil {
			return Init{}, err
		}
		out.Groups = append(out.Groups, *id)
	}
	if h.Lookup == nil {
		h.Lookup = machine{}
	}
	b := builder{Input: Input{Host: h, Defaults: d}, sc: &runtimeapi.LinuxContainerSecurityContext{
		Seccomp: sc.GetSeccomp(), SeccompProfilePath: sc.GetSeccompProfilePath(),
	}}
	none := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	if out.Seccomp, err = b.seccomp(none); err != nil {
		return Init{}, err
	}
	return out, nil
}

// initID wants an ID that the pod's user namespace, if it has one, maps.
func initID(field string, given *runtimeapi.Int64Value, ms []specs.LinuxIDMapping) (*uint32, error) {
	if given == nil {
		return nil, nil
	}
	id := uint32(given.GetValue()) // fits: checkIDs
	if len(ms) > 0 && !mapped(id, ms) {
		return nil, invalid("linux.security_context."+field, "%d is not in the mapping of the pod's user namespace", id)
	}
	return &id, nil
}
