package cri

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/sandbox"
)

// The info of verbose answers is free-form JSON, for people and for tools. The keys are those that tools look for in
// what other runtimes give.

// podInfo: pid (of the process that holds the pod's PID namespace, 0 without one), runtimeSpec.linux.namespaces (for the
// path of the network namespace), netNsClosed and netNamespaceClosed, cniResult.
func podInfo(p sandbox.Pod) (map[string]string, error) {
	closed := p.State != sandbox.PodReady
	namespaces := []specs.LinuxNamespace{}
	if p.NetNS != "" {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.NetNS})
	}
	return marshalInfo("pod "+p.ID, map[string]any{
		"pid":                p.InitPid,
		"processStatus":      p.State,
		"netNsClosed":        closed,
		"netNamespaceClosed": closed,
		"image":              sandboxImage,
		"runtimeHandler":     p.Handler,
		"config":             p.Config,
		"cniResult":          p.CNI,
		"overhead":           p.Overhead,
		"resources":          p.Resources,
		"runtimeSpec": specs.Spec{
			Version:     specs.Version,
			Hostname:    p.Config.GetHostname(),
			Annotations: p.Config.GetAnnotations(),
			Linux:       &specs.Linux{CgroupsPath: p.Config.GetLinux().GetCgroupParent(), Namespaces: namespaces},
		},
	})
}

// containerInfo: sandboxID, pid, runtimeSpec, privileged.
func (s *Server) containerInfo(c sandbox.Container) (map[string]string, error) {
	info := map[string]any{
		"sandboxID":  c.PodID,
		"pid":        c.Pid,
		"removing":   c.State == sandbox.ContainerRemoving,
		"privileged": c.Config.GetLinux().GetSecurityContext().GetPrivileged(),
		"config":     c.Config,
	}
	// A container that was not yet, or is no more, has none.
	if spec, err := s.sandboxes.Spec(c.ID); err == nil {
		info["runtimeSpec"] = spec
	}
	return marshalInfo("container "+c.ID, info)
}

func marshalInfo(object string, info map[string]any) (map[string]string, error) {
	data, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("info of %s as JSON: %w", object, err)
	}
	return map[string]string{"info": string(data)}, nil
}
