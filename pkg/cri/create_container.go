package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer makes the container and does not start it. The pod's configuration is the one that the pod was run
// with; the copy in the request is not looked at.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if r.GetConfig() == nil {
		return nil, invalid("config is missing")
	}
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if _, err := s.checkImage("config.image", r.GetConfig().GetImage()); err != nil {
		return nil, err
	}
	for i, m := range r.GetConfig().GetMounts() {
		if err := s.checkHandler(fmt.Sprintf("config.mounts[%d].image.runtime_handler", i), m.GetImage().GetRuntimeHandler()); err != nil {
			return nil, err
		}
	}
	id, err := s.sandboxes.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}
