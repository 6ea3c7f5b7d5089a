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
	if err := s.checkImages("config", r.GetConfig()); err != nil {
		return nil, err
	}
	id, err := s.sandboxes.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// checkImages judges the names of the images of a container: its own, and those that are volumes.
func (s *Server) checkImages(field string, c *runtimeapi.ContainerConfig) error {
	if _, err := s.checkImage(field+".image", c.GetImage()); err != nil {
		return err
	}
	for i, m := range c.GetMounts() {
		if err := s.checkHandler(fmt.Sprintf("%s.mounts[%d].image.runtime_handler", field, i), m.GetImage().GetRuntimeHandler()); err != nil {
			return err
		}
	}
	return nil
}
